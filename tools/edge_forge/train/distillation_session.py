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

import torch

from edge_forge.models import smaller
from edge_forge.models.encoder import Encoder
from edge_forge.train import classifier_trainer as loop
from edge_forge.train import lora as adapters
from edge_forge.train import step_benchmark as speed
from edge_forge.train.batches import RowDataset
from edge_forge.train.checkpoints import BEST, Checkpoints
from edge_forge.train.classifier_session import RunData, TrainingRun, chosen, record_of
from edge_forge.train.distilled import DistilledClassifier, Teacher
from edge_forge.train.frozen_states import tokenize
from edge_forge.train.record import TrainRecord, peak_bytes
from edge_forge.train.resumable_trainer import KeptFiles, report_below
from edge_forge.train.trained_encoder import open_trained
from edge_forge.train.worker_process import Report

if TYPE_CHECKING:
    # The job's module is the program that imports this one; an import at run time would load it a second time.
    from edge_forge.train.distillation_job import DistillationJob

FOLDER = "base"
"""Below the result: the student as a base."""


def run(work: DistillationJob, report: Report) -> TrainRecord:
    """Distil as `work` says; the record is the last file written."""
    job = work.training
    job.out_dir.mkdir(parents=True, exist_ok=True)
    report_below(job.folders.reports)
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
    job, lesson = work.training, work.lesson
    encoder, weight, bias = open_trained(job.base_dir, lesson.teacher_dir, merged=True)
    layers = encoder.layers
    smaller.check_layers(encoder, lesson.layers, "compress.layers")
    before = encoder.model.config.to_dict()
    cut = smaller.keep_layers(encoder, smaller.spread(layers, lesson.layers))
    start = job.work_dir / f"student-{os.environ.get('RANK', '0')}"  # each process writes its own
    student = smaller.write_proven(cut, job.base_dir, start, before, "compress.layers")
    # The cut shares its layers with the teacher: that is opened anew, and the student is what was read from the folder.
    whole, weight, bias = open_trained(job.base_dir, lesson.teacher_dir, merged=True)
    model = DistilledClassifier(
        student, Teacher(whole, weight, bias), smaller.stood_for(layers, lesson.layers),
        temperature=lesson.temperature, hidden=lesson.hidden, token_dropout=job.settings.token_dropout,
    )  # fmt: skip
    for name, value in student.model.named_parameters():
        value.requires_grad_(not name.startswith("pooler."))
    student.pooling.requires_grad_(False)
    return model, student, start
