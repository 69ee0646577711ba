"""The steps of a recipe: what each needs, what it makes, and the cache that runs each once."""
