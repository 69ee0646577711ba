"""The Debian package of edge-agent, made on any Debian for any board: `make deb`."""
