"""The tasks of models: tokenise texts, shape a backend's outputs into answers. They run in the worker process."""
