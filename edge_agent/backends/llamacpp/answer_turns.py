"""Which client's answer is decoded next, where more clients ask than there are sequences. Pure.

A sequence is held for as long as its answer takes, which may be minutes. So an answer gives way: it is parked, and goes
on when its client has its turn again. A client's service is its share, by tokens, of the time in which its sequences
were computed; a client that holds no sequence gets the one of a client that was served more, or that holds several,
once that one's turn is over (start-time fair queueing; Goyal, Vin and Cheng, 1996). So the wait for a first token is a
turn for each client that asks and not an answer for each.

Virtual time is what a client would have been served if all that ask were served alike. A client begins with it, however
often it comes under a new name; what another is ahead counts up to `AHEAD_S`, so that nobody waits long for what it got
while it was alone.

A file of its own because it is pure and tested without llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set
from typing import Protocol, TypeVar

from edge_agent.base.limits import ANSWER_TURN_S

CLIENTS_KEPT = 256
"""Clients that have gone and are remembered, half of them after more came."""
AHEAD_S = 4 * ANSWER_TURN_S
"""Seconds that a client can be ahead when it comes again."""


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
        self._time_s = 0.0
        self._asking = 1

    def arrive(self, client: str, inside: Collection[str]) -> None:
        """A job of `client` comes to those of `inside`, clients too. A client that had none begins with the virtual
        time, so that it cannot save up service while it is away."""
        if client not in inside:
            own_s = self._served.get(client, self._time_s)
            self._served[client] = min(max(own_s, self._time_s), self._time_s + AHEAD_S)
            self._forget({*inside, client})

    def charge(self, client: str, seconds: float) -> None:
        """A sequence of the client was computed for so long: its share of a call."""
        self._served[client] = self._served.get(client, self._time_s) + seconds
        self._time_s += seconds / self._asking

    def next(self, waiting: Sequence[CandidateT], holding: Iterable[Candidate]) -> CandidateT | None:
        """Which one gets the next sequence: of the clients that hold none the one that was served least, else the
        first. Notes how many clients ask, for the virtual time."""
        held = Counter(one.client for one in holding)
        self._asking = max(1, len({*held, *(one.client for one in waiting)}))
        new = [one for one in waiting if not held[one.client]]
        if new:
            return min(new, key=self._of)
        return waiting[0] if waiting else None

    def gives_way(self, wanting: Candidate, holding: Collection[HolderT]) -> HolderT | None:
        """Whose sequence `wanting` gets, where none is free; None: it waits.

        A turn ends after `ANSWER_TURN_S` of the answer, and not before it took as long as what had to be read again for
        it: so at most half of the time is lost that way.
        """
        held = Counter(one.client for one in holding)
        if held[wanting.client]:
            return None
        over = [
            one
            for one in holding
            if one.may_park
            and one.decode_s >= max(ANSWER_TURN_S, one.read_s)
            and (held[one.client] > 1 or self._of(one) > self._of(wanting))
        ]
        return max(over, key=lambda one: (held[one.client] > 1, self._of(one)), default=None)

    def _of(self, one: Candidate) -> float:
        return self._served.get(one.client, self._time_s)

    def _forget(self, inside: Set[str]) -> None:
        """Of clients that have gone keep those that were served most: what they are ahead counts when they return."""
        if len(self._served) > CLIENTS_KEPT:
            gone = sorted(set(self._served) - inside, key=lambda name: self._served[name])
            for name in gone[: len(self._served) - CLIENTS_KEPT // 2]:
                del self._served[name]
