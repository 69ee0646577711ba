"""Slots: encoders with a linear head for every token that answer labelled spans of a text, exported as ONNX graphs."""

from __future__ import annotations

import dataclasses

from edge_forge.kinds import classifier

KIND = dataclasses.replace(
    classifier.KIND,
    name="slots",
    recipe=dataclasses.replace(classifier.KIND.recipe, template="slots.toml", sample="slots.jsonl"),
)
