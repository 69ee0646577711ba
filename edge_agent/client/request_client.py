"""Requests and their answers as messages: the half of the client library that knows MQTT.

It uses the daemon's transport and subscribes only to its own reply topic, and to what the devices that it watches say
of themselves. Requests carry correlation data and expiry on MQTT 5, and `id`, `reply_to` and `deadline_s` in the body
on 3.1.1. Answers are matched by id.

A request survives a lost connection: once the broker is there again, and when a watched device has started anew, what
is still open is sent again, byte for byte and under the same id, so that a device which has seen it answers it without
computing it twice (docs/decisions/0003). An order is not sent again, since the next daemon would carry it out again;
nor is a stream of which parts were read.

Answers of any status are returned here; exceptions by status are `async_client`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import msgspec

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BrokerError, RequestError
from edge_agent.base.limits import DEVICES_WATCHED
from edge_agent.base.units import duration_text
from edge_agent.client.refusals import DeadlineMissed, DeviceUnavailable, InvalidRequest
from edge_agent.client.traced import trace_properties
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.encode import whole_expiry_s
from edge_agent.protocol.envelope import Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.messages import Models, Reply, Status, StreamChunk
from edge_agent.protocol.topics import NAME, RESERVED, Subscription, Topics

Kind = Literal["status", "models"]
"""What a client may watch of a device: retained, so that it is there at once."""
# How long after its deadline an answer may still be on its way.
GRACE_S = 1.0
# The longest pause between two attempts to connect: somebody waits for each request.
RECONNECT_CAP_S = 5.0
_STREAM = 256
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a payload that is not of the type: bad UTF-8 within a text is no error of its own kind."""
T = TypeVar("T")


@dataclass(slots=True)
class _Pending:
    """An open request: its message as it was sent, when nobody waits for the answer any more (loop time), what came.

    `again`: it may be sent again. `overflowed`: parts came faster than they were read.
    """

    message: Outbound
    until_s: float
    again: bool
    answers: asyncio.Queue[Inbound | RequestError]
    arrived: int = 0
    overflowed: bool = False

    def take(self, answer: Inbound | RequestError) -> None:
        """Keep an answer until it is read; once the queue was full, nothing more is taken."""
        self.overflowed = self.overflowed or self.answers.full()
        if not self.overflowed:
            self.answers.put_nowait(answer)
            self.arrived += 1


class RequestClient:
    """A client with one connection: `async with RequestClient(options) as client: await client.infer(...)`.

    `options.client_id` is also the {client} level of its reply topic; a random one is made when it is empty. Of the
    `devices` (`+`: all) it keeps the newest message of each kind in `watch`: `status` and `models`, by device.
    """

    def __init__(
        self,
        options: MqttOptions,
        prefix: str = "edge/v1",
        devices: Sequence[str] = (),
        watch: Sequence[Kind] = ("status",),
    ) -> None:
        name = options.client_id or f"ask-{secrets.token_hex(6)}"
        cap_s = min(options.reconnect_cap_s, RECONNECT_CAP_S)
        self._options = replace(options, client_id=name, session_expiry_s=0, reconnect_cap_s=cap_s)
        self._prefix = prefix
        self._watched = [f"{prefix}/{device}/{kind}" for device in devices for kind in watch]
        self._pending: dict[str, _Pending] = {}
        self._last_change: LinkChange | None = None
        self._reading: asyncio.Task[None] | None = None
        self._transport: MqttTransport | None = None
        self.status: dict[str, Status] = {}
        self.models: dict[str, Models] = {}
        self._reply_topic = f"{prefix}/client/{name}/reply"

    async def __aenter__(self) -> RequestClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Connect to the broker, or raise BrokerError with the reason. Only transient failures are tried again."""
        watched = [Subscription(topic, replay=True) for topic in self._watched]
        self._transport = MqttTransport(self._options, [Subscription(f"{self._reply_topic}/#"), *watched])
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
        """Disconnect; requests that still wait are told that this client was closed."""
        for pending in self._pending.values():
            pending.take(DeviceUnavailable(503, Cause.UNAVAILABLE, "this client was closed before the answer came"))
        if self._transport is not None:
            await self._transport.stop([])
        if self._reading is not None:
            await self._reading
        self._transport = self._reading = None

    @property
    def connected(self) -> bool:
        """Whether the broker is there now; where not, it is tried again and again."""
        return self._transport is not None and self._transport.connected

    @property
    def version(self) -> int | None:
        """5 or 4 (3.1.1) while connected."""
        return self._last_change.version if self._last_change else None

    async def infer(self, device: str, model: str, body: Mapping[str, Any], deadline_s: float = 30.0) -> Reply:
        """Ask a model. `body` as in docs/mqtt.md (text or texts, adapter, params, priority). Raises RequestError (408,
        503) when no answer came; an answer of any other status is returned, not raised. Whoever stops to wait (a
        cancelled task) withdraws the request."""
        topic = Topics(self._prefix, device).infer(model)
        request_id = str(body.get("id") or secrets.token_hex(16))
        try:
            return _read(await self._one(topic, body, deadline_s, request_id, again=True), Reply)
        except asyncio.CancelledError:
            self.cancel(device, request_id)
            raise

    async def stream(
        self, device: str, model: str, body: Mapping[str, Any], deadline_s: float = 30.0
    ) -> AsyncGenerator[StreamChunk | Reply, None]:
        """Ask a model that answers in parts: chunks in order, the last one done; or one Reply that says why not, or
        that has the whole text, where the answer had been given before the connection broke.

        A `seq` of 0 after others: a new daemon began anew. Raises RequestError (503) where parts were lost.
        """
        topic = Topics(self._prefix, device).infer(model)
        request_id, ended, expected = str(body.get("id") or secrets.token_hex(16)), False, 0
        try:
            # Closed here, not by the garbage collector, because the id may be used again at once.
            async with contextlib.aclosing(self._ask(topic, body, deadline_s, request_id, again=True)) as payloads:
                async for payload in payloads:
                    part = _part(payload)
                    if isinstance(part, StreamChunk):
                        if 0 < part.seq < expected:
                            continue  # the device sends unacknowledged parts again when it has connected anew
                        if part.seq > expected:
                            reason = f"parts {expected} to {part.seq - 1} of the answer were lost on the way; ask again"
                            raise DeviceUnavailable(503, Cause.UNAVAILABLE, reason)
                        expected = part.seq + 1
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
        """Send a command to a device (`cmd/{name}`); returns the answer's body. Raises RequestError (408, 503)."""
        topic = Topics(self._prefix, device).command(name)
        request_id = str(body.get("id") or secrets.token_hex(16))
        return _read(await self._one(topic, body, deadline_s, request_id, again=False), dict[str, Any])

    def cancel(self, device: str, request_id: str) -> bool:
        """Cancel a request of this client; the pending call gets the answer 499."""
        body = {"id": request_id, "reply_to": self._reply_topic}
        return self._publish(Outbound(Topics(self._prefix, device).cancel, msgspec.json.encode(body)))

    async def _one(self, topic: str, body: Mapping[str, Any], deadline_s: float, request_id: str, again: bool) -> bytes:
        async with contextlib.aclosing(self._ask(topic, body, deadline_s, request_id, again)) as payloads:
            async for payload in payloads:
                return payload
        raise DeadlineMissed(408, Cause.EXPIRED, "no answer")

    async def _ask(
        self, topic: str, body: Mapping[str, Any], deadline_s: float, request_id: str, again: bool
    ) -> AsyncGenerator[bytes, None]:
        if request_id in self._pending:
            reason = f"a request with the id {request_id!r} is open at this client; give each its own"
            raise InvalidRequest(422, Cause.INVALID, reason)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s + GRACE_S
        pending = _Pending(
            self._message(topic, request_id, body, deadline_s), until_s, again, asyncio.Queue(maxsize=_STREAM)
        )
        self._pending[request_id] = pending
        try:
            if not self._publish(pending.message):
                reason = "not connected to the broker, or the request is larger than it takes"
                raise DeviceUnavailable(503, Cause.UNAVAILABLE, reason)
            while not (pending.overflowed and pending.answers.empty()):
                try:
                    answer = await asyncio.wait_for(pending.answers.get(), until_s - loop.time())
                except asyncio.TimeoutError:
                    raise DeadlineMissed(408, Cause.EXPIRED, self._no_answer(pending, deadline_s)) from None
                if isinstance(answer, RequestError):
                    raise answer
                yield answer.payload
            reason = f"the answer came faster than it was read: more than {_STREAM} parts waited here"
            raise DeviceUnavailable(503, Cause.UNAVAILABLE, reason)
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
            user=trace_properties(),
        )

    def _publish(self, message: Outbound) -> bool:
        return self._transport is not None and self._transport.publish(message)

    async def _read(self, transport: MqttTransport) -> None:
        async for message in transport.messages():
            transport.ack(message)
            stated = message.topic.endswith(("/status", "/models"))
            if stated and not message.topic.startswith(self._reply_topic):
                self._note_state(message)
                continue
            pending = self._pending.get(_id_of(message))
            if pending is not None:
                pending.take(message)

    def _note_state(self, message: Inbound) -> None:
        device, kind = message.topic.split("/")[-2:]
        if kind == "models":
            self._keep(self.models, device, message, Models)
            return
        before = self.status.get(device)
        self._keep(self.status, device, message, Status)
        now = self.status.get(device)
        if before is not None and now is not None and now.boot_id != before.boot_id and now.state != "offline":
            self._send_again(f"{self._prefix}/{device}/", f"{device} started anew")

    @staticmethod
    def _keep(kept: dict[str, T], device: str, message: Inbound, kind: type[T]) -> None:
        named = NAME.fullmatch(device) and device not in RESERVED
        if not named or (device not in kept and len(kept) >= DEVICES_WATCHED):
            return
        try:
            kept[device] = msgspec.json.decode(message.payload, type=kind)
        except UNREADABLE:
            kept.pop(device, None)

    def _changed(self, change: LinkChange) -> None:
        before, self._last_change = self._last_change, change
        if change.connected and before is not None and not before.connected:
            self._send_again(self._prefix, "the connection to the broker was lost")

    def _send_again(self, below: str, why: str) -> None:
        """Send what is open once more: the answer may have gone while nobody listened, or with an earlier daemon."""
        for pending in list(self._pending.values()):
            left_s = pending.until_s - GRACE_S - asyncio.get_running_loop().time()
            if not (pending.again and left_s > 0 and pending.message.topic.startswith(below)):
                continue
            if pending.arrived:
                # What was read cannot be taken back, and an answer drawn anew may be another one.
                reason = f"{why} after {pending.arrived} parts of the answer; ask again"
                pending.take(DeviceUnavailable(503, Cause.UNAVAILABLE, reason))
            else:
                self._publish(replace(pending.message, expiry_s=whole_expiry_s(left_s)))

    def _undelivered(self, message: Outbound, reason: str) -> None:
        pending = self._pending.get((message.correlation or b"").decode())
        if pending is not None:
            remedy = "is the device's name right, and is it running?"
            pending.take(DeviceUnavailable(503, Cause.UNAVAILABLE, f"{message.topic}: {reason} ({remedy})"))

    def _no_answer(self, pending: _Pending, deadline_s: float) -> str:
        topic = pending.message.topic
        device = topic.removeprefix(self._prefix + "/").split("/")[0]
        status = self.status.get(device)
        stated = f"; {device} says it is {status.state}: {status.reason}" if status else ""
        gone = "" if self.connected or self._last_change is None else f"; no broker: {self._last_change.text}"
        return f"no answer from {topic} within {duration_text(deadline_s)}{stated}{gone}"


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
        raise DeviceUnavailable(503, Cause.MALFORMED, reason) from error
