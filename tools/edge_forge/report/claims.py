"""What the sources claim, beside what was measured here; figures that were not measured stay open.

The claims are those of the project's mission table: A, an article on full fine-tuning against LoRA at the edge; B, a
paper on efficient fine-tuning with LoRA. Several are loose or second-hand, so each row says why ours may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_forge.train.methods import FULL, LORA

_OPEN = "not measured in this build"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _find(variants: Sequence[Mapping[str, Any]], form: str, dtype: str) -> Mapping[str, Any] | None:
    """The variant of that kind; of several the one that measured best, as the build chooses."""
    found = [one for one in variants if one["form"] == form and one["dtype"] == dtype]
    return max(found, key=lambda one: float(one.get("validation_accuracy") or 0.0), default=None)


def variant_claims(variants: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows (source, claim, ours, why it differs) on number formats, from one recipe's measured variants."""
    form = "merged" if _find(variants, "merged", "fp32") else "banked"
    float32 = _find(variants, form, "fp32")
    rows = []
    for dtype, claim, why in (
        ("fp16", "FP16: about 2× less memory, 2× faster, minimal loss",
         "ONNX Runtime has no float16 kernels on this CPU and converts around every product: "
         "smaller file, not faster"),
        ("int8", "INT8: about 4× less memory, 4× faster or more, moderate loss",
         "weights shrink 4×, what stays float does not; speed depends on VNNI or dotprod and the batch"),
    ):  # fmt: skip
        found = _find(variants, form, dtype)
        rows.append(["A", claim, _OPEN if not (found and float32) else _against(found, float32), why])
    return rows


def _against(found: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    parts = [f"file {_ratio(reference['size_bytes'] / found['size_bytes'])} smaller"]
    if found.get("peak_bytes") and reference.get("peak_bytes"):
        parts.append(f"memory {_ratio(reference['peak_bytes'] / found['peak_bytes'])} smaller")
    if found.get("latency_ms") and reference.get("latency_ms"):
        parts.append(f"{_ratio(reference['latency_ms'] / found['latency_ms'])} as fast")
    parts.append(f"{100 * (found['accuracy'] - reference['accuracy']):+.2f} points of accuracy")
    return ", ".join(parts)


def training_claims(records: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, float] | None) -> list[list[str]]:
    """Rows on training, from the records of runs by method; `accuracy` is on the measured split, by method, or None
    where answers are no labels."""
    lora, full = records.get(LORA.name), records.get(FULL.name)
    both = lora is not None and full is not None
    rows = [
        ["B", "LoRA trains in 40 % less time", _change(lora, full, "wall_s") if both else _OPEN,
         "theirs is a GPU with large models; here the frozen layers' forward pass weighs more"],
        ["B", "LoRA trains in 35 % less memory", _change(lora, full, "peak_bytes") if both else _OPEN,
         "optimiser state shrinks, activations do not; of a small model they are most"],
    ]  # fmt: skip
    if accuracy is not None:
        rows.append(
            ["B", "SST-2: LoRA 92.3 %, full 92.5 % (BERT-base)",
             f"LoRA {100 * accuracy[LORA.name]:.1f} %, full {100 * accuracy[FULL.name]:.1f} %" if both else _OPEN,
             "comparable on SST-2 only; ours is an encoder a fifth of the size, on whole sentences"]
        )  # fmt: skip
    if full is not None:
        model = 4 * full["total_parameters"]
        rows.append(
            ["A", "full fine-tuning needs about 12× the model's size in memory", _ratio(full["peak_bytes"] / model),
             "peak of the training process with its libraries, over the weights in float32"]
        )  # fmt: skip
    return rows


def _change(lora: Mapping[str, Any] | None, full: Mapping[str, Any] | None, key: str) -> str:
    assert lora is not None  # noqa: S101 - the caller has both
    assert full is not None  # noqa: S101
    return f"{100 * (lora[key] / full[key] - 1):+.0f} %"
