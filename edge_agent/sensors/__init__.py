"""Readers of temperature, memory, power and throttling: each parses text (pure) and reads files under a given root."""
