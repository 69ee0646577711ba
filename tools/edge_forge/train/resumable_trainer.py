"""transformers' Trainer with small, sealed checkpoints, from which a killed run goes on to the same bytes.

A checkpoint of Trainer holds the whole model; here it holds the trained weights alone, the best ones, and what the
trainers of this package add to Trainer's state (`extra`). Checkpoints are written after every evaluation, and between
them every ten minutes. What differs after a run was taken up is the training loss of the pass in which it was killed,
which Trainer sums from the checkpoint on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from edge_agent.base.errors import ConfigError
from edge_forge.train.checkpoints import BEST, EXTRA, EXTRA_TENSORS, TRAINED, Checkpoints
from edge_forge.train.methods import restore_trained, save_trained

BETWEEN_S = 600.0
"""A pass that takes longer has a checkpoint every so many seconds."""


class KeptFiles(NamedTuple):
    """Where a run keeps its state: its checkpoints, the best weights of this process, and when it began (monotonic and
    processor seconds)."""

    checkpoints: Checkpoints
    best: Path
    begun_s: tuple[float, float]


class _Often(TrainerCallback):
    """Asks for a checkpoint where the last one is long ago. Only where one process trains: others would not know."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last_s = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        due = args.world_size == 1 and args.save_strategy != "no" and time.monotonic() - self._last_s >= BETWEEN_S
        return replace(control, should_save=True) if due else control


def report_below(folder: Path) -> None:
    """Where TensorBoard's files go, unless the user's environment says it; a folder of checkpoints is removed.

    For a process that trains once: it writes the variable that transformers reads into the process's environment.
    """
    if not os.environ.get("TENSORBOARD_LOGGING_DIR"):  # an empty one means the current folder to the writer
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)


class ResumableTrainer(Trainer):
    """Trainer over a model of which some weights are trained; `learning` is that model without any wrapper.

    Subclasses say what belongs to their state (`extra`, `take_extra`) and whether training is over (`is_over`).
    """

    def __init__(self, learning: nn.Module, kept: KeptFiles, **given: Any) -> None:
        super().__init__(**given)
        self.learning = learning
        self.best_path = kept.best
        self._kept = kept
        self._spent_before = (0.0, 0.0)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "training with sharded weights (FSDP, DeepSpeed) is not supported: the best weights are kept whole",
                "accelerate", "use distributed data parallel (accelerate's MULTI_GPU or MULTI_CPU)",
            )  # fmt: skip
        self.add_callback(_Often())
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                self.remove_callback(callback)

    def extra(self) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
        """(JSON values, tensors) of the subclass's state."""
        return {}, {}

    def take_extra(self, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what `extra` gave."""

    def is_over(self) -> bool:
        """Whether the run had ended, but for writing its result."""
        return False

    @property
    def spent_s(self) -> tuple[float, float]:
        """Wall and processor seconds up to now, those of the runs before counted up to the checkpoint."""
        now = time.monotonic(), time.process_time()
        return tuple(  # type: ignore[return-value]
            before + at - begun for before, at, begun in zip(self._spent_before, now, self._kept.begun_s, strict=True)
        )

    def run(self) -> float:
        """Train to the end, from the newest checkpoint where there is one; returns the share that was done before."""
        newest = self._kept.checkpoints.newest()
        self.accelerator.wait_for_everyone()  # every process has looked
        if self.is_world_process_zero():
            self._kept.checkpoints.remove_others(newest)
        if newest is None:
            self.train()
            return 0.0
        values = json.loads((newest / EXTRA).read_text(encoding="utf-8"))
        self._spent_before = (float(values["spent_s"][0]), float(values["spent_s"][1]))
        self.take_extra(values, load_file(newest / EXTRA_TENSORS))
        if (newest / BEST).is_file() and self.is_world_process_zero():
            shutil.copyfile(newest / BEST, self.best_path)
        self.state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
        done = self.state.global_step / max(1, self.state.max_steps)
        if not self.is_over():
            self.train(resume_from_checkpoint=str(newest))
        return done

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained weights; called by Trainer for a checkpoint."""
        if self.args.should_save and output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_trained(self.learning, Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        restore_trained(self.learning, Path(resume_from_checkpoint) / TRAINED)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.is_world_process_zero():
            place = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            values, tensors = self.extra()
            (place / EXTRA).write_text(json.dumps({**values, "spent_s": list(self.spent_s)}), encoding="utf-8")
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, place / EXTRA_TENSORS
            )
            if self.best_path.is_file():
                shutil.copyfile(self.best_path, place / BEST)
            self._kept.checkpoints.seal(place)
