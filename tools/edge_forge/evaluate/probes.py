"""Golden probes: the texts, what each variant computed for them on this host, and the tolerance of a device. Pure.

A device runs the same file on another processor: FP32 differs there in the last bits, INT8 in the rounding of ranges.
The tolerance of a variant is the distance of its number format from FP32 on these texts, and at least a floor for each
format. A device that is further off than the quantisation error computes something else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.base.limits import PROBE_CHARACTERS
from edge_agent.base.texts import Text, parts_of
from edge_forge.data.classifier_rows import Row

# What a base is probed with: it has no task, so plain sentences of different length, script and punctuation.
BASE_TEXTS = (
    "The kettle is on.",
    "Could you turn the heating down a little before you leave?",
    "Error 42: pump P-7 lost pressure at 03:15, restarted twice, now offline.",
    "yes",
    "It was the best of films, it was the worst of films, and I would watch it again.",
    "naïve café, Zürich, 25 °C",
    "Who opened the window in the server room, and why has nobody closed it since yesterday?",
    "???",
)
# Relative L2 distance of features, and largest difference of logits, that are always forgiven.
_FLOORS = {
    "fp32": (1e-3, 0.01), "fp16": (1e-2, 0.1), "int8": (3e-2, 0.3),
    # Of generators: logits of the next token. llama.cpp sums products in another order on each kind of CPU.
    "f16": (2e-2, 0.1), "q8_0": (4e-2, 0.3), "q4_k_m": (6e-2, 0.3), "q4_0": (6e-2, 0.3),
}  # fmt: skip
_FLOOR_ELSE = (3e-2, 0.3)
_LARGEST = 10.0
# An adapter must change the features on the device by at least this share of what it changes here.
_EFFECT_SHARE = 0.5
_DIGITS = 7


class VariantOutputs(NamedTuple):
    """Outputs of a variant: features [texts][hidden] and, with a head, logits [texts][labels]; of slots and
    answers those of every token one after another, `classes` of each; `over_tokens`: each is a choice among tokens."""

    features: Sequence[Sequence[float]]
    logits: Sequence[Sequence[float]] | None = None
    classes: int | None = None
    over_tokens: bool = False


def choose_texts(rows: Sequence[Row], labels: Sequence[str], count: int) -> tuple[Text, ...]:
    """`count` texts at most, label by label in turn; within a label in the rows' order, each text once.

    Texts that are longer than a probe file takes are passed over.
    """
    waiting: dict[str, list[Text]] = defaultdict(list)
    for row in rows:
        if max(map(len, parts_of(row.text))) <= PROBE_CHARACTERS and row.text not in waiting[row.label]:
            waiting[row.label].append(row.text)
    chosen: list[Text] = []
    while len(chosen) < count and any(waiting.values()):
        for label in labels:
            if waiting[label] and len(chosen) < count:
                text = waiting[label].pop(0)
                if text not in chosen:
                    chosen.append(text)
    return tuple(chosen)


def document(
    texts: Sequence[Text], outputs: Mapping[str, VariantOutputs], bare: Mapping[str, VariantOutputs] | None = None
) -> dict[str, Any]:
    """The probe file of `outputs` by variant ('onnx/int8'), one of which is FP32 (or, of generators, F16).

    `bare` holds the same variants without the adapter, for an adapter's probes; it gives `min_effect`.
    """
    reference = next(found for name, found in outputs.items() if name.endswith(("/fp32", "/f16")))
    expected: dict[str, Any] = {}
    for name, found in outputs.items():
        floor, logits_floor = _FLOORS.get(name.rpartition("/")[2], _FLOOR_ELSE)
        entry: dict[str, Any] = {
            "features": _rounded(found.features),
            "features_tolerance": _up(max(floor, _worst(found.features, reference.features, distance))),
        }
        if found.logits is not None and reference.logits is not None:
            entry["logits"] = _rounded(found.logits)
            entry["logits_tolerance"] = _up(max(logits_floor, _worst(found.logits, reference.logits, largest)))
        if found.classes is not None:
            entry["classes"] = found.classes
        if found.over_tokens:
            entry["over_tokens"] = True
        if bare is not None:
            effect = sum(map(distance, found.features, bare[name].features)) / len(texts)
            entry["min_effect"] = float(f"{effect * _EFFECT_SHARE:.3g}")
        expected[name] = entry
    return {"schema": 1, "texts": list(texts), "expected": expected}


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Relative L2 distance |one - other| / |other|."""
    off = math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))
    return off / max(math.sqrt(sum(b * b for b in other)), 1e-12)


def largest(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest absolute difference."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _worst(
    one: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    measure: Callable[[Sequence[float], Sequence[float]], float],
) -> float:
    return max(measure(a, b) for a, b in zip(one, other, strict=True))


def _up(value: float) -> float:
    """Rounded up to three digits, within what the format takes."""
    return min(_LARGEST, float(f"{value * 1.0005:.3g}"))


def _rounded(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(f"{value:.{_DIGITS}g}") for value in row] for row in rows]
