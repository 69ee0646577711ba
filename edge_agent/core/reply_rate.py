"""How many expendable answers a client gets: refusals at the door, and answers that it was given before.

One that asks without end for what is refused would else keep the way out busy with refusals. Each client has tokens of
a bucket (Turner, 1986): a burst is answered wholly, a flood at `CLIENT_PER_S`. One answer costs a token, and one more
for each KiB beyond the first. All clients together have a bucket, too, since a sender may use many names.

Pure: the time is an argument. A file of its own because intake and orders share it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from edge_agent.base.limits import KIB

CLIENT_BURST = 16_384.0
"""Three times the 5,000 requests at once that are to be answered one by one."""
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


class ReplyRate:
    """The buckets of the clients that were refused last, and the one of all."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, _Bucket] = OrderedDict()
        self._all: _Bucket | None = None
        self._withheld = 0

    def take(self, client: str, size_bytes: int, now_s: float) -> bool:
        """Whether an expendable answer of this size may be sent to the client now; where not, it is counted."""
        cost = 1.0 + max(0, size_bytes - KIB) / KIB
        own = self._bucket(client, now_s)
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

    def _bucket(self, client: str, now_s: float) -> _Bucket:
        bucket = self._clients.get(client)
        if bucket is None:
            bucket = self._clients[client] = _Bucket(CLIENT_BURST, now_s)
            if len(self._clients) > CLIENTS_KEPT:
                self._clients.popitem(last=False)
        bucket.fill(now_s, CLIENT_PER_S, CLIENT_BURST)
        self._clients.move_to_end(client)
        return bucket
