"""Waiting for things to come about, and a link that notes what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.topics import Subscription


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait until `condition` holds, or fail."""
    for _ in range(round(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


class NotedLink:
    """A transport with everything that it reported: `changes`, and `seen` messages, acknowledged when `ack`."""

    def __init__(
        self, options: MqttOptions, subscriptions: Sequence[Subscription] = (), *, ack: bool = True, **more: Any
    ) -> None:
        self.changes: list[LinkChange] = []
        self.seen: list[Inbound] = []
        self.link = MqttTransport(options, subscriptions, **more)
        self._ack = ack
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.link.start(LinkListener(self.changes.append))
        self._task = asyncio.create_task(self._read())

    async def stop(self, last_words: Sequence[Outbound] = ()) -> None:
        await self.link.stop(last_words)
        if self._task is not None:
            await self._task

    async def _read(self) -> None:
        async for message in self.link.messages():
            self.seen.append(message)
            if self._ack:
                self.link.ack(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message.payload for message in self.seen]


@contextlib.asynccontextmanager
async def linked(
    options: MqttOptions, subscriptions: Sequence[Subscription] = (), *, ready: bool = True, **more: Any
) -> AsyncIterator[NotedLink]:
    """A started `NotedLink`, connected when `ready`, and stopped at the end."""
    noted = NotedLink(options, subscriptions, **more)
    await noted.start()
    try:
        if ready:
            await until(lambda: noted.link.connected)
        yield noted
    finally:
        await noted.stop()
