"""A Hugging Face encoder opened for training: its layers by name, and how its lower part is cut off.

A cut encoder is the model's own class. Its embeddings and lower layers are replaced by modules that return their input,
so its forward pass, its masks and every remaining module's name stay those of the full model, and adapters trained on
it fit the full model by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_agent.base.errors import ConfigError

_QKV = frozenset({"query", "key", "value", "q", "k", "v", "q_lin", "k_lin", "v_lin", "q_proj", "k_proj", "v_proj"})


class _Through(nn.Module):
    """Replaces a frozen module: returns its input, which is that module's known output."""

    def forward(self, hidden_states: torch.Tensor | None = None, *_: object, **named: Any) -> torch.Tensor:
        """The hidden states as given (a layer), or `inputs_embeds` (embeddings)."""
        given = named.get("inputs_embeds") if hidden_states is None else hidden_states
        if given is None:
            raise ConfigError("a cut encoder was given token ids", "training", "give it the kept hidden states")
        return given


class _Reached(Exception):
    """Ends a forward pass once the wanted hidden states are there."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("reached")
        self.hidden = hidden


@dataclass(frozen=True)
class Encoder:
    """An encoder and where its layers are: `model.get_submodule(f"{path}.{i}")` is layer i of `layers`."""

    model: Any
    path: str
    layers: int
    hidden: int

    def layer(self, index: int) -> nn.Module:
        """Layer `index`, counted from the embeddings."""
        found: nn.Module = self.model.get_submodule(f"{self.path}.{index}")
        return found

    def linears(self, first_layer: int = 0) -> Iterator[tuple[str, str, nn.Linear]]:
        """(full module name, name within its layer, module) of every linear in the layers from `first_layer` up."""
        for index in range(first_layer, self.layers):
            for name, module in self.layer(index).named_modules():
                if isinstance(module, nn.Linear):
                    yield f"{self.path}.{index}.{name}", name, module


def open_encoder(base_dir: Path, dropout: float = 0.0) -> Encoder:
    """Load the encoder of a Hugging Face folder in float32, in evaluation mode, with `dropout` in every place.

    Raises ConfigError when the folder holds no encoder with a list of layers.
    """
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(base_dir, local_files_only=True)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if isinstance(getattr(config, key, None), float):
                setattr(config, key, dropout)
        model = AutoModel.from_pretrained(base_dir, config=config, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the base cannot be opened: {error}", str(base_dir), "give a Hugging Face model folder"
        ) from error
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model.config, "is_decoder", False):
        raise ConfigError("the base is not an encoder", str(base_dir), "choose an encoder such as BERT or MiniLM")
    path, layers = _layers(model, base_dir)
    return Encoder(model.eval(), path, layers, int(model.config.hidden_size))


def _layers(model: nn.Module, base_dir: Path) -> tuple[str, int]:
    count = int(getattr(model.config, "num_hidden_layers", 0))
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and name:
            return name, count
    raise ConfigError(
        "no list of layers is found in the base", str(base_dir), "choose an encoder such as BERT or MiniLM"
    )


def resolve_layer(first_layer: int, layers: int) -> int:
    """The index of the lowest adapted layer; a negative one counts from the top. Raises ConfigError out of range."""
    index = first_layer + layers if first_layer < 0 else first_layer
    if not 0 <= index < layers:
        raise ConfigError(
            f"first_layer = {first_layer} is outside the base's {layers} layers", "train", f"use 0 to {layers - 1}"
        )
    return index


def target_names(encoder: Encoder, targets: Sequence[str], first_layer: int) -> list[str]:
    """Full names of the linears that `targets` select from `first_layer` up, in the model's order.

    Raises ConfigError for a target that selects nothing.
    """
    chosen: list[str] = []
    used: set[str] = set()
    for full, name, _ in encoder.linears(first_layer):
        hits = {target for target in targets if _selects(target, name)}
        used |= hits
        if hits:
            chosen.append(full)
    unused = [target for target in targets if target not in used]
    if unused:
        names = ", ".join(sorted({name for _, name, _ in encoder.linears()}))
        raise ConfigError(
            f"targets names {unused[0]!r}, which no linear of the base matches",
            "train",
            f"use all, attention, qkv, mlp, or the end of one of: {names}",
        )
    return chosen


def _selects(target: str, name: str) -> bool:
    attention = name.startswith(("attention", "attn", "self_attn", "attn."))
    groups = {
        "all": True,
        "attention": attention,
        "qkv": attention and name.rpartition(".")[2] in _QKV,
        "mlp": not attention,
    }
    return groups[target] if target in groups else name == target or name.endswith(f".{target}")


def run_below(encoder: Encoder, first_layer: int, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, tokens, hidden] that layer `first_layer` is given, without a graph."""

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(arguments[0] if arguments else named["hidden_states"])

    handle = encoder.layer(first_layer).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            encoder.model(input_ids=input_ids, attention_mask=mask)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise ConfigError(f"layer {first_layer} of the base was never run", "training", "use first_layer = 0")


def cut_below(encoder: Encoder, first_layer: int) -> None:
    """Free the embeddings and the layers below `first_layer`; the model then takes their output as `inputs_embeds`."""
    for name, child in list(encoder.model.named_children()):
        if name == "embeddings":
            setattr(encoder.model, name, _Through())
        elif name == "pooler" and child is not None:
            encoder.model.pooler = None
    holder = encoder.model.get_submodule(encoder.path)
    for index in range(first_layer):
        holder[index] = _Through()
    for parameter in encoder.model.parameters():
        # The weights are mapped from one file; copies of the few that stay let go of all of it.
        parameter.data = parameter.data.clone()
