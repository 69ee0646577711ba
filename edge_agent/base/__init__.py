"""What every room may use: errors, causes, limits, units, readings, traits of the runtimes, the clock. No third party."""
