"""`edge-forge sweep`: a search for the values of a recipe that train best on its validation rows."""
