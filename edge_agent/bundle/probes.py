"""Golden probes: texts with the outputs that the host measured, and the comparison with what a device measures.

They detect what no digest can: a runtime that computes other values on this board, an attached adapter without effect,
and answers that depend on the other texts of a batch. The comparison is pure; the store's `Prober` runs the texts.

Each text is computed alone, which is what the host measured, so that a device that cuts its batches to four rows gives
the same numbers as one that does not. Then each is computed in company (`company`) and held against what it gave
alone on the same device.

Distances: features by relative L2 distance per text, |m - e| / |e| (scale-free, hidden size does not matter); logits
by the largest absolute difference (they decide labels). The effect of an adapter is the mean relative L2 distance
between the features with it and without it, both measured on this device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.base import limits
from edge_agent.base.runtimes import traits
from edge_agent.base.texts import Text, beginning, parts_of
from edge_agent.bundle.catalog import TrialFigures
from edge_agent.bundle.jsonio import Document
from edge_agent.bundle.manifest import Word

INEFFECTIVE = "adapter-ineffective"
MISMATCH = "probe-mismatch"
COMPANY = "probe-depends-on-company"
MISSING = "probe-missing"

# In company a text may differ from itself alone by these: scores (probabilities) absolutely, features by relative L2
# distance. Runtimes sum floats in another order in another shape of batch, and a value between two codes of INT8 may
# then fall to the other one; that stays a tenth of this and below. A generator has its tolerance for other processors
# here, too: llama.cpp multiplies one row and several with other kernels, which round the codes of activations elsewhere
# (up to 3 % measured with Q8_0 and Q4_K_M on random weights of 12 layers; 0.2 % with F16).
COMPANY_SCORES = 1e-3
COMPANY_FEATURES = 1e-2
COMPANY_WORDS = 48
"""Words of the longest text of a company, about 140 tokens: encoders cut it at their limit, generators at
`limits.COMPANY_TOKENS`."""
COMPANY_ADAPTERS = 4

Row = Annotated[tuple[float, ...], Meta(min_length=1, max_length=65536)]
Rows = Annotated[tuple[Row, ...], Meta(min_length=1, max_length=limits.PROBES)]
Tolerance = Annotated[float, Meta(gt=0.0, le=10.0)]


class Expected(Document, frozen=True, kw_only=True):
    """The outputs of one variant on the host, one row per text, and the tolerated differences on a device.

    `features_tolerance` is a relative L2 distance, `logits_tolerance` an absolute difference. `classes`: the logits are
    those of every token one after another, so many of each (slots, answers); None: of the text. `over_tokens`: each
    class is a choice among the tokens (answers), and not each token's among the classes. For an adapter
    `min_effect` is the least mean relative distance from the base's features: 0 for one that is its head alone.
    """

    features: Rows
    features_tolerance: Tolerance
    logits: Rows | None = None
    logits_tolerance: Tolerance | None = None
    classes: Annotated[int, Meta(ge=2, le=2 * limits.SLOT_LABELS + 1)] | None = None
    over_tokens: bool = False
    min_effect: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None


class ProbeFile(Document, frozen=True, kw_only=True):
    """`edge/probes.json`: the texts, or pairs of texts, and per variant ('onnx/int8') the expected outputs."""

    schema: Literal[1]
    # Their lengths are checked by `problem_of`: msgspec 0.22 reads a bound of a text in a union with a pair as the
    # length of the pair, and crashes.
    texts: Annotated[tuple[str | tuple[str, str], ...], Meta(min_length=1, max_length=limits.PROBES)]
    expected: Annotated[dict[Word, Expected], Meta(min_length=1, max_length=32)]


@dataclass(frozen=True, slots=True)
class ProbeOutputs:
    """Outputs on this device, one row per text; `logits` is None where the model has no classifier.

    `company`: those of the same texts in company; None: they were computed alone only.
    """

    features: Sequence[Sequence[float]]
    logits: Sequence[Sequence[float]] | None = None
    company: ProbeOutputs | None = None


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Run these texts with an adapter of the model, or without one (None); `company`: in company, too."""

    adapter: str | None
    texts: tuple[Text, ...]
    company: bool = False


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What a trial's worker measured: outputs per request, in order, the figures of the model (None: it was not timed),
    and of a text with each adapter."""

    outputs: tuple[ProbeOutputs, ...]
    figures: TrialFigures | None = None
    adapters: Mapping[str, TrialFigures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`code` is None when the probes hold, else one of the codes above; `reason` carries the figures."""

    code: str | None
    reason: str
    features_off: float = 0.0
    logits_off: float = 0.0
    effect: float | None = None


def judge(file: ProbeFile, variant: str, measured: ProbeOutputs, base: ProbeOutputs | None = None) -> Verdict:
    """Compare the outputs of one variant. `base` is given for an adapter: the same texts without it."""
    expected = file.expected.get(variant)
    if expected is None:
        known = ", ".join(sorted(file.expected))
        return Verdict(MISSING, f"there are no golden probes for variant {variant} (there are for {known})")
    shape = _shape_problem(expected, measured, base)
    if shape:
        return Verdict(MISMATCH, shape)
    effect = None
    if expected.min_effect is not None and base is not None:
        effect = mean_effect(measured.features, base.features)
        if not math.isfinite(effect):
            return Verdict(MISMATCH, "features with or without it are not finite", effect=effect)
        if not effect >= expected.min_effect:
            reason = (
                f"with and without it the features differ by {effect:.2g}, at least {expected.min_effect:.2g} is due"
            )
            return Verdict(INEFFECTIVE, reason, effect=effect)
    verdict = _distances(file, expected, measured, effect)
    if verdict.code is not None:
        return verdict
    generator = traits(variant.partition("/")[0]).context_sized
    most = max(COMPANY_FEATURES, expected.features_tolerance) if generator else COMPANY_FEATURES
    return _in_company(file, measured, verdict, most, expected)


def company(adapter: str | None, attached: Iterable[str | None]) -> list[tuple[str | None, tuple[str, ...]]]:
    """(adapter, texts) that are to disturb the probes of `adapter` in their batches.

    With that adapter and without: the longest text, the shortest, and unusual characters. The longest also with other
    adapters of the `attached` ones, COMPANY_ADAPTERS at most.
    """
    longest = " ".join(f"{number} ZX{number * 7919}!" for number in range(COMPANY_WORDS // 2))
    others = sorted({name for name in attached if name is not None and name != adapter})[:COMPANY_ADAPTERS]
    own = dict.fromkeys((adapter, None))
    return [*((name, (longest, "?", "Ω≈ç√∫ ¿ß 🚀🚀 -1e38")) for name in own), *((name, (longest,)) for name in others)]


def mean_effect(features: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> float:
    """Mean over the texts of |with - without| / |without|."""
    return sum(relative_distance(one, other) for one, other in zip(features, base, strict=True)) / len(base)


def relative_distance(measured: Sequence[float], expected: Sequence[float]) -> float:
    """|measured - expected| / |expected| in the L2 norm; infinite when anything is not finite."""
    # `math.dist` scales before it squares: a square of 1e200 raises OverflowError.
    off, norm = math.dist(measured, expected), math.hypot(*expected)
    found = off / max(norm, 1e-12)
    return found if math.isfinite(found) else math.inf


def _distances(file: ProbeFile, expected: Expected, measured: ProbeOutputs, effect: float | None) -> Verdict:
    worst_features = worst_logits = 0.0
    for number, text in enumerate(file.texts):
        off = relative_distance(measured.features[number], expected.features[number])
        worst_features = max(worst_features, off)
        if off > expected.features_tolerance:
            reason = _off(number, text, "features are off by", off, expected.features_tolerance)
            return Verdict(MISMATCH, reason, off, worst_logits, effect)
        if expected.logits is None or expected.logits_tolerance is None or measured.logits is None:
            continue
        off = _largest(measured.logits[number], expected.logits[number])
        worst_logits = max(worst_logits, off)
        if off > expected.logits_tolerance:
            reason = _off(number, text, "logits are off by", off, expected.logits_tolerance)
            return Verdict(MISMATCH, reason, worst_features, off, effect)
    return Verdict(None, f"{len(file.texts)} golden probes hold", worst_features, worst_logits, effect)


def _in_company(file: ProbeFile, measured: ProbeOutputs, alone: Verdict, most: float, form: Expected) -> Verdict:
    """The verdict on texts that hold alone: whether each gives the same in company, features within `most`."""
    if measured.company is None:
        return alone
    shared = measured.company
    for number, text in enumerate(file.texts):
        off = relative_distance(shared.features[number], measured.features[number])
        if off > most:
            return _depends(number, text, f"its features differ by {off:.3g}, {most:g} is", alone)
        if measured.logits is None or shared.logits is None:
            continue
        off = _largest(
            *(_scores(one[number], form.classes, form.over_tokens) for one in (shared.logits, measured.logits))
        )
        if off > COMPANY_SCORES:
            return _depends(number, text, f"its scores differ by {off:.3g}, {COMPANY_SCORES:g} is", alone)
    return replace(alone, reason=f"{alone.reason}, alone and in company")


def _depends(number: int, text: Text, what: str, alone: Verdict) -> Verdict:
    reason = f"probe {number + 1} ({beginning(text)}) holds alone; beside other texts in its batch {what} tolerated"
    return replace(alone, code=COMPANY, reason=reason)


def _scores(logits: Sequence[float], classes: int | None = None, over_tokens: bool = False) -> list[float]:
    """Probabilities by softmax, of every `classes` logits apart, or of each of the classes over all tokens; those of
    logits that are not finite are not finite either."""
    width = classes or len(logits)
    if over_tokens:
        return [value for column in range(width) for value in _scores(logits[column::width])]
    if len(logits) > width:
        parts = (logits[start : start + width] for start in range(0, len(logits), width))
        return [value for part in parts for value in _scores(part)]
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = sum(powers)
    return [value / total for value in powers]


def _off(number: int, text: Text, what: str, off: float, tolerance: float) -> str:
    return f"probe {number + 1} ({beginning(text)}): {what} {off:.3g}, {tolerance:.3g} is tolerated"


def _largest(measured: Sequence[float], expected: Sequence[float]) -> float:
    off = max(abs(one - other) for one, other in zip(measured, expected, strict=True))
    return off if math.isfinite(off) and all(map(math.isfinite, measured)) else math.inf


def _shape_problem(expected: Expected, measured: ProbeOutputs, base: ProbeOutputs | None) -> str | None:
    pairs: list[tuple[str, Sequence[Sequence[float]], Sequence[Sequence[float]]]]
    pairs = [("features", expected.features, measured.features)]
    if expected.logits is not None:
        pairs.append(("logits", expected.logits, measured.logits or ()))
    if expected.min_effect is not None:
        pairs.append(("features of the base", expected.features, base.features if base else ()))
    shared = measured.company
    if shared is not None:
        pairs.append(("features in company", measured.features, shared.features))
    if shared is not None and measured.logits is not None:
        pairs.append(("logits in company", measured.logits, shared.logits or ()))
    for what, due, found in pairs:
        if [len(row) for row in due] != [len(row) for row in found]:
            due_shape, found_shape = f"{len(due)} x {len(due[0])}", f"{len(found)} x {len(found[0]) if found else 0}"
            return f"{what} have the shape {found_shape}, {due_shape} is expected"
    return None


def problem_of(file: ProbeFile, adapter: bool) -> str | None:
    """What is inconsistent within a probe file (lengths of texts, rows per text, tolerances, an adapter's effect), or
    None."""
    for text in file.texts:
        for part in parts_of(text):
            if not 1 <= len(part) <= limits.PROBE_CHARACTERS:
                return f"a text has {len(part)} characters; 1 to {limits.PROBE_CHARACTERS} are possible"
    for variant, expected in file.expected.items():
        rows = [expected.features] + ([expected.logits] if expected.logits is not None else [])
        if any(len(found) != len(file.texts) for found in rows):
            return f"the rows of {variant} are not as many as the texts"
        if (expected.logits is None) != (expected.logits_tolerance is None):
            return f"{variant} has logits without a tolerance, or a tolerance without logits"
        if expected.classes is not None and any(len(row) % expected.classes for row in expected.logits or ()):
            return f"the logits of {variant} are not {expected.classes} of every token"
        if expected.over_tokens and expected.classes is None:
            return f"the logits of {variant} are over tokens, and it says of no classes"
        if adapter != (expected.min_effect is not None):
            return f"{variant} must state min_effect exactly when it is an adapter's"
    return None
