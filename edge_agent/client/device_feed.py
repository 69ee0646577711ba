"""What devices say by themselves (status, info, telemetry, events), as it comes. Used by `top`, `record`,
`metrics` and `fleet`.

A file of its own because it asks nothing: it has subscriptions, and no requests.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from edge_agent.base.errors import BrokerError
from edge_agent.client.request_client import RECONNECT_CAP_S, UNREADABLE
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Inbound, LinkChange, LinkListener
from edge_agent.protocol.topics import NAME, RESERVED, Subscription

IDLE_S = 1.0
AT_MOST_ONCE = frozenset({"telemetry", "trace"})
REPLAYED = frozenset({"status", "info", "models", "reported"})
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Heard:
    """A message of a device by its kind. With `kind` empty: nothing came for a second. `connected`: the broker is
    there; `trouble`: why it is not, a sentence."""

    connected: bool
    device: str = ""
    kind: str = ""
    payload: bytes = b""
    trouble: str = ""


def read_said(kinds: Mapping[str, type[B]], device: str, kind: str, payload: bytes) -> B | None:
    """A message as the type of its kind; None where the name can be no device's or the message has another form: who
    may publish on the broker need not be a device."""
    if not NAME.fullmatch(device) or device in RESERVED or kind not in kinds:
        return None
    try:
        return msgspec.json.decode(payload, type=kinds[kind])
    except UNREADABLE:
        return None


async def hear(
    options: MqttOptions, prefix: str, device: str, kinds: Sequence[str], connect_s: float | None
) -> AsyncGenerator[Heard, None]:
    """Messages of these kinds from a device (`+`: from all), for ever. Raises BrokerError where the broker is not there
    after `connect_s`; with None it is waited for, as it is after a lost connection."""
    said: deque[LinkChange] = deque(maxlen=1)
    own = replace(
        options,
        client_id=f"hear-{secrets.token_hex(6)}",
        session_expiry_s=0,
        reconnect_cap_s=min(options.reconnect_cap_s, RECONNECT_CAP_S),
    )
    filters = [
        Subscription(f"{prefix}/{device}/{kind}", qos=0 if kind in AT_MOST_ONCE else 1, replay=kind in REPLAYED)
        for kind in kinds
    ]
    transport = MqttTransport(own, filters)
    coming: asyncio.Future[Inbound] | None = None
    await transport.start(LinkListener(said.append))
    try:
        if connect_s is not None:
            await connecting(transport, connect_s, said)
        stream = aiter(transport.messages())
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(stream))
            await asyncio.wait({coming}, timeout=IDLE_S)
            if not coming.done():
                why = said[-1].text if said and not transport.connected else ""
                yield Heard(transport.connected, trouble=why)
                continue
            message, coming = coming.result(), None
            transport.ack(message)
            levels = message.topic.split("/")
            if message.payload and len(levels) > 1:
                yield Heard(transport.connected, levels[-2], levels[-1], message.payload)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await transport.stop([])


async def connecting(transport: MqttTransport, within_s: float, said: Sequence[LinkChange]) -> None:
    """Wait for the connection. Raises BrokerError, with the reason of the last attempt, after `within_s`."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + within_s
    while not transport.connected:
        await asyncio.sleep(0.01)
        if loop.time() > until_s:
            raise BrokerError(said[-1].text if said else "no answer from the broker")
