"""The contracts as types, sans I/O: MQTT with its bytes in both directions, and the messages of the workers."""
