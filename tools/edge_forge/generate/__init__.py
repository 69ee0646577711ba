"""Generators: recipes, rows, training, figures and packages of language models that answer in text.

The counterpart of the modules for encoders one level up, from which it takes what is the same: the reading of recipes,
the cache, the worker process of training, signing, reports. `plan` tells the story.
"""
