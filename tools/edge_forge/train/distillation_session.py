"""One distillation in the worker process: open the teacher, cut the student out of it, teach it, save its folder.

A file of its own because `classifier_session` trains one model by a method of the table, and this trains a second model
beside the first.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edge_forge.models import pruned, smaller
from edge_forge.models.encoder import Encoder
from edge_forge.train import classifier_trainer as loop
from edge_forge.train import lora as adapters
from edge_forge.train import step_benchmark as speed
from edge_forge.train.batches import RowDataset
from edge_forge.train.checkpoints import BEST, Checkpoints
from edge_forge.train.classifier_session import RunData, TrainingRun, chosen, record_of
from edge_forge.train.distilled import DistilledClassifier, Teacher
from edge_forge.train.frozen_states import by_length, padded, tokenize
from edge_forge.train.record import TrainRecord, peak_bytes
from edge_forge.train.resumable_trainer import KeptFiles
from edge_forge.train.trained_encoder import open_trained
from edge_forge.train.worker_process import Report

if TYPE_CHECKING:
    # The job's module is the program that imports this one; an import at run time would load it a second time.
    from edge_forge.train.distillation_job import DistillationJob

FOLDER = "base"
"""Below the result: the student as a base."""
_SECTION = "compress"
# Heads and neurons are scored on so many rows at most, at even distances, so many padded tokens at once.
_SCORED_ROWS = 2048
_SCORED_TOKENS = 1024


def run(work: DistillationJob, report: Report) -> TrainRecord:
    """Distil as `work` says; the record is the last file written."""
    job = work.training
    job.out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.settings.seed)
    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    going = TrainingRun(job, report, peak_bytes(), time.monotonic(), time.process_time())
    checkpoints = Checkpoints(job.folders.checkpoints)
    with going.phase("open"):
        model, student, start = _opened(work)
        going.count(smaller.parameters(student))
    with going.phase("keep"):
        parts = (
            tokenize(job.base_dir, rows, job.labels, job.settings.max_tokens) for rows in (job.train, job.validation)
        )
        data = RunData(*(RowDataset(tokens, None) for tokens in parts))
    with going.phase("measure"):
        choice = chosen(checkpoints, lambda: speed.choose(model, student.model, data.train, job.settings))
    with going.phase("train"):
        kept = KeptFiles(checkpoints, job.work_dir / BEST, (going.start_s, going.start_cpu_s))
        trainer = loop.ClassifierTrainer(model, job.settings, (data.train, data.validation), choice.plan, kept)
        trainer.watch(going.report)
        done_before = trainer.run()
        trainer.take_best()
    chief = bool(trainer.is_world_process_zero())
    with going.phase("save"):
        if chief:
            adapters.check_finite(student.model.state_dict())
            smaller.write_folder(student, start, job.out_dir / FOLDER, student.model.config.to_dict())
    record = record_of(going, trainer, data, [FOLDER])
    record = replace(record, choice=choice.as_dict(), done_before=round(done_before, 4))
    if chief:
        record.write(job.out_dir / "record.json")
    return record


def _opened(work: DistillationJob) -> tuple[DistilledClassifier, Encoder, Path]:
    """The model that is trained, its encoder, and the folder that the student begins with."""
    job, terms = work.training, work.terms
    encoder, weight, bias = open_trained(job.base_dir, terms.teacher_dir, merged=True)
    layers, before = encoder.layers, encoder.model.config.to_dict()
    cut = smaller.Cut(terms.layers, terms.heads, terms.feed_forward)
    of = smaller.shape_of(encoder, cut, _SECTION)
    scores = _scores(work, encoder, of, (weight, bias)) if of.heads or of.neurons else None
    small = smaller.cut_down(encoder, cut, of, scores, _SECTION)
    start = job.work_dir / f"student-{os.environ.get('RANK', '0')}"  # each process writes its own
    student = smaller.write_proven(small, job.base_dir, start, before, _SECTION)
    # The cut was made in the teacher's own layers: that is opened anew, and the student is what the folder holds.
    whole, weight, bias = open_trained(job.base_dir, terms.teacher_dir, merged=True)
    model = DistilledClassifier(
        student, Teacher(whole, weight, bias), smaller.stood_for(layers, terms.layers or layers),
        temperature=terms.temperature, hidden=terms.hidden, token_dropout=job.settings.token_dropout,
    )  # fmt: skip
    for name, value in student.model.named_parameters():
        value.requires_grad_(not name.startswith("pooler."))
    student.pooling.requires_grad_(False)
    return model, student, start


def _scores(
    work: DistillationJob, encoder: Encoder, of: pruned.LayerShape, head: tuple[torch.Tensor, torch.Tensor]
) -> list[pruned.Importance]:
    """The importance of the tuned teacher's heads and neurons, on at most `_SCORED_ROWS` labelled rows."""
    job = work.training
    labelled = job.train[: work.terms.labelled]
    rows = [labelled[place * len(labelled) // _SCORED_ROWS] for place in range(_SCORED_ROWS)]
    rows = rows if len(labelled) > _SCORED_ROWS else list(labelled)
    tokens = tokenize(job.base_dir, rows, job.labels, job.settings.max_tokens)
    encoder.model.requires_grad_(False)

    def loss(batch: NDArray[np.int64]) -> torch.Tensor:
        ids, mask = padded([tokens.tokens[row] for row in batch])
        logits = functional.linear(encoder.features(ids, mask), head[0].t(), head[1])
        return functional.cross_entropy(logits, torch.from_numpy(tokens.targets[batch]), reduction="sum")

    return pruned.importance(encoder, of, by_length(tokens.lengths, _SCORED_TOKENS), loss, _SECTION)
