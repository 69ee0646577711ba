"""What was trained, as the base of a further training: the base's folder with the tuned weights in it.

A file of its own because it writes a folder that `bases` accepts, which no training result is: an adapter has no config
and no tokenizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from edge_forge.models import bases
from edge_forge.train.trained_encoder import open_trained


def write_merged(base_dir: Path, trained_dir: Path, out_dir: Path) -> None:
    """Write an encoder's folder: the files of `base_dir`, its weights with those of `trained_dir` folded in."""
    weights = set(bases.weight_files(base_dir))
    for path in bases.listed(base_dir):
        if path not in weights and path.name != "model.safetensors.index.json":
            place = out_dir / path.relative_to(base_dir)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    encoder, _, _ = open_trained(base_dir, trained_dir, merged=True)
    tensors = {name: value.detach().contiguous().clone() for name, value in encoder.model.state_dict().items()}
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})
