"""An MQTT message and the state of a connection as plain values: what crosses the Transport port, independent of any
client library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edge_agent.base.limits import MESSAGE_BYTES

_REPLY_TO = re.compile(rb'"reply_to"\s*:\s*"([^"\\]{1,256})"')


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message that arrived.

    `expiry_s` is the remaining message expiry interval (MQTT 5) or None. `ack` is the token to give back to the
    transport once the message is taken (manual acknowledgement), None for QoS 0. `received_s` is the monotonic
    time at which it left the socket: what it then waits inside the agent counts against its deadline.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retained: bool = False
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    user: Mapping[str, str] = field(default_factory=dict)
    ack: int | None = None
    received_s: float | None = None

    def named_reply_topic(self) -> str | None:
        """The reply topic that the message names, unchecked and without decoding its body: the response topic, or what
        looks like the `reply_to` of a body (MQTT 3.1.1). It tells senders apart before anything is spent on them; a
        body that misleads it is counted with another sender."""
        if self.response_topic is not None:
            return self.response_topic
        found = _REPLY_TO.search(self.payload, 0, MESSAGE_BYTES)
        return found[1].decode("utf-8", "replace") if found else None


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message to publish. `expiry_s` lets the broker drop it when it was not delivered in time, in whole seconds
    rounded up; while it waits here the fraction counts too.

    `request_id`: the request that it answers, wholly or in part; `client`: whose it is, in whose share of the outbox it
    waits (None: the agent's own). `expendable`: it gives way where answers need the room. `holds_place`: it closes a
    request, whose place in the queue is free again when it has been sent. `keep` says how it waits while it cannot be
    sent: 'queue' in order, until its expiry; 'latest' as a state, of which only the newest per topic is sent; 'disk'
    (events) through restarts of agent and broker.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content_type: str | None = "application/json"
    correlation: bytes | None = None
    expiry_s: float | None = None
    user: Mapping[str, str] = field(default_factory=dict)
    response_topic: str | None = None
    keep: Literal["queue", "latest", "disk"] = "queue"
    request_id: str | None = None
    client: str | None = None
    expendable: bool = False
    holds_place: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """Answers that were computed and wait to be sent: places of the queue that they hold, and bytes of their bodies;
    `own_`: those to one client."""

    places: int = 0
    size_bytes: int = 0
    own_places: int = 0
    own_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LinkChange:
    """The connection was made or lost, or fails for a new reason. `version` is 5 or 4 (3.1.1) while connected.

    `kind` is what to do about it, `text` the sentence, `detail` the sentence of a failure without the broker's address.
    """

    connected: bool
    kind: str
    text: str
    version: int | None = None
    detail: str = ""


def _ignore(*_values: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class LinkListener:
    """The functions that a connection reports to.

    `changed` is called when it is made or lost; after it was made, the retained state (status, info, models) must be
    published again, since the broker has published the will. `undelivered` is called with QoS 1 messages that the
    broker refused, or that have no matching subscribers, where it says so (MQTT 5), and the reason. `unsendable` is
    called once with a topic on which a message cannot be sent to this broker, and why.
    """

    changed: Callable[[LinkChange], None] = _ignore
    undelivered: Callable[[Outbound, str], None] = _ignore
    unsendable: Callable[[str, str], None] = _ignore


NO_LISTENER = LinkListener()
