"""What a training run leaves behind: the device's adapter and peft's folder, or a Hugging Face folder with a head."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from edge_forge.models.encoder import Encoder
from edge_forge.models.sequence_classifier import SequenceClassifier
from edge_forge.train import lora as adapters
from edge_forge.train.classifier_job import Job

_COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def save(job: Job, model: SequenceClassifier, peft_model: Any | None, encoder: Encoder) -> list[str]:
    """Write the result of a run into its folder; returns the files' names relative to it."""
    head = {"head.weight": model.head.weight.detach().t().contiguous(), "head.bias": model.head.bias.detach().clone()}
    head = {name: value.cpu().float() for name, value in head.items()}
    if peft_model is None:
        _save_full(job, encoder)
        save_file(head, job.out_dir / "head.safetensors")
    else:
        _save_lora(job, model, peft_model, head)
    return sorted(str(path.relative_to(job.out_dir)) for path in job.out_dir.rglob("*") if _kept(path, job.out_dir))


def _kept(path: Path, out_dir: Path) -> bool:
    return path.is_file() and not path.relative_to(out_dir).parts[0].startswith(".")


def _save_lora(job: Job, model: SequenceClassifier, peft_model: Any, head: dict[str, Any]) -> None:
    settings = job.settings
    metadata = {
        "base_id": job.base_id,
        "rank": str(settings.rank),
        "alpha": str(settings.alpha),
        "rslora": str(settings.use_rslora).lower(),
        "labels": str(len(job.labels)),
    }
    adapters.save_adapter(
        job.out_dir / "adapter.safetensors", adapters.device_tensors(peft_model, model.head), metadata
    )
    peft_model.peft_config["default"].base_model_name_or_path = None
    peft_model.save_pretrained(str(job.out_dir / "peft"))
    (job.out_dir / "peft" / "README.md").unlink(missing_ok=True)
    save_file(head, job.out_dir / "peft" / "head.safetensors")


def _save_full(job: Job, encoder: Encoder) -> None:
    """model.safetensors with the names of Hugging Face, beside the base's config and tokenizer."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    save_file(tensors, job.out_dir / "model.safetensors", metadata={"format": "pt"})
    for name in _COPIED:
        if (job.base_dir / name).is_file():
            shutil.copyfile(job.base_dir / name, job.out_dir / name)


def load_head(path: Path) -> dict[str, Any]:
    """`head.weight` [hidden, labels] and `head.bias` [labels] of a head.safetensors."""
    found: dict[str, Any] = load_file(path)
    return found
