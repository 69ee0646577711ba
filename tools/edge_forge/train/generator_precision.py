"""Whether steps are computed in float32 or bfloat16 here: a short measurement at start, kept in the record."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch

from edge_forge.data.chat_tokenizer import Packed
from edge_forge.train.generator_settings import GenerateSettings

_REPEATS = 6
# A CPU without units for bfloat16 takes many times as long: a small product says so before a whole step is tried.
_SIDE = 384
_WORTH = 0.95


def precision(model: Any, packed: Packed, settings: GenerateSettings) -> tuple[str, dict[str, float]]:
    """'fp32' or 'bf16' (autocast), and the milliseconds of a packed row, forward and backward, that decided it.

    On an accelerator bf16 is taken wherever it exists, unmeasured. The weights are left as they were.
    """
    if settings.precision != "auto":
        return settings.precision, {}
    if torch.cuda.is_available():
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp32"), {}
    products = {kind: min(_product_ms(kind) for _ in range(2 * _REPEATS)) for kind in (torch.float32, torch.bfloat16)}
    if products[torch.bfloat16] > products[torch.float32]:
        return "fp32", {}
    ids = torch.tensor(packed.ids[:1])
    labels = torch.tensor(packed.labels[:1])
    model.train()
    found = {name: min(_step_ms(model, ids, labels, name) for _ in range(_REPEATS)) for name in ("fp32", "bf16")}
    chosen = "bf16" if found["bf16"] < found["fp32"] * _WORTH else "fp32"
    return chosen, {name: round(took_ms, 3) for name, took_ms in found.items()}


def _product_ms(kind: torch.dtype) -> float:
    left = torch.ones(64, _SIDE, dtype=kind)
    right = torch.ones(_SIDE, _SIDE, dtype=kind)
    start_s = time.perf_counter()
    torch.matmul(left, right)
    return (time.perf_counter() - start_s) * 1000


def _step_ms(model: Any, ids: torch.Tensor, labels: torch.Tensor, name: str) -> float:
    start_s = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if name == "bf16" else nullcontext():
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    took_ms = (time.perf_counter() - start_s) * 1000
    model.zero_grad(set_to_none=True)
    return took_ms
