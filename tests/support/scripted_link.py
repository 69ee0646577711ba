"""A connected transport under a test's control: what is published goes to `device`, which puts answers on the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from edge_agent.protocol.envelope import Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.messages import ModelEntry, Models, Status


class ScriptedLink:
    """Stands in for `MqttTransport`; `device` is called with every message that is published."""

    def __init__(self, device: Callable[[ScriptedLink, Outbound], None]) -> None:
        self._device = device
        self._arrived: asyncio.Queue[Inbound | None] = asyncio.Queue(maxsize=4096)
        self._listener = LinkListener()
        self.connected = True
        self.published: list[Outbound] = []

    def __call__(self, *_: Any, **__: Any) -> ScriptedLink:
        """In place of the constructor."""
        return self

    async def start(self, listener: LinkListener) -> None:
        self._listener = listener
        listener.changed(LinkChange(True, "connected", "connected", 5))

    async def stop(self, _last_words: Any) -> None:
        self._arrived.put_nowait(None)

    async def messages(self) -> AsyncIterator[Inbound]:
        while (message := await self._arrived.get()) is not None:
            yield message

    def ack(self, _message: Inbound) -> None:
        pass

    def publish(self, message: Outbound) -> bool:
        self.published.append(message)
        self._device(self, message)
        return True

    def answer(self, message: Outbound, body: Any) -> None:
        """An answer to a request, as the broker brings it."""
        topic = message.response_topic or ""
        self._arrived.put_nowait(Inbound(topic, msgspec.json.encode(body), correlation=message.correlation))

    def lose(self) -> None:
        """The broker goes away."""
        self.connected = False
        self._listener.changed(LinkChange(False, "transient", "the broker hung up"))

    def return_(self) -> None:
        """The broker is there again."""
        self.connected = True
        self._listener.changed(LinkChange(True, "connected", "connected", 5))

    def say_status(self, boot_id: str, device: str = "pi") -> None:
        """The device's status, as the broker brings it."""
        body = Status(state="online", boot_id=boot_id, seq=1, ts=0.0, heartbeat_s=10.0, reason="ready")
        self._arrived.put_nowait(Inbound(f"edge/v1/{device}/status", msgspec.json.encode(body)))

    def say_models(self, tasks: Mapping[str, str], device: str = "pi") -> None:
        """The device's list of models, by name with their task, as the broker brings it."""
        entries = [
            ModelEntry(
                name=name,
                version=1,
                base_id="b",
                task=task,
                labels=[],
                resident=False,
                variant="v",
                variants=[],
                adapters=[],
            )
            for name, task in tasks.items()
        ]
        body = Models(ts=0.0, boot_id="b", seq=1, models=entries)
        self._arrived.put_nowait(Inbound(f"edge/v1/{device}/models", msgspec.json.encode(body)))
