"""The HTTP side of the gateway: Starlette on uvicorn, which alone know of sockets and of HTTP.

It is meant for programs on the same machine: it listens on the loopback address unless told otherwise. There it answers
only to requests that name a loopback host, and takes JSON that says it is JSON, so that a page in a browser can neither
reach it through a name of its own (DNS rebinding) nor post to it unasked. Elsewhere it wants a bearer token. Whoever
sends slowly, with a token or without, is hung up on: uvicorn itself waits for ever.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError, UsageError, brief
from edge_agent.base.limits import MIB
from edge_agent.client import (
    AsyncClient,
    DeviceBusy,
    DeviceUnavailable,
    InvalidRequest,
    RequestCancelled,
    StreamPart,
    UnknownName,
)
from edge_agent.client.traced import traced
from edge_agent.gateway import openai_form
from edge_agent.gateway.openai_form import ChatQuestion, ChunkWriter, HttpError, error_body, http_error
from edge_agent.protocol.json_guard import too_many_parts
from edge_agent.protocol.trace_context import TRACEPARENT, TRACESTATE

BODY_BYTES = 4 * MIB
"""Of a request: 2,048 texts of 2 KiB."""
BODY_PARTS = 16_384
"""Values and texts of a body: 4 MiB of empty lists would become 96 MiB, and hold up all others for half a second."""
BODIES_BYTES = 32 * MIB
"""Of all requests that are read or answered now: the board's memory is that of its models, too."""
FULL_S = 1.0
CONNECTIONS = 256
"""Open at once; more are answered with 503 by uvicorn."""
STOP_S = 5
HEAD_S = 20.0
"""For the head of a request, from the connection or the answer before."""
BODY_S = 60.0
"""For a body: 4 MiB at 560 kbit/s."""
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Where it listens, who may ask (`tokens`: none needed where empty), which device it speaks for (None: all that are
    watched), and how long an answer may take. Raises UsageError where others than this machine could ask without one.
    """

    host: str = "127.0.0.1"
    port: int = 8089
    tokens: Sequence[str] = ()
    device: str | None = None
    deadline_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.loopback and not self.tokens:
            remedy = "give --token-file, or listen on 127.0.0.1 behind a proxy that knows who asks"
            raise UsageError(f"whoever reaches {self.host} could ask without a token", "gateway", remedy)

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address, or a name that cannot be pointed elsewhere, is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gateway:
    """The routes. `client` is connected, with no retries of its own: who asks is told when to come back."""

    def __init__(self, client: AsyncClient, options: GatewayOptions) -> None:
        self._client = client
        self._options = options
        self._bodies_bytes: dict[Request, int] = {}

    def app(self) -> Starlette:
        """The application, for uvicorn."""
        routes = [
            Route("/v1/chat/completions", self._answered(self._chat), methods=["POST"]),
            Route("/v1/embeddings", self._answered(self._embeddings), methods=["POST"]),
            Route("/v1/models", self._answered(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._answered(self._model), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={404: self._not_served, 405: self._not_served})

    def _answered(self, handle: Handler) -> Handler:
        """A handler that wants the token first, and whose refusals are errors in OpenAI's form."""

        async def answer(request: Request) -> Response:
            denied = self._denied(request)
            if denied is not None:
                return denied
            try:
                given = (",".join(request.headers.getlist(name)) for name in (TRACEPARENT, TRACESTATE))
                with traced(*given):
                    return await handle(request)
            except RequestError as error:
                return _response(http_error(error))
            except UsageError as error:
                return _response(http_error(InvalidRequest(422, Cause.INVALID, str(error))))
            except ClientDisconnect:  # nobody hears the answer, and a log of it would be as long as anybody likes
                return Response(status_code=499)
            finally:
                self._bodies_bytes.pop(request, None)

        return answer

    def _denied(self, request: Request) -> Response | None:
        """Why this caller gets no answer; None where it may ask."""
        named = request.url.hostname or ""
        if self._options.loopback and not self._options.tokens and not is_loopback(named):
            said = "this gateway is asked as localhost or 127.0.0.1"
            return _response(HttpError(421, error_body(said, "invalid_request_error", "misdirected")))
        if not self._allowed(request):
            body = error_body("a bearer token of this gateway is needed", "authentication_error", "invalid_api_key")
            return _response(HttpError(401, body, {"WWW-Authenticate": "Bearer"}))
        return None

    def _allowed(self, request: Request) -> bool:
        if not self._options.tokens:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Each is compared to its end, so that the time tells nothing about how much of a token is right.
        matches = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in self._options.tokens]
        return kind.lower() == "bearer" and any(matches)

    async def _json(self, request: Request) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise InvalidRequest(415, Cause.MALFORMED, "the content type is not application/json")
        try:
            data = await asyncio.wait_for(self._body(request), BODY_S)
        except asyncio.TimeoutError:
            said = f"the body did not come within {BODY_S:g} s"
            raise InvalidRequest(400, Cause.MALFORMED, said) from None
        if too_many_parts(data, BODY_PARTS):
            raise InvalidRequest(413, Cause.TOO_LARGE, f"the body has more than {BODY_PARTS:,} values or texts")
        try:
            return msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(400, Cause.MALFORMED, f"the body is not JSON: {error}") from error

    async def _body(self, request: Request) -> bytes:
        data = bytearray()
        async for part in request.stream():
            data += part
            self._bodies_bytes[request] = len(data)
            if len(data) > BODY_BYTES:
                raise InvalidRequest(413, Cause.TOO_LARGE, f"the body is larger than {BODY_BYTES:,} bytes")
            if sum(self._bodies_bytes.values()) > BODIES_BYTES:
                raise DeviceBusy(429, Cause.QUEUE_FULL, "the gateway is full of other requests", FULL_S)
        return bytes(data)

    async def _chat(self, request: Request) -> Response:
        question = openai_form.chat_question(await self._json(request))
        if question.stream:
            return await self._stream(request, question)
        model, adapter = openai_form.split_model(question.model, self._options.device)
        asked = self._client.ask(
            model,
            question.messages,
            adapter=adapter,
            deadline_s=question.deadline_s or self._options.deadline_s,
            priority=question.priority,
            **question.params,
        )
        answer = await _while_connected(request, asked)
        return JSONResponse(openai_form.chat_completion(answer, question.model, _now_s()))

    async def _stream(self, request: Request, question: ChatQuestion) -> Response:
        """The answer in parts. What is refused before the first part has a status of its own; afterwards it is an event
        with an error, which ends the stream."""
        model, adapter = openai_form.split_model(question.model, self._options.device)
        parts = self._client.stream(
            model,
            question.messages,
            adapter=adapter,
            deadline_s=question.deadline_s or self._options.deadline_s,
            priority=question.priority,
            **question.params,
        )
        first = await _while_connected(request, _first(parts))
        writer = ChunkWriter(f"{time.time_ns():x}", question.model, _now_s(), question.include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(first, parts, writer), media_type="text/event-stream", headers=headers)

    async def _embeddings(self, request: Request) -> Response:
        question = openai_form.embed_question(await self._json(request))
        model, adapter = openai_form.split_model(question.model, self._options.device)
        asked = self._client.embed(
            model,
            question.texts,
            adapter=adapter,
            deadline_s=question.deadline_s or self._options.deadline_s,
            priority=question.priority,
        )
        found = await _while_connected(request, asked)
        return JSONResponse(openai_form.embeddings(found, question.model, question.base64))

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await self._listed()})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = next((one for one in await self._listed() if one["id"] == name), None)
        if found is None:
            raise UnknownName(404, Cause.UNKNOWN_MODEL, f"no model {name!r}; /v1/models lists what there is")
        return JSONResponse(found)

    async def _listed(self) -> list[dict[str, Any]]:
        device = self._options.device
        if not self._client.connected:
            raise DeviceUnavailable(503, Cause.UNAVAILABLE, "the broker is not there", 2.0)
        if device is not None:
            return openai_form.model_list({device: await self._client.models()}, device)
        return openai_form.model_list(self._client.every_model(), None)

    async def _not_served(self, request: Request, error: Exception) -> Response:
        """No such path, or a path that is asked in another way."""
        denied = self._denied(request)
        if denied is not None:
            return denied
        there = error.headers if isinstance(error, HTTPException) else None
        path = request.scope["path"]
        if there is None or "Allow" not in there:
            known = "/v1/chat/completions, /v1/embeddings and /v1/models are"
            body = error_body(
                f"{brief(path)} is not served; {known}", "invalid_request_error", Cause.UNKNOWN_TOPIC.value
            )
            return _response(HttpError(404, body))
        said = f"{path} takes {there['Allow']}, not {request.method}"
        body = error_body(said, "invalid_request_error", "method-not-allowed")
        return _response(HttpError(405, body, {"Allow": there["Allow"]}))


async def serve(client: AsyncClient, options: GatewayOptions, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; open answers get `STOP_S` seconds. `ready` is called with the port."""
    config = uvicorn.Config(
        Gateway(client, options).app(),
        host=options.host,
        port=options.port,
        # h11 bounds the head of a request, which httptools does not.
        http=_TimedProtocol,
        ws="none",
        proxy_headers=False,
        # Its own configuration would close the handlers of the whole process, and what they write to.
        log_config=None,
        # Of warnings anybody could cause any number.
        log_level="error",
        access_log=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=STOP_S,
        server_header=False,
        lifespan="off",
    )
    server = _Announcing(config, ready)
    try:
        await server.serve()
    except SystemExit as error:  # uvicorn has logged why it cannot listen
        raise UsageError(f"cannot listen on {options.host}:{options.port}", "gateway") from error
    except asyncio.CancelledError:
        if server.started:
            await server.shutdown()
        raise


class _Announcing(uvicorn.Server):
    """Says when it listens, and on which port."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready(self.servers[0].sockets[0].getsockname()[1])


class _TimedProtocol(H11Protocol):
    """HTTP/1.1 whose connections end after `HEAD_S` without a request that is being answered."""

    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._silence = self.loop.call_later(HEAD_S, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_silence()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._at_work():
            self._end_silence()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Also where the answer came before the end of a body, which may drip on.
        if not self._at_work() and self._silence is None:
            self._silence = self.loop.call_later(HEAD_S, self._hang_up)

    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _end_silence(self) -> None:
        silence, self._silence = self._silence, None
        if silence is not None:
            silence.cancel()

    def _hang_up(self) -> None:
        self.transport.close()


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; when the caller hangs up, the work is cancelled, and with it the request on the device."""
    running = asyncio.ensure_future(work)
    # After the body nothing comes but the end of the connection.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise RequestCancelled(499, Cause.CANCELLED, "the caller hung up")
    finally:
        for task in (running, gone):
            task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _events(
    first: StreamPart, parts: AsyncGenerator[StreamPart, None], writer: ChunkWriter
) -> AsyncIterator[bytes]:
    """Server-sent events. When the caller hangs up, this is cancelled, and the request on the device withdrawn."""
    async with aclosing(parts):
        yield _event(writer.begin())
        try:
            async for part in _all(first, parts):
                if part.restarted:
                    reason = "the device began its answer anew; ask again"
                    raise DeviceUnavailable(503, Cause.WORKER_DIED, reason)
                if part.text:
                    yield _event(writer.text(part.text))
                if part.answer is not None:
                    for chunk in writer.end(part.answer):
                        yield _event(chunk)
        except RequestError as error:
            yield _event(http_error(error).body)
            return
        yield b"data: [DONE]\n\n"


async def _first(parts: AsyncGenerator[StreamPart, None]) -> StreamPart:
    """The first part. Whoever does not come so far has ended the stream."""
    found: StreamPart | None = None
    try:
        found = await anext(parts)
        return found
    finally:
        if found is None:
            await parts.aclose()


async def _all(first: StreamPart, rest: AsyncIterator[StreamPart]) -> AsyncIterator[StreamPart]:
    yield first
    async for part in rest:
        yield part


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _response(error: HttpError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _now_s() -> int:
    return int(time.time())
