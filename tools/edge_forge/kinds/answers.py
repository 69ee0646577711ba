"""Answers: encoders with two logits for every token that answer questions by spans of a context, as ONNX graphs.

A file of its own because each kind has one; it differs from `classifier` in template, sample, score and question alone.
"""

from __future__ import annotations

import dataclasses

from edge_agent.base.texts import parts_of
from edge_forge.data.classifier_rows import ClassifierData
from edge_forge.kinds import classifier
from edge_forge.report import first_request


def _question(data: ClassifierData) -> tuple[str, ...]:
    """A question and its context."""
    question, context = first_request.shown(parts_of(row.text) for row in data.measured[1]) or ("what", "some text")
    return (question, "--context", context)


KIND = dataclasses.replace(
    classifier.KIND,
    name="answers",
    recipe=dataclasses.replace(classifier.KIND.recipe, template="answers.toml", sample="answers.json"),
    score=dataclasses.replace(classifier.KIND.score, title="F1 of tokens"),
    question=_question,
)
