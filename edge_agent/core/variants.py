"""A model's variants on this device: the expected time of one, the cheaper one for a hot board, and the one that
answers while another is compiled.

A variant that was tried at the install has times of this device. Any other is expected to take the host's time of that
variant, scaled by the ratio of device to host of a variant that was tried. Pure. `store.variant_selection` decides
which variant is installed.
"""

from __future__ import annotations

import math

from edge_agent.base.runtimes import traits
from edge_agent.bundle.catalog import SAME_ACCURACY, InstalledModel, Variant

HOST_LATENCY = "latency_ms"
"""The key in `Variant.metrics` of the host's figure: compute time of one text in ms."""
USUAL_TEXT_BYTES = 64
"""Assumed where a trial did not record the length of its texts."""
WORTH_SWITCHING = 0.8
"""A cheaper variant takes at most 80 % of the time of the chosen one; a smaller gain does not repay the reload."""


def expected_row(model: InstalledModel, variant: Variant) -> tuple[int, float] | None:
    """(bytes of a text, seconds that it is expected to take); None where no figure is known."""
    if variant.measured is not None and variant.measured.latency_ms > 0:
        return variant.measured.text_bytes or USUAL_TEXT_BYTES, variant.measured.latency_ms / 1000.0
    host_ms = variant.metrics.get(HOST_LATENCY)
    if host_ms is None:
        return None
    for tried in model.variants:
        tried_host_ms = tried.metrics.get(HOST_LATENCY, 0.0)
        if tried.measured is not None and tried.measured.latency_ms > 0 and tried_host_ms > 0:
            scale = tried.measured.latency_ms / tried_host_ms
            return tried.measured.text_bytes or USUAL_TEXT_BYTES, scale * host_ms / 1000.0
    return USUAL_TEXT_BYTES, host_ms / 1000.0


def fallback(model: InstalledModel) -> Variant | None:
    """The variant that answers while the chosen one is compiled on this device; None where the chosen one is not
    compiled, or no other one is on disk. The quickest by what was measured here."""
    if not traits(model.variant.runtime).compiles:
        return None
    there = [one for one in model.variants if one.files and not traits(one.runtime).compiles]
    return min(there, key=_measured_ms, default=None)


def _measured_ms(variant: Variant) -> float:
    return math.inf if variant.measured is None else variant.measured.latency_ms


def cheaper(model: InstalledModel, accuracy_loss_limit: float) -> Variant | None:
    """The fastest variant that can replace the chosen one on a hot board; None without one.

    It must be on disk, have been tried on this device, be clearly faster, and lose at most `accuracy_loss_limit`.
    """
    chosen = model.variant
    if chosen.measured is None:
        return None
    # Only measured times of this device are compared; an expected time is too uncertain to justify a reload.
    best_ms, found = WORTH_SWITCHING * chosen.measured.latency_ms, None
    for variant in model.variants:
        loss = variant.shown_loss(chosen.accuracy)
        if not variant.files or variant.measured is None or loss > accuracy_loss_limit + SAME_ACCURACY:
            continue
        if variant.measured.latency_ms <= best_ms:
            best_ms, found = variant.measured.latency_ms, variant
    return found
