"""A trained encoder opened from what a training run left, whatever the method: for scores, exports and diagnosis.

A file of its own because `evaluate` and `export` both open results, and neither imports the other's parts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from edge_agent.base.errors import ConfigError
from edge_forge.models.encoder import Encoder, open_encoder
from edge_forge.train import bottleneck
from edge_forge.train.lora import apply_adapter, load_adapter


def has_token_head(trained_dir: Path) -> bool:
    """Whether what was trained gives logits of tokens (slots, answers) and not of texts, by the run's record."""
    record = trained_dir / "record.json"
    if not record.is_file():
        return False
    settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
    return bool(settings.get("slots") or settings.get("answers"))


def open_trained(
    base_dir: Path, trained_dir: Path, *, merged: bool, segmented: bool = True
) -> tuple[Encoder, torch.Tensor, torch.Tensor]:
    """(encoder, head's weight [hidden, labels], its bias [labels]) of a folder that `train` wrote.

    `merged` folds an adapter into the weights; without it the branches are added. `segmented` as in `open_encoder`.
    Raises ConfigError when the folder holds no result or one of another base.
    """
    if (trained_dir / "adapter.safetensors").is_file():
        encoder = open_encoder(base_dir, segmented=segmented)
        tensors = load_adapter(trained_dir / "adapter.safetensors")
        apply_adapter(encoder, tensors, merged)
    elif (trained_dir / bottleneck.FILE).is_file():
        encoder, tensors = open_encoder(base_dir, segmented=segmented), bottleneck.read(trained_dir / bottleneck.FILE)
        bottleneck.load_bottlenecks(encoder.model, tensors)
    elif (trained_dir / "model.safetensors").is_file():
        encoder, tensors = open_encoder(trained_dir, segmented=segmented), load_file(trained_dir / "head.safetensors")
    else:
        raise ConfigError("there is no trained result", str(trained_dir), "run the train step first")
    return encoder, tensors["head.weight"], tensors["head.bias"]
