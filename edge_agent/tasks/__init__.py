"""What a model is for: tokenise, hand rows to a backend session, shape the answer. Runs in the worker child."""
