"""The MQTT connection: paho-mqtt behind the Transport port, and what waits on either side of it."""
