"""The gateway on a real socket, between clients that send slowly and those that keep their connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent.client import Answer
from edge_agent.protocol.messages import Reply
from tests.support.needs import need

need("starlette", "uvicorn")

from edge_agent.gateway import http_service  # noqa: E402 - after `need`
from edge_agent.gateway.http_service import GatewayOptions  # noqa: E402

USAGE = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 2}
WHOLE = Reply(
    id="7", status=200, result={"text": "a", "finish_reason": "stop", "usage": USAGE, "seed": 1}, variant="q4"
)


async def _ask(*_: Any, **__: Any) -> Answer:
    return Answer(WHOLE)


DEVICE: Any = SimpleNamespace(connected=True, ask=_ask)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /v1/chat", b""),
        (HEAD + b"Content-Length: 1000000\r\n\r\n{", b"HTTP/1.1 400"),
        (HEAD.replace(b"localhost", b"evil.lan") + b"Content-Length: 1000000\r\n\r\n{", b"HTTP/1.1 421"),
    ],
    ids=["nothing", "half a head", "half a body", "half a body that nobody reads"],
)
def test_who_sends_slowly_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, sent: bytes, status: bytes) -> None:
    """One byte after another, so that no keep-alive ends the connection."""
    monkeypatch.setattr(http_service, "HEAD_S", 0.3)
    monkeypatch.setattr(http_service, "BODY_S", 0.3)

    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(0.05)
            writer.write(b"x" if sent else b"")

    async def run() -> bytes:
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        options = GatewayOptions(device="pi", port=0)
        server = asyncio.create_task(http_service.serve(DEVICE, options, listening.set_result))
        reader, writer = await asyncio.open_connection("127.0.0.1", await listening)
        writer.write(sent)
        dripping = asyncio.create_task(drip(writer))
        try:
            return await asyncio.wait_for(_all_of(reader), 20)
        finally:
            dripping.cancel()
            writer.close()
            server.cancel()
            await asyncio.gather(dripping, server, return_exceptions=True)

    found = asyncio.run(run())
    assert found[: len(status)] == status
    assert bool(found) == bool(status)


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while part := await reader.read(4096):
            found += part
    except ConnectionError:  # it hung up while a byte was on its way
        pass
    return found


def test_a_connection_that_asks_again_and_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "HEAD_S", 0.5)

    async def run() -> set[int]:
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        options = GatewayOptions(device="pi", port=0)
        server = asyncio.create_task(http_service.serve(DEVICE, options, listening.set_result))
        ports = set()
        data = b'{"model":"tiny","messages":[{"role":"user","content":"Hi"}]}'
        reader, writer = await asyncio.open_connection("127.0.0.1", await listening)
        for _ in range(8):
            await asyncio.sleep(0.1)
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            size = next(
                int(line.partition(b":")[2]) for line in head.split(b"\r\n") if b"content-length" in line.lower()
            )
            await reader.readexactly(size)
            ports.add(int(head.split()[1]))
        writer.close()
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
        return ports

    assert asyncio.run(run()) == {200}
