"""What the verbs do with a plan: open the recipe, ask for a step, print its result."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_forge.plan.cache import Cache, write_json
from edge_forge.plan.classifier_packages import ShipPlan
from edge_forge.plan.generator_packages import GeneratePlan
from edge_forge.plan.onnx_exports import rows_of
from edge_forge.plan.signing import PACKAGE
from edge_forge.progress import Progress, size
from edge_forge.recipe import classifier_recipe as recipes
from edge_forge.recipe import generator_recipe as generators
from edge_forge.recipe import schema as recipe_form

AnyPlan = ShipPlan | GeneratePlan


def open_plan(arguments: argparse.Namespace, path: Path | None = None) -> AnyPlan:
    """The plan of the recipe that the arguments name, by the kind of its task."""
    place: Path = path or arguments.recipe
    file = place / "recipe.toml" if place.is_dir() else place
    generates = generators.is_generate(recipe_form.read(file))
    recipe = generators.load(file) if generates else recipes.load(file)
    progress = Progress(quiet=arguments.quiet)
    cache = Cache(arguments.build or project_root(file) / "build", progress)
    kind = GeneratePlan if generates else ShipPlan
    return kind(recipe, file.resolve().parent, cache, progress)


def project_root(recipe_file: Path) -> Path:
    """The nearest folder above a recipe with a pyproject.toml or .git, else the recipe's own folder."""
    folder = recipe_file.resolve().parent
    for candidate in (folder, *folder.parents):
        if (candidate / "pyproject.toml").is_file() or (candidate / ".git").exists():
            return candidate
    return folder


def step(arguments: argparse.Namespace) -> int:
    """A verb that ends at one step of the plan."""
    plan = open_plan(arguments)
    with plan.cache.locked():
        result = results(plan, arguments.verb)
    if arguments.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        print_table(("what", "value"), [[key, str(value)] for key, value in result.items()])
    return 0


def results(plan: AnyPlan, verb: str) -> Mapping[str, Any]:
    """What a verb that ends at one step has to say."""
    if isinstance(plan, ShipPlan):
        return _RESULTS[verb](plan)
    from edge_forge.plan.generator_figures import RESULTS

    return RESULTS[verb](plan)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on standard output; columns of numbers stand to the right."""
    from edge_forge.report.blocks import Table, numeric

    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    place = [str.rjust if right else str.ljust for right in numeric(Table(columns, rows))]
    for row in (columns, *rows):
        print("  ".join(put(cell, width) for put, cell, width in zip(place, row, widths, strict=True)).rstrip())


def _train(plan: ShipPlan) -> Mapping[str, Any]:
    facts = plan.trained.facts
    return {"folder": str(plan.trained.path("run")), **{key: facts[key] for key in ("method", "wall_s", "peak_bytes")}}


def _evaluate(plan: ShipPlan) -> Mapping[str, Any]:
    split, _ = plan.data.measured
    found = plan.evaluated.facts[split]
    return {"split": split, **{key: found[key] for key in ("rows", "accuracy", "macro_f1", "mcc", "ece")}}


UNCHANGED = 0.97
"""Of the base's perplexity: an adapter above it has learned nothing worth its place."""


def build(arguments: argparse.Namespace) -> int:
    """All steps of a recipe, and its report."""
    plan = open_plan(arguments)
    with plan.cache.locked():
        figures = make(plan)
        written = write_report(plan, figures)
        plan.cache.collect(time.time())
    packages = [plan.cache.root / "packages" / one["file"] for one in figures["packages"]]
    result = {
        "packages": [str(path) for path in packages],
        "trust_root": str(plan.keys.root_file),
        "report": [str(path) for path in written],
    }
    if arguments.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return 0
    print_table(
        ("package", "what", "size"),
        [[str(path), one["what"], size(one["size_bytes"])]
         for path, one in zip(packages, figures["packages"], strict=True)],
    )  # fmt: skip
    print(f"trust root  {plan.keys.root_file}\nreport      {written[1]}")
    for line in score_lines(figures):
        print(line)
    print(
        "install     edge-agent install PACKAGE, on the device or with --config (the base's first, then the adapter's)"
    )
    return 0


def score_lines(figures: Mapping[str, Any]) -> list[str]:
    """How good it is, for who reads no report; and for a generator whether training changed anything at all."""
    scores = figures.get("scores", {})
    if "tuned" in scores:
        base, tuned = scores["base"], scores["tuned"]
        lines = [f"perplexity  {tuned['perplexity']:.3g} (base {base['perplexity']:.3g}) on {tuned['rows']} rows"]
        if tuned.get("answers") and base.get("answers"):
            exact, before = tuned["answers"]["exact_match"], base["answers"]["exact_match"]
            lines.insert(0, f"exact match {exact:.1%} (base {before:.1%}) on {tuned['rows']} rows")
            if exact <= before and tuned["perplexity"] > UNCHANGED * base["perplexity"]:
                lines.append("warning     training changed next to nothing: raise train.epochs or train.learning_rate")
        return lines
    rows = scores.get(figures.get("split", ""), {})
    return (
        [f"accuracy    {rows['accuracy']:.3f} on {rows['rows']} rows of {figures['split']}"]
        if "accuracy" in rows
        else []
    )


def make(plan: AnyPlan, ship: bool = True) -> dict[str, Any]:
    """Run every step (without `ship`: up to the measured variants); returns the figures."""
    if isinstance(plan, GeneratePlan):
        plan.check_tools()
    plan.data_step  # noqa: B018 - what is wrong with the data is said before anything long begins
    plan.base  # noqa: B018
    if ship:
        plan.keys  # noqa: B018
    if isinstance(plan, ShipPlan):
        from edge_forge.plan.classifier_figures import gather

        return gather(plan, ship)
    from edge_forge.plan.generator_figures import gather as gather_generator

    return gather_generator(plan, ship)


def write_report(plan: AnyPlan, figures: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write the figures and the report; returns the report's files."""
    from edge_forge.report.blocks import write
    from edge_forge.report.classifier_report import report
    from edge_forge.report.generator_report import report as report_generator

    folder = plan.cache.root / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{plan.recipe.name}.json", figures)
    blocks = report(figures) if isinstance(plan, ShipPlan) else report_generator(figures)
    return write(folder, plan.recipe.name, blocks)


def _export(plan: ShipPlan) -> Mapping[str, Any]:
    found = {}
    if plan.has_banked:
        found["banked"] = str(plan.base_export.path("model.onnx"))
    if plan.recipe.export.merged:
        found["merged"] = str(plan.merged_export.path("model.onnx"))
    return found


def _quantize(plan: ShipPlan) -> Mapping[str, Any]:
    graphs = (*plan.banked_graphs, *plan.merged_graphs)
    return {f"{one['form']} {one['dtype']} {one['how']}".strip(): f"{one['accuracy']:.4f}, {size(one['size_bytes'])}, "
            f"{one['latency_ms']:.1f} ms" for one in rows_of(graphs)}  # fmt: skip


def _package(plan: ShipPlan) -> Mapping[str, Any]:
    return {name: str(entry.path(PACKAGE)) for name, (_, entry) in plan.packed.items()}


_RESULTS: Mapping[str, Callable[[ShipPlan], Mapping[str, Any]]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "quantize": _quantize,
    "package": _package,
}
