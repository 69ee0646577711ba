"""Named starting points for training: the sources' values (A, B) and what measured best here.

Sources: A = the article on full fine-tuning against LoRA at the edge; B = the paper on efficient fine-tuning with
LoRA. Where a source gives a range, its upper step size is taken (both sources call LoRA very sensitive to it, and the
lower end does not converge on small data) and its smaller batch. What they do not say stays at the plain default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edge_agent.base.errors import ConfigError
from edge_forge.train.settings import METHODS, TrainSettings, replaced

_PLAIN = TrainSettings(schedule="linear", warmup_fraction=0.0)

# Measured on the shipped tasks: docs/decisions/0010 holds the runs.
_BEST = TrainSettings(preset="best", epochs=8, token_dropout=0.1, average_decay=0.98, early_stopping_patience=3)
_BEST_LORA = replace(_BEST, method="lora", learning_rate=1e-3, head_learning_rate_ratio=5.0, frozen_share=0.34)
_BEST_FULL = replace(_BEST, method="full", learning_rate=1e-4, head_learning_rate_ratio=10.0)

PRESETS: Mapping[tuple[str, str], TrainSettings] = {
    ("best", "lora"): _BEST_LORA,
    ("best", "full"): _BEST_FULL,
    # A: rank 8-16 (16 and more against intruder dimensions), lr 3e-5..1e-4, batch 64-128, 3-4 epochs.
    ("A", "lora"): replace(
        _PLAIN, method="lora", preset="A", rank=16, alpha=32.0, learning_rate=1e-4, batch_size=64, epochs=4
    ),
    # A: all parameters, AdamW or SGD, lr 5e-6..5e-5, batch 32-64, 3-5 epochs.
    ("A", "full"): replace(_PLAIN, method="full", preset="A", learning_rate=5e-5, batch_size=32, epochs=5),
    # B: rank 8, AdamW, lr 2e-5, batch 16, early stopping on validation; no number of epochs is given.
    ("B", "lora"): replace(
        _PLAIN,
        method="lora",
        preset="B",
        rank=8,
        alpha=16.0,
        targets=("attention",),
        learning_rate=2e-5,
        batch_size=16,
        epochs=10,
        early_stopping_patience=2,
    ),
    ("B", "full"): replace(
        _PLAIN, method="full", preset="B", learning_rate=2e-5, batch_size=16, epochs=10, early_stopping_patience=2
    ),
}
NAMES = tuple(sorted({name for name, _ in PRESETS}))


def settings(
    method: str = "lora", preset: str = "best", values: Mapping[str, object] | None = None, where: str = "train"
) -> TrainSettings:
    """The settings of `preset` for `method`, with the keys of `values` (a recipe's [train] table) set over them.

    Raises ConfigError naming the key and `where` for an unknown method, preset, key or a bad value.
    """
    given = dict(values or {})
    method = str(given.pop("method", method))
    preset = str(given.pop("preset", preset))
    if method not in METHODS:
        raise ConfigError(f"method = {method!r} is not known", where, f"use one of {', '.join(METHODS)}")
    if preset not in NAMES:
        raise ConfigError(f"preset = {preset!r} is not known", where, f"use one of {', '.join(NAMES)}")
    return replaced(PRESETS[preset, method], given, where)
