"""The rows that a recipe trains and measures on, one module for each kind, and their tokens. Loads no torch."""
