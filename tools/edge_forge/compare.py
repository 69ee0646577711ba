"""`edge-forge compare`: recipes, and ways to adapt them, side by side: quality, time, memory, size, latency."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.base.errors import UsageError
from edge_forge.cache import write_json
from edge_forge.packages import ShipPlan
from edge_forge.recipe import Recipe
from edge_forge.run import AnyPlan, make, open_plan, print_table
from edge_forge.training.presets import NAMES
from edge_forge.training.settings import METHODS

# Keys of [train] that are no choice of values for one method, and so stay when another method is tried.
_NEUTRAL = ("epochs", "seed", "threads", "precision", "processes", "class_weights")


def compare(arguments: argparse.Namespace) -> int:
    """Build every recipe in every wanted way, then print, write and draw them beside each other."""
    from edge_forge.report.comparison import columns, report, rows
    from edge_forge.report.write import write

    plans = [
        with_method(plan, wanted)
        for plan in (_classifier(open_plan(arguments, path)) for path in arguments.recipe)
        for wanted in (methods(arguments.methods) if arguments.methods else [""])
    ]
    if len(plans) < 2:
        raise UsageError("there is only one thing to compare", "compare", "name two recipes, or --methods lora,full")
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
        written = write(folder, stem, report(runs))
    if arguments.json:
        print(json.dumps({"runs": runs, "report": [str(path) for path in written]}, indent=1, ensure_ascii=False))
    else:
        print_table(columns(), rows(runs))
        print(f"report: {written[1]}")
    return 0


def _classifier(plan: AnyPlan) -> ShipPlan:
    if isinstance(plan, ShipPlan):
        return plan
    raise UsageError("generators are not compared yet", plan.recipe.name, "their reports stand beside each other")


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


def with_method(plan: ShipPlan, wanted: str) -> ShipPlan:
    """The plan with another method or preset; '' leaves the recipe as it is.

    Values that the recipe sets for its own method say nothing about another one, which therefore starts from its
    preset; keys that concern every method stay.
    """
    name, _, preset = wanted.partition(":")
    recipe = plan.recipe
    if not wanted or (name == recipe.training.method and not preset):
        return plan
    train = {key: value for key, value in recipe.train.items() if key in _NEUTRAL}
    changed = msgspec.structs.replace(recipe, method={"name": name, "preset": preset or "best"}, train=train)
    return ShipPlan(changed, plan.recipe_dir, plan.cache, plan.progress)


def title(recipe: Recipe) -> str:
    """How a run is named beside others: recipe, method, and the preset unless it is the usual one."""
    training = recipe.training
    return f"{recipe.name} {training.method}{'' if training.preset == 'best' else ':' + training.preset}"


def unique(names: Sequence[str]) -> Iterator[str]:
    """The names, a number added where one comes again."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
