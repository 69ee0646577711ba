"""Classifiers: encoders with a linear head that answer one of the recipe's labels, exported as ONNX graphs."""

from __future__ import annotations

from edge_forge.kinds.api import Kind, RecipeParts, ReportParts
from edge_forge.plan.classifier_plan import ClassifierPlan, timed_in_turns
from edge_forge.recipe import classifier_recipe
from edge_forge.report import classifier_report
from edge_forge.train.settings import TrainSettings

KIND = Kind(
    "classify",
    RecipeParts(
        classifier_recipe.SCHEMA,
        classifier_recipe.parse,
        classifier_recipe.with_method,
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
    ),
    timed_in_turns,
)
