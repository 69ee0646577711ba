"""Which client's answer is decoded next, where more clients ask than there are sequences. Pure.

A sequence is held for as long as its answer takes, which may be minutes. So an answer gives way: it is parked, and goes
on when its client has its turn again. A client's service is the time in which its sequences were computed; a client
that holds no sequence gets the one of a client that was served more, or that holds several, once that one's turn is
over (start-time fair queueing; Goyal, Vin and Cheng, 1996). However many names one person asks under, the wait of
another is a turn for each of them and not an answer for each.

A file of its own because it is pure and tested without llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeVar

from edge_agent.base.limits import ANSWER_TURN_S

CLIENTS_KEPT = 256


class Candidate(Protocol):
    """A job that waits for a sequence: one that was never begun, or a parked one."""

    @property
    def client(self) -> str:
        """Who asked."""


class Holder(Candidate, Protocol):
    """A sequence at work; the times are those of its present turn."""

    @property
    def may_park(self) -> bool:
        """Whether it is between two tokens of its answer."""

    @property
    def read_s(self) -> float:
        """Seconds in which tokens were computed again that were dropped while it was parked."""

    @property
    def decode_s(self) -> float:
        """Seconds in which it wrote its answer."""


CandidateT = TypeVar("CandidateT", bound=Candidate)
HolderT = TypeVar("HolderT", bound=Holder)


class AnswerTurns:
    """What clients were served, in seconds of computing."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def arrive(self, client: str, inside: Collection[str]) -> None:
        """A job of `client` comes to those of `inside` (clients, once for each job). A client that had none starts with
        the least that one of them was served, so that it cannot save up service while it is away."""
        if client not in inside:
            least = min((self._served.get(other, 0.0) for other in inside), default=0.0)
            self._served[client] = max(self._served.get(client, 0.0), least)
            self._forget(inside)

    def charge(self, client: str, seconds: float) -> None:
        """A sequence of the client was computed for so long."""
        self._served[client] = self._served.get(client, 0.0) + seconds

    def next(self, waiting: Sequence[CandidateT], holding: Iterable[Candidate]) -> CandidateT | None:
        """Which one gets the next sequence: of the clients that hold none the one that was served least, else the
        first."""
        held = Counter(one.client for one in holding)
        new = [one for one in waiting if not held[one.client]]
        if new:
            return min(new, key=lambda one: self._served.get(one.client, 0.0))
        return waiting[0] if waiting else None

    def gives_way(self, wanting: Candidate, holding: Collection[HolderT]) -> HolderT | None:
        """Whose sequence `wanting` gets, where none is free; None: it waits.

        A turn ends after `ANSWER_TURN_S` of the answer, and not before it took as long as what had to be read again for
        it: so at most half of the time is lost that way.
        """
        held = Counter(one.client for one in holding)
        if held[wanting.client]:
            return None
        own = self._served.get(wanting.client, 0.0)
        over = [
            one
            for one in holding
            if one.may_park
            and one.decode_s >= max(ANSWER_TURN_S, one.read_s)
            and (held[one.client] > 1 or self._served.get(one.client, 0.0) > own)
        ]
        return max(over, key=lambda one: (held[one.client] > 1, self._served.get(one.client, 0.0)), default=None)

    def _forget(self, inside: Collection[str]) -> None:
        """Of clients that have gone keep those that were served most: what they are ahead counts when they return."""
        if len(self._served) > CLIENTS_KEPT:
            gone = sorted(set(self._served) - set(inside), key=lambda name: self._served[name])
            for name in gone[: len(self._served) - CLIENTS_KEPT // 2]:
                del self._served[name]
