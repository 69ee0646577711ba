"""Further runs of one recipe for a comparison: other seeds, and the step size that is best on the validation rows.

A file of its own because it changes recipes and runs plans, and knows nothing of verbs or reports. Every run is a step
of the cache, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.base.errors import BackendMissing, ConfigError, EdgeError, UsageError

_NAN = "the validation score is no number"
Replan = Callable[[Any], Any]
"""(recipe) -> its plan in the same build folder."""


def factors(text: str) -> tuple[float, ...]:
    """The argument of --step-sizes: factors over each method's own step size, with commas. Raises UsageError."""
    try:
        found = tuple(float(one) for one in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0.0 < one <= 1000.0 for one in found):
        raise UsageError(f"{text!r} are no factors", "--step-sizes", "write numbers above 0, as 0.3,1,3")
    return found


def changed(recipe: Any, **values: Any) -> Any:
    """The recipe with keys of [train] replaced."""
    return msgspec.structs.replace(recipe, train={**recipe.train, **values})


def best_step_size(recipe: Any, replan: Replan, tried: Sequence[float]) -> tuple[Any, list[dict[str, Any]]]:
    """(the recipe at the step size that scores best on the validation rows, what each scored).

    `tried` are factors over the step size that the recipe has. On equal scores the smaller step size is taken. One at
    which training fails (it diverges, as too large ones do) has `failed`, a reason, and the score None; where all fail,
    EdgeError is raised. Raises UsageError for a step size that no recipe takes, before any is trained.
    """
    usual = recipe.training.learning_rate
    rates = [float(f"{usual * factor:.6g}") for factor in sorted(tried)]
    if rates[-1] > 1.0:
        raise UsageError(
            f"a step size of {rates[-1]:g} is tried, {usual:g} times {max(tried):g}", "--step-sizes",
            f"step sizes are at most 1: take factors up to {1.0 / usual:.3g}",
        )  # fmt: skip
    found: list[dict[str, Any]] = []
    for rate in rates:
        trial = replan(changed(recipe, learning_rate=rate)).trial
        try:
            score = float(trial()["validation"])
            found.append({"learning_rate": rate, "validation": score} if math.isfinite(score) else _failed(rate, _NAN))
        except (ConfigError, UsageError, BackendMissing):
            raise
        except EdgeError as error:
            found.append(_failed(rate, error.what))
    scored = [one for one in found if one["validation"] is not None]
    if not scored:
        raise EdgeError(
            f"training fails at every step size, at {rates[0]:g}: {found[0]['failed']}", "--step-sizes",
            "take smaller factors",
        )  # fmt: skip
    best = max(scored, key=lambda one: float(one["validation"]))
    return changed(recipe, learning_rate=best["learning_rate"]), found


def _failed(rate: float, why: str) -> dict[str, Any]:
    return {"learning_rate": rate, "validation": None, "failed": why}


def over_seeds(recipe: Any, replan: Replan, count: int) -> list[Mapping[str, Any]]:
    """What `count` runs scored and cost, whose seeds follow on the recipe's own."""
    first = recipe.training.seed
    return [
        {"seed": seed, **replan(changed(recipe, seed=seed)).trial()} for seed in range(first, first + count)
    ]  # fmt: skip
