"""Further runs of one recipe for a comparison: other seeds, and the step size that is best on the validation rows.

A file of its own because it changes recipes and runs plans, and knows nothing of verbs or reports. Every run is a step
of the cache, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.base.errors import UsageError

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


def best_step_size(recipe: Any, replan: Replan, tried: Sequence[float]) -> tuple[Any, list[dict[str, float]]]:
    """(the recipe at the step size that scores best on the validation rows, what each scored).

    `tried` are factors over the step size that the recipe has. On equal scores the smaller step size is taken.
    """
    usual, found = recipe.training.learning_rate, []
    for factor in sorted(tried):
        rate = float(f"{usual * factor:.6g}")
        trial = replan(changed(recipe, learning_rate=rate)).trial()
        found.append({"learning_rate": rate, "validation": float(trial["validation"])})
    best = max(found, key=lambda one: one["validation"])
    return changed(recipe, learning_rate=best["learning_rate"]), found


def over_seeds(recipe: Any, replan: Replan, count: int) -> list[Mapping[str, Any]]:
    """What `count` runs scored and cost, whose seeds follow on the recipe's own."""
    first = recipe.training.seed
    return [
        {"seed": seed, **replan(changed(recipe, seed=seed)).trial()} for seed in range(first, first + count)
    ]  # fmt: skip
