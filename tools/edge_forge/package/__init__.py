"""Packages from the host's side: keys, build, sign, verify, inspect. The format itself is `edge_agent.bundle`."""
