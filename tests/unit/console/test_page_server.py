"""The console's page as shipped, and the web server that hands it out."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.app.console import address
from edge_agent.base.errors import UsageError
from edge_agent.cli import main
from edge_agent.console.page_server import PageServer, page, policy

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "tools" / "console"
LARGEST_COMPRESSED = 250 * 1024


@contextlib.contextmanager
def serving(server: PageServer) -> Iterator[PageServer]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[PageServer]:
    with serving(PageServer(("127.0.0.1", 0), page())) as found:
        yield found


def ask(server: PageServer, method: str, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_the_page_is_built_from_the_sources_beside_it() -> None:
    """As tools/console/build.mjs computes it. Where this fails: `make console`, and commit the page."""
    files = [SOURCES / name for name in ("build.mjs", "package.json", "package-lock.json")]
    files += [path for path in (SOURCES / "src").iterdir() if path.is_file()]
    names = sorted(str(path.relative_to(SOURCES)) for path in files)
    lines = "".join(f"{hashlib.sha256((SOURCES / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    told = re.search(rb'<meta name="sources" content="([0-9a-f]{64})">', page())
    assert told is not None
    assert told[1].decode() == hashlib.sha256(lines.encode()).hexdigest()


def test_the_page_is_small_and_asks_no_other_place_for_anything() -> None:
    html = page()
    assert len(gzip.compress(html)) <= LARGEST_COMPRESSED
    assert re.findall(rb'<(?:script|link|img|iframe)[^>]*\s(?:src|href)="(?!data:)', html) == []


def test_the_policy_names_the_one_script_and_the_one_style_by_what_they_hold() -> None:
    html, said = page(), policy(page())
    for element, directive in ((b"script", "script-src"), (b"style", "style-src")):
        (text,) = re.findall(rb"<%b>(.*?)</%b>" % (element, element), html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in said
    parts = dict(part.split(" ", 1) for part in said.split("; "))
    assert parts["default-src"] == parts["base-uri"] == parts["form-action"] == parts["frame-ancestors"] == "'none'"
    assert parts["connect-src"] == "ws: wss:"
    assert parts["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in said


def test_the_licences_of_what_is_in_the_page_are_in_it() -> None:
    notice = page().rpartition(b"<!--")[2].decode()
    for name in ("preact", "mqtt", "uplot"):
        assert re.search(rf"^{name} \d+\.\d+\.\d+ \(MIT\)$", notice, re.MULTILINE)
    assert notice.count("Permission is hereby granted") >= 3


def test_the_page_is_served_with_its_policy_as_a_header(server: PageServer) -> None:
    response, body = ask(server, "GET", "/?x=1")
    assert (response.status, body) == (200, page())
    assert response.getheader("Content-Security-Policy") == policy(page())
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert ask(server, "HEAD", "/")[1] == b""


@pytest.mark.parametrize("path", ["/../../etc/passwd", "//etc/passwd", "/page_server.py", "/%2e%2e/", "/favicon.ico"])
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    response, body = ask(server, "GET", path)
    assert (response.status, body) == (404, b"the console is at /\n")


def test_connections_are_bounded_and_their_room_comes_back() -> None:
    with serving(PageServer(("127.0.0.1", 0), page(), connections=1)) as server:
        held = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        held.request("GET", "/")
        assert held.getresponse().read() == page()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            ask(server, "GET", "/")
        held.close()
        for _ in range(1000):  # the thread of the closed connection ends by itself
            try:
                assert ask(server, "GET", "/")[0].status == 200
            except (http.client.RemoteDisconnected, ConnectionError):
                continue
            return
    pytest.fail("the room of a closed connection did not come back")


def test_the_address_names_the_settings_broker_and_prefix(tmp_path: Path) -> None:
    config = tmp_path / "edge-agent.toml"
    config.write_text('[device]\nid = "d"\n[mqtt]\nhost = "broker.lan"\nprefix = "home/edge"\n')
    assert address(config, None) == "broker=ws://broker.lan:9001&prefix=home/edge"
    assert address(config, "wss://b/mqtt?a=1&b=2") == "broker=wss://b/mqtt%3Fa%3D1%26b%3D2&prefix=home/edge"


@pytest.mark.parametrize("url", ["http://b", "ws://", "b:9001", "ws://b:99999", "ws://[x", "ws://u:p@b", "ws://u@b"])
def test_what_is_no_address_of_a_broker_is_refused(tmp_path: Path, url: str) -> None:
    config = tmp_path / "edge-agent.toml"
    config.write_text("")
    with pytest.raises(UsageError, match="--broker"):
        address(config, url)


def test_the_page_is_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "console.html"
    place.write_bytes(b"x" * 2_000_000)
    assert main(["console", "--write", str(place)]) == 0
    assert place.read_bytes() == page()
    assert main(["console", "--write", str(tmp_path)]) == 2
    assert main(["console", "--write", "/dev/zero"]) == 2
    assert capsys.readouterr().err.count("cannot be written") == 2
