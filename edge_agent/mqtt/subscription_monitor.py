"""Whether what the transport subscribed to arrives: refused subscriptions, and those that the broker grants and serves
not (an access list without read rights: SUBACK says yes, and nothing comes).

The second kind is found by a message to oneself: it is published on a topic of the transport's own, and has to come
back. Whatever else arrives through the same filter shows the same. Where the broker refuses that message nothing is
known, and nothing is said. A broker's settings change while it runs, so everything is tried again every minute.

Pure: the transport subscribes and publishes. A file of its own because it is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edge_agent.protocol.topics import Subscription

CHECK_S = 60.0
"""Seconds between two checks, and between two attempts to subscribe again."""
RETURN_S = 10.0
"""A message to oneself that has not come back after so long does not come."""


class SubscriptionMonitor:
    """`wanted`: the subscriptions; `own_topics`: for messages to oneself, each matched by one of them."""

    def __init__(self, wanted: Sequence[Subscription], own_topics: Sequence[str]) -> None:
        self._filters = {topic: _filter_of(topic, wanted) for topic in own_topics}
        self._wanted = tuple(wanted)
        self._refused: dict[str, str] = {}
        self._deaf: set[str] = set()
        # Topics of messages to oneself that are awaited, and until when; None when none is.
        self._awaited: set[str] = set()
        self._until_s: float | None = None
        self._next_s: float | None = None

    def subscribed(self, refused: Iterable[tuple[Subscription, str]], asked: Iterable[Subscription]) -> None:
        """The broker answered a SUBSCRIBE with the filters `asked`."""
        for one in asked:
            self._refused.pop(one.topic_filter, None)
        self._refused.update((one.topic_filter, reason) for one, reason in refused)

    def connected(self, now_s: float) -> None:
        """A connection began and its subscriptions were answered: the first check is due."""
        self._next_s, self._until_s = now_s, None
        self._awaited.clear()

    def disconnected(self) -> None:
        """Nothing is awaited any more; what is known of the broker stays until it is tried again."""
        self._next_s = self._until_s = None
        self._awaited.clear()

    def due(self, now_s: float) -> bool:
        """Whether it is time for another check."""
        return self._next_s is not None and now_s >= self._next_s

    def again(self) -> tuple[Subscription, ...]:
        """What to subscribe to again, at a check."""
        deaf = {self._filters[topic] for topic in self._deaf}
        return tuple(one for one in self._wanted if one.topic_filter in self._refused or one.topic_filter in deaf)

    def begin(self, now_s: float) -> tuple[str, ...]:
        """A check begins: the topics on which to publish a message to oneself now."""
        self._next_s = now_s + CHECK_S
        self._awaited = {topic for topic, name in self._filters.items() if name not in self._refused}
        self._until_s = now_s + RETURN_S
        return tuple(sorted(self._awaited))

    def arrived(self, topic: str) -> None:
        """A message arrived on this topic."""
        if not self._awaited and not self._deaf:
            return
        above = topic.rpartition("/")[0]
        heard = {own for own in self._filters if own == topic or own.rpartition("/")[0] == above}
        self._awaited -= heard
        self._deaf -= heard

    def not_sent(self, topic: str) -> bool:
        """The broker did not take a message on this topic; True when it was one to oneself: then nothing is known."""
        self._awaited.discard(topic)
        return topic in self._filters

    def look(self, now_s: float) -> None:
        """Take a message that has not come back in time for one that does not come."""
        if self._until_s is not None and now_s >= self._until_s:
            self._deaf |= self._awaited
            self._awaited.clear()
            self._until_s = None

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong with the subscriptions, a sentence each."""
        found = []
        if self._refused:
            filters = ", ".join(f"{name}: {reason}" for name, reason in self._refused.items())
            found.append(f"the broker refuses subscriptions, check its access list: {filters}")
        deaf = sorted({self._filters[topic] for topic in self._deaf} - self._refused.keys())
        if deaf:
            found.append(
                f"nothing arrives on {', '.join(deaf)}: the broker granted the subscription, and a message to myself "
                "did not come back; its access list must let this device read and write there"
            )
        return tuple(found)


def _filter_of(topic: str, wanted: Sequence[Subscription]) -> str:
    above = topic.rpartition("/")[0]
    names = [one.topic_filter for one in wanted if one.topic_filter in (topic, f"{above}/+")]
    if not names:
        raise ValueError(f"no subscription matches {topic}")
    return names[0]
