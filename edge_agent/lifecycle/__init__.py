"""The service manager's side: readiness, watchdog, signals."""
