"""A generator's variant as this device loads it: the operator's settings over the package's, shrunk where allowed.

Pure. Without a header (an unreadable file, another runtime) the settings are passed on and the package's memory figure
stays; then only the worker, which reads the file, can say what fits. Apart from `gguf_memory`, because it works on the
catalog's variants, which contain that module's values.
"""

from __future__ import annotations

from dataclasses import replace

from edge_agent.base.limits import BLOB_BYTES
from edge_agent.base.runtimes import traits
from edge_agent.bundle.catalog import Sizing, TaskSpec, Variant
from edge_agent.bundle.gguf_memory import (
    BATCH,
    KV_BYTES,
    KV_TYPE,
    SEQUENCES,
    Demand,
    GeneratorOverrides,
    GgufHeader,
    advice,
    arithmetic,
    fits_range,
    fitted,
    need,
)

SETTINGS = ("context", "sequences", "kv_type")


def sized(
    variant: Variant,
    task: TaskSpec,
    header: GgufHeader | None,
    wanted: GeneratorOverrides,
    allowed_bytes: float | None = None,
) -> Variant:
    """The variant with the options to load it with, and the bytes that it then needs.

    Unchanged for everything that is no generator. `allowed_bytes`: what it may take (None: not known); a demand that
    cannot be made to fit stays as requested.
    """
    if task.kind != "generate" or not traits(variant.runtime).context_sized:
        return variant
    found = {"context": wanted.context, "sequences": wanted.sequences, "kv_type": wanted.kv_type}
    options = {**variant.options, **{name: value for name, value in found.items() if value is not None}}
    if header is None or options.get("kv_type", KV_TYPE) not in KV_BYTES:
        metric = f"peak_bytes.ctx{wanted.context or task.max_tokens}.kv_{options.get('kv_type', KV_TYPE)}"
        known = 0.0 if wanted.sequences else variant.metrics.get(metric, 0.0)
        peak_bytes = int(known) if 0.0 < known <= BLOB_BYTES else variant.peak_bytes
        return replace(variant, options=options, peak_bytes=peak_bytes)
    full = _demand(options, task, header)
    if wanted.context is not None:
        options["context"] = full.context
    demand = full
    if wanted.shrink and allowed_bytes is not None:
        demand = fitted(header, full, allowed_bytes) or full
    if demand != full:
        options.update(context=demand.context, sequences=demand.sequences)
    peak_bytes = sum(need(header, demand))
    return replace(variant, options=options, peak_bytes=peak_bytes, sizing=Sizing(header, demand, full))


def explained(variant: Variant, allowed_bytes: float) -> str:
    """The sum of a generator's bytes, and what would fit into the allowed ones; empty where that is not known."""
    if variant.sizing is None:
        return ""
    header, full = variant.sizing.header, variant.sizing.full
    return f"{arithmetic(header, full)}; {advice(header, full, allowed_bytes)}"


def settings_text(variant: Variant, packaged: Variant) -> str:
    """The options that differ from the package's, as text; empty where none does."""
    changed = [name for name in SETTINGS if variant.options.get(name) != packaged.options.get(name)]
    return " ".join(f"{name}={variant.options.get(name)}" for name in changed)


def _demand(options: dict[str, object], task: TaskSpec, header: GgufHeader) -> Demand:
    """The demand that the options state. A context longer than the model was trained for is cut to that length, because
    the operator's setting applies to all generators."""
    context = _whole(options, "context", 0) or task.max_tokens
    kv_type = str(options.get("kv_type", KV_TYPE))
    sequences = _whole(options, "sequences", SEQUENCES)
    return Demand(min(context, header.context_length), max(1, sequences), kv_type, _whole(options, "batch", BATCH))


def _whole(options: dict[str, object], name: str, default: int) -> int:
    """An option, or the default where it is none that a load takes: the load refuses it by name."""
    found = options.get(name, default)
    return found if fits_range(name, found) and isinstance(found, int) else default
