"""How much a client may ask that comes to nothing: refusals that it is sent, and messages that are looked at.

One that asks without end for what is refused would else keep the way out busy with refusals, and the processor with
decoding. Each client has tokens of a bucket (Turner, 1986): a burst passes wholly, a flood at `CLIENT_PER_S`.

`ReplyRate` counts expendable answers (refusals at the door, and answers that were given before): one costs a token, and
one more for each KiB beyond the first. All clients together have a bucket, too, since a sender may use many names.
`DoorRate` counts messages that came to nothing. Beyond it those of a client are dropped before they are decoded: their
refusals would not be sent any more, and to find that out costs several times what it costs to drop them.

Pure: the time is an argument. A file of its own because intake and orders share it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from edge_agent.base.limits import KIB

CLIENT_BURST = 8192.0
"""The 5,000 requests at once that are to be answered one by one, and more than half as many again."""
CLIENT_PER_S = 100.0
ALL_BURST = 2 * CLIENT_BURST
ALL_PER_S = 400.0
CLIENTS_KEPT = 256


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float

    def fill(self, now_s: float, per_s: float, burst: float) -> None:
        self.tokens = min(burst, self.tokens + max(0.0, now_s - self.at_s) * per_s)
        self.at_s = now_s

    def pay(self, tokens: float) -> None:
        self.tokens -= tokens


class _ClientBuckets:
    """The buckets of the clients that were counted last."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def find(self, client: str, now_s: float) -> _Bucket | None:
        """A client's bucket as it is filled now; None where it is as a new one."""
        bucket = self._buckets.get(client)
        if bucket is not None:
            bucket.fill(now_s, CLIENT_PER_S, CLIENT_BURST)
        return bucket

    def of(self, client: str, now_s: float) -> _Bucket:
        """A client's bucket, made where there is none."""
        bucket = self.find(client, now_s)
        if bucket is None:
            bucket = self._buckets[client] = _Bucket(CLIENT_BURST, now_s)
            if len(self._buckets) > CLIENTS_KEPT:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(client)
        return bucket


class DoorRate:
    """Whether a sender's messages are still looked at. What is admitted costs nothing."""

    def __init__(self) -> None:
        self._senders = _ClientBuckets()
        self._turned_away = 0

    def turns_away(self, sender: str, now_s: float) -> bool:
        """Whether a message of this sender is to be dropped unread; it is counted then."""
        bucket = self._senders.find(sender, now_s)
        away = bucket is not None and bucket.tokens < 1.0
        self._turned_away += away
        return away

    def note_futile(self, sender: str, now_s: float) -> None:
        """A message of this sender was looked at and came to nothing: refused, repeated, or about nothing."""
        self._senders.of(sender, now_s).pay(1.0)

    def take_turned_away(self) -> int:
        """How many messages were dropped unread since the last call."""
        turned_away, self._turned_away = self._turned_away, 0
        return turned_away


class ReplyRate:
    """The buckets of the clients that were refused last, and the one of all."""

    def __init__(self) -> None:
        self._clients = _ClientBuckets()
        self._all: _Bucket | None = None
        self._withheld = 0

    def take(self, client: str, size_bytes: int, now_s: float) -> bool:
        """Whether an expendable answer of this size may be sent to the client now; where not, it is counted."""
        cost = 1.0 + max(0, size_bytes - KIB) / KIB
        own = self._clients.of(client, now_s)
        everyone = self._all = self._all or _Bucket(ALL_BURST, now_s)
        everyone.fill(now_s, ALL_PER_S, ALL_BURST)
        # A bucket that is not empty lets any answer through and then stands in debt: else a large one never went out.
        if own.tokens < 1.0 or everyone.tokens < 1.0:
            self._withheld += 1
            return False
        own.pay(cost)
        everyone.pay(cost)
        return True

    def take_withheld(self) -> int:
        """How many were not sent since the last call."""
        withheld, self._withheld = self._withheld, 0
        return withheld
