"""The computation of `sentence_pooling`: pooling of hidden states, Dense and Normalize, as PyTorch modules.

A file of its own because the caller's side reads a folder's plan without importing PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

# Far below any hidden state and inside the range of float16, where -1e9 times 0 would be NaN.
_LOWEST = -1.0e4


class SentencePooling(nn.Module):
    """features [rows, width] of hidden states [rows, tokens, hidden] over the tokens of a mask [rows, tokens].

    Rows are padded at their end. The formulas are those of sentence-transformers' Pooling.
    """

    def __init__(self, modes: Sequence[str] = ("mean",), steps: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.modes = tuple(modes)
        self.steps = nn.ModuleList(steps)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool and apply the steps."""
        weight = mask.to(states.dtype).unsqueeze(-1)
        parts = [_pooled(mode, states, mask, weight) for mode in self.modes]
        features = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        for step in self.steps:
            features = step(features)
        return features


def _pooled(mode: str, states: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        return (states * weight + (1.0 - weight) * _LOWEST).amax(dim=1)
    if mode == "lasttoken":
        place = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * place).amax(dim=1)
        chosen = (place.unsqueeze(0) == last.unsqueeze(1)).to(states.dtype).unsqueeze(-1)
        return (states * chosen).sum(dim=1)
    if mode == "weightedmean":
        place = torch.arange(1, mask.shape[1] + 1, device=mask.device).to(states.dtype)
        weight = weight * place.unsqueeze(0).unsqueeze(-1)
    total = weight.sum(dim=1)
    if mode == "mean_sqrt_len":
        total = total.sqrt()
    return (states * weight).sum(dim=1) / total.clamp(min=1.0)


class DenseStep(nn.Module):
    """y = activation(x W' + b); its weights are the base's and are never trained."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.bias: torch.Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(len(weight)) if bias is None else bias.float())
        self.activation: nn.Module = getattr(nn, activation)()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [rows, d_in] -> [rows, d_out]."""
        found: torch.Tensor = self.activation(functional.linear(features, self.weight, self.bias))
        return found


class NormalizeStep(nn.Module):
    """Features scaled to length 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [rows, width], each divided by its length."""
        return functional.normalize(features, p=2.0, dim=1)


class TruncateStep(nn.Module):
    """The first `width` features: embeddings that were trained to be cut (Matryoshka)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [rows, n] -> [rows, at most `width`]."""
        return features[:, : self.width]
