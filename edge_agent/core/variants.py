"""What is known of a model's variants on this device: the time to expect of one, and the cheaper one for a hot board.

Times are this device's own where the variant was tried here. One that was not is expected to take the host's figure
times what the tried one took here over what it took on the host. Pure; `store.variant_selection` chooses at install.
"""

from __future__ import annotations

from edge_agent.bundle.catalog import SAME_ACCURACY, InstalledModel, Variant

HOST_LATENCY = "latency_ms"
"""The key of the host's figure in `Variant.metrics`: compute time of one text."""
USUAL_TEXT_BYTES = 64
WORTH_SWITCHING = 0.8
"""A cheaper variant takes at most four fifths of the time: a reload is not free."""


def expected_row(model: InstalledModel, variant: Variant) -> tuple[int, float] | None:
    """(bytes of a text, seconds that it is expected to take); None where nothing is known."""
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


def cheaper(model: InstalledModel, accuracy_loss_limit: float) -> Variant | None:
    """The variant that does most work for its time, when the chosen one may not: kept on disk, tried here, clearly
    faster, and losing no more accuracy than allowed. None where there is none."""
    chosen = model.variant
    if chosen.measured is None:
        return None
    best_ms, found = WORTH_SWITCHING * chosen.measured.latency_ms, None
    for variant in model.variants:
        loss = (chosen.accuracy or 0.0) - (variant.accuracy or 0.0)
        if not variant.files or variant.measured is None or loss > accuracy_loss_limit + SAME_ACCURACY:
            continue
        if variant.measured.latency_ms <= best_ms:
            best_ms, found = variant.measured.latency_ms, variant
    return found
