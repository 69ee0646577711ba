"""Gather what the steps of a plan measured into one plain mapping: the report's input, and a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_forge.evaluate.classifier_metrics import ECE_BINS
from edge_forge.plan.classifier_packages import ShipPlan
from edge_forge.plan.onnx_exports import rows_of


def gather(plan: ShipPlan, ship: bool) -> dict[str, Any]:
    """Run what is left of the plan and gather its figures; see `report.content` for the keys.

    Without `ship` nothing is packed, and only merged graphs are measured, which every method has.
    """
    recipe, base = plan.recipe, plan.base
    split, rows = plan.data.measured
    scores = dict(plan.evaluated.facts)
    return {
        **(_shipped(plan) if ship else {"variants": list(rows_of(plan.merged_graphs))}),
        "recipe": {"name": recipe.name, "description": recipe.description},
        "data": {"statistics": dict(plan.data.statistics), "warnings": list(plan.data.warnings)},
        "base": {
            "name": recipe.base.name,
            "source": base.source,
            "base_id": base.base_id,
            "size_bytes": base.size_bytes,
        },
        "train": dict(plan.trained.facts),
        "split": split,
        "scores": scores,
        "calibration": calibration(plan.evaluated.path(f"{split}.npy"), [row.label for row in rows], plan.data.labels),
        "steps": [
            {"name": name, "took_s": entry.record["took_s"], "cached": entry.cached}
            for name, entry in plan.entries.items()
        ],
    }


def _shipped(plan: ShipPlan) -> dict[str, Any]:
    """Variants, verdicts and packages."""
    gates, passed = plan.judged
    variants = [*plan.banked_graphs, *plan.merged_graphs]
    choice = plan.int8_choice
    names = {"int8-", choice["name"] if choice else "int8-"}
    lost = [
        [graph.form, graph.dtype]
        for graph in variants
        if graph not in passed and (graph.dtype != "int8" or f"int8-{graph.how}" in names)
    ]
    packages = [
        {"file": one.file.name, "what": one.what, "size_bytes": one.size_bytes, "digest": one.digest}
        for one in plan.shipped()
    ]
    return {
        "variants": list(rows_of(variants)),
        "gates": [{"name": gate.name, "holds": gate.holds, "sentence": gate.sentence} for gate in gates],
        "int8_choice": choice["reason"] if choice else None,
        "left_out": lost,
        "packages": packages,
    }


def calibration(logits_file: Path, gold: list[str], labels: tuple[str, ...]) -> list[list[float]]:
    """Bins [mean confidence, accuracy, rows] of equal width over the top probability, as `metrics` bins the ECE."""
    import numpy

    logits = numpy.load(logits_file).astype(numpy.float64)
    powers = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    confidence = shares.max(axis=1)
    right = shares.argmax(axis=1) == numpy.asarray([labels.index(label) for label in gold])
    place = numpy.clip(numpy.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    bins = []
    for number in range(ECE_BINS):
        inside = place == number
        rows = int(inside.sum())
        bins.append([float(confidence[inside].mean()), float(right[inside].mean()), rows] if rows else [0.0, 0.0, 0])
    return bins
