"""The client library under asyncio; see `edge_agent.client` and docs/client.md."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError, UsageError, brief
from edge_agent.base.limits import CORRELATION_BYTES, DEADLINE_MAX_S
from edge_agent.client.answers import (
    Answer,
    ContextQuestion,
    Embedding,
    RawPrompt,
    StreamPart,
    TextPair,
    streamed_answer,
)
from edge_agent.client.refusals import DeviceBusy, DeviceUnavailable, InvalidRequest, RequestCancelled, refusal_of
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions, TlsOptions
from edge_agent.protocol.messages import CommandReply, Models, Reply, Status
from edge_agent.protocol.topics import NAME, fit_id

DEADLINE_S = 30.0
ORDER_S = 120.0
"""A large model takes its time to load."""
RETRIES = 2
STATE_S = 3.0
"""Retained messages come right after the subscription; where none has come by then, there is none."""
EMBED_TEXTS = 16
"""Texts per request of `embed`: as vectors of 768 figures their answer stays below 128 KiB."""
ID_BYTES = CORRELATION_BYTES - 8
"""Of a request: `.1` and so on come behind it where it is asked again."""
JITTER = 0.25
"""Clients that are refused together do not come back together: each waits up to a fourth longer."""
Pair = TextPair | ContextQuestion
Question = str | Pair | Sequence[str] | Sequence[Pair] | Sequence[Mapping[str, str]]
"""What is asked: a text (for a generator a prompt as it stands), a TextPair, a ContextQuestion or a RawPrompt;
several texts or pairs; or a conversation of `{"role": ..., "content": ...}`."""
T = TypeVar("T")


class AsyncClient:
    """`async with AsyncClient("localhost", device="pi") as edge: answer = await edge.ask("minilm", "it is dark")`.

    `broker`: a host, a URL (`mqtts://me:secret@broker.lan`), or MqttOptions, which name files for TLS. A model is named
    `model` on `device`, or `device/model`. `deadline_s` holds for every call that names none. `retries`: how often a
    request that was refused with a time to ask again is asked again by itself, within its deadline. `devices` are those
    whose status and models are kept (`device` alone; `+` for all).

    Raises BrokerError when the broker cannot be reached or refuses this client, and RequestError (see `refusals`) for
    every answer other than 200; UsageError for a call that can never be right.
    """

    def __init__(
        self,
        broker: str | MqttOptions = "localhost",
        device: str | None = None,
        *,
        prefix: str = "edge/v1",
        deadline_s: float = DEADLINE_S,
        retries: int = RETRIES,
        devices: Sequence[str] = (),
    ) -> None:
        options = broker if isinstance(broker, MqttOptions) else broker_options(broker)
        self._device = device
        self._devices = tuple(devices) or (() if device is None else (_name("device", device),))
        self._requests = RequestClient(options, prefix, self._devices, ("status", "models"))
        self._deadline_s = deadline_s
        self._retries = retries
        # By the id of the call: the attempt that is open, or waits to be made.
        self._open: dict[str, _Attempt] = {}

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, timeout_s: float = 10.0) -> None:
        """Connect. Raises BrokerError; afterwards a lost connection is made again by itself."""
        await self._requests.connect(timeout_s)

    async def close(self) -> None:
        """Disconnect; what still waits gets DeviceUnavailable."""
        await self._requests.close()

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._requests.connected

    async def ask(
        self,
        model: str,
        question: Question,
        *,
        adapter: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> Answer:
        """Ask a model and wait for its whole answer. A plain text is a prompt as it stands for a generator, as in
        `stream`. `params` are the task's (`top_k`, `threshold`; `max_tokens`, `temperature`, `json_schema`, ...:
        docs/mqtt.md).

        After a refusal that names a time to ask again, it is asked again as a new request, within the deadline.
        """
        until_s = _now_s() + self._deadline(deadline_s)
        if isinstance(question, str) and self._generates(model):
            question = RawPrompt(question)
        try:
            body = _body(question, adapter, priority, params)
            return Answer(await self._asked(model, body, until_s - _now_s(), request_id))
        except InvalidRequest as error:
            plain = isinstance(question, str) and not isinstance(question, RawPrompt)
            if not plain or error.cause is not Cause.WRONG_FORM:
                raise
        # A generator, on a device that has not said so to this client.
        body = _body(RawPrompt(question), adapter, priority, params)
        return Answer(await self._asked(model, body, max(0.001, until_s - _now_s()), request_id))

    async def stream(
        self,
        model: str,
        question: Question,
        *,
        adapter: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        request_id: str | None = None,
        **params: Any,
    ) -> AsyncGenerator[StreamPart, None]:
        """Ask a generator; parts as they come, the last one with the whole answer. A text is a prompt as it stands.

        Whoever stops to iterate withdraws the request. Refusals before the first part are retried as in `ask`.
        """
        if isinstance(question, str):
            question = RawPrompt(question)
        body = {**_body(question, adapter, priority, params), "stream": True}
        device, name = self._target(model)
        with contextlib.closing(self._attempts(self._deadline(deadline_s), request_id)) as attempts:
            for attempt in attempts:
                begun = False
                try:
                    async with contextlib.aclosing(
                        self._parts(device, name, {**body, "id": attempt.request_id}, attempt.left_s())
                    ) as parts:
                        async for part in parts:
                            begun = True
                            yield part
                    return
                except RequestError as error:
                    if begun:
                        raise
                    await attempt.failed(error)

    async def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        adapter: str | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
    ) -> list[Embedding]:
        """The vectors of any number of texts, in their order; long lists are asked in parts, within one deadline."""
        if isinstance(texts, str):
            raise UsageError("embed takes a list of texts", "embed", "give one text as [text]")
        until_s = _now_s() + self._deadline(deadline_s)
        found: list[Embedding] = []
        waiting = [list(texts[at : at + EMBED_TEXTS]) for at in range(0, len(texts), EMBED_TEXTS)]
        while waiting:
            part = waiting.pop(0)
            body = _body(part, adapter, priority, {})
            try:
                answer = await self._asked(model, body, max(0.001, until_s - _now_s()), None)
            except RequestError as error:
                if error.cause is not Cause.TOO_LARGE or len(part) == 1:
                    raise
                waiting[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
                continue
            found += Answer(answer).embeddings
        return found

    def cancel(self, model: str, request_id: str) -> None:
        """Withdraw a request of this client by its id; whoever waits for it gets RequestCancelled. What is answered
        already, or unknown, is left alone."""
        device, attempt = self._target(model)[0], self._open.get(request_id)
        if attempt is not None:
            attempt.withdraw()
        self._requests.cancel(device, request_id if attempt is None else attempt.request_id)

    async def order(
        self, name: str, *, device: str | None = None, deadline_s: float = ORDER_S, **fields: Any
    ) -> Mapping[str, Any]:
        """Give an order (`load`, `unload`, `attach`, `detach`, `install`, `remove`, `rollback`, `diag`: docs/mqtt.md);
        the result of its answer.

        Sent once: where no answer comes (DeadlineMissed), it may have been carried out.
        """
        body = await self._requests.command(self._one_device(device), name, fields, self._deadline(deadline_s))
        try:
            reply = msgspec.convert(body, type=CommandReply)
        except msgspec.ValidationError as error:
            reason = f"an answer came that this version of edge-agent cannot read: {error}"
            raise DeviceUnavailable(503, Cause.MALFORMED, reason) from error
        if reply.status != 200:
            raise refusal_of(reply)
        result: Mapping[str, Any] = reply.result or {}
        return result

    async def status(self, device: str | None = None) -> Status:
        """What the device last said of its state. Raises DeviceUnavailable where it has never said anything."""
        name = self._one_device(device)
        return await self._stated(lambda: self._requests.status.get(name), f"{name} has published no status")

    async def models(self, device: str | None = None) -> Models:
        """What can be asked on the device. Raises DeviceUnavailable where it has never said it."""
        name = self._one_device(device)
        return await self._stated(lambda: self._requests.models.get(name), f"{name} has published no list of models")

    def every_model(self) -> Mapping[str, Models]:
        """By device, what can be asked on those devices that are watched and have said so."""
        return dict(self._requests.models)

    def every_status(self) -> Mapping[str, Status]:
        """By device, the state of those that are watched and have said so."""
        return dict(self._requests.status)

    def _generates(self, model: str) -> bool:
        """Whether the device says that it is a generator; False where it has said nothing here (yet)."""
        device, name = self._target(model)
        said = self._requests.models.get(device)
        return said is not None and any(one.name == name and one.task == "generate" for one in said.models)

    async def _stated(self, found: Callable[[], T | None], otherwise: str) -> T:
        until_s = _now_s() + STATE_S
        while (value := found()) is None:
            if _now_s() > until_s:
                raise DeviceUnavailable(503, Cause.UNAVAILABLE, f"{otherwise}: is the name right, does it run?")
            await asyncio.sleep(0.01)
        return value

    async def _asked(self, model: str, body: Mapping[str, Any], deadline_s: float, request_id: str | None) -> Reply:
        device, name = self._target(model)
        with contextlib.closing(self._attempts(deadline_s, request_id)) as attempts:
            for attempt in attempts:
                try:
                    asked = {**body, "id": attempt.request_id}
                    return _served(await self._requests.infer(device, name, asked, attempt.left_s()))
                except RequestError as error:
                    await attempt.failed(error)
        raise AssertionError("the last attempt raises")

    async def _parts(
        self, device: str, model: str, body: Mapping[str, Any], deadline_s: float
    ) -> AsyncGenerator[StreamPart, None]:
        text, begun = "", False
        async with contextlib.aclosing(self._requests.stream(device, model, body, deadline_s)) as parts:
            async for part in parts:
                if isinstance(part, Reply):  # a refusal, or the whole answer of a stream that had ended unheard
                    answer = Answer(_served(part))
                    yield StreamPart(answer.text, begun, answer)
                    return
                restarted = begun and part.seq == 0
                text, begun = ("" if restarted else text) + part.text, True
                yield StreamPart(part.text, restarted, streamed_answer(part, text) if part.done else None)

    def _attempts(self, deadline_s: float, request_id: str | None) -> Generator[_Attempt, None, None]:
        """One attempt after another until one returns, or `failed` raises."""
        if request_id is not None and not (fit_id(request_id) and len(request_id.encode()) <= ID_BYTES):
            raise UsageError(f"{request_id!r} cannot be an id: up to {ID_BYTES} printable bytes are", "client")
        until_s = _now_s() + deadline_s
        first = request_id or secrets.token_hex(16)
        if first in self._open:
            reason = f"a request with the id {first!r} is open at this client; give each its own"
            raise InvalidRequest(422, Cause.INVALID, reason)
        try:
            for number in itertools.count():
                # A refusal concludes a request: what is asked again afterwards is another one.
                name = first if number == 0 else f"{first}.{number}"
                self._open[first] = attempt = _Attempt(name, until_s, self._retries - number)
                yield attempt
        finally:
            del self._open[first]

    def _target(self, model: str) -> tuple[str, str]:
        device, slash, name = model.rpartition("/")
        return self._one_device(device if slash else None), _name("model", name)

    def _one_device(self, device: str | None) -> str:
        found = device if device is not None else self._device
        if found is None:
            remedy = "name it in the client, or ask DEVICE/MODEL"
            raise UsageError("no device is named", "client", remedy)
        return _name("device", found)

    def _deadline(self, deadline_s: float | None) -> float:
        found = self._deadline_s if deadline_s is None else deadline_s
        if not 0 < found <= DEADLINE_MAX_S:
            raise UsageError(f"deadline_s is {found:g}; seconds from 0 to {DEADLINE_MAX_S:g} are possible", "client")
        return found


class _Attempt:
    """One try of a request: its id, the time that is left, and how many more may follow."""

    def __init__(self, request_id: str, until_s: float, repeats: int) -> None:
        self.request_id = request_id
        self._until_s = until_s
        self._repeats = repeats
        self._withdrawn = asyncio.Event()

    def withdraw(self) -> None:
        """There is to be no other attempt."""
        self._withdrawn.set()

    def left_s(self) -> float:
        """Seconds to the deadline."""
        return max(0.001, self._until_s - _now_s())

    async def failed(self, error: RequestError) -> None:
        """Return when it is time for another attempt; raise the error where there is to be none."""
        pause_s = _pause_s(error)
        if self._repeats <= 0 or pause_s is None or pause_s >= self._until_s - _now_s():
            raise error
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._withdrawn.wait(), pause_s)
            raise RequestCancelled(499, Cause.CANCELLED, "withdrawn while it waited to be asked again") from error


def _pause_s(error: RequestError) -> float | None:
    """How long to wait before asking again; None where that is of no use."""
    if isinstance(error, DeviceBusy | DeviceUnavailable) and error.retry_after_s is not None:
        return error.retry_after_s * random.uniform(1.0, 1.0 + JITTER)
    return None


def broker_options(broker: str) -> MqttOptions:
    """A host, `host:port`, or a URL `mqtt://` or `mqtts://` with user and password. Raises UsageError."""
    address = broker if "://" in broker else f"mqtt://{broker}"
    parts = urlsplit(address)
    remedy = "such as localhost, broker.lan:1883 or mqtts://me:secret@broker.lan"
    shown = address.rpartition("@")[2]  # without the password
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{shown!r} names no broker: {error}", "client", remedy) from error
    if parts.scheme not in ("mqtt", "mqtts") or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"{shown!r} names no broker", "client", remedy)
    if port == 0:
        raise UsageError(f"{shown!r} names no broker: port 0 is no port", "client", remedy)
    tls = TlsOptions() if parts.scheme == "mqtts" else None
    return MqttOptions(
        host=host,
        port=port or (8883 if tls else 1883),
        client_id="",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        tls=tls,
    )


def _body(question: Question, adapter: str | None, priority: int | None, params: Mapping[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = _form(question)
    if adapter is not None:
        body["adapter"] = adapter
    if priority is not None:
        body["priority"] = priority
    if params:
        body["params"] = dict(params)
    return body


def _form(question: Question) -> dict[str, Any]:
    if isinstance(question, RawPrompt):
        return {"prompt": str(question)}
    if isinstance(question, str):
        return {"text": question}
    if isinstance(question, Pair):
        return {"text": question[0], "text_pair": question[1]}
    listed = list(question)
    if not listed:
        raise UsageError("nothing is asked: the list is empty", "client")
    if all(isinstance(one, str) for one in listed):
        return {"texts": listed}
    if all(isinstance(one, Pair) for one in listed):
        pairs = [one for one in listed if isinstance(one, Pair)]
        return {"texts": [one[0] for one in pairs], "text_pairs": [one[1] for one in pairs]}
    if all(isinstance(one, Mapping) for one in listed):
        return {"messages": [dict(one) for one in listed if isinstance(one, Mapping)]}
    raise UsageError(
        "a question is a text, a TextPair, a ContextQuestion, a list of those, or a list of messages with role and "
        "content",
        "client",
    )


def _served(reply: Reply) -> Reply:
    if reply.status != 200:
        raise refusal_of(reply)
    return reply


def _name(what: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{brief(name)} cannot be a {what}'s name: letters, digits and . _ : @ - are taken, at most 64"
        )
    return name


def _now_s() -> float:
    return asyncio.get_running_loop().time()
