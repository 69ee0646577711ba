"""Clients whose grammars a worker did not survive, or hardly: they bring no more for a while, and nobody else pays.

A grammar or a JSON schema is a program that llama.cpp runs. What it costs cannot be told beforehand, and there are some
that do not end. So a worker that dies or hangs with such a request inside is put down to the request, not to the model.
Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from edge_agent.base.causes import DeathCause

BARRED_S = 900.0
ENOUGH = 5
"""So many deaths with programs inside within `BARRED_S`, and nobody's are taken until the first is that long ago: names
are easily changed, and who asks without a grammar shall not lose the worker again and again."""
KEPT = 64
"""Clients remembered; the oldest is forgotten first."""
PROGRAMS = ("grammar", "json_schema")


def brings_program(params: Mapping[str, object]) -> bool:
    """Whether a request's parameters hold something that the worker has to execute."""
    return any(name in params for name in PROGRAMS)


def by_itself(cause: DeathCause) -> bool:
    """Whether a worker that ended for this cause ended by what it computed."""
    return cause in {DeathCause.CRASHED, DeathCause.HUNG}


class GrammarBans:
    """Of one model."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._deaths_s: deque[float] = deque(maxlen=ENOUGH)

    def count(self, now_s: float) -> None:
        """A worker ended with at least one program inside."""
        self._deaths_s.append(now_s)

    def note(self, client: str, now_s: float) -> None:
        """A worker ended with this client's program inside, and no other one's; or the program cost too much."""
        self._until_s.pop(client, None)
        self._until_s[client] = now_s + BARRED_S
        while len(self._until_s) > KEPT:
            del self._until_s[next(iter(self._until_s))]

    def left_s(self, client: str, now_s: float) -> float:
        """Seconds until this client's programs are taken again; 0 where they are now."""
        all_s = self._deaths_s[0] + BARRED_S if len(self._deaths_s) == ENOUGH else now_s
        return max(0.0, self._until_s.get(client, now_s) - now_s, all_s - now_s)
