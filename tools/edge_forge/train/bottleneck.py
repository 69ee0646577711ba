"""Bottleneck adapters (Houlsby et al. 2019): y + W_up gelu(W_down y) behind the last linear layer of every sublayer.

peft has none. As in the paper the norms of the adapted layers are trained too. The file (bottleneck.safetensors) holds
every trained tensor of the encoder by its name there, and the head as an adapter's file does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edge_agent.base.errors import ConfigError

FILE = "bottleneck.safetensors"
_DOWN = ".down.weight"


class BottleneckLinear(nn.Linear):
    """A linear layer, and behind it y + up(gelu(down(y))); `up` starts at 0, so that it computes as before."""

    def __init__(self, linear: nn.Linear, width: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Linear(linear.out_features, width)
        self.up = nn.Linear(width, linear.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., d_in] -> [..., d_out]."""
        y = functional.linear(x, self.weight, self.bias)
        added: torch.Tensor = self.up(functional.gelu(self.down(y)))
        return y + added


def apply_bottlenecks(model: Any, names: Sequence[str], width: int) -> Any:
    """Put bottlenecks of `width` behind the linears `names`, in place; they and the norms of their layers learn."""
    model.requires_grad_(False)
    _insert(model, dict.fromkeys(names, width))
    layers = {_layer(name) for name in names}
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Norm") and _layer(name) in layers:
            module.requires_grad_(True)
    return model


def _layer(name: str) -> str:
    """`encoder.layer.3` of `encoder.layer.3.output.dense`; '' for what is in no layer."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[: place + 1])


def _insert(model: Any, widths: Mapping[str, int]) -> None:
    for name, width in widths.items():
        holder, _, last = name.rpartition(".")
        parent, linear = model.get_submodule(holder), model.get_submodule(name)
        made = BottleneckLinear(linear, width)
        for part in (made.down, made.up):
            part.requires_grad_(True)
        parent.add_module(last, made)


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every trained tensor of the encoder by its name, float32."""
    return {
        name: value.detach().cpu().float().contiguous() for name, value in model.named_parameters()
        if value.requires_grad
    }  # fmt: skip


def load_bottlenecks(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the bottlenecks of a file into an encoder, in place. Raises ConfigError where they are of another base."""
    own = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    try:
        _insert(model, {name.removesuffix(_DOWN): len(value) for name, value in own.items() if name.endswith(_DOWN)})
        unknown = model.load_state_dict(own, strict=False).unexpected_keys
    except (AttributeError, RuntimeError) as error:
        raise _other_base(str(error)) from error
    if unknown:
        raise _other_base(f"it has no {unknown[0]!r}")
    model.eval()


def _other_base(why: str) -> ConfigError:
    return ConfigError(
        f"the bottleneck adapters have no place in the base: {' '.join(why.split())[:200]}", FILE,
        "use the base they were trained on",
    )  # fmt: skip


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a bottleneck.safetensors, the head's among them. Raises ConfigError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the adapters cannot be read: {error}", str(path), "train them again") from error
    return found
