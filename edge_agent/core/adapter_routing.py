"""Whether requests for an adapter run on the base model with the adapter, or on the merged model where it is installed.

Both give the same answers: the merged model is the same adapter merged into the same base, which `merged_from` proves
by digests. Unmerged, an adapter takes a few MiB and shares the base's batches with all other adapters. Merged, it takes
the memory of a second model and computes less per text. The choice compares times measured on this device, of single
texts in both forms. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.base.units import bytes_text
from edge_agent.bundle.catalog import SAME_ACCURACY, Adapter, InstalledModel

MERGED, UNMERGED = "merged", "unmerged"
"""The words for `models.prefer`."""
WORTH_MEMORY = 1.1
"""The policy 'balanced' uses the merged model where a text takes more than 10 % longer with the adapter."""
COMPARABLE = 1.25
"""Times are compared only where the lengths of the measured texts differ by at most 25 %."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """The operator's `models.policy`, `models.prefer` and `models.accuracy_loss_limit`."""

    policy: str = "balanced"
    prefer: tuple[str, ...] = ()
    accuracy_loss_limit: float = 0.01


@dataclass(frozen=True, slots=True)
class AdapterRoute:
    """What runs an adapter's requests: the merged model of that name, or (None) the base with the adapter."""

    merged: str | None
    why: str


@dataclass(frozen=True, slots=True)
class MergedPair:
    """An adapter that is installed twice: beside its base, and merged into it."""

    base: InstalledModel
    adapter: Adapter
    merged: InstalledModel


def route_adapters(
    models: Sequence[InstalledModel], policy: RoutingPolicy, ceiling_bytes: Callable[[], int | None]
) -> Mapping[Key, AdapterRoute]:
    """The route of every (base, adapter) that is installed merged as well.

    `ceiling_bytes` returns the bytes that all models together may take (None: not known); it is called only when there
    is a merged model. A merged model must fit beside all other models, the one that saves most time first: of two that
    fit alone and not together, each load would evict the other.
    """
    pairs = sorted(_pairs(models), key=lambda pair: -(_speedup(pair.adapter, pair.merged) or 0.0))
    if not pairs:
        return {}
    merged_names = {pair.merged.name for pair in pairs}
    taken = {model.name: _bytes(model) for model in models if model.name not in merged_names}
    total_bytes = ceiling_bytes()
    found: dict[Key, AdapterRoute] = {}
    for pair in pairs:
        # Bytes of all other models, including merged ones that were chosen before.
        others_bytes = sum(taken.values()) - taken.get(pair.merged.name, 0)
        room_bytes = None if total_bytes is None else max(0, total_bytes - others_bytes)
        route = found[pair.base.name, pair.adapter.name] = choose(pair, policy, room_bytes)
        if route.merged is not None:
            taken[route.merged] = _bytes(pair.merged)
    return found


def _pairs(models: Sequence[InstalledModel]) -> list[MergedPair]:
    merged = sorted((model for model in models if model.merged_from), key=lambda model: model.name)
    return [
        MergedPair(base, adapter, found)
        for base in models
        for adapter in base.adapters
        if (found := next((model for model in merged if is_merged_of(model, base, adapter)), None)) is not None
    ]


def is_merged_of(merged: InstalledModel, base: InstalledModel, adapter: Adapter) -> bool:
    """Whether `merged` was made from exactly this adapter file and this base."""
    sources = {value.removeprefix("sha256:") for value in merged.merged_from.values()}
    return {base.base_id.removeprefix("sha256:"), adapter.file_digest.removeprefix("sha256:")} <= sources


def choose(pair: MergedPair, policy: RoutingPolicy, room_bytes: int | None) -> AdapterRoute:
    """The route by the operator's preference; else by the policy, the measured times and the memory that is free."""
    both = f"{_unmerged_text(pair.base, pair.adapter)}; {_merged_text(pair.merged)}"
    for word in policy.prefer:
        if word in (MERGED, UNMERGED):
            return AdapterRoute(pair.merged.name if word == MERGED else None, f"{word} as preferred: {both}")
    merged_wins, reason = _by_policy(pair, policy, room_bytes)
    what = MERGED if merged_wins else UNMERGED
    return AdapterRoute(
        pair.merged.name if merged_wins else None, f"{what} by policy {policy.policy!r}, {reason}: {both}"
    )


def _by_policy(pair: MergedPair, policy: RoutingPolicy, room_bytes: int | None) -> tuple[bool, str]:
    """Whether the merged model is chosen, and the reason."""
    # The order of the checks: memory policy, accuracy, speed, and last the room, which is the most variable.
    if policy.policy == "smallest":
        return False, "the adapter needs no second model"
    merged_accuracy, accuracy = pair.merged.variant.accuracy, _accuracy(pair.base, pair.adapter)
    gained = 0.0 if merged_accuracy is None or accuracy is None else merged_accuracy - accuracy
    if policy.policy == "most-accurate" and abs(gained) > SAME_ACCURACY:
        return gained > 0, "the more accurate one"
    if gained < -(policy.accuracy_loss_limit + SAME_ACCURACY):
        return False, "merging loses too much accuracy"
    speedup = _speedup(pair.adapter, pair.merged)
    if speedup is None:
        return False, "the two were not measured alike"
    if policy.policy != "balanced" and speedup <= 1.0:
        return False, "the faster one, timed at two installs"
    if policy.policy == "balanced" and speedup <= WORTH_MEMORY:
        return False, "merging would not be a tenth faster, timed at two installs"
    if room_bytes is not None and _bytes(pair.merged) > room_bytes:
        return False, f"the other models leave {bytes_text(room_bytes)} for the merged one"
    return True, f"{speedup:.2f} times as fast, timed at two installs"


def _speedup(adapter: Adapter, merged: InstalledModel) -> float | None:
    """Time of a text with the adapter over its time on the merged model; None where it is not known."""
    one, other = adapter.measured, merged.variant.measured
    if one is None or other is None or not (one.latency_ms > 0 and other.latency_ms > 0):
        return None
    longest, shortest = max(one.text_bytes, other.text_bytes), min(one.text_bytes, other.text_bytes)
    return one.latency_ms / other.latency_ms if longest <= COMPARABLE * shortest else None


def _accuracy(base: InstalledModel, adapter: Adapter) -> float | None:
    """The adapter's accuracy on the base's current variant, where the package states it; else its accuracy."""
    variant = base.variant
    keys = [f"{figure}.{name}" for name in (variant.name, variant.dtype) for figure in ("accuracy", "exact_match")]
    return next((adapter.metrics[key] for key in keys if key in adapter.metrics), adapter.accuracy)


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
