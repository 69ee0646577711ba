"""The evaluate step: scores of a trained result on a split, by PyTorch; variants are scored in the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edge_forge.evaluate.classifier_metrics import Metrics, evaluate

__all__ = ["Metrics", "evaluate", "evaluate_trained", "write_metrics"]


def evaluate_trained(
    base_dir: Path, trained_dir: Path, rows: Sequence[tuple[str, str]], labels: Sequence[str], max_tokens: int
) -> Metrics:
    """Scores of the result in `trained_dir` on (text, label) rows. Raises ConfigError as `predict` and `evaluate`."""
    from edge_forge.evaluate.predict import predict

    logits = predict(base_dir, trained_dir, [text for text, _ in rows], max_tokens=max_tokens)
    return evaluate(logits, [label for _, label in rows], labels)


def write_metrics(path: Path, scores: dict[str, Metrics]) -> None:
    """Write scores by name (split or variant) as indented JSON."""
    found = {name: metrics.as_dict() for name, metrics in scores.items()}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
