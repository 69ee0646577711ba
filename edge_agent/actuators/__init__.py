"""What the agent may change on its board, where the operator permits it; given back at the end."""
