"""Preferences: a generator that learns which of two answers is better (DPO), exported like other generators.

A file of its own because each kind has one; it differs from `generator` in template, schema and score alone.
"""

from __future__ import annotations

import dataclasses

from edge_forge.kinds.api import Kind
from edge_forge.kinds.generator import KIND as GENERATOR
from edge_forge.recipe.generator_recipe import PREFER, PREFERENCE_SCHEMA
from edge_forge.train.generator_settings import settings
from edge_forge.train.methods import LORA

KIND: Kind = dataclasses.replace(
    GENERATOR,
    name=PREFER,
    recipe=dataclasses.replace(
        GENERATOR.recipe,
        schema=PREFERENCE_SCHEMA,
        template="prefer.toml",
        sample="preferences.jsonl",
        defaults=settings(LORA.name, False, {}, "method", preferences=True),
    ),
    score=dataclasses.replace(GENERATOR.score, title="validation loss of DPO", step="prefer-train"),
)
