"""What devices say over MQTT as metrics for Prometheus: a process of its own, for one device or a whole broker."""
