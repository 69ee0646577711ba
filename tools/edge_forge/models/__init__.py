"""Base models: where they come from, how they are opened, and new ones with random weights."""
