"""Readers of temperature, memory, power and throttling. Each parses text (pure) and reads under a given root (thin)."""
