"""The gateway's HTTP side, asked by the `openai` package in this process; the device is a script."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import UsageError
from edge_agent.client import Answer, DeviceBusy, DeviceUnavailable, StreamPart
from edge_agent.client.traced import trace_properties
from edge_agent.protocol.messages import Reply
from tests.support.needs import need
from tests.support.virtual_time import settle

need("starlette", "uvicorn", "openai", "httpx")

import httpx  # noqa: E402 - after `need`
import openai  # noqa: E402

from edge_agent.app.gateway import read_tokens  # noqa: E402
from edge_agent.gateway import http_service  # noqa: E402
from edge_agent.gateway.http_service import Gateway, GatewayOptions, is_loopback, serve  # noqa: E402

USAGE = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 2}
WHOLE = Answer(
    Reply(id="7", status=200, result={"text": "a b", "finish_reason": "stop", "usage": USAGE, "seed": 1}, variant="q4")
)
TOKEN = "t" * 32


class Device:
    """Stands in for the client library: gives `parts`, raising those that are exceptions."""

    connected = True

    def __init__(self, *parts: Any) -> None:
        self._parts = parts
        self.asked: list[dict[str, Any]] = []
        self.traces: list[dict[str, str]] = []

    async def ask(self, model: str, question: Any, **options: Any) -> Answer:
        self.asked.append({"model": model, "question": question, **options})
        self.traces.append(dict(trace_properties()))
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
        return WHOLE

    async def stream(self, model: str, question: Any, **options: Any) -> AsyncIterator[StreamPart]:
        self.asked.append({"model": model, "question": question, **options})
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part


def asked(
    device: Device, body: Callable[[openai.AsyncOpenAI, httpx.AsyncClient], Awaitable[Any]], **options: Any
) -> Any:
    async def run() -> Any:
        app = Gateway(device, GatewayOptions(device="pi", **options)).app()  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8089") as http:
            client = openai.AsyncOpenAI(
                base_url="http://127.0.0.1:8089/v1", api_key=TOKEN, http_client=http, max_retries=0
            )
            return await body(client, http)

    return asyncio.run(run())


HI: Any = [{"role": "user", "content": "Hi"}]


def test_a_completion_is_asked_of_the_device() -> None:
    device = Device()

    async def body(client: openai.AsyncOpenAI, _http: httpx.AsyncClient) -> Any:
        return await client.chat.completions.create(model="tiny/one", messages=HI, max_tokens=3)

    found = asked(device, body)
    assert (found.choices[0].message.content, found.usage.total_tokens, found.system_fingerprint) == ("a b", 3, "q4")
    expected = {"adapter": "one", "deadline_s": 120.0, "priority": None, "max_tokens": 3}
    assert device.asked == [{"model": "pi/tiny", "question": HI, **expected}]


def test_the_callers_trace_goes_on_to_the_device_and_a_malformed_one_does_not() -> None:
    device, good = Device(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def body(client: openai.AsyncOpenAI, _http: httpx.AsyncClient) -> None:
        for headers in ({"traceparent": good, "tracestate": "a=1"}, {"traceparent": good + "x"}, {}):
            await client.chat.completions.create(model="tiny", messages=HI, extra_headers=headers)

    asked(device, body)
    assert device.traces == [{"traceparent": good, "tracestate": "a=1"}, {}, {}]


def test_a_full_queue_is_a_rate_limit_with_the_time_to_come_back() -> None:
    for stream in (False, True):

        async def body(client: openai.AsyncOpenAI, _http: httpx.AsyncClient, stream: bool = stream) -> Any:
            with pytest.raises(openai.RateLimitError, match="256 jobs wait") as caught:
                await client.chat.completions.create(model="tiny", messages=HI, stream=stream)
            return caught.value

        error = asked(Device(DeviceBusy(429, Cause.QUEUE_FULL, "256 jobs wait", 1.5)), body)
        assert error.response.headers["retry-after"] == "2"
        assert error.code == "queue-full"


def test_a_stream_that_breaks_ends_with_an_error() -> None:
    async def body(client: openai.AsyncOpenAI, _http: httpx.AsyncClient) -> Any:
        found = []
        with pytest.raises(openai.APIError, match="the worker died"):
            async for chunk in await client.chat.completions.create(model="tiny", messages=HI, stream=True):
                found.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before counts
        return found

    broken = DeviceUnavailable(503, Cause.WORKER_DIED, "the worker died")
    assert asked(Device(StreamPart("a"), broken), body) == ["", "a"]
    anew = (StreamPart("a"), StreamPart("x", restarted=True))

    async def restarted(client: openai.AsyncOpenAI, _http: httpx.AsyncClient) -> Any:
        with pytest.raises(openai.APIError, match="began its answer anew"):
            async for _chunk in await client.chat.completions.create(model="tiny", messages=HI, stream=True):
                pass

    asked(Device(*anew), restarted)


def test_a_stream_tells_what_it_took_where_that_is_asked_for() -> None:
    async def body(client: openai.AsyncOpenAI, _http: httpx.AsyncClient) -> Any:
        stream = await client.chat.completions.create(
            model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        return [chunk async for chunk in stream]

    chunks = asked(Device(StreamPart("a"), StreamPart(" b"), StreamPart("", answer=WHOLE)), body)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "a b"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 3)


def test_a_token_is_wanted_where_there_is_one() -> None:
    async def body(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> Any:
        await client.chat.completions.create(model="tiny", messages=HI)
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Authorization": f"Basic {TOKEN}"},
        ):
            found = await http.get("/v1/models", headers=header)
            assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
            assert TOKEN not in found.text

    asked(Device(), body, tokens=("another" * 4, TOKEN))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "gateway.lan"])
def test_without_a_token_it_does_not_listen_to_others(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UsageError, match="could ask without a token"):
        Gateway(Device(), GatewayOptions(host=host))  # type: ignore[arg-type]
    Gateway(Device(), GatewayOptions(host=host, tokens=(TOKEN,)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/v1/models", {"Host": "evil.example"}, b"", 421),
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, b"{}", 400),
        ("POST", "/v1/chat/completions", {}, b"{}", 400),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, b"{", 400),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, b"[" * 10_000, 400),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, b'{"model":"\xff"}', 400),
        ("POST", "/v1/embeddings", {"Content-Type": "application/json"}, b" " * (4 * 1024 * 1024 + 1), 413),
        ("GET", "/v1/chat/completions", {}, b"", 405),
        ("OPTIONS", "/v1/chat/completions", {}, b"", 405),
        ("GET", "/v1/nothing", {"Host": "evil.example"}, b"", 421),
        ("PUT", "/v1/models", {"Host": "evil.example"}, b"", 421),
        ("GET", "/v1/nothing", {"Host": "127.0.0.2:8089"}, b"", 404),
        ("POST", "/v1/completions", {"Content-Type": "application/json"}, b"{}", 404),
        ("GET", "/", {}, b"", 404),
    ],
)
def test_what_cannot_be_served_is_an_error_in_openais_form(
    method: str, path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    async def body(_client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> Any:
        return await http.request(method, path, headers=headers, content=content)

    found = asked(Device(), body)
    assert found.status_code == status
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_the_bodies_of_all_requests_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "BODIES_BYTES", 3000)
    asking = asyncio.Event()

    class Slow(Device):
        async def ask(self, model: str, question: Any, **options: Any) -> Answer:
            await asking.wait()
            return await super().ask(model, question, **options)

    async def body(_client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> list[httpx.Response]:
        long = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 2000}]}
        first = asyncio.create_task(http.post("/v1/chat/completions", json=long))
        await settle()
        second = await http.post("/v1/chat/completions", json=long)
        asking.set()
        return [await first, second, await http.post("/v1/chat/completions", json=long)]

    answered = asked(Slow(), body)
    assert [one.status_code for one in answered] == [200, 429, 200]
    assert answered[1].headers["Retry-After"] == "1"


def test_a_path_asked_in_another_way_says_how_it_is_asked() -> None:
    async def body(_client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> Any:
        return await http.get("/v1/chat/completions", headers={"Authorization": f"Bearer {TOKEN}"})

    found = asked(Device(), body, tokens=(TOKEN,))
    assert found.headers["Allow"] == "POST"
    assert found.json()["error"]["message"] == "/v1/chat/completions takes POST, not GET"


def test_a_path_that_is_not_served_wants_the_token_too() -> None:
    async def body(_client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> Any:
        return [(await http.request(way, path)).status_code for way in ("GET", "PATCH") for path in ("/", "/v1/models")]

    assert asked(Device(), body, tokens=(TOKEN,)) == [401, 401, 401, 401]


def test_the_model_list_needs_the_broker() -> None:
    async def body(client: openai.AsyncOpenAI, _http: httpx.AsyncClient) -> Any:
        with pytest.raises(openai.InternalServerError, match="the broker is not there"):
            await client.models.list()

    device = Device()
    device.connected = False
    asked(device, body)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no token"),
        (b"# none\n\n", "no token"),
        (b"short\n", "line 1"),
        (b"\xff", "ASCII"),
        (b"x" * 70_000, "larger"),
    ],
)
def test_a_token_file_that_holds_none_is_a_sentence(tmp_path: Any, data: bytes, said: str) -> None:
    path = tmp_path / "tokens"
    path.touch(mode=0o640)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=said):
        read_tokens(path)
    path.write_text(f"# for the kitchen\n{TOKEN}\n\n{'u' * 20}\n")
    assert read_tokens(path) == (TOKEN, "u" * 20)
    assert read_tokens(None) == ()
    with pytest.raises(UsageError, match="cannot be read"):
        read_tokens(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o641])
def test_tokens_that_every_user_can_read_or_change_are_refused(tmp_path: Any, mode: int) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    path.chmod(mode)
    with pytest.raises(UsageError, match=r"tokens: every user of this machine can read or change it \(chmod o= "):
        read_tokens(path)
    path.chmod(0o660)
    assert read_tokens(path) == (TOKEN,)


@pytest.mark.parametrize("filler", [b"[],", b"{},", b"1,", b'"",', b'"\\"",'])
def test_a_body_of_very_many_values_is_refused_before_it_is_decoded(filler: bytes) -> None:
    """4 MiB of empty lists took 96 MiB, and the time of everybody else."""

    async def body(_client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> Any:
        held = b'{"model":"tiny","messages":[' + filler * (3 * 2**20 // len(filler)) + b"1]}"
        tracemalloc.start()
        answer = await http.post("/v1/chat/completions", content=held, headers={"content-type": "application/json"})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return answer.status_code, answer.json()["error"]["message"], peak

    status, said, peak = asked(Device(), body)
    assert (status, said) == (413, "the body has more than 16,384 values or texts")
    assert peak < 64 * 2**20


def test_who_hangs_up_in_the_middle_of_a_body_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """Else a log of any length could be had by connections that end."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    async def run() -> None:
        port = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(Device(), GatewayOptions(device="pi", port=0), port.set_result))  # type: ignore[arg-type]
        for rest in (b'Content-Length: 99\r\n\r\n{"model"', b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
            _reader, writer = await asyncio.open_connection("127.0.0.1", await port)
            writer.write(head + rest)
            await writer.drain()
            writer.close()
        await asyncio.sleep(0.2)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(run())
    assert capfd.readouterr().err == ""


def test_the_processes_own_log_handlers_stay_open() -> None:
    """Other libraries' handlers close what they write to, which may be the terminal of the whole process."""
    closed: list[logging.Handler] = []

    class Others(logging.Handler):
        def close(self) -> None:
            closed.append(self)
            super().close()

    async def run() -> None:
        port = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(Device(), GatewayOptions(device="pi", port=0), port.set_result))  # type: ignore[arg-type]
        await port
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    handler = Others()
    asyncio.run(run())
    assert not closed
    handler.close()


def test_who_hangs_up_ends_the_work_on_the_device() -> None:
    """The request's next message after its body is the end of the connection."""
    ended: list[str] = []

    async def ask(*_: Any, **__: Any) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return WHOLE

    async def run() -> None:
        app = Gateway(SimpleNamespace(ask=ask, connected=True), GatewayOptions(device="pi")).app()  # type: ignore[arg-type]
        data = b'{"model":"tiny","messages":[{"role":"user","content":"Hi"}]}'
        coming = [{"type": "http.request", "body": data, "more_body": False}, {"type": "http.disconnect"}]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "http_version": "1.1",
            "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": "",
        }  # fmt: skip

        async def receive() -> Any:
            return coming.pop(0)

        async def send(_message: Any) -> None:
            pass

        await asyncio.wait_for(app(scope, receive, send), 10)

    asyncio.run(run())
    assert ended == ["cancelled"]
