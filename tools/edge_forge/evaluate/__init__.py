"""Scores and golden probes: by PyTorch, by the backends that devices run, and the gates that decide what is shipped."""
