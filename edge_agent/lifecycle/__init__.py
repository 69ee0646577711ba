"""The agent as a service: systemd's notifications and signals, the unit files, and `doctor`."""
