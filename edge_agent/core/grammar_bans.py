"""Clients whose grammars cost too much may not send grammars for a while.

A grammar or a JSON schema is a program. Its cost cannot be computed beforehand, and some never end: they are ended, in
the process that follows them beside the worker, and the worker says which one it was. A worker's own death is never put
down to a grammar, which does not run in it. Pure: time is an argument.

A file of its own because it is a rule with a memory, which intake asks and worker events feed.
"""

from __future__ import annotations

from collections.abc import Mapping

BAN_S = 900.0
CLIENTS_KEPT = 64
"""Banned clients that are remembered; the oldest is forgotten first."""
GRAMMAR_PARAMS = ("grammar", "json_schema", "regex")


def has_grammar(params: Mapping[str, object]) -> bool:
    """Whether a request's parameters contain a grammar or a JSON schema."""
    return any(name in params for name in GRAMMAR_PARAMS)


def barred_reason(model: str) -> str:
    """Why a grammar is not taken while its client is banned."""
    return f"a grammar or schema of this client cost model {model!r} too much: none of it is taken now; ask without one"


class GrammarBans:
    """The bans of one model."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def ban(self, client: str, now_s: float) -> None:
        """Ban a client: its grammar cost too much."""
        self._until_s.pop(client, None)
        self._until_s[client] = now_s + BAN_S
        while len(self._until_s) > CLIENTS_KEPT:
            del self._until_s[next(iter(self._until_s))]

    def banned_s(self, client: str, now_s: float) -> float:
        """Seconds until grammars of this client are accepted again; 0 when they are now."""
        return max(0.0, self._until_s.get(client, now_s) - now_s)
