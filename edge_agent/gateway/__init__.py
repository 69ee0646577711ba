"""An OpenAI-compatible HTTP service over MQTT: a process of its own that asks devices by the client library."""
