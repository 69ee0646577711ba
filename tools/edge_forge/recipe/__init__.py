"""Recipes: the schema that all share, one module of sections for each kind, and `edge-forge init`."""
