"""What every room may use: errors, causes, limits, units, readings, runtimes, the clock. No third party."""
