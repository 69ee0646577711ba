"""What every room may use: errors, limits, units, readings, the clock port. No I/O, no third party."""
