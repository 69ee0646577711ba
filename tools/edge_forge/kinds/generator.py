"""Generators: causal language models that answer in text, exported as GGUF files."""

from __future__ import annotations

from edge_forge.data.generator_rows import GeneratorData
from edge_forge.kinds.api import Kind, RecipeParts, ReportParts, Score
from edge_forge.plan.generator_plan import GeneratorPlan, side_by_side
from edge_forge.recipe import generator_recipe
from edge_forge.report import first_request, generator_comparison, generator_methods, generator_report
from edge_forge.train.generator_settings import GeneratorSettings

_PROMPT_WORDS = 5


def _unknown_error(*_: object) -> float:
    """Losses of single rows are not kept."""
    return 0.0


def _question(data: GeneratorData) -> tuple[str, ...]:
    """What a user says to it, streamed; of plain texts the first words of one, as a prompt."""
    rows = data.measured[1]
    if not data.answers:
        (prompt,) = first_request.shown((" ".join(row[-1].text.split()[:_PROMPT_WORDS]),) for row in rows) or ("Once",)
        return ("--prompt", "--stream", prompt)
    said = ([turn.text for turn in row if turn.role == "user"][-1:] for row in rows)
    (text,) = first_request.shown(turns for turns in said if turns) or ("Hello",)
    return ("--chat", "--stream", text)


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
    _question,
    side_by_side,
)
