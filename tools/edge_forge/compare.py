"""`edge-forge compare`: recipes, and ways to adapt them, side by side: quality, time, memory, size, latency."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.base.errors import UsageError
from edge_forge.plan.cache import write_json
from edge_forge.plan.classifier_packages import ShipPlan
from edge_forge.plan.generator_packages import GeneratePlan
from edge_forge.recipe import generator_recipe as generators
from edge_forge.recipe.classifier_recipe import Recipe
from edge_forge.recipe.generator_recipe import GenerateRecipe
from edge_forge.run import AnyPlan, make, open_plan, print_table
from edge_forge.train.settings import METHODS, NAMES

# Keys of [train] that are no choice of values for one method, and so stay when another method is tried.
_NEUTRAL = ("epochs", "seed", "threads", "precision", "processes", "class_weights")


def compare(arguments: argparse.Namespace) -> int:
    """Build every recipe in every wanted way, then print, write and draw them beside each other."""
    plans = [
        with_method(plan, wanted)
        for plan in _of_one_kind([open_plan(arguments, path) for path in arguments.recipe])
        for wanted in (methods(arguments.methods) if arguments.methods else [""])
    ]
    if len(plans) < 2:
        raise UsageError("there is only one thing to compare", "compare", "name two recipes, or --methods lora,full")
    if isinstance(plans[0], GeneratePlan):
        from edge_forge.report.generator_comparison import comparison, comparison_tables
    else:
        from edge_forge.report.classifier_report import comparison, comparison_tables
    from edge_forge.report.blocks import write

    runs: dict[str, Mapping[str, Any]] = {}
    names = unique([title(plan.recipe) for plan in plans])
    with plans[0].cache.locked():
        for plan, name in zip(plans, names, strict=True):
            plan.progress.say(f"== {name} ==")
            runs[name] = make(plan, ship=False)
        folder = plans[0].cache.root / "reports"
        folder.mkdir(parents=True, exist_ok=True)
        stem = "compare-" + "-".join(dict.fromkeys(plan.recipe.name for plan in plans))
        write_json(folder / f"{stem}.json", runs)
        written = write(folder, stem, comparison(runs))
    if arguments.json:
        print(json.dumps({"runs": runs, "report": [str(path) for path in written]}, indent=1, ensure_ascii=False))
    else:
        for table in comparison_tables(runs):
            print_table(table.columns, table.rows)
            print()
        print(f"report: {written[1]}")
    return 0


def _of_one_kind(plans: Sequence[AnyPlan]) -> Sequence[AnyPlan]:
    generate = [plan.recipe.name for plan in plans if isinstance(plan, GeneratePlan)]
    if generate and len(generate) < len(plans):
        others = [plan.recipe.name for plan in plans if not isinstance(plan, GeneratePlan)]
        raise UsageError(
            f"{', '.join(generate)} generate and {', '.join(others)} classify: they have no score in common",
            "compare", "compare recipes of one kind",
        )  # fmt: skip
    return plans


def methods(text: str) -> list[str]:
    """The argument of --methods: METHOD or METHOD:PRESET, separated by commas. Raises UsageError."""
    wanted = [one.strip() for one in text.split(",")]
    for one in wanted:
        name, _, preset = one.partition(":")
        if name not in METHODS or (preset and preset not in NAMES):
            raise UsageError(
                f"{one!r} is no method", "--methods",
                f"use {', '.join(METHODS)}, each also with a preset ({', '.join(NAMES)}) as in lora:B",
            )  # fmt: skip
    return wanted


def with_method(plan: AnyPlan, wanted: str) -> AnyPlan:
    """The plan with another method or preset; '' leaves the recipe as it is. Raises UsageError, ConfigError.

    What stays of a generator's values: see `generate.recipe.with_method`. Of a classifier's those keys of [train] stay
    that concern every method; the others say nothing about another one, which starts from its preset.
    """
    name, _, preset = wanted.partition(":")
    if preset and isinstance(plan, GeneratePlan):
        raise UsageError(f"{wanted!r}: generators have no presets", "--methods", f"use {', '.join(METHODS)}")
    if not wanted or (name == plan.recipe.training.method and not preset):
        return plan
    if isinstance(plan, GeneratePlan):
        return GeneratePlan(generators.with_method(plan.recipe, name), plan.recipe_dir, plan.cache, plan.progress)
    train = {key: value for key, value in plan.recipe.train.items() if key in _NEUTRAL}
    changed = msgspec.structs.replace(plan.recipe, method={"name": name, "preset": preset or "best"}, train=train)
    return ShipPlan(changed, plan.recipe_dir, plan.cache, plan.progress)


def title(recipe: Recipe | GenerateRecipe) -> str:
    """How a run is named beside others: recipe, method, and the preset unless it is the usual one."""
    training = recipe.training
    return f"{recipe.name} {training.method}{'' if training.preset == 'best' else ':' + training.preset}"


def unique(names: Sequence[str]) -> Iterator[str]:
    """The names, a number added where one comes again."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
