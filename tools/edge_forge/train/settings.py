"""The settings of a training run of an encoder: every key with its meaning, unit and reason, checked on entry; presets.

What the settings do is in `lora` and `classifier_trainer`.

Sources of the presets: A = the article on full fine-tuning against LoRA at the edge; B = the paper on efficient
fine-tuning with LoRA. Where a source gives a range, its upper step size is taken (both sources call LoRA very sensitive
to it, and the lower end does not converge on small data) and its smaller batch. What they do not say stays at the plain
default.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

from edge_agent.base.errors import ConfigError
from edge_forge.train import methods
from edge_forge.train.methods import FULL, LORA, METHODS, Method

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

INT8 = "int8"
"""The precision in which products are computed as the INT8 variant does (`int8_aware`)."""
PRECISIONS = ("auto", "fp32", "bf16", INT8)
SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "sgd")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class TrainSettings:
    """One training run. The defaults of a run come from `settings`, which starts from a named preset."""

    # What is trained: a name of `methods.METHODS`.
    method: str = LORA.name
    # The preset these values started from; kept for the record.
    preset: str = "best"
    # Peak step size of the optimiser (AdamW: per step, unitless); LoRA wants about ten times that of "full".
    learning_rate: float = 5e-4
    # Step size of the classifier head over `learning_rate`: it starts from nothing, the encoder does not.
    head_learning_rate_ratio: float = 1.0
    # Passes over the training rows at most; early stopping may end sooner.
    epochs: int = 5
    # Rows per optimiser step.
    batch_size: int = 32
    # Padded tokens computed at once: a longer batch is split and its gradients summed, which changes nothing but memory
    # and time. 0 lets the measurement at start choose.
    micro_batch_tokens: int = 0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    # Share of all steps over which the step size rises from 0.
    warmup_fraction: float = 0.06
    # AdamW's decoupled decay per step, in units of the step size; biases and norms are left out.
    weight_decay: float = 0.01
    # Share of the target probability spread over all labels.
    label_smoothing: float = 0.0
    # Dropout inside the trained layers; costs about 40 % of a step on a CPU, so 0 unless it is shown to help.
    dropout: float = 0.0
    # Share of tokens hidden from attention and pooling, drawn per row and step: a cheap regulariser.
    token_dropout: float = 0.0
    # Weight of the divergence between two answers to a row with other tokens hidden (R-Drop); doubles a step's time
    # and needs token_dropout or dropout.
    consistency: float = 0.0
    # Decay per step of the running average of the trained weights that is evaluated and kept; 0 = the last weights.
    average_decay: float = 0.0
    # Evaluations without a better validation score before training ends; 0 = never.
    early_stopping_patience: int = 0
    # "balanced": a row weighs n / (labels * rows of its label), for imbalanced data.
    class_weights: str = "none"
    seed: int = 17
    # Longer texts are cut to so many tokens, special ones included.
    max_tokens: int = 128
    # precision = "int8": the same of the general texts that show which channels are apart, as the graph's export cuts
    # them; 0 = max_tokens.
    calibration_tokens: int = 0
    # Whether every word has a class (token classes, slots) and not the row; the recipe's task says so.
    slots: bool = False
    # Whether a question is answered by a span of its context, of which so many tokens stand in two windows.
    answers: bool = False
    window_overlap: int = 0
    # "auto" takes what a short measurement at start finds faster; "bf16" is autocast; "int8" trains what INT8 computes.
    precision: str = "auto"
    # Threads of the tensor library; 0 lets the measurement at start choose.
    threads: int = 0
    # Processes under `accelerate launch` on this machine; 1 = no launcher. Each takes its share of a batch.
    processes: int = 1
    # Where transformers' Trainer reports to, beside the record: names of `REPORTERS`. Changes nothing of the result.
    report_to: tuple[str, ...] = ()
    # LoRA and its kin: width of the adapter (AdaLoRA: the largest of a module; bottleneck: of the layers inserted).
    rank: int = 16
    # LoRA and its kin: scale numerator; the branch is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)).
    alpha: float = 32.0
    # LoRA: modules adapted: "all", "attention", "qkv", "mlp", or the end of a module name ("attention.self.query").
    targets: tuple[str, ...] = ("all",)
    # Lowest adapted layer (half: lowest trained one); negative counts from the top. Layers below run once per text and
    # are kept.
    first_layer: int = 0
    # The same as a share of the layers, rounded down, for any depth of base; first_layer, where set, decides.
    frozen_share: float = 0.0
    # LoRA+: step size of B over that of A (Hayou et al. 2024); 1 = plain LoRA.
    lora_plus_ratio: float = 1.0


REPORTERS: Mapping[str, str] = {
    "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "comet_ml": "comet_ml", "trackio": "trackio",
    "clearml": "clearml", "neptune": "neptune", "swanlab": "swanlab", "dvclive": "dvclive", "codecarbon": "codecarbon",
}  # fmt: skip
"""Names that transformers' Trainer knows, with the module that must be installed."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "precision": PRECISIONS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "class_weights": CLASS_WEIGHTS,
}
_Check = tuple[Callable[[float], bool], str]
_AT_LEAST_0: _Check = (lambda value: value >= 0, "at least 0")
_AT_LEAST_1: _Check = (lambda value: value >= 1, "at least 1")
_ABOVE_0: _Check = (lambda value: value > 0, "above 0")
_SHARE: _Check = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_RANGES: Mapping[str, _Check] = {
    "learning_rate": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "head_learning_rate_ratio": _ABOVE_0,
    "epochs": (lambda value: 1 <= value <= 1000, "from 1 to 1000"),
    "batch_size": (lambda value: 1 <= value <= 4096, "from 1 to 4096"),
    "micro_batch_tokens": _AT_LEAST_0,
    "rows_at_once": _AT_LEAST_1,
    "warmup_fraction": _SHARE,
    "weight_decay": _AT_LEAST_0,
    "label_smoothing": _SHARE,
    "dropout": _SHARE,
    "token_dropout": _SHARE,
    "frozen_share": _SHARE,
    "consistency": _AT_LEAST_0,
    "average_decay": _SHARE,
    "early_stopping_patience": _AT_LEAST_0,
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "max_tokens": (lambda value: 3 <= value <= 131072, "from 3 to 131072"),
    "calibration_tokens": (lambda value: 0 <= value <= 131072, "from 0 to 131072"),
    "window_overlap": (lambda value: 0 <= value <= 131072, "from 0 to 131072"),
    "threads": _AT_LEAST_0,
    "processes": _AT_LEAST_1,
    "rank": (lambda value: 1 <= value <= 512, "from 1 to 512"),
    "alpha": _ABOVE_0,
    "lora_plus_ratio": _ABOVE_0,
    "beta": (lambda value: 0 < value <= 100, "above 0 and at most 100"),
    "chosen_weight": _AT_LEAST_0,
}


def replaced(start: S, values: Mapping[str, object], where: str) -> S:
    """`start` with the keys of `values` set, each checked. `where` names the file or table for messages.

    Raises ConfigError that names the key: unknown, of the wrong type, out of range, or contradicting another.
    """
    kinds = {field.name: type(getattr(start, field.name)) for field in fields(start)}
    known: dict[str, object] = {field.name: getattr(start, field.name) for field in fields(start)}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"unknown key {key!r}", f"{where}.{key}", f"known keys: {', '.join(sorted(kinds))}")
        known[key] = _typed(key, value, kinds[key], where)
    made = type(start)(**known)
    check(made, where)
    return made


def check(settings: DataclassInstance, where: str) -> None:
    """Raise ConfigError naming the first key whose value is out of range or contradicts another."""
    has = {field.name for field in fields(settings)}
    for key, allowed in _CHOICES.items():
        value = getattr(settings, key, None)
        if key in has and value not in allowed:
            raise ConfigError(f"{key} = {value!r} is not known", f"{where}.{key}", f"use one of {', '.join(allowed)}")
    for key, (holds, wanted) in _RANGES.items():
        if key in has and not holds(value := getattr(settings, key)):
            raise ConfigError(f"{key} = {value!r} must be {wanted}", f"{where}.{key}")
    if (
        isinstance(settings, TrainSettings)
        and settings.consistency
        and not (settings.token_dropout or settings.dropout)
    ):
        raise ConfigError(
            "consistency compares two answers to a row, which are the same without dropout",
            f"{where}.consistency",
            "set token_dropout, for example to 0.1",
        )
    if getattr(settings, "precision", "") == INT8:
        _check_int8(settings, where)
    for name in getattr(settings, "report_to", ()):
        if name not in REPORTERS:
            raise ConfigError(f"report_to names {name!r}", f"{where}.report_to", f"use {', '.join(REPORTERS)}")
        if importlib.util.find_spec(REPORTERS[name]) is None:
            raise ConfigError(
                f"report_to names {name!r}, which is not installed", f"{where}.report_to",
                f"pip install {REPORTERS[name].replace('_', '-')}",
            )  # fmt: skip
    if not getattr(settings, "targets", True):
        raise ConfigError(
            "targets is empty", f"{where}.targets", 'name at least one, for example targets = ["attention"]'
        )


def _check_int8(settings: DataclassInstance, where: str) -> None:
    if not isinstance(settings, TrainSettings):
        raise ConfigError(
            "precision = 'int8' is of classifiers: llama.cpp's formats have other arithmetic", f"{where}.precision",
            "use auto, fp32 or bf16",
        )  # fmt: skip
    known = METHODS[settings.method]
    if known.not_in_int8:
        raise ConfigError(
            f"precision = 'int8' cannot train {known.title}: {known.not_in_int8}", f"{where}.precision",
            'use "auto", or another method such as lora',
        )  # fmt: skip


def _typed(key: str, value: object, kind: type, where: str) -> object:
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is tuple:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return tuple(names)
    wanted = (
        "a list of strings" if kind is tuple else {"str": "a string"}.get(kind.__name__, f"a number ({kind.__name__})")
    )
    raise ConfigError(f"{key} = {value!r} must be {wanted}", f"{where}.{key}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


_PLAIN = TrainSettings(schedule="linear", warmup_fraction=0.0)

# Measured on the shipped tasks: docs/decisions/0010 holds the runs.
_BEST = TrainSettings(preset="best", epochs=8, token_dropout=0.1, average_decay=0.98, early_stopping_patience=3)
_BEST_LORA = replace(_BEST, method=LORA.name, learning_rate=1e-3, head_learning_rate_ratio=5.0, frozen_share=0.34)
_BEST_FULL = replace(_BEST, method=FULL.name, learning_rate=1e-4, head_learning_rate_ratio=10.0)

PRESETS: Mapping[tuple[str, str], TrainSettings] = {
    ("best", LORA.name): _BEST_LORA,
    ("best", FULL.name): _BEST_FULL,
    # A: rank 8-16 (16 and more against intruder dimensions), lr 3e-5..1e-4, batch 64-128, 3-4 epochs.
    ("A", LORA.name): replace(
        _PLAIN, method=LORA.name, preset="A", rank=16, alpha=32.0, learning_rate=1e-4, batch_size=64, epochs=4
    ),
    # A: all parameters, AdamW or SGD, lr 5e-6..5e-5, batch 32-64, 3-5 epochs.
    ("A", FULL.name): replace(_PLAIN, method=FULL.name, preset="A", learning_rate=5e-5, batch_size=32, epochs=5),
    # B: rank 8, AdamW, lr 2e-5, batch 16, early stopping on validation; no number of epochs is given.
    ("B", LORA.name): replace(
        _PLAIN,
        method=LORA.name,
        preset="B",
        rank=8,
        alpha=16.0,
        targets=("attention",),
        learning_rate=2e-5,
        batch_size=16,
        epochs=10,
        early_stopping_patience=2,
    ),
    ("B", FULL.name): replace(
        _PLAIN, method=FULL.name, preset="B", learning_rate=2e-5, batch_size=16, epochs=10, early_stopping_patience=2
    ),
}
NAMES = tuple(sorted({name for name, _ in PRESETS}))


def settings(
    method: str = LORA.name, preset: str = "best", values: Mapping[str, object] | None = None, where: str = "method"
) -> TrainSettings:
    """The settings of `preset` for `method`, with the keys of `values` (a recipe's [train] table) set over them.

    Raises ConfigError naming the key and `where` for an unknown method, preset, key or a bad value.
    """
    given = dict(values or {})
    method = methods.name_of(given.pop("method", method), where)
    preset = str(given.pop("preset", preset))
    known = methods.method(method, where)
    if preset not in NAMES:
        raise ConfigError(f"preset = {preset!r} is not known", f"{where}.preset", f"use one of {', '.join(NAMES)}")
    start = PRESETS[preset, known.presets]
    return replaced(started(start, known, start.learning_rate), given, where)


def started(preset: S, known: Method, learning_rate: float) -> S:
    """A preset of the method that `known` starts from, with its step size, as `known` changes it."""
    has = {field.name for field in fields(preset)}
    values = {name: value for name, value in known.values.items() if name in has}
    values["learning_rate"] = float(f"{learning_rate * known.step:.6g}")
    return replace(preset, method=known.name, **values)
