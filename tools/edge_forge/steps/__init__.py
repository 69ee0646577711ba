"""The steps of a recipe, each a function from its inputs to a folder of files and a record."""
