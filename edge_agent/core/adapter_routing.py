"""Whether an adapter's requests run unmerged on their base, or on the merged model where that is installed too.

Both answer alike: the merged model is the same adapter folded into the same base (`merged_from` says so, by digests).
Unmerged, an adapter costs a few MiB and shares its base's batches with all others; merged, it costs a model of its own
and computes less. What counts was measured on this device, a text by itself either way. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.base.units import bytes_text
from edge_agent.bundle.catalog import SAME_ACCURACY, Adapter, InstalledModel

MERGED, UNMERGED = "merged", "unmerged"
"""What an operator may name in `models.prefer`."""
WORTH_MEMORY = 1.1
"""'balanced' gives a second model its memory where the adapter takes more than a tenth longer."""
ALIKE = 1.25
"""Texts whose lengths differ by more than a quarter say nothing of each other's times."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """The operator's `models.policy`, `models.prefer` and `models.accuracy_loss_limit`."""

    policy: str = "balanced"
    prefer: tuple[str, ...] = ()
    accuracy_loss_limit: float = 0.01


@dataclass(frozen=True, slots=True)
class AdapterRoute:
    """What runs for an adapter's requests: the merged model of that name, or None, the base with the adapter."""

    merged: str | None
    why: str


@dataclass(frozen=True, slots=True)
class MergedPair:
    """One adapter twice on this device: beside its base, and folded into it."""

    base: InstalledModel
    adapter: Adapter
    merged: InstalledModel


def forms(
    models: Sequence[InstalledModel], rules: RoutingPolicy, ceiling_bytes: Callable[[], int | None]
) -> Mapping[Key, AdapterRoute]:
    """The choice for every (base, adapter) that is installed merged as well. So many bytes may all models take; who has
    no merged model is not asked for them.

    A merged model gets the room that all other models leave, those that save most first: two that fit one by one and
    not together would load by turns.
    """
    pairs = sorted(_pairs(models), key=lambda pair: -(_times(pair.adapter, pair.merged) or 0.0))
    if not pairs:
        return {}
    twins = {pair.merged.name for pair in pairs}
    taken = {model.name: _bytes(model) for model in models if model.name not in twins}
    may_bytes = ceiling_bytes()
    found: dict[Key, AdapterRoute] = {}
    for pair in pairs:
        others_bytes = sum(taken.values()) - taken.get(pair.merged.name, 0)
        room_bytes = None if may_bytes is None else max(0, may_bytes - others_bytes)
        form = found[pair.base.name, pair.adapter.name] = choose(pair, rules, room_bytes)
        if form.merged is not None:
            taken[form.merged] = _bytes(pair.merged)
    return found


def _pairs(models: Sequence[InstalledModel]) -> list[MergedPair]:
    folded = sorted((model for model in models if model.merged_from), key=lambda model: model.name)
    return [
        MergedPair(base, adapter, same)
        for base in models
        for adapter in base.adapters
        if (same := next((model for model in folded if is_merged_of(model, base, adapter)), None)) is not None
    ]


def is_merged_of(merged: InstalledModel, base: InstalledModel, adapter: Adapter) -> bool:
    """Whether it was folded of just this adapter's file and this base."""
    folded = {value.removeprefix("sha256:") for value in merged.merged_from.values()}
    return {base.base_id.removeprefix("sha256:"), adapter.file_digest.removeprefix("sha256:")} <= folded


def choose(pair: MergedPair, rules: RoutingPolicy, room_bytes: int | None) -> AdapterRoute:
    """The form by the operator's preference, else by the policy, what was measured here and the room there is."""
    both = f"{_unmerged_text(pair.base, pair.adapter)}; {_merged_text(pair.merged)}"
    for word in rules.prefer:
        if word in (MERGED, UNMERGED):
            return AdapterRoute(pair.merged.name if word == MERGED else None, f"{word} as preferred: {both}")
    merged_wins, reason = _by_policy(pair, rules, room_bytes)
    what = MERGED if merged_wins else UNMERGED
    return AdapterRoute(
        pair.merged.name if merged_wins else None, f"{what} by policy {rules.policy!r}, {reason}: {both}"
    )


def _by_policy(pair: MergedPair, rules: RoutingPolicy, room_bytes: int | None) -> tuple[bool, str]:
    """Whether the merged model is chosen, and the reason."""
    if rules.policy == "smallest":
        return False, "the adapter needs no second model"
    merged_accuracy, accuracy = pair.merged.variant.accuracy, _accuracy(pair.base, pair.adapter)
    gained = 0.0 if merged_accuracy is None or accuracy is None else merged_accuracy - accuracy
    if rules.policy == "most-accurate" and abs(gained) > SAME_ACCURACY:
        return gained > 0, "the more accurate one"
    if gained < -(rules.accuracy_loss_limit + SAME_ACCURACY):
        return False, "merging loses too much accuracy"
    times = _times(pair.adapter, pair.merged)
    if times is None:
        return False, "the two were not measured alike"
    if rules.policy != "balanced" and times <= 1.0:
        return False, "the faster one"
    if rules.policy == "balanced" and times <= WORTH_MEMORY:
        return False, "merging would not be a tenth faster"
    if room_bytes is not None and _bytes(pair.merged) > room_bytes:
        return False, f"the other models leave {bytes_text(room_bytes)} for the merged one"
    return True, f"{times:.2f} times as fast"


def _times(adapter: Adapter, merged: InstalledModel) -> float | None:
    """How many times as long a text takes unmerged; None where it is not known."""
    one, other = adapter.measured, merged.variant.measured
    if one is None or other is None or not (one.latency_ms > 0 and other.latency_ms > 0):
        return None
    longest, shortest = max(one.text_bytes, other.text_bytes), min(one.text_bytes, other.text_bytes)
    return one.latency_ms / other.latency_ms if longest <= ALIKE * shortest else None


def _accuracy(base: InstalledModel, adapter: Adapter) -> float | None:
    """The adapter's on the base's variant that runs, where the host told it for that."""
    dtype = base.variant.dtype
    return next(
        (adapter.metrics[key] for key in (f"accuracy.{dtype}", f"exact_match.{dtype}") if key in adapter.metrics),
        adapter.accuracy,
    )


def _bytes(model: InstalledModel) -> int:
    measured = model.variant.measured
    return measured.peak_bytes if measured is not None and measured.peak_bytes else model.variant.peak_bytes


def _unmerged_text(base: InstalledModel, adapter: Adapter) -> str:
    figures = _figures(adapter.measured.latency_ms if adapter.measured else None, _accuracy(base, adapter))
    return f"on {base.name} {figures}, {bytes_text(adapter.size_bytes)} beside the base"


def _merged_text(merged: InstalledModel) -> str:
    measured = merged.variant.measured
    figures = _figures(measured.latency_ms if measured else None, merged.variant.accuracy)
    return f"{merged.name} {figures}, {bytes_text(_bytes(merged))}"


def _figures(latency_ms: float | None, accuracy: float | None) -> str:
    time = "not measured" if latency_ms is None else f"{latency_ms:.3g} ms a text"
    return time if accuracy is None else f"{time}, accuracy {accuracy:.3f}"
