"""The gates that decide whether a graph is shipped. Pure: figures in, verdicts out.

Parity: an FP32 graph must compute what PyTorch computes. Loss: a smaller number format may lose a limited number of
accuracy points against the FP32 form of the same graph. The loss is judged on the measured (test) split, on which
nothing was chosen: `export.onnx.quantize.choose` chooses between ways to INT8 on the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.base.errors import EdgeError


@dataclass(frozen=True, slots=True)
class Gate:
    """One verdict with the sentence that carries its figures."""

    name: str
    holds: bool
    sentence: str


def parity(form: str, difference: float, tolerance: float) -> Gate:
    """The largest absolute difference of an FP32 graph from PyTorch, over features and logits."""
    holds = math.isfinite(difference) and difference <= tolerance
    return Gate(
        f"parity of {form}", holds,
        f"{form} FP32 differs from PyTorch by {difference:.2g} at most, {tolerance:.2g} is allowed",
    )  # fmt: skip


def loss(form: str, dtype: str, accuracy: float, reference: float, limit_points: float) -> Gate:
    """Accuracy of a variant against FP32, in percentage points; the limit itself is allowed."""
    points = 100.0 * (reference - accuracy)
    # A millionth of a point: 0.93 - 0.925 must not fail a limit of 0.5 by the last bit.
    holds = points <= limit_points + 1e-6
    said = (
        f"loses {points:.2f} points" if points > 0 else f"gains {-points:.2f} points" if points < 0 else "loses nothing"
    )
    return Gate(
        f"accuracy of {form} {dtype}", holds, f"{form} {dtype} {said} against FP32, {limit_points:g} may be lost"
    )


def judge(
    variants: Sequence[Mapping[str, Any]], tolerance: float, limit_points: float
) -> tuple[list[Gate], list[tuple[str, str]]]:
    """All verdicts, and the (form, dtype) of the variants that lose too much.

    A variant is {form, dtype, accuracy, parity?}; every form has an fp32 variant, which carries `parity`.
    """
    gates: list[Gate] = []
    beyond: list[tuple[str, str]] = []
    reference = {one["form"]: one["accuracy"] for one in variants if one["dtype"] == "fp32"}
    for one in variants:
        if one["dtype"] == "fp32":
            gates.append(parity(one["form"], one["parity"], tolerance))
            continue
        gate = loss(one["form"], one["dtype"], one["accuracy"], reference[one["form"]], limit_points)
        gates.append(gate)
        if not gate.holds:
            beyond.append((one["form"], one["dtype"]))
    return gates, beyond


def require(gates: Sequence[Gate], where: str, remedy: str) -> None:
    """Raise EdgeError with the sentences of the gates that do not hold."""
    broken = [gate.sentence for gate in gates if not gate.holds]
    if broken:
        raise EdgeError("; ".join(broken), where, remedy)
