"""An MQTT client that sends requests to an agent. Used by `edge-agent infer`, `bench` and the tests.

It uses the daemon's transport and subscribes only to its own reply topic (and the status of the devices it watches).
Requests carry correlation data and expiry on MQTT 5, and `id`, `reply_to` and `deadline_s` in the body on 3.1.1.
Answers are matched by id.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BrokerError, RequestError
from edge_agent.base.units import duration_text
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.encode import whole_expiry_s
from edge_agent.protocol.envelope import Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.messages import Reply, Status, StreamChunk
from edge_agent.protocol.topics import Subscription, Topics

# How long after its deadline an answer may still be on its way.
GRACE_S = 1.0
_STREAM = 256
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a payload that is not of the type: bad UTF-8 within a text is no error of its own kind."""
T = TypeVar("T")


@dataclass(slots=True)
class _Pending:
    answers: asyncio.Queue[Inbound | RequestError]
    lost: bool = False


class RequestClient:
    """A client with one connection: `async with RequestClient(options) as client: await client.infer(...)`.

    `options.client_id` is also the {client} level of its reply topic; a random one is made when it is empty.
    """

    def __init__(self, options: MqttOptions, prefix: str = "edge/v1", devices: Sequence[str] = ()) -> None:
        name = options.client_id or f"ask-{secrets.token_hex(6)}"
        self._options = replace(options, client_id=name, session_expiry_s=0)
        self._prefix = prefix
        self._devices = tuple(devices)
        self._pending: dict[str, _Pending] = {}
        self._last_change: LinkChange | None = None
        self._reading: asyncio.Task[None] | None = None
        self._transport: MqttTransport | None = None
        self.status: dict[str, Status] = {}
        self._reply_topic = f"{prefix}/client/{name}/reply"

    async def __aenter__(self) -> RequestClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Connect to the broker, or raise BrokerError with the reason. Only transient failures are tried again."""
        watched = [Subscription(f"{self._prefix}/{device}/status", replay=True) for device in self._devices]
        self._transport = MqttTransport(
            self._options,
            [Subscription(f"{self._reply_topic}/#"), *watched],
        )
        await self._transport.start(LinkListener(self._changed, self._undelivered))
        self._reading = asyncio.create_task(self._read(self._transport))
        for _ in range(max(1, round(timeout_s / 0.01))):
            change = self._last_change
            if self._transport.connected or (change is not None and change.kind == "permanent"):
                break
            await asyncio.sleep(0.01)
        if not self._transport.connected:
            reason = self._last_change.text if self._last_change else "no answer from the broker"
            await self.close()
            raise BrokerError(reason)

    async def close(self) -> None:
        """Disconnect; requests that still wait get no answer."""
        if self._transport is not None:
            await self._transport.stop([])
        if self._reading is not None:
            await self._reading
        self._transport = self._reading = None

    @property
    def version(self) -> int | None:
        """5 or 4 (3.1.1) while connected."""
        return self._last_change.version if self._last_change else None

    async def infer(self, device: str, model: str, body: Mapping[str, Any], deadline_s: float = 30.0) -> Reply:
        """Ask a model. `body` as in docs/mqtt.md (text or texts, adapter, params, priority). Raises RequestError
        (408) when no answer came; an answer of any other status is returned, not raised."""
        topic = Topics(self._prefix, device).infer(model)
        return _read(await self.request(topic, body, deadline_s), Reply)

    async def stream(
        self, device: str, model: str, body: Mapping[str, Any], deadline_s: float = 30.0
    ) -> AsyncIterator[StreamChunk | Reply]:
        """Ask a model that answers in parts: chunks in order, the last one done; or one Reply that says why not."""
        topic = Topics(self._prefix, device).infer(model)
        request_id, ended = str(body.get("id") or secrets.token_hex(16)), False
        try:
            # Closed here, not by the garbage collector, because the id may be used again at once.
            async with contextlib.aclosing(self._ask(topic, body, deadline_s, request_id)) as payloads:
                async for payload in payloads:
                    part = _part(payload)
                    ended = isinstance(part, Reply) or part.done
                    yield part
                    if ended:
                        return
        finally:
            if not ended:  # the caller stopped reading: the device need not compute the rest
                self.cancel(device, request_id)

    async def command(
        self, device: str, name: str, body: Mapping[str, Any], deadline_s: float = 60.0
    ) -> dict[str, Any]:
        """Send a command to a device (`cmd/{name}`); returns the answer's body. Raises RequestError (408)."""
        topic = Topics(self._prefix, device).command(name)
        return _read(await self.request(topic, body, deadline_s), dict[str, Any])

    def cancel(self, device: str, request_id: str) -> bool:
        """Cancel a request of this client; the pending call gets the answer 499."""
        body = {"id": request_id, "reply_to": self._reply_topic}
        return self._publish(Outbound(Topics(self._prefix, device).cancel, msgspec.json.encode(body)))

    async def request(self, topic: str, body: Mapping[str, Any], deadline_s: float) -> bytes:
        """Publish a request and wait for the one answer's body. Raises RequestError (408, 503)."""
        async with contextlib.aclosing(self._ask(topic, body, deadline_s)) as payloads:
            async for payload in payloads:
                return payload
        raise RequestError(408, Cause.EXPIRED, "no answer")

    async def _ask(
        self, topic: str, body: Mapping[str, Any], deadline_s: float, request_id: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        request_id = request_id or str(body.get("id") or secrets.token_hex(16))
        pending = _Pending(asyncio.Queue(maxsize=_STREAM))
        self._pending[request_id] = pending
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s + GRACE_S
        try:
            if not self._publish(self._message(topic, request_id, body, deadline_s)):
                raise RequestError(
                    503, Cause.UNAVAILABLE, "not connected to the broker, or the request is larger than it takes"
                )
            while not (pending.lost and pending.answers.empty()):
                try:
                    answer = await asyncio.wait_for(pending.answers.get(), until_s - loop.time())
                except asyncio.TimeoutError:
                    raise RequestError(408, Cause.EXPIRED, self._no_answer(topic, deadline_s)) from None
                if isinstance(answer, RequestError):
                    raise answer
                yield answer.payload
            raise RequestError(
                503,
                Cause.UNAVAILABLE,
                f"the answer came faster than it was read: more than {_STREAM} parts waited here",
            )
        finally:
            del self._pending[request_id]

    def _message(self, topic: str, request_id: str, body: Mapping[str, Any], deadline_s: float) -> Outbound:
        expiry_s = whole_expiry_s(deadline_s)
        fields: dict[str, Any] = dict(body)
        if self.version == 5:
            if deadline_s != expiry_s:
                fields["deadline_s"] = deadline_s
        else:
            fields.update(id=request_id, reply_to=self._reply_topic, deadline_s=deadline_s)
        return Outbound(
            topic,
            msgspec.json.encode(fields),
            correlation=request_id.encode(),
            expiry_s=expiry_s,
            response_topic=self._reply_topic,
        )

    def _publish(self, message: Outbound) -> bool:
        return self._transport is not None and self._transport.publish(message)

    async def _read(self, transport: MqttTransport) -> None:
        async for message in transport.messages():
            transport.ack(message)
            if message.topic.endswith("/status") and not message.topic.startswith(self._reply_topic):
                self._note_status(message)
                continue
            pending = self._pending.get(_id_of(message))
            if pending is None:
                continue
            pending.lost = pending.lost or pending.answers.full()
            if not pending.lost:
                pending.answers.put_nowait(message)

    def _note_status(self, message: Inbound) -> None:
        device = message.topic.split("/")[-2]
        try:
            self.status[device] = msgspec.json.decode(message.payload, type=Status)
        except UNREADABLE:
            self.status.pop(device, None)

    def _changed(self, change: LinkChange) -> None:
        self._last_change = change

    def _undelivered(self, message: Outbound, reason: str) -> None:
        pending = self._pending.get((message.correlation or b"").decode())
        if pending is not None and not pending.answers.full():
            remedy = "is the device's name right, and is it running?"
            pending.answers.put_nowait(RequestError(503, Cause.UNAVAILABLE, f"{message.topic}: {reason} ({remedy})"))

    def _no_answer(self, topic: str, deadline_s: float) -> str:
        device = topic.removeprefix(self._prefix + "/").split("/")[0]
        status = self.status.get(device)
        stated = f"; {device} says it is {status.state}: {status.reason}" if status else ""
        return f"no answer from {topic} within {duration_text(deadline_s)}{stated}"


def _id_of(message: Inbound) -> str:
    if message.correlation is not None:
        return message.correlation.decode("utf-8", "replace")
    try:
        return str(msgspec.json.decode(message.payload, type=dict[str, Any]).get("id", ""))
    except UNREADABLE:
        return ""


def _part(payload: bytes) -> StreamChunk | Reply:
    try:
        return msgspec.json.decode(payload, type=StreamChunk)
    except UNREADABLE:
        return _read(payload, Reply)


def _read(payload: bytes, kind: type[T]) -> T:
    """An answer as a value. Raises RequestError (503) for one that is none: who may publish there need be no device."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except UNREADABLE as error:
        reason = f"an answer came that this version of edge-agent cannot read: {str(error)[:200]}"
        raise RequestError(503, Cause.MALFORMED, reason) from error
