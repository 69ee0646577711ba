"""Checks with other people's programs, each by a make target: too long, or too much to install, for every test run."""
