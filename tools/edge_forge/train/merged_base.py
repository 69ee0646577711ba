"""What was trained, as the base of a further training: the base's folder with the tuned weights in it.

A file of its own because it writes a folder that `bases` accepts, which no training result is: an adapter has no config
and no tokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from edge_forge.models import bases

_GENERATOR_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip


def write_merged(base_dir: Path, trained_dir: Path, out_dir: Path) -> None:
    """Write an encoder's folder: the files of `base_dir`, its weights with those of `trained_dir` folded in."""
    from edge_forge.train.trained_encoder import open_trained

    encoder, _, _ = open_trained(base_dir, trained_dir, merged=True)
    weights = set(bases.weight_files(base_dir))
    for path in bases.listed(base_dir):
        if path not in weights and path.name != "model.safetensors.index.json":
            _copy(base_dir, path, out_dir)
    _write(out_dir, encoder.model.state_dict())


def write_merged_generator(base_dir: Path, adapter_dir: Path, out_dir: Path) -> None:
    """Write a generator's folder: the files of `base_dir`, its weights with peft's adapter folded in."""
    from edge_forge.models.causal_lm import open_model

    model = open_model(base_dir, adapter_dir).merge_and_unload()
    # A head that is the table of tokens is one tensor, which a file holds once.
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    for name in _GENERATOR_FILES:
        if (base_dir / name).is_file():
            _copy(base_dir, base_dir / name, out_dir)
    _write(out_dir, {name: value for name, value in model.state_dict().items() if name not in tied})


def _copy(base_dir: Path, path: Path, out_dir: Path) -> None:
    place = out_dir / path.relative_to(base_dir)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def _write(out_dir: Path, state: Mapping[str, Any]) -> None:
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})
