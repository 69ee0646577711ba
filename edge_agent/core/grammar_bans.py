"""Clients whose grammars ended a worker, or cost it too much, may not send grammars for a while.

A grammar or a JSON schema is a program that llama.cpp executes. Its cost cannot be computed beforehand, and some never
end. A worker that crashes or hangs with such a request is therefore counted against the client and not against the
model. Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from edge_agent.base.causes import DeathCause

BAN_S = 900.0
DEATHS_FOR_ALL = 5
"""After this many worker deaths with a grammar within `BAN_S`, grammars of all clients are refused until the first
death is `BAN_S` ago: a client can change its name, and requests without a grammar must not lose their worker
repeatedly."""
CLIENTS_KEPT = 64
"""Banned clients that are remembered; the oldest is forgotten first."""
GRAMMAR_PARAMS = ("grammar", "json_schema", "regex")


def has_grammar(params: Mapping[str, object]) -> bool:
    """Whether a request's parameters contain a grammar or a JSON schema."""
    return any(name in params for name in GRAMMAR_PARAMS)


def died_computing(cause: DeathCause) -> bool:
    """Whether a worker that ended for this cause was ended by what it computed, and not from outside."""
    return cause in {DeathCause.CRASHED, DeathCause.HUNG}


class GrammarBans:
    """The bans of one model."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._deaths_s: deque[float] = deque(maxlen=DEATHS_FOR_ALL)

    def record_death(self, now_s: float) -> None:
        """A worker ended with at least one grammar inside."""
        self._deaths_s.append(now_s)

    def ban(self, client: str, now_s: float) -> None:
        """Ban a client: its grammar was the only one inside a worker that ended, or it cost too much."""
        self._until_s.pop(client, None)
        self._until_s[client] = now_s + BAN_S
        while len(self._until_s) > CLIENTS_KEPT:
            del self._until_s[next(iter(self._until_s))]

    def banned_s(self, client: str, now_s: float) -> float:
        """Seconds until grammars of this client are accepted again; 0 when they are now."""
        all_s = self._deaths_s[0] + BAN_S if len(self._deaths_s) == DEATHS_FOR_ALL else now_s
        return max(0.0, self._until_s.get(client, now_s) - now_s, all_s - now_s)
