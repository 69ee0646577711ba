"""A root file system is filled before it is flashed: `edge-forge provision`."""
