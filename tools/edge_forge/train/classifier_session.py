"""One training run of a classifier in the worker process: open, keep states, measure, train, save."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from edge_agent.bundle.safetensors import OF_TOKENS
from edge_forge.data.classifier_rows import Row
from edge_forge.models import sentence_pooling
from edge_forge.models.encoder import (
    Encoder,
    below_names,
    can_be_cut,
    cut_below,
    features_only,
    open_encoder,
    resolve_layer,
    sublayer_ends,
    target_names,
)
from edge_forge.models.sequence_classifier import SequenceClassifier, class_weights
from edge_forge.train import bottleneck, methods
from edge_forge.train import classifier_trainer as loop
from edge_forge.train import lora as adapters
from edge_forge.train import step_benchmark as speed
from edge_forge.train.batches import RowDataset
from edge_forge.train.checkpoints import BEST, Checkpoints
from edge_forge.train.frozen_states import (
    KeptStates,
    TokenizedRows,
    keep_features,
    keep_last_states,
    keep_states,
    tokenize,
    tokenize_windows,
    tokenize_words,
)
from edge_forge.train.int8_aware import compute_in_int8
from edge_forge.train.record import TrainRecord, peak_bytes
from edge_forge.train.resumable_trainer import KeptFiles
from edge_forge.train.settings import INT8, TrainSettings
from edge_forge.train.worker_process import Report

if TYPE_CHECKING:
    # The job's module is the program that imports this one; an import at run time would load it a second time.
    from edge_forge.train.classifier_job import ClassifierJob

_COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


@dataclass
class TrainingRun:
    """A run at work and the figures of its record."""

    job: ClassifierJob
    report: Report
    baseline_bytes: int
    start_s: float
    start_cpu_s: float
    total_parameters: int = 0
    phases_s: dict[str, float] = field(default_factory=dict)

    def count(self, parameters: int) -> None:
        """The model has so many parameters."""
        self.total_parameters = parameters

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run and report its beginning."""
        start_s = time.monotonic()
        self.report(name, 0.0)
        yield
        self.phases_s[name] = round(time.monotonic() - start_s, 3)


@dataclass(frozen=True)
class RunData:
    """Both splits, tokenised and, above layer 0, as kept states."""

    train: RowDataset
    validation: RowDataset

    def close(self) -> None:
        """Free what is kept."""
        for part in (self.train, self.validation):
            if part.kept is not None:
                part.kept.close()


def run(job: ClassifierJob, report: Report) -> TrainRecord:
    """Train as `job` says and write its result into `job.out_dir`; the record is the last file written."""
    job.out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.settings.seed)
    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    return _steps(TrainingRun(job, report, peak_bytes(), time.monotonic(), time.process_time()))


def _steps(going: TrainingRun) -> TrainRecord:
    job, settings = going.job, going.job.settings
    method, checkpoints = methods.method(settings.method), Checkpoints(job.folders.checkpoints)
    with going.phase("open"):
        encoder = open_encoder(job.base_dir, settings.dropout)
        going.count(sum(parameter.numel() for parameter in encoder.model.parameters()))
        if settings.precision == INT8:
            compute_in_int8(encoder, job.base_dir, settings.calibration_tokens or settings.max_tokens)
    wanted = settings.first_layer or int(encoder.layers * settings.frozen_share)
    first_layer = resolve_layer(wanted, encoder.layers) if method.freezes_below else 0
    with going.phase("keep"):
        tokenized = _tokenized(job)
        cut = first_layer if first_layer and can_be_cut(encoder, first_layer, tokenized[0].tokens[0].tolist()) else 0
        data = _data(going, encoder, cut, tokenized)
    if method.scope == methods.HEAD:
        encoder = features_only(encoder)
    elif cut:
        cut_below(encoder, cut)
    names = _names(method, encoder, settings, first_layer)
    adapted = method.apply(encoder.model, names, settings, None)
    model = _model(settings, encoder, data, len(job.labels))
    with going.phase("measure"):
        choice = chosen(checkpoints, lambda: speed.choose(model, adapted, data.train, settings))
        method.choose_forward(adapted, choice.precision)
    with going.phase("train"):
        kept = KeptFiles(checkpoints, job.work_dir / BEST, (going.start_s, going.start_cpu_s))
        trainer = loop.ClassifierTrainer(model, settings, (data.train, data.validation), choice.plan, kept)
        trainer.watch(going.report, method.companion(adapted))
        done_before = trainer.run()
        trainer.take_best()
    chief = bool(trainer.is_world_process_zero())
    with going.phase("save"):
        rank, files = _save(job, model, adapted, bool(cut)) if chief else (0, [])
    data.close()
    record = record_of(going, trainer, data, files)
    record = replace(
        record, choice=choice.as_dict(), first_layer=first_layer, adapter_rank=rank, done_before=round(done_before, 4),
        adapted_modules=sorted(names) if method.trains_adapter else [],
    )  # fmt: skip
    if chief:
        record.write(job.out_dir / "record.json")
    return record


def chosen(checkpoints: Checkpoints, measure: Callable[[], speed.ComputeChoice]) -> speed.ComputeChoice:
    """How steps are computed: as in the run that is taken up, or as measured now."""
    choice = speed.ComputeChoice(**checkpoints.choice(lambda: measure().as_dict()))
    torch.set_num_threads(choice.threads)
    return choice


def _names(method: methods.Method, encoder: Encoder, settings: TrainSettings, first_layer: int) -> Sequence[str]:
    """What `Method.apply` is given: adapted modules, or those that stay as they are."""
    if method.exportable_to(methods.OWN_GRAPH):
        return sublayer_ends(encoder, first_layer)
    if method.trains_adapter:
        return target_names(encoder, settings.targets, first_layer)
    return below_names(encoder, first_layer) if method.scope == methods.UPPER else ()


def _tokenized(job: ClassifierJob) -> list[TokenizedRows]:
    """Training and validation rows."""
    if job.settings.answers:
        parts = [[Row(*row) for row in rows] for rows in (job.train, job.validation)]
        most, overlap = job.settings.max_tokens, job.settings.window_overlap
        return [tokenize_windows(job.base_dir, rows, most, overlap) for rows in parts]
    if job.settings.slots:
        parts = [[Row(*row) for row in rows] for rows in (job.train, job.validation)]
        return [tokenize_words(job.base_dir, rows, job.labels, job.settings.max_tokens) for rows in parts]
    return [tokenize(job.base_dir, rows, job.labels, job.settings.max_tokens) for rows in (job.train, job.validation)]


def _data(going: TrainingRun, encoder: Encoder, first_layer: int, tokenized: Sequence[TokenizedRows]) -> RunData:
    parts = []
    head_alone = methods.method(going.job.settings.method).scope == methods.HEAD
    for tokens in tokenized:
        if head_alone:
            of_tokens = going.job.settings.slots or going.job.settings.answers
            keep = keep_last_states if of_tokens else keep_features
            kept: KeptStates | None = keep(encoder, tokens, going.job.work_dir)
        else:
            kept = keep_states(encoder, first_layer, tokens, going.job.work_dir) if first_layer else None
        parts.append(RowDataset(tokens, kept))
    return RunData(*parts)


def _model(settings: TrainSettings, encoder: Encoder, data: RunData, labels: int) -> SequenceClassifier:
    balanced, targets = settings.class_weights == "balanced", data.train.rows.targets
    return SequenceClassifier(
        encoder,
        labels,
        class_weight=class_weights(targets[targets >= 0], labels) if balanced else None,
        label_smoothing=settings.label_smoothing,
        token_dropout=settings.token_dropout,
        consistency=settings.consistency,
        answered="answers" if settings.answers else "slots" if settings.slots else "text",
    )


def record_of(going: TrainingRun, trainer: loop.ClassifierTrainer, data: RunData, files: list[str]) -> TrainRecord:
    """The record of a run that is over, without what only some methods have."""
    job = going.job
    curves = trainer.curves
    kept = [part.kept for part in (data.train, data.validation)]
    return TrainRecord(
        method=job.settings.method,
        preset=job.settings.preset,
        settings=asdict(job.settings),
        base_id=job.base_id,
        labels=list(job.labels),
        wall_s=round(trainer.spent_s[0], 3),
        cpu_s=round(trainer.spent_s[1], 3),
        peak_bytes=peak_bytes(),
        baseline_bytes=going.baseline_bytes,
        trainable_parameters=sum(p.numel() for p in trainer.classifier.parameters() if p.requires_grad),
        total_parameters=going.total_parameters,
        curves=curves.evaluations,
        best_epoch=curves.evaluations[curves.best]["epoch"] if curves.evaluations else 0.0,
        stopped_early=bool(trainer.state.global_step < trainer.state.max_steps),
        kept_states={
            "size_bytes": sum(k.size_bytes for k in kept if k is not None),
            "on_disk": any(k is not None and k.on_disk for k in kept),
        },
        rows={"train": len(data.train), "validation": len(data.validation)},
        truncated={"train": data.train.rows.truncated, "validation": data.validation.rows.truncated},
        processes=int(trainer.args.world_size),
        adapted_modules=[],
        phases_s=going.phases_s,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        gpu_peak_bytes=int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0,
        files=files,
    )


def _save(job: ClassifierJob, model: SequenceClassifier, adapted: Any, cut: bool) -> tuple[int, list[str]]:
    """Write the result of a run into its folder; returns the rank that it needs of a bank (0: it has no such form) and
    the files' names relative to the folder. `cut`: the lower layers were freed."""
    rank = 0
    head = {"head.weight": model.head.weight.detach().t().contiguous(), "head.bias": model.head.bias.detach().clone()}
    head = {name: value.cpu().float() for name, value in head.items()}
    method = methods.method(job.settings.method)
    if method.exportable_to(methods.ADAPTER):
        rank = _save_adapter(job, model, adapted, head)
    elif method.exportable_to(methods.OWN_GRAPH):
        tensors = {**bottleneck.trained_tensors(adapted), **head}
        adapters.check_finite(tensors)
        save_file(tensors, job.out_dir / bottleneck.FILE)
    else:
        _save_weights(job, method.merge(adapted), cut)
        save_file(head, job.out_dir / "head.safetensors")
    return rank, sorted(
        str(path.relative_to(job.out_dir)) for path in job.out_dir.rglob("*") if _kept(path, job.out_dir)
    )


def _kept(path: Path, out_dir: Path) -> bool:
    return path.is_file() and not path.relative_to(out_dir).parts[0].startswith(".")


def _save_adapter(job: ClassifierJob, model: SequenceClassifier, adapted: Any, head: dict[str, Any]) -> int:
    settings = job.settings
    method = methods.method(settings.method)
    pairs = method.pairs(adapted)
    metadata = {
        "base_id": job.base_id,
        "method": method.name,
        "rank": str(adapters.rank_of(pairs)),
        "alpha": str(settings.alpha),
        "labels": str(len(job.labels)),
        **({"head": OF_TOKENS} if job.settings.slots or job.settings.answers else {}),
    }
    tensors = adapters.device_tensors(pairs, model.head)
    adapters.check_learned(tensors, method.trains_adapter)
    adapters.save_adapter(job.out_dir / "adapter.safetensors", tensors, metadata)
    if method.peft_form:
        adapters.save_peft(adapted, job.out_dir / "peft")
    elif pairs:
        adapters.save_as_lora(pairs, job.out_dir / "peft", None)
    if pairs:
        save_file(head, job.out_dir / "peft" / "head.safetensors")
    return adapters.rank_of(pairs)


def _save_weights(job: ClassifierJob, merged: Any, cut: bool) -> None:
    """model.safetensors with the names of Hugging Face, beside the base's config and tokenizer.

    What was cut off below the trained layers is the base's.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in merged.state_dict().items()}
    adapters.check_finite(tensors)
    if cut:
        base = open_encoder(job.base_dir).model.state_dict()
        tensors = {name: tensors.get(name, value.contiguous()) for name, value in base.items()}
    save_file(tensors, job.out_dir / "model.safetensors", metadata={"format": "pt"})
    for name in (*_COPIED, *sentence_pooling.files(job.base_dir)):
        if (job.base_dir / name).is_file():
            (job.out_dir / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(job.base_dir / name, job.out_dir / name)
