"""The story of one training run of a generator: open, tokenise and pack, train, save. Runs in the worker process."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from edge_agent.base.errors import ConfigError
from edge_forge.data.chat_tokenizer import Codec, Packed, pack
from edge_forge.models.causal_lm import open_model, put_on
from edge_forge.train import generator_precision as speed
from edge_forge.train import generator_trainer as loop
from edge_forge.train.generator_job import Job
from edge_forge.train.record import TrainRecord, peak_bytes

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass
class _Run:
    """One run and what is gathered about it on the way."""

    job: Job
    report: Callable[[str, float], None]
    baseline_bytes: int
    start_s: float
    start_cpu_s: float
    phases_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run and report its beginning."""
        start_s = time.monotonic()
        self.report(name, 0.0)
        yield
        self.phases_s[name] = round(time.monotonic() - start_s, 3)


def run(job: Job, report: Callable[[str, float], None]) -> TrainRecord:
    """Train as `job` says and write its result into `job.out_dir`; the record is the last file written."""
    torch.manual_seed(job.settings.seed)
    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    going = _Run(job, report, peak_bytes(), time.monotonic(), time.process_time())
    with going.phase("open"):
        model = open_model(job.base_dir)
        total = sum(parameter.numel() for parameter in model.parameters())
        _check_length(model, job.settings.max_tokens)
        if job.settings.method == "lora":
            model = put_on(model, job.settings)
    with going.phase("pack"):
        packed = _pack(job)
    with going.phase("measure"):
        precision, measured_ms = speed.precision(model, packed[0], job.settings)
    with going.phase("train"):
        trainer = loop.GenerateTrainer(model, job.settings, packed, job.work_dir, precision == "bf16")
        trainer.watch(report)
        trainer.train()
        trainer.take_best()
    choice = {
        "precision": precision, "threads": torch.get_num_threads(), "measured_ms": measured_ms,
        "packed_rows": len(packed[0].ids),
        "tokens_per_s": round(_tokens(trainer, packed[0]) / max(going.phases_s["train"], 1e-9), 1),
    }  # fmt: skip
    with going.phase("save"):
        _save(job, model)
    record = replace(_record(going, trainer, model, packed, total), choice=choice)
    record.write(job.out_dir / "record.json")
    return record


def _check_length(model: Any, tokens: int) -> None:
    longest = int(getattr(model.config, "max_position_embeddings", tokens))
    if tokens > longest:
        raise ConfigError(f"{tokens} tokens are more than the base takes ({longest})", "task.max_tokens")


def _pack(job: Job) -> tuple[Packed, Packed]:
    codec, settings = Codec(job.base_dir, job.chat), job.settings
    train, validation = (
        pack(map(codec.encode, rows), settings.max_tokens, codec.ends[0], settings.seed)
        for rows in (job.train, job.validation)
    )
    return train, validation


def _save(job: Job, model: Any) -> None:
    if job.settings.method == "lora":
        model.peft_config["default"].base_model_name_or_path = None
        model.save_pretrained(str(job.out_dir / "peft"))
        (job.out_dir / "peft" / "README.md").unlink(missing_ok=True)
        return
    model.save_pretrained(str(job.out_dir / "model"))
    for name in _COPIED:
        if (job.base_dir / name).is_file():
            shutil.copyfile(job.base_dir / name, job.out_dir / "model" / name)


def _tokens(trainer: Any, packed: Packed) -> float:
    """Tokens that were learned from, padding included."""
    return sum(map(len, packed.ids)) * float(trainer.state.epoch or 0.0)


def _record(going: _Run, trainer: Any, model: Any, packed: tuple[Packed, Packed], total: int) -> TrainRecord:
    job, usage, settings = going.job, resource.getrusage(resource.RUSAGE_SELF), going.job.settings
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    curves = trainer.curves
    best = min(range(len(curves)), key=lambda place: curves[place]["validation_loss"]) if curves else None
    return TrainRecord(
        method=settings.method,
        preset=settings.preset,
        settings=asdict(settings),
        base_id=job.base_id,
        labels=[],
        wall_s=round(time.monotonic() - going.start_s, 3),
        cpu_s=round(usage.ru_utime + usage.ru_stime - going.start_cpu_s, 3),
        peak_bytes=peak_bytes(),
        baseline_bytes=going.baseline_bytes,
        trainable_parameters=sum(one.numel() for one in model.parameters() if one.requires_grad),
        total_parameters=total,
        curves=curves,
        best_epoch=curves[best]["epoch"] if best is not None else math.nan,
        stopped_early=bool(trainer.state.global_step < trainer.state.max_steps),
        kept_states={},
        rows={"train": len(job.train), "validation": len(job.validation)},
        truncated={"train": packed[0].left_out, "validation": packed[1].left_out},
        adapted_modules=sorted(
            {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in learned if ".lora_A." in name}
        ),
        phases_s=going.phases_s,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        gpu_peak_bytes=int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0,
        files=sorted(
            str(path.relative_to(job.out_dir))
            for folder in ("peft", "model")
            for path in (job.out_dir / folder).rglob("*")
            if path.is_file()
        ),
    )
