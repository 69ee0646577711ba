"""Answers: encoders with two logits for every token that answer questions by spans of a context, as ONNX graphs.

A file of its own because each kind has one; it differs from `classifier` in template, sample and score alone.
"""

from __future__ import annotations

import dataclasses

from edge_forge.kinds import classifier

KIND = dataclasses.replace(
    classifier.KIND,
    name="answers",
    recipe=dataclasses.replace(classifier.KIND.recipe, template="answers.toml", sample="answers.json"),
    score=dataclasses.replace(classifier.KIND.score, title="F1 of tokens"),
)
