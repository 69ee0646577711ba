"""Classifiers: encoders with a linear head that answer one of the recipe's labels, exported as ONNX graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edge_agent.base.texts import parts_of
from edge_forge.data.classifier_rows import ClassifierData
from edge_forge.kinds.api import Kind, RecipeParts, ReportParts, Score
from edge_forge.plan.classifier_plan import ClassifierPlan, timed_in_turns
from edge_forge.recipe import classifier_recipe
from edge_forge.report import classifier_report, first_request
from edge_forge.train.settings import TrainSettings


def _standard_error(entry: Mapping[str, float], rows: int) -> float:
    """Of the accuracy on so many rows, which macro-F1 varies by at least: sqrt(p (1 - p) / n) with two right and two
    wrong answers added, so that it is not 0 where all are right (Agresti and Coull 1998)."""
    count = rows + 4
    share = (entry["validation_accuracy"] * rows + 2) / count
    return math.sqrt(share * (1.0 - share) / count)


def _question(data: ClassifierData) -> tuple[str, ...]:
    """A text, or a pair."""
    first, *second = first_request.shown(parts_of(row.text) for row in data.measured[1]) or ("some text",)
    return (first, *(word for text in second for word in ("--pair", text)))


KIND = Kind(
    "classify",
    RecipeParts(
        classifier_recipe.SCHEMA,
        classifier_recipe.parse,
        classifier_recipe.with_method,
        classifier_recipe.check_sequence,
        template="recipe.toml",
        sample="train.tsv",
        defaults=TrainSettings(),
    ),
    ClassifierPlan,
    ReportParts(
        classifier_report.report,
        classifier_report.score_lines,
        classifier_report.comparison,
        classifier_report.comparison_tables,
        classifier_report.recommendation,
    ),
    Score("validation_macro_f1", "macro-F1", True, "train", _standard_error),
    "encoder",
    _question,
    timed_in_turns,
)
