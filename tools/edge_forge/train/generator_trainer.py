"""The training loop of a generator: transformers' Trainer over packed rows, the best state kept, progress as events."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from edge_forge.data.chat_tokenizer import Packed
from edge_forge.train.generator_settings import GenerateSettings


class Rows(Dataset[Any]):
    """Packed rows as Trainer wants them."""

    def __init__(self, packed: Packed) -> None:
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

    def __init__(self, progress: Callable[[str, float], None]) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress("train", state.global_step / max(1, state.max_steps))


class GenerateTrainer(Trainer):
    """Trainer that keeps the state with the lowest validation loss, and stops when none was lower for long.

    `curves` has an entry per epoch: {epoch, train_loss, validation_loss}, losses in nats per learned token.
    """

    def __init__(
        self, model: nn.Module, settings: GenerateSettings, packed: tuple[Packed, Packed], work_dir: Path, bf16: bool
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(settings, work_dir, bf16),
            train_dataset=Rows(packed[0]),
            eval_dataset=Rows(packed[1]),
        )
        self.settings = settings
        self.curves: list[dict[str, float]] = []
        self._learning: nn.Module = model
        self._best = (math.inf, -1)
        self._best_path = work_dir / "best.safetensors"
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                self.remove_callback(callback)

    def watch(self, progress: Callable[[str, float], None]) -> None:
        """Report progress to `progress`."""
        self.add_callback(_Watch(progress))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the trained parameters: decay on matrices, LoRA+ on B."""
        if self.optimizer is None:
            settings = self.settings
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in self._learning.named_parameters():
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
        self.curves.append({"epoch": float(self.state.epoch or 0.0), "train_loss": train, "validation_loss": loss})
        if loss < self._best[0]:
            self._best = (loss, len(self.curves) - 1)
            kept = {
                name: one.detach().contiguous() for name, one in self._learning.named_parameters() if one.requires_grad
            }
            save_file(kept, self._best_path)
        if 0 < self.settings.early_stopping_patience <= len(self.curves) - 1 - self._best[1]:
            self.control.should_training_stop = True
        return found

    def take_best(self) -> None:
        """Put the best evaluated weights into the model."""
        if self._best_path.is_file():
            found = load_file(self._best_path)
            with torch.no_grad():
                for name, parameter in self._learning.named_parameters():
                    if name in found:
                        parameter.copy_(found[name])


def _arguments(settings: GenerateSettings, work_dir: Path, bf16: bool) -> TrainingArguments:
    at_once = min(settings.rows_at_once, settings.batch_size)
    return TrainingArguments(
        output_dir=str(work_dir / "trainer"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=at_once,
        gradient_accumulation_steps=max(1, settings.batch_size // at_once),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=settings.warmup_fraction,
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        label_names=["labels"],
        prediction_loss_only=True,
    )
