"""Many devices of one broker: a table of them, and a release that goes to them in waves and returns by itself."""
