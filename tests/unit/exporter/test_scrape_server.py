"""The server for scrapes on a real socket: what slow and many connections can do."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge_agent.exporter import scrape_server
from edge_agent.exporter.scrape_server import serving


def application(_environ: Any, start: Callable[..., Any]) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"up 1\n"]


@pytest.fixture
def port() -> Iterator[int]:
    with serving("127.0.0.1", 0, application) as found:
        yield found


def scraped(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        found: bytes = answer.read()
        return found


def test_a_scrape_is_answered(port: int) -> None:
    assert scraped(port) == b"up 1\n"


def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(scrape_server, "SCRAPE_S", 0.1)
    with socket.create_connection(("127.0.0.1", port), 20) as silent:
        silent.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert silent.recv(1) == b""
    assert scraped(port) == b"up 1\n"


def test_more_connections_than_there_are_places_get_no_thread(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scrape_server, "CONNECTIONS", 2)
    with serving("127.0.0.1", 0, application) as port:
        held = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(2)]
        with socket.create_connection(("127.0.0.1", port), 20) as third:
            assert third.recv(1) == b""
        for one in held:
            one.close()
    assert capfd.readouterr().err == ""
