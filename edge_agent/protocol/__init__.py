"""The MQTT contract, sans I/O: topics, messages, and the two directions between bytes and values."""
