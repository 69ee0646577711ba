"""Sentence embeddings: the features, scaled to length one, so that a dot product is the cosine.

Given with six decimals: half of the bytes of a message, and an error far below that of INT8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edge_agent.tasks.api import Prepared, Task, refuse_unknown

DECIMALS = 6


class Embed(Task):
    """Takes no parameters."""

    def check(self, params: Mapping[str, Any]) -> None:
        """See `Task.check`."""
        refuse_unknown(params, ())

    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Task.answer`."""
        results = []
        for place, row in enumerate(outputs["features"]):
            values = [float(value) for value in row]
            length = math.sqrt(sum(value * value for value in values)) or 1.0
            results.append(
                {
                    "embedding": [round(value / length, DECIMALS) for value in values],
                    "tokens": prepared.tokens[place],
                    "truncated": prepared.truncated[place],
                }
            )
        return results
