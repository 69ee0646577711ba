"""The terms of a trial: their bounds, and their form as text in the store's record and on a command line.

A file of its own because an order, the desired state and the command line all bring them.
"""

from __future__ import annotations

import msgspec

from edge_agent.base import limits
from edge_agent.protocol.json_guard import quoted
from edge_agent.protocol.messages import TrialOrder

MOST_REQUESTS = 4096
"""The most requests that a trial compares: its figures are in memory."""
_BOUNDS: dict[str, tuple[float, float]] = {
    "least": (8, MOST_REQUESTS),
    "most": (8, MOST_REQUESTS),
    "within_s": (limits.DESIRED_LEAST_S, limits.DESIRED_LONGEST_S),
    "agreement": (0.0, 1.0),
    "failures": (0.0, 1.0),
    "slower": (0.1, 100.0),
    "confidence_drop": (0.0, 1.0),
    "joules": (0.1, 100.0),
    "share": (0.01, 1.0),
    "temperature_c": (20.0, 120.0),
}


def trial_fault(order: TrialOrder) -> str | None:
    """What is wrong with the terms, from the field's name on; None where nothing is."""
    for name, (least, most) in _BOUNDS.items():
        value = getattr(order, name)
        # By comparison alone, which NaN fails, too: a whole number may have more digits than a float holds.
        if value is not None and not least <= value <= most:
            return f"{name}: {least:g} to {most:.0f} is needed; here: {quoted(str(value), 40)}"
    if order.least > order.most:
        return f"least: {order.least} is more than most, {order.most}"
    return None


def trial_text(order: TrialOrder) -> str:
    """The terms as text: JSON with every field, so that a later default changes no trial under way."""
    return msgspec.json.encode(msgspec.structs.asdict(order)).decode()


def read_trial(text: str) -> TrialOrder:
    """The terms of a text. Raises ValueError with what is wrong."""
    try:
        order = msgspec.json.decode(text, type=TrialOrder)
    except ValueError as error:  # it quotes what was given, of whatever length
        raise ValueError(quoted(str(error), 200)) from None
    if (wrong := trial_fault(order)) is not None:
        raise ValueError(wrong)
    return order
