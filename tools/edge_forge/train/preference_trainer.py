"""Training on preferences: TRL's DPO loss and loop, with the forge's tokens, checkpoints and best state.

TRL's DPOTrainer renders, tokenises and cuts rows by itself, keeps a copy of an adapter as the reference, writes a model
card beside each checkpoint and sends usage figures to its makers. None of that is used: rows arrive as token ids by the
renderer that devices run, and the reference is the model as it is before the first step, computed once.

A file of its own because it imports TRL, which brings pandas and pyarrow: only a run on preferences does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from edge_forge.data.chat_tokenizer import EncodedPair
from edge_forge.train.generator_session import GeneratorTrainer, arguments
from edge_forge.train.generator_settings import GeneratorSettings
from edge_forge.train.resumable_trainer import KeptFiles
from edge_forge.train.worker_process import Report

_ACCURACY, _MARGIN = "eval_rewards/accuracies", "eval_rewards/margins"


class PreferenceTrainer(GeneratorTrainer, DPOTrainer):
    """DPO (Rafailov et al. 2023) on pairs of token ids. `tokens` are the tokenizer's file and the id that pads.

    Entries of `curves` also have `accuracy`, the share of validation pairs whose chosen answer gained more likelihood
    than the rejected one, and `margin`, by how much (nats times beta); both are means over batches.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: GeneratorSettings,
        pairs: tuple[Sequence[EncodedPair], Sequence[EncodedPair]],
        kept: KeptFiles,
        tokens: tuple[Path, int],
        *,
        bf16: bool,
        report: Report,
    ) -> None:
        # TRL asks its reference while it is made, before a report is watched.
        self._told, self._asked = report, 0
        self._to_ask = sum(-(-len(one) // settings.rows_at_once) for one in pairs)
        datasets.disable_progress_bars()
        logging.getLogger("trl").setLevel(logging.ERROR)
        train, validation = (datasets.Dataset.from_list([_row(pair) for pair in part]) for part in pairs)
        weighted: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.chosen_weight]}
        args = DPOConfig(
            beta=settings.beta, max_length=None, precompute_ref_log_probs=True, gradient_checkpointing=False,
            **(weighted if settings.chosen_weight else {}), **arguments(settings, kept, bf16),
        )  # fmt: skip
        # An adapter's own model: for peft's wrapper TRL would keep a second adapter as the reference.
        inner: Any = model
        if hasattr(model, "get_base_model"):
            inner = inner.get_base_model()
        super().__init__(
            model, settings, kept, model=inner, args=args, train_dataset=train, eval_dataset=validation,
            data_collator=DataCollatorForPreference(pad_token_id=tokens[1]),
            processing_class=_tokenizer(*tokens),
        )  # fmt: skip
        # With a tokenizer Trainer would write its special tokens into the model's configuration.
        self.processing_class = None

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """As TRL's, and tells how far it is."""
        found = super().compute_ref_log_probs(model, inputs)  # type: ignore[no-untyped-call]
        self._asked += 1
        self._told("reference", min(1.0, self._asked / max(1, self._to_ask)))
        return found

    def figures_of(self, found: Mapping[str, float]) -> dict[str, float]:
        """What DPO says of the validation pairs."""
        return {"accuracy": float(found[_ACCURACY]), "margin": float(found[_MARGIN])}

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a checkpoint is nobody's to read."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # token ids already

    def _send_telemetry(self) -> None:
        """None."""


def _row(pair: EncodedPair) -> dict[str, list[int]]:
    return {"prompt_ids": list(pair.prompt), "chosen_ids": list(pair.chosen), "rejected_ids": list(pair.rejected)}


def _tokenizer(file: Path, end: int) -> Any:
    """What TRL takes the padding from; it tokenises nothing."""
    held = Tokenizer.from_file(str(file))
    token = held.id_to_token(end)
    return PreTrainedTokenizerFast(tokenizer_object=held, pad_token=token, eos_token=token)  # type: ignore[no-untyped-call]
