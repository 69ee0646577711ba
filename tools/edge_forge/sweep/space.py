"""What a sweep varies: keys of the recipe with a range or a list of values, from `--over`, a preset, or the method.

A trial is the recipe with some keys replaced, as by `--set`. This module runs nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.base.errors import ConfigError, UsageError, brief
from edge_forge.recipe.schema import toml_value
from edge_forge.train.methods import METHODS, OWN_GRAPH

RANK, ALPHA, TARGETS = "method.rank", "method.alpha", "method.targets"
RATE, EPOCHS = "train.learning_rate", "train.epochs"
# By the validation loss that these keys change, no trials can be compared (decision 0224).
_OF_THE_LOSS = ("train.beta", "train.chosen_weight")
CHOOSES_METHOD = ("method.name", "method.preset")
"""Keys whose values bring other defaults for the keys that are absent."""
RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Ranks of the preset `ranks`, and those that a default space takes from."""
_TARGETS = ('["all"]', '["attention"]', '["mlp"]')
_NUMBER = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*(?::\s*(\w+)\s*)?")

Accepted = Callable[[Mapping[str, str]], str]
"""Settings as {key: TOML text} -> why the recipe refuses them; '' where it takes them."""


@dataclass(frozen=True)
class Choices:
    """A key and the values that it may have, as TOML texts."""

    key: str
    values: tuple[str, ...]

    @property
    def edges(self) -> tuple[str, ...]:
        """Values whose acceptance says that all others are accepted."""
        return self.values

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"key": self.key, "values": list(self.values)}

    def __str__(self) -> str:
        return f"{self.key} in {', '.join(self.values)}"


@dataclass(frozen=True)
class Range:
    """A key and the bounds of its value, both included; `log`: drawn by its order of magnitude."""

    key: str
    low: float
    high: float
    whole: bool
    log: bool

    @property
    def edges(self) -> tuple[str, ...]:
        """Values whose acceptance says that all others are accepted."""
        return self.text(self.low), self.text(self.high)

    def text(self, value: float) -> str:
        """A value as it stands in a recipe: three digits, so that it can be read and written again."""
        return str(round(value)) if self.whole else f"{value:.3g}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"key": self.key, "low": self.low, "high": self.high, "whole": self.whole, "log": self.log}

    def __str__(self) -> str:
        return f"{self.key} from {self.text(self.low)} to {self.text(self.high)}{' (log)' if self.log else ''}"


Dimension = Choices | Range


def parsed(text: str) -> Dimension:
    """The argument of --over: KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=A,B,C. Raises UsageError."""
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", key):
        raise UsageError(
            f"{brief(text)} names no key and values", "--over",
            "write --over train.learning_rate=1e-4:1e-2:log or --over method.rank=4,8,16",
        )  # fmt: skip
    found = _RANGE.fullmatch(values)
    if found is not None:
        return _range(key, found)
    if ":" in values and "," not in values and not values.startswith(("[", '"', "'")):
        raise UsageError(f"{brief(values)} is no range of numbers", f"--over {key}", "write LOW:HIGH or LOW:HIGH:log")
    choices = tuple(dict.fromkeys(_parts(values)))
    if len(choices) < 2:
        raise UsageError(f"{brief(values)} is one value, which leaves no choice", f"--over {key}",
                         f"name several, or write --set {key}={brief(values)}")  # fmt: skip
    return Choices(key, choices)


def _range(key: str, found: re.Match[str]) -> Range:
    where, scale = f"--over {key}", found[3]
    if scale not in (None, "log"):
        raise UsageError(f"{brief(scale)} is no scale", where, "write :log, or nothing")
    whole = all(re.fullmatch(r"[+-]?[\d_]+", one) for one in (found[1], found[2]))
    low, high = float(found[1].replace("_", "")), float(found[2].replace("_", ""))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"{found[1]}:{found[2]} is no range: the first bound must be below the second", where)
    if scale == "log" and low <= 0:
        raise UsageError(f"a range by orders of magnitude begins above 0, not at {found[1]}", where)
    return Range(key, low, high, whole, scale == "log")


def _parts(text: str) -> list[str]:
    """The values between commas; those within brackets or quotes part nothing."""
    parts, depth, quote, begun = [], 0, "", 0
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[begun:at].strip())
            begun = at + 1
    parts.append(text[begun:].strip())
    return [part for part in parts if part]


def default_space(training: Any, accepted: Accepted) -> tuple[Dimension, ...]:
    """Step size and passes around the recipe's own; with an adapter also ranks near its own, and what it is put on.

    Ranks and targets that the recipe refuses (a bank that is narrower) are left out.
    """
    rate, epochs = training.learning_rate, training.epochs
    space: list[Dimension] = [
        Range(RATE, float(f"{rate / 10:.3g}"), min(1.0, float(f"{rate * 5:.3g}")), False, True),
        Range(EPOCHS, max(1, epochs // 2), epochs + max(1, epochs // 2), True, False),
    ]
    method = METHODS[training.method]
    if method.trains_adapter:
        own = training.rank
        near = sorted({rank for rank in RANKS if own / 8 <= rank <= own * 4} | {own})
        ranks = tuple(str(rank) for rank in near if not accepted(with_alpha({RANK: str(rank)}, training)))
        targets = tuple(one for one in _TARGETS if not accepted({TARGETS: one}))
        if method.exportable_to(OWN_GRAPH):  # it stands behind each sublayer, whatever the targets
            targets = ()
        space += [Choices(key, values) for key, values in ((RANK, ranks), (TARGETS, targets)) if len(values) > 1]
    return tuple(space)


def ablation_of_ranks(training: Any, accepted: Accepted) -> tuple[Choices, list[str]]:
    """The space of the preset `ranks`, and why further ranks are left out. Raises UsageError."""
    if not METHODS[training.method].trains_adapter:
        raise UsageError(
            f"method {training.method} trains no adapter, so it has no rank", "--preset ranks",
            "leave the preset out, or --set method.name=lora",
        )  # fmt: skip
    reasons = {str(rank): accepted(with_alpha({RANK: str(rank)}, training)) for rank in RANKS}
    left_out = [f"rank {rank} is left out: {reason}" for rank, reason in reasons.items() if reason]
    ranks = tuple(rank for rank, reason in reasons.items() if not reason)
    if len(ranks) < 2:
        raise UsageError(f"{len(ranks)} rank is left to compare: {left_out[0]}", "--preset ranks")
    return Choices(RANK, ranks), left_out


def check(space: Sequence[Dimension], accepted: Accepted, training: Any) -> None:
    """Refuse keys and values that no trial could have, before any runs. Raises UsageError, ConfigError."""
    keys = [one.key for one in space]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"{key} is given twice", "--over", "write one --over for each key")
        if key in _OF_THE_LOSS:
            raise UsageError(
                f"the validation loss of DPO is another one for each {key}, so trials could not be compared by it",
                "--over", "build the recipe with each value, and compare the preferred pairs",
            )  # fmt: skip
    for one in space:
        for text in one.edges:
            reason = accepted(with_alpha({one.key: text}, training))
            if reason:
                raise ConfigError(f"the recipe refuses {one.key} = {text}: {reason}", f"--over {one.key}")


def with_alpha(values: Mapping[str, str], training: Any) -> dict[str, str]:
    """The values, with an alpha that keeps the recipe's scale (alpha over rank) at every rank.

    A scale that is made for one alpha at all ranks (rsLoRA's) keeps it.
    """
    found = dict(values)
    if RANK in found and ALPHA not in found and not METHODS[training.method].scales_by_root:
        rank = toml_value(found[RANK])
        if isinstance(rank, int) and rank > 0:
            found[ALPHA] = f"{training.alpha / training.rank * rank:.6g}"
    return found


_OF_A_TEACHER = ("task.max_tokens", *(f"train.{key}" for key in ("seed", "threads", "precision", "class_weights")))


def changes_base(key: str, recipe: Any) -> bool:
    """Whether trials with other values of a key have other bases: of a recipe that makes its base smaller."""
    section = getattr(recipe, "compress", None)
    return section is not None and section.wanted and (key.startswith("compress.") or key in _OF_A_TEACHER)


def combinations(space: Sequence[Dimension]) -> int | None:
    """How many different trials there are; None with a range of fractions."""
    count = 1
    for one in space:
        if isinstance(one, Range):
            if not one.whole:
                return None
            count *= round(one.high - one.low) + 1
        else:
            count *= len(one.values)
    return count


def recipe_lines(values: Mapping[str, str]) -> list[str]:
    """Values as the lines of a recipe, by table."""
    tables: dict[str, list[str]] = {}
    for key, text in values.items():
        table, _, name = key.rpartition(".")
        value = toml_value(text)
        written = f'"{text}"' if isinstance(value, str) and not text.startswith(('"', "'")) else text
        tables.setdefault(table, []).append(f"{name} = {written}")
    lines: list[str] = []
    for table, keys in sorted(tables.items()):
        lines += [f"[{table}]"] * bool(table) + sorted(keys)
    return lines
