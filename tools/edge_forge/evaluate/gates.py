"""The gates that decide whether a graph is shipped. Pure: figures in, verdicts out.

Parity: an FP32 graph must compute what PyTorch computes. Accuracy: a smaller number format may lose a limited number of
points against the FP32 form of the same graph on the measured (test) split; perplexity of generators alike, and the
preferences that one learned. All are estimates from few rows, so a variant is left out only where the interval of its
loss lies beyond the limit as a whole: where the rows cannot tell, it stays and the sentence says what they can tell.
Agreement and the error of the logits, which need no labels, leave out what computes something else before its labels
could show it (`evaluate.paired`).
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


@dataclass(frozen=True, slots=True)
class LossLimits:
    """What a variant may lose against FP32: accuracy in points, the least share of equal answers, and the largest
    error of the logits (`evaluate.paired.logit_error`)."""

    loss_points: float
    agreement: float
    logit_error: float


def parity(form: str, difference: float, tolerance: float, dtype: str = "FP32") -> Gate:
    """The largest absolute difference of an FP32 graph from PyTorch, over features and logits."""
    holds = math.isfinite(difference) and difference <= tolerance
    return Gate(
        f"parity of {form} {dtype}", holds,
        f"{form} {dtype} differs from PyTorch by {difference:.2g} at most, {tolerance:.2g} is allowed",
    )  # fmt: skip


def accuracy(form: str, dtype: str, paired: Mapping[str, Any], limits: LossLimits) -> Gate:
    """Verdict on a variant by `PairedScores`: out where it loses, disagrees or is off by more than `limits`."""
    low, high = 100 * paired["loss_low"], 100 * paired["loss_high"]
    broken = []
    # A millionth of a point: a bound that equals the limit must not fail it by the last bit.
    if low > limits.loss_points + 1e-6:
        broken.append(f"{limits.loss_points:g} points may be lost")
    if paired["agreement_high"] < limits.agreement:
        broken.append(f"{percent(limits.agreement)} of the answers must agree")
    if not paired["logit_error"] <= limits.logit_error:
        broken.append(f"logits may be off by {percent(limits.logit_error)}")
    found = (
        f"{form} {dtype} {_points(100 * paired['loss'])} against FP32 on {paired['rows']} rows "
        f"(95 % interval of the loss {low:+.2f} to {high:+.2f}), answers {percent(paired['agreement'])} of "
        f"{paired['texts']} texts alike, logits off by {percent(paired['logit_error'])}"
    )
    if broken:
        return Gate(f"accuracy of {form} {dtype}", False, f"{found}; {', '.join(broken)}")
    if high <= limits.loss_points + 1e-6:
        told = f"a loss of more than {limits.loss_points:g} points is ruled out"
    elif low > 0.0:
        told = f"the rows show a loss, and not that it is more than {limits.loss_points:g} points"
    else:
        told = f"{paired['rows']} rows cannot tell a loss of {limits.loss_points:g} points from none"
    return Gate(f"accuracy of {form} {dtype}", True, f"{found}; {told}")


def perplexity(form: str, dtype: str, paired: Mapping[str, Any], limit: float) -> Gate:
    """Verdict on a generator's variant by `PairedLosses`; `limit` is the largest ratio to the perplexity of F16."""
    low, high = paired["ratio_low"], paired["ratio_high"]
    holds = low <= limit * (1 + 1e-9)
    if not holds:
        told = f"{limit:g} is allowed"
    elif high <= limit * (1 + 1e-9):
        told = f"more than {limit:g} is ruled out"
    else:
        told = f"{paired['rows']} rows cannot tell whether it is more than {limit:g}"
    return Gate(
        f"perplexity of {form} {dtype}", holds,
        f"{form} {dtype} has {paired['ratio']:.3f} times the perplexity of F16 on {paired['rows']} rows "
        f"(95 % interval {low:.3f} to {high:.3f}); {told}",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreferenceLimits:
    """What a variant may lose against F16: preferred pairs in points, and of the margin a share of what training
    added."""

    loss_points: float
    margin_share: float


def preferences(form: str, dtype: str, paired: Mapping[str, Any], limits: PreferenceLimits) -> Gate:
    """Verdict on a variant of a model that learned preferences, by `PairedPreferences`.

    The margin is judged where training raised it: the perplexity of chosen answers may stay where it was while a number
    format takes back what tells them from the rejected ones.
    """
    low, high = 100 * paired["loss_low"], 100 * paired["loss_high"]
    broken = []
    if low > limits.loss_points + 1e-6:
        broken.append(f"{limits.loss_points:g} points may be lost")
    rise, least = paired["rise"], paired["fall_low"]
    if rise > 0.0 and least is not None and least > limits.margin_share * rise * (1 + 1e-9):
        broken.append(f"{percent(limits.margin_share)} of what training added to the margin may be lost")
    found = (
        f"{form} {dtype} {_points(100 * paired['loss'])} of preferred pairs against F16 on {paired['rows']} pairs "
        f"(95 % interval of the loss {low:+.2f} to {high:+.2f}), and {paired['fall']:+.3f} nats of the margin, to "
        f"which training added {rise:+.3f}"
    )
    if broken:
        return Gate(f"preferences of {form} {dtype}", False, f"{found}; {', '.join(broken)}")
    told = (
        f"a loss of more than {limits.loss_points:g} points is ruled out" if high <= limits.loss_points + 1e-6
        else f"{paired['rows']} pairs cannot tell whether more than {limits.loss_points:g} points are lost"
    )  # fmt: skip
    return Gate(f"preferences of {form} {dtype}", True, f"{found}; {told}")


def judge(
    variants: Sequence[Mapping[str, Any]], tolerance: float, limits: LossLimits
) -> tuple[list[Gate], list[tuple[str, str]]]:
    """All verdicts, and the (form, dtype) of the variants that are beyond a limit.

    A variant is {form, dtype, parity} (FP32) or {form, dtype, paired} (`PairedScores` against the FP32 of its form).
    FP32 of another runtime has both.
    """
    gates: list[Gate] = []
    beyond: list[tuple[str, str]] = []
    for one in variants:
        if one["dtype"] == "fp32":
            gates.append(parity(one["form"], one["parity"], tolerance))
            continue
        if one.get("parity") is not None:
            gates.append(parity(one["form"], one["parity"], tolerance, one["dtype"]))
        gate = accuracy(one["form"], one["dtype"], one["paired"], limits)
        gates.append(gate)
        if not gate.holds:
            beyond.append((one["form"], one["dtype"]))
    return gates, beyond


def require(gates: Sequence[Gate], where: str, remedy: str) -> None:
    """Raise EdgeError with the sentences of the gates that do not hold."""
    broken = [gate.sentence for gate in gates if not gate.holds]
    if broken:
        raise EdgeError("; ".join(broken), where, remedy)


def percent(share: float) -> str:
    """A share as a percentage with one digit; of what is nearly all, two."""
    return f"{100 * share:.2f} %" if 0.999 <= share < 1.0 else f"{100 * share:.1f} %"


def _points(points: float) -> str:
    return f"loses {points:.2f} points" if points > 0 else f"gains {-points:.2f} points" if points < 0 else "loses none"
