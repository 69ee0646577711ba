"""The package format: one description shared by the device and the host tool."""
