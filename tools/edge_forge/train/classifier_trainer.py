"""The training loop: transformers' Trainer with what it lacks on a small machine.

Added to Trainer: batches of near-equal length in random order, a running average of the trained weights that is
evaluated and kept, the best state on disk, small checkpoints (`resumable_trainer`), and progress as plain events.
Trainer drives everything else, so `accelerate launch` works unchanged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, TrainerCallback, TrainingArguments

from edge_forge.evaluate.classifier_metrics import evaluate
from edge_forge.models.sequence_classifier import IGNORED, PADDED
from edge_forge.train.batches import LengthBatches, RowDataset, collate, split
from edge_forge.train.methods import METHODS, restore_trained, save_trained
from edge_forge.train.resumable_trainer import KeptFiles, ResumableTrainer
from edge_forge.train.settings import TrainSettings
from edge_forge.train.worker_process import Report

_EVALUATION_TOKENS = 1024


class Average:
    """Running average of the trained parameters; the decay grows from 0 so that early steps do not linger.

    decay_t = min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._live: list[torch.Tensor] = [value for value in model.parameters() if value.requires_grad]
        self._kept = [value.detach().clone() for value in self._live] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one step to the average."""
        if not self._kept:
            return
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._kept, self._live, 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The average, by the place of each parameter."""
        return {f"{place}": value for place, value in enumerate(self._kept)}

    def take(self, steps: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave after so many steps."""
        self.steps = steps
        for place, value in enumerate(self._kept):
            value.copy_(tensors[f"{place}"])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live weights and the average."""
        for live, kept in zip(self._live, self._kept, strict=False):
            held = live.detach().clone()
            live.copy_(kept)
            kept.copy_(held)


@dataclass
class Curves:
    """The evaluations of a run, one entry each; losses in nats, scores in 0..1."""

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: int = -1

    def better(self, entry: dict[str, float]) -> bool:
        """Add an evaluation; whether it is the best so far (macro F1, then the lower loss)."""
        self.evaluations.append(entry)
        rank = (entry["validation_macro_f1"], -entry["validation_loss"])
        held = self.evaluations[self.best] if self.best >= 0 else None
        if held is not None and rank <= (held["validation_macro_f1"], -held["validation_loss"]):
            return False
        self.best = len(self.evaluations) - 1
        return True

    @property
    def since_best(self) -> int:
        """Evaluations since the best one."""
        return len(self.evaluations) - 1 - self.best


@dataclass(frozen=True)
class StepPlan:
    """How a step is computed: padded tokens at once, and precision."""

    micro_batch_tokens: int
    bf16: bool


class _Watch(TrainerCallback):
    """Reports progress and feeds the average."""

    def __init__(self, owner: ClassifierTrainer, progress: Report) -> None:
        self.owner = owner
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.owner.average.update()
        if state.is_world_process_zero:
            self.progress("train", state.global_step / max(1, state.max_steps))


class ClassifierTrainer(ResumableTrainer):
    """Trainer over kept states or tokens; see the module's docstring."""

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        parts: tuple[RowDataset, RowDataset],
        plan: StepPlan,
        kept: KeptFiles,
    ) -> None:
        longest = int(parts[1].rows.lengths.max())
        arguments = _arguments(settings, plan, kept, max(1, _EVALUATION_TOKENS // longest))
        super().__init__(
            model,
            kept,
            model=model,
            args=arguments,
            train_dataset=parts[0],
            eval_dataset=parts[1],
            data_collator=collate,
            compute_metrics=_answer_scores if settings.answers else _scores,
        )
        self.settings = settings
        self.classifier = model
        self._rows = parts[0].rows
        self._tokens_at_once = plan.micro_batch_tokens
        self.average = Average(model, settings.average_decay)
        self.curves = Curves()
        self._report: Report | None = None

    def watch(self, progress: Report, companion: TrainerCallback | None = None) -> None:
        """Report progress to `progress`, and average; with the method's own callback."""
        if companion is not None:
            self.add_callback(companion)
        self.add_callback(_Watch(self, progress))
        self._report = progress

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self._rows if train_dataset is None else train_dataset.rows
        size = self.args.train_batch_size * self.args.world_size
        return LengthBatches(rows.lengths, size, self.settings.seed)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Forward and backward of one batch, a part of it at a time; returns the batch's mean loss.

        Parts are bounded by tokens and not, as in Trainer, by a fixed number of rows: short rows run in one piece and
        long ones do not set the peak of memory.
        """
        model.train()
        batch = self._prepare_inputs(inputs)
        loss = torch.zeros((), device=batch["labels"].device)
        parts = list(split(batch, self._tokens_at_once))
        for place, part in enumerate(parts, 1):
            # Processes exchange gradients once a batch: the number of parts is each one's own.
            with self.accelerator.no_sync(model) if place < len(parts) else nullcontext():
                with self.compute_loss_context_manager():
                    share = model(**part)["loss"] * (len(part["labels"]) / len(batch["labels"]))
                self.accelerator.backward(share)
            loss += share.detach()
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW or SGD over the trained parameters only: decay on matrices, LoRA+ on B, the head's own step size."""
        if self.optimizer is None:
            groups = parameter_groups(self.classifier, self.settings)
            if self.settings.optimizer == "sgd":
                self.optimizer = torch.optim.SGD(groups, momentum=0.9)
            else:
                self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
        return self.optimizer

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Evaluate the averaged weights, keep them when they are the best so far, and stop when none was for long."""
        self.average.swap()
        try:
            found: dict[str, float] = super().evaluate(*arguments, **named)
            entry = {
                "epoch": float(self.state.epoch or 0.0),
                "train_loss": _last_loss(self.state.log_history),
                "validation_loss": found["eval_nll"],
                "validation_accuracy": found["eval_accuracy"],
                "validation_macro_f1": found["eval_macro_f1"],
            }
            if self.curves.better(entry) and self.is_world_process_zero():
                save_trained(self.classifier, self.best_path)
            if self._report is not None:
                self._report.evaluated(entry)
            if self.is_over():
                self.control.should_training_stop = True
        finally:
            self.average.swap()
        return found

    def extra(self) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
        """Evaluations, and the running average."""
        values = {"evaluations": self.curves.evaluations, "best": self.curves.best, "averaged": self.average.steps}
        return values, self.average.tensors()

    def take_extra(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take them again, and tell them: who follows a run has not seen those of an earlier process."""
        if self._report is not None:
            for entry in values["evaluations"]:
                self._report.evaluated(entry)
        self.curves = Curves(list(values["evaluations"]), int(values["best"]))
        self.average.take(int(values["averaged"]), tensors)

    def is_over(self) -> bool:
        """Whether none of the last evaluations was better, as the settings bound it."""
        return 0 < self.settings.early_stopping_patience <= self.curves.since_best

    def take_best(self) -> None:
        """Put the best evaluated weights into the model."""
        restore_trained(self.classifier, self.best_path)


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Trained parameters by step size and decay. Vectors (biases, norms) are not decayed; LoRA+ raises B's step size
    by `lora_plus_ratio` (Hayou et al. 2024)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.learning_rate
        if name.startswith("head."):
            rate *= settings.head_learning_rate_ratio
        elif ".lora_B." in name:
            rate *= settings.lora_plus_ratio
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def _arguments(settings: TrainSettings, plan: StepPlan, kept: KeptFiles, evaluation_rows: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(kept.checkpoints.folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=max(1, settings.batch_size // int(os.environ.get("WORLD_SIZE", "1"))),
        per_device_eval_batch_size=evaluation_rows,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=settings.warmup_fraction,
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=plan.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="epoch" if METHODS[settings.method].resumes else "no",
        save_total_limit=2,  # the one before stays until the new one is whole
        report_to=list(settings.report_to),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )


def _scores(prediction: EvalPrediction) -> dict[str, float]:
    logits, targets = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
    if logits.ndim == 3:  # of every token: words count
        logits, targets = logits[targets != IGNORED], targets[targets != IGNORED]
    gold = [int(value) for value in targets.reshape(-1)]
    found = evaluate(logits, gold, [str(index) for index in range(logits.shape[1])])
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "nll": found.nll}


def _answer_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Of windows: `accuracy` is the share whose start and end are right, `macro_f1` the mean F1 of their tokens."""
    logits, gold = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
    # Trainer pads rows of several batches with -100, which is above the logit of padding within a batch.
    logits[logits == IGNORED] = PADDED
    starts = logits[..., 0].argmax(axis=1)
    after = np.where(np.arange(logits.shape[1])[None] >= starts[:, None], logits[..., 1], PADDED)
    found = np.stack([starts, after.argmax(axis=1)], axis=1)
    shared = np.minimum(found[:, 1], gold[:, 1]) - np.maximum(found[:, 0], gold[:, 0]) + 1
    lengths = (found[:, 1] - found[:, 0] + 1) + (gold[:, 1] - gold[:, 0] + 1)
    scores = logits - logits.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    rows = np.arange(len(gold))
    return {
        "accuracy": float((found == gold).all(axis=1).mean()),
        "macro_f1": float((2 * np.maximum(shared, 0) / lengths).mean()),
        "nll": float(-(scores[rows, gold[:, 0], 0] + scores[rows, gold[:, 1], 1]).mean() / 2),
    }


def _last_loss(history: Sequence[dict[str, float]]) -> float:
    return next((float(entry["loss"]) for entry in reversed(history) if "loss" in entry), math.nan)
