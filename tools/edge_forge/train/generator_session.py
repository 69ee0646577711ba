"""One training run of a generator in the worker process: open, tokenise and pack, measure, train, save.

The loop is transformers' Trainer over packed rows, or TRL's over preferences (`preference_trainer`). The state with the
lowest validation loss is kept. A short measurement at the start chooses between float32 and bfloat16; the record keeps
its figures.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from edge_agent.base.errors import ConfigError
from edge_forge.data.chat_tokenizer import ChatTokenizer, EncodedPair, PackedRows, pack, pairs_within
from edge_forge.data.generator_rows import REJECTED
from edge_forge.models.causal_lm import below_names, open_model, target_names
from edge_forge.train import methods
from edge_forge.train.checkpoints import BEST, Checkpoints
from edge_forge.train.generator_settings import GeneratorSettings
from edge_forge.train.lora import check_finite, check_learned, save_as_lora, save_peft
from edge_forge.train.record import TrainRecord, peak_bytes
from edge_forge.train.resumable_trainer import KeptFiles, ResumableTrainer
from edge_forge.train.worker_process import Report

if TYPE_CHECKING:
    # The job's module is the program that imports this one; an import at run time would load it a second time.
    from edge_forge.train.generator_job import GeneratorJob

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass
class _Run:
    """One run and the figures of its record."""

    job: GeneratorJob
    report: Report
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


def run(job: GeneratorJob, report: Report) -> TrainRecord:
    """Train as `job` says and write its result into `job.out_dir`; the record is the last file written."""
    torch.manual_seed(job.settings.seed)
    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    going = _Run(job, report, peak_bytes(), time.monotonic(), time.process_time())
    with going.phase("open"):
        model = open_model(job.base_dir)
        total = sum(parameter.numel() for parameter in model.parameters())
        _check_length(model, job.settings.max_tokens)
        method = methods.method(job.settings.method)
        names = _names(method, model, job.settings)
        model = method.apply(model, names, job.settings, "CAUSAL_LM")
    with going.phase("pack"):
        learned = _learned(job)
    with going.phase("measure"):
        checkpoints = Checkpoints(job.folders.checkpoints)
        chosen = checkpoints.choice(lambda: _measured(model, learned.sample, job.settings))
        precision, measured_ms = chosen["precision"], chosen["measured_ms"]
    with going.phase("train"):
        kept = KeptFiles(checkpoints, job.work_dir / BEST, (going.start_s, going.start_cpu_s))
        trainer = _trainer(job, model, learned, kept, (precision == "bf16", report))
        trainer.watch(report, method.companion(model))
        done_before = trainer.run()
        trainer.take_best()
    tokens = learned.tokens * float(trainer.state.epoch or 0.0)
    choice = {
        "precision": precision, "threads": torch.get_num_threads(), "measured_ms": measured_ms,
        "packed_rows": learned.count,
        "tokens_per_s": round(tokens / max(going.phases_s["train"], 1e-9), 1),
    }  # fmt: skip
    chief = bool(trainer.is_world_process_zero())
    with going.phase("save"):
        if chief:
            _save(job, model)
    record = replace(
        _record(going, trainer, model, learned.left_out, total), choice=choice, done_before=round(done_before, 4)
    )
    if chief:
        record.write(job.out_dir / "record.json")
    return record


def _measured(model: Any, packed: PackedRows, settings: GeneratorSettings) -> dict[str, Any]:
    precision, measured_ms = measured_precision(model, packed, settings)
    return {"precision": precision, "measured_ms": measured_ms}


def _names(method: methods.Method, model: Any, settings: GeneratorSettings) -> Sequence[str]:
    """What `Method.apply` is given: adapted modules, or those that stay as they are."""
    if method.trains_adapter:
        return target_names(model, settings.targets, settings.frozen_share)
    return below_names(model, settings.frozen_share) if method.scope == methods.UPPER else ()


def _check_length(model: Any, tokens: int) -> None:
    longest = int(getattr(model.config, "max_position_embeddings", tokens))
    if tokens > longest:
        raise ConfigError(f"{tokens} tokens are more than the base takes ({longest})", "task.max_tokens")


@dataclass(frozen=True)
class _Learned:
    """The tokens that a run learns from and is evaluated on: packed rows, or pairs. `sample` is timed; `count` rows
    hold `tokens`, padding of packed rows included; `left_out` rows (training, validation) were too long."""

    packed: tuple[PackedRows, PackedRows] | None
    pairs: tuple[list[EncodedPair], list[EncodedPair]] | None
    end: int
    sample: PackedRows
    count: int
    tokens: int
    left_out: tuple[int, int]


def _learned(job: GeneratorJob) -> _Learned:
    tokenizer, settings = ChatTokenizer(job.base_dir, job.chat), job.settings
    held = (job.train, job.validation)
    if job.train[0][-1].role != REJECTED:
        packed = tuple(
            pack(map(tokenizer.encode, rows), settings.max_tokens, tokenizer.ends[0], settings.seed) for rows in held
        )
        first, other = packed
        tokens = sum(map(len, first.ids))
        left_out = first.left_out, other.left_out
        return _Learned((first, other), None, tokenizer.ends[0], first, len(first.ids), tokens, left_out)
    train, validation = (pairs_within(tokenizer, rows, settings.max_tokens)[1] for rows in held)
    longest = max(train, key=lambda pair: pair.length)
    ids = [*longest.prompt, *longest.chosen]
    sample = PackedRows([ids], [ids], [list(range(len(ids)))], 0)
    tokens = sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in train)
    left_out = len(job.train) - len(train), len(job.validation) - len(validation)
    return _Learned(None, (train, validation), tokenizer.ends[0], sample, len(train), tokens, left_out)


def _trainer(
    job: GeneratorJob, model: Any, learned: _Learned, kept: KeptFiles, how: tuple[bool, Report]
) -> GeneratorTrainer:
    """`how`: (whether in bfloat16, who is told what is done before training)."""
    bf16, report = how
    if learned.pairs is not None:
        from edge_forge.train.preference_trainer import PreferenceTrainer

        own = model.config.pad_token_id  # TRL writes what pads into the configuration, which is saved with the model
        tokens = job.base_dir / "tokenizer.json", learned.end if own is None else int(own)
        return PreferenceTrainer(model, job.settings, learned.pairs, kept, tokens, bf16=bf16, report=report)
    assert learned.packed is not None  # noqa: S101 - one of the two is there
    train, validation = map(PackedDataset, learned.packed)
    args = TrainingArguments(label_names=["labels"], **arguments(job.settings, kept, bf16))
    return GeneratorTrainer(
        model, job.settings, kept, model=model, args=args, train_dataset=train, eval_dataset=validation
    )


def _save(job: GeneratorJob, model: Any) -> None:
    method = methods.method(job.settings.method)
    if method.exportable_to(methods.ADAPTER):
        pairs = method.pairs(model)
        check_learned(
            {f"{name}.{part}": one for name, pair in pairs.items() for part, one in zip("AB", pair, strict=True)}
        )
        if method.peft_form:
            save_peft(model, job.out_dir / "peft")
        else:
            save_as_lora(pairs, job.out_dir / "peft", "CAUSAL_LM")
        return
    check_finite(model.state_dict())
    method.merge(model).save_pretrained(str(job.out_dir / "model"))
    for name in _COPIED:
        if (job.base_dir / name).is_file():
            shutil.copyfile(job.base_dir / name, job.out_dir / "model" / name)


def _record(going: _Run, trainer: Any, model: Any, left_out: tuple[int, int], total: int) -> TrainRecord:
    job, settings = going.job, going.job.settings
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    curves = trainer.curves
    best = min(range(len(curves)), key=lambda place: curves[place]["validation_loss"]) if curves else None
    return TrainRecord(
        method=settings.method,
        preset=settings.preset,
        settings=asdict(settings),
        base_id=job.base_id,
        labels=[],
        wall_s=round(trainer.spent_s[0], 3),
        cpu_s=round(trainer.spent_s[1], 3),
        peak_bytes=peak_bytes(),
        baseline_bytes=going.baseline_bytes,
        trainable_parameters=sum(one.numel() for one in model.parameters() if one.requires_grad),
        total_parameters=total,
        curves=curves,
        best_epoch=curves[best]["epoch"] if best is not None else math.nan,
        stopped_early=bool(trainer.state.global_step < trainer.state.max_steps),
        kept_states={},
        rows={"train": len(job.train), "validation": len(job.validation)},
        truncated={"train": left_out[0], "validation": left_out[1]},
        adapted_modules=sorted(
            {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in learned if ".lora_A." in name}
        ),
        phases_s=going.phases_s,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        processes=int(trainer.args.world_size),
        gpu_peak_bytes=int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0,
        files=sorted(
            str(path.relative_to(job.out_dir))
            for folder in ("peft", "model")
            for path in (job.out_dir / folder).rglob("*")
            if path.is_file()
        ),
    )


class PackedDataset(Dataset[Any]):
    """Packed rows as Trainer wants them."""

    def __init__(self, packed: PackedRows) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed.ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """input_ids, labels, position_ids [max_tokens]; where places restart, attention does not look back."""
        return {
            "input_ids": torch.tensor(self._packed.ids[row]),
            "labels": torch.tensor(self._packed.labels[row]),
            "position_ids": torch.tensor(self._packed.places[row]),
        }


class _Watch(TrainerCallback):
    """Reports progress."""

    def __init__(self, progress: Report) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress("train", state.global_step / max(1, state.max_steps))


class GeneratorTrainer(ResumableTrainer):
    """Trainer that keeps the state with the lowest validation loss, and stops when none was lower for long.

    `curves` has an entry per epoch: {epoch, train_loss, validation_loss}, losses in nats per learned token. `given` is
    what Trainer takes.
    """

    def __init__(self, learning: nn.Module, settings: GeneratorSettings, kept: KeptFiles, **given: Any) -> None:
        super().__init__(learning, kept, **given)
        self.settings = settings
        self.curves: list[dict[str, float]] = []
        self._report: Report | None = None
        self._best = (math.inf, -1)

    def watch(self, progress: Report, companion: TrainerCallback | None = None) -> None:
        """Report progress to `progress`; with the method's own callback."""
        if companion is not None:
            self.add_callback(companion)
        self.add_callback(_Watch(progress))
        self._report = progress

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the trained parameters: decay on matrices, LoRA+ on B."""
        if self.optimizer is None:
            settings = self.settings
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self.learning.named_parameters():
                if parameter.requires_grad:
                    rate = settings.learning_rate * (settings.lora_plus_ratio if ".lora_B." in name else 1.0)
                    decay = settings.weight_decay if parameter.ndim > 1 else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            found = [{"params": part, "lr": rate, "weight_decay": decay} for (rate, decay), part in groups.items()]
            self.optimizer = torch.optim.AdamW(found, betas=(0.9, 0.95), eps=1e-8)
        return self.optimizer

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Evaluate, keep the weights when they are the best so far, and stop when none was for long."""
        found: dict[str, float] = super().evaluate(*arguments, **named)
        train = next((float(one["loss"]) for one in reversed(self.state.log_history) if "loss" in one), math.nan)
        loss = float(found["eval_loss"])
        entry = {"epoch": float(self.state.epoch or 0.0), "train_loss": train, "validation_loss": loss}
        self.curves.append({**entry, **self.figures_of(found)})
        if loss < self._best[0]:
            self._best = (loss, len(self.curves) - 1)
        if self._best[1] == len(self.curves) - 1 and self.is_world_process_zero():
            methods.save_trained(self.learning, self.best_path)
        if self._report is not None:
            self._report.evaluated(self.curves[-1])
        if self.is_over():
            self.control.should_training_stop = True
        return found

    def figures_of(self, found: Mapping[str, float]) -> dict[str, float]:
        """What an entry of `curves` also has, of an evaluation's figures."""
        return {}

    def extra(self) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
        """Evaluations, and which was best."""
        return {"curves": self.curves, "best": list(self._best)}, {}

    def take_extra(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take them again, and tell them: who follows a run has not seen those of an earlier process."""
        if self._report is not None:
            for entry in values["curves"]:
                self._report.evaluated(entry)
        self.curves, self._best = list(values["curves"]), (float(values["best"][0]), int(values["best"][1]))

    def is_over(self) -> bool:
        """Whether none of the last evaluations was better, as the settings bound it."""
        return 0 < self.settings.early_stopping_patience <= len(self.curves) - 1 - self._best[1]

    def take_best(self) -> None:
        """Put the best evaluated weights into the model."""
        methods.restore_trained(self.learning, self.best_path)


def arguments(settings: GeneratorSettings, kept: KeptFiles, bf16: bool) -> dict[str, Any]:
    """What transformers' TrainingArguments, or TRL's, are given."""
    share = max(1, settings.batch_size // int(os.environ.get("WORLD_SIZE", "1")))
    at_once = min(settings.rows_at_once, share)
    return {
        "output_dir": str(kept.checkpoints.folder),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": max(1, share // at_once),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": settings.warmup_fraction,
        "max_grad_norm": 1.0,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_strategy": "epoch" if methods.METHODS[settings.method].resumes else "no",
        "save_total_limit": 2,  # the one before stays until the new one is whole
        "report_to": list(settings.report_to),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "prediction_loss_only": True,
    }


_REPEATS = 6
# A CPU without units for bfloat16 takes many times as long: a small product says so before a whole step is tried.
_SIDE = 384
_WORTH = 0.95


def measured_precision(model: Any, packed: PackedRows, settings: GeneratorSettings) -> tuple[str, dict[str, float]]:
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
