"""paho-mqtt behind the agent's Transport port."""
