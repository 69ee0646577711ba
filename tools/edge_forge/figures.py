"""Gather what the steps of a plan measured into one plain mapping: the report's input, and a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_forge.metrics import ECE_BINS
from edge_forge.plan import Plan


def gather(plan: Plan) -> dict[str, Any]:
    """Figures of all steps that the plan has run so far; see `report.content` for the keys."""
    recipe, base = plan.recipe, plan.base
    split, rows = plan.data.measured
    scores = dict(plan.evaluated.facts)
    return {
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
