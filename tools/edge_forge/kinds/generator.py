"""Generators: causal language models that answer in text, exported as GGUF files."""

from __future__ import annotations

from edge_forge.kinds.api import Kind, RecipeParts, ReportParts, Score
from edge_forge.plan.generator_plan import GeneratorPlan, side_by_side
from edge_forge.recipe import generator_recipe
from edge_forge.report import generator_comparison, generator_methods, generator_report
from edge_forge.train.generator_settings import GeneratorSettings


def _unknown_error(*_: object) -> float:
    """Losses of single rows are not kept."""
    return 0.0


KIND = Kind(
    "generate",
    RecipeParts(
        generator_recipe.SCHEMA,
        generator_recipe.parse,
        generator_recipe.with_method,
        generator_recipe.check_sequence,
        template="generate.toml",
        sample="train.jsonl",
        defaults=GeneratorSettings(),
    ),
    GeneratorPlan,
    ReportParts(
        generator_report.report,
        generator_report.score_lines,
        generator_comparison.comparison,
        generator_comparison.comparison_tables,
        generator_methods.recommendation,
    ),
    Score("validation_loss", "validation loss", False, "generate-train", _unknown_error),
    "generator",
    side_by_side,
)
