"""Training in the arithmetic of the shipped INT8 variant (`precision = "int8"`), so that what is trained fits it.

Every linear layer that the export quantises computes as `export.onnx.quantize.quantize_per_token` writes it: weights in
int8 codes with a scale per output channel, inputs in codes with a scale per token, the few wide channels of a tensor in
float, and large tables that are looked up (tokens; of wide bases positions too) in int8 rows. Sums are in float32
here; those of the integers are exact, and differ by float32's rounding. Gradients pass the rounding unchanged
(straight-through, Bengio et al. 2013).

An adapter's branch is added in float to the product with the base's codes, as the banked graph computes it. A merged
graph has codes of the sum of both, which are others.

torchao's QAT has fake quantisers per token and per channel, but no channels apart, without which it trains for another
function than the one that is shipped; hence the few lines of own arithmetic.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.models.encoder import Encoder
from edge_forge.models.wide_channels import LEAST, wide
from edge_forge.train.frozen_states import encode, padded

_CODES = 127.0
_LEAST_SCALE = 1e-12
# As in the export: tables of fewer bytes stay float.
EMBEDDING_BYTES_MIN = 1 << 20
_BATCH_ROWS = 16


class _Rounded(torch.autograd.Function):
    """Rounds half to even; the gradient passes unchanged."""

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """x rounded."""
        return torch.round(x)

    @staticmethod
    def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the result is that of x."""
        return grad


def _rounded(x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Rounded.apply(x)  # type: ignore[no-untyped-call]
    return found


def by_token(x: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    """x [..., channels] as codes over each token's largest magnitude say it; channels where `stays` is 0 are 0."""
    kept = x * stays
    largest = kept.detach().abs().amax(dim=-1, keepdim=True) + LEAST
    return _rounded(kept * (_CODES / largest)) * (largest / _CODES)


def by_row(weight: torch.Tensor) -> torch.Tensor:
    """weight [rows, channels] as int8 codes with a scale per row say it."""
    scale = (weight.detach().abs().amax(dim=-1, keepdim=True) / _CODES).clamp_min(_LEAST_SCALE)
    return _rounded(weight / scale) * scale


class _Product:
    """y = x W' + b of one linear layer in that arithmetic. Codes of a weight that is not trained are made once."""

    def __init__(self, channels: int, apart: Sequence[int]) -> None:
        self._apart = torch.tensor(list(apart), dtype=torch.int64)
        self._stays = torch.ones(channels)
        self._stays[self._apart] = 0.0
        self._frozen: torch.Tensor | None = None

    def __call__(self, linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        stays = self._stays.to(x.device)
        y = functional.linear(by_token(x, stays), self._codes(linear.weight, stays), linear.bias)
        if len(self._apart):
            apart = self._apart.to(x.device)
            y = y + functional.linear(x[..., apart], linear.weight[:, apart])
        return y

    def _codes(self, weight: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
        if weight.requires_grad:
            return by_row(weight * stays)
        if self._frozen is None or self._frozen.device != weight.device:
            self._frozen = by_row(weight.detach() * stays)
        return self._frozen


def compute_in_int8(encoder: Encoder, base_dir: Path, max_tokens: int) -> int:
    """Let an opened encoder compute as its INT8 variant does, from now on; returns how many products do so.

    Which channels are apart is found on general texts, as the export finds it on the base's graph.
    """
    inputs = _magnitudes(encoder, base_dir, max_tokens)
    for name, magnitudes in inputs.items():
        linear = encoder.model.get_submodule(name)
        linear.forward = types.MethodType(_Product(linear.in_features, wide(magnitudes)), linear)
    for table in encoder.model.modules():
        if isinstance(table, nn.Embedding) and table.weight.numel() * 4 >= EMBEDDING_BYTES_MIN:
            table.register_forward_hook(lambda _, __, rows: by_row(rows))
    return len(inputs)


def _magnitudes(encoder: Encoder, base_dir: Path, max_tokens: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Absolute values [tokens, channels] of what every linear layer reads on general texts, padding left out."""
    tokens = sorted(encode(base_dir, BASE_TEXTS, max_tokens)[0], key=len)
    found: dict[str, list[np.ndarray[Any, np.dtype[np.float32]]]] = {}
    for start in range(0, len(tokens), _BATCH_ROWS):
        ids, mask = padded(tokens[start : start + _BATCH_ROWS])

        def watch(name: str, mask: torch.Tensor = mask) -> Any:
            def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                found.setdefault(name, []).append(given[0][mask.bool()].abs().numpy())

            return keep

        hooks = [module.register_forward_pre_hook(watch(name)) for name, _, module in encoder.linears()]
        with torch.inference_mode():
            encoder.features(ids, mask)
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(parts) for name, parts in found.items()}
