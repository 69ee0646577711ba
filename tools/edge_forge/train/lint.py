"""What of a recipe's training is unlike what is known to work: step size, targets and rank, said before training.

A file of its own because both kinds of recipes ask it; it computes from settings alone. Sources: Hu et al. 2021 and
Biderman et al. 2024 (LoRA's best step size is about ten times that of full fine-tuning; every linear layer); Schulman
et al. 2025, "LoRA without regret" (a weight stores about two bits; with less room than the data hold, LoRA falls
behind).
"""

from __future__ import annotations

from typing import Protocol

from edge_forge.train.methods import Method

_FAR = 5.0
"""A step size this many times off the usual one is said."""
_BITS_A_WEIGHT = 2.0


class LintedSettings(Protocol):
    """What is read of the settings of a run."""

    @property
    def learning_rate(self) -> float:
        """Step size."""

    @property
    def rank(self) -> int:
        """Width of the adapter."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Adapted modules."""


def lint(method: Method, settings: LintedSettings, usual_rate: float, bits: float, weights_a_rank: int) -> list[str]:
    """Sentences; empty where nothing is unusual.

    `usual_rate` is the table's step size for the method, `bits` what the training labels can tell at most,
    `weights_a_rank` how many weights an adapter on every linear layer has for each rank (0: not known).
    """
    found = []
    ratio = settings.learning_rate / usual_rate
    if not 1 / _FAR <= ratio <= _FAR:
        off = f"{ratio:.3g} times" if ratio > 1 else f"a {1 / ratio:.3g}th of"
        about = " (about ten times full fine-tuning's)" if method.trains_adapter else ""
        found.append(
            f"learning_rate = {settings.learning_rate:g} is {off} what {method.title} usually wants: "
            f"{usual_rate:.3g}{about}"
        )
    if not method.trains_adapter:
        return found
    if "all" not in settings.targets:
        found.append(
            f"targets = {', '.join(settings.targets)} leaves linear layers out; adapters on all of them learn more, "
            'also at the same number of weights: targets = ["all"]'
        )
    room = _BITS_A_WEIGHT * weights_a_rank * settings.rank
    if weights_a_rank and room < bits:
        wanted = -(-bits // (_BITS_A_WEIGHT * weights_a_rank))
        found.append(
            f"rank = {settings.rank} holds about {room / 8192:.0f} KiB, the training labels tell up to "
            f"{bits / 8192:.0f} KiB: take rank {wanted:.0f} or more, or full fine-tuning"
        )
    return found
