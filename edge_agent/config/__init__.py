"""Settings: frozen, documented, loaded from TOML and environment; an unknown key is an error."""
