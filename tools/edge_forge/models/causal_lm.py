"""A causal language model of Hugging Face: open it, name its linear modules, compute losses, logits and answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_agent.base.errors import ConfigError
from edge_forge.data.chat_tokenizer import EncodedRow
from edge_forge.models import bases

_GROUPS = {"attention": (".self_attn.",), "mlp": (".mlp.",)}
_QKV = ("q_proj", "k_proj", "v_proj")
_BATCH = 16
_SENTENCE_TOKENS = 512


def open_model(folder: Path, adapter: Path | None = None) -> Any:
    """The model of a folder in float32, with a peft adapter beside it. Raises ConfigError, as `check_tensors`."""
    model = _loaded(folder)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft asks transformers for a name that is to go.
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def check_tensors(folder: Path) -> None:
    """Refuse a folder whose tensors are not those of its class, by name; reads no weights.

    Raises ConfigError.
    """
    _loaded(folder, device_map="meta")


def _loaded(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its table of tensors is said in one sentence below
    opened: Any
    try:
        with bases.only_listed(folder, also=("generation_config.json",)) as listed:
            opened = AutoModelForCausalLM.from_pretrained(
                listed, local_files_only=True, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except bases.opening_errors() as error:
        raise ConfigError(
            f"the base cannot be opened: {bases.opening_reason(error)}",
            str(folder),
            "give a Hugging Face folder of a language model",
        ) from error
    model, report = opened
    unread = (name for name in report["unexpected_keys"] if not name.endswith(bases.STORED_BUFFERS))
    bases.require_tensors(folder, type(model).__name__, report["missing_keys"], unread, report["mismatched_keys"])
    return model


def target_names(model: Any, targets: Sequence[str], frozen_share: float = 0.0) -> list[str]:
    """Full names of the layers' linears that `targets` select, above a share of the layers that stays as it is.

    Raises ConfigError for one that selects nothing.
    """
    below = tuple(f"{name}." for name in _layers_below(model, frozen_share))
    linears = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}" and not name.startswith(below)
    ]  # fmt: skip
    used = {target: [name for name in linears if _selects(target, name)] for target in targets}
    for target, names in used.items():
        if not names:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise ConfigError(
                f"targets names {target!r}, which no linear of the base matches", "train",
                f"use all, attention, qkv, mlp, or the end of a name: {ends}",
            )  # fmt: skip
    return [name for name in linears if any(name in names for names in used.values())]


def below_names(model: Any, frozen_share: float) -> list[str]:
    """Names of the table of tokens and of a share of the layers, from the first one up, rounded down."""
    table = model.get_input_embeddings()
    return [name for name, module in model.named_modules() if module is table] + _layers_below(model, frozen_share)


def _layers_below(model: Any, share: float) -> list[str]:
    layers = [name for name, _ in model.named_modules() if f".{name}".rpartition(".")[0].endswith(".layers")]
    return layers[: int(len(layers) * share)]


def _selects(target: str, name: str) -> bool:
    if target == "all":
        return True
    if target == "qkv":
        return name.endswith(_QKV)
    if target in _GROUPS:
        return any(part in f".{name}" for part in _GROUPS[target])
    return f".{name}".endswith(f".{target}")


@torch.inference_mode()
def losses(model: Any, rows: Sequence[EncodedRow]) -> list[float]:
    """Summed -ln p in nats of every row's tokens from its answer on (of a text: all but the first)."""
    found = []
    for row in rows:
        ids = torch.tensor([row.ids])
        start = max(row.answer, 1)
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
        found.append(float(nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum")))
    return found


@torch.inference_mode()
def sentence_losses(model: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    """Summed -ln p in nats of all but the first token of every row; short rows of like length are computed at once."""
    found, waiting = [0.0] * len(rows), sorted(range(len(rows)), key=lambda place: len(rows[place]))
    while waiting:
        # Rows come in order of length, so that the batch is as wide as its last one.
        size = next((at for at in range(1, len(waiting)) if (at + 1) * len(rows[waiting[at]]) > _SENTENCE_TOKENS), None)
        batch, waiting = waiting[:size], waiting[size:] if size else []
        width = len(rows[batch[-1]])
        # What pads a row stands behind it, where no token of a causal model looks.
        ids = torch.tensor([[*rows[one], *[0] * (width - len(rows[one]))] for one in batch])
        scores = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
        nats = -scores.gather(2, ids[:, 1:, None]).squeeze(2)
        for place, one in enumerate(batch):
            found[one] = float(nats[place, : len(rows[one]) - 1].sum())
    return found


@torch.inference_mode()
def logits(model: Any, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Logits [all positions of all rows, vocabulary], in order."""
    parts = [model(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float().numpy() for row in rows]
    return np.concatenate(parts)


@torch.inference_mode()
def answers(model: Any, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int]) -> Iterator[list[int]]:
    """Greedy continuations of at most `most` tokens, without the token that ends them; in order."""
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        width = max(map(len, part))
        ids = torch.full((len(part), width), ends[0])
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(part):
            ids[place, width - len(prompt) :] = torch.tensor(list(prompt))
            mask[place, width - len(prompt) :] = 1
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=list(ends),
            pad_token_id=ends[0], temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        for row in made[:, width:].tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), len(row))
            yield row[:stop]
