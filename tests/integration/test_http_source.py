"""Packages from a real HTTP server: resumed, only what is missing; servers that lie, break off or know no ranges."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, SignatureError, StoreError, UsageError
from edge_agent.bundle import tarform
from edge_agent.bundle.layout import Package
from edge_agent.bundle.verify import read_release
from edge_agent.store import old_downloads, package_download, remote_file
from edge_agent.store.download_folder import RoomOptions, Wishes
from edge_agent.store.inbox_packages import package_digest
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.package_download import PackageDownload
from edge_agent.store.remote_file import TransferOptions, check_url
from tests.support import packages as tiny
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package
from tests.support.desk import cli, said


@dataclass
class Manners:
    """How the server behaves; a test edits it."""

    ranges: bool = True
    etag: bool = True
    breaks_after: int | None = None
    breaks: int = 1 << 30
    states_more: int = 0
    no_length: bool = False
    length: str | None = None
    status: int | None = None
    redirect: str | None = None
    wrong_place: bool = False
    drip: bytes | None = None
    short: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `Manners.files`."""

    manners: Manners

    def do_GET(self) -> None:
        """See `BaseHTTPRequestHandler`."""
        manners = self.manners
        manners.asked.append(self.headers.get("Range", ""))
        if len(manners.asked) > 500:  # a client that asks for ever fails the test and does not hold it
            self.send_error(404)
            return
        data = manners.files.get(self.path)
        if manners.drip is not None:
            self._drip(manners.drip)
            return
        if manners.redirect is not None and self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", manners.redirect)
            self.end_headers()
            return
        if manners.status is not None or data is None:
            self.send_error(manners.status or 404)
            return
        mark = f'"{hashlib.sha256(data).hexdigest()}"'
        total = len(data) + manners.states_more
        span = self._span(mark, total)
        self.send_response(200 if span is None else 206)
        start, end = span or (0, total)
        end = end if manners.short is None else min(end, start + manners.short)
        if span is not None:
            shown = start + (1 if manners.wrong_place else 0)
            self.send_header("Content-Range", f"bytes {shown}-{end - 1}/{total}")
        if manners.etag:
            self.send_header("ETag", mark)
        if not manners.no_length:
            self.send_header("Content-Length", manners.length or str(end - start))
        self.end_headers()
        self._send(data[start:end])

    def _drip(self, piece: bytes) -> None:
        """A piece of a head every few milliseconds, until the client is gone."""
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(piece)
                time.sleep(0.005)

    def _span(self, mark: str, total: int) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None or self.headers.get("If-Range") not in (None, mark) or not self.manners.ranges:
            return None
        return int(found[1]), min(total, int(found[2]) + 1)

    def _send(self, data: bytes) -> None:
        manners = self.manners
        if manners.breaks_after is not None and manners.breaks > 0 and len(data) > manners.breaks_after:
            manners.breaks -= 1
            data = data[: manners.breaks_after]
        for place in range(0, len(data), 1024):
            try:
                self.wfile.write(data[place : place + 1024])
            except OSError:
                return
            manners.sent += len(data[place : place + 1024])

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Told(list[tuple[int, int]]):
    """The steps of a download: bytes that are there, and of how many."""

    def append_step(self, _what: str, done: int, total: int) -> None:
        """See `Progress`."""
        self.append((done, total))


@dataclass
class Server:
    """A server on this machine, and a store to install into."""

    manners: Manners
    url: str
    folder: Path
    check: Callable[[Package], None] = lambda package: _trusted(package)  # noqa: PLW0108 - defined below
    free: int = 1 << 40
    digest: str | None = None
    told: Told = field(default_factory=Told)

    def download(self, name: str = "p.tar", **transfer: Any) -> PackageDownload:
        """A download of that file, which sleeps nowhere."""
        options = TransferOptions(sleep=lambda _s: None, timeout_s=5.0, **transfer)
        wishes = Wishes(self.check, RoomOptions(0, lambda _folder: self.free), self.digest, self.told.append_step)
        downloads, store = self.folder / "downloads", self.folder / "store"
        return PackageDownload(f"{self.url}/{name}", downloads, store, options, wishes)

    def install(self, name: str = "p.tar") -> int:
        """Fetch and install; how many bytes were moved."""
        download = self.download(name)
        self.store.install(download.fetch())
        download.done()
        assert not list((self.folder / "downloads").iterdir())
        return download.moved_bytes

    @property
    def store(self) -> ModelStore:
        """The store that is installed into."""
        context = InstallContext(prober=tiny.TinyProber(), hardware=tiny.HARDWARE, trust=tiny.trust(), reserve_bytes=0)
        return ModelStore(self.folder / "store", context)

    def serve(self, path: Path, name: str = "p.tar") -> bytes:
        """Put a file there."""
        self.manners.files[f"/{name}"] = data = path.read_bytes()
        return data


def _trusted(package: Package) -> None:
    read_release(package, tiny.trust())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    manners = Manners()
    handler = type("Bound", (Handler,), {"manners": manners})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Server(manners, f"http://127.0.0.1:{found.server_port}", tmp_path)
        finally:
            found.shutdown()
            thread.join()


def big_package(folder: Path, counter: int = 1, seed: int = 1) -> Path:
    """A model whose weights are larger than what is skipped by reading: 400 and 200 KB."""
    source = tiny.model_source(folder / f"src-{seed}", "tiny", 1)
    for variant, size in zip(source.variants, (400_000, 200_000), strict=True):
        variant.weights.write_bytes(tiny.onnx_bytes(bytes([seed]) * size))
    return tiny._built(folder / f"big-{counter}.tar", tiny.release("tiny", counter), source).path


@pytest.mark.parametrize("ranges", [True, False])
def test_a_package_is_fetched_and_installed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.manners.ranges = ranges
    size = len(server.serve(big_package(tmp_path)))
    moved = server.install()
    assert [model.name for model in server.store.active()] == ["tiny"]
    assert size * 0.9 < moved <= size


def test_an_adapter_moves_alone_and_a_new_release_moves_what_is_new(server: Server, tmp_path: Path) -> None:
    base = big_package(tmp_path)
    whole = len(server.serve(base))
    server.install()
    adapter = tiny.adapter_package(tmp_path, base)
    size = len(server.serve(adapter, "adapter.tar"))
    assert server.install("adapter.tar") <= size < whole / 20
    server.serve(big_package(tmp_path, counter=2), "again.tar")
    assert server.install("again.tar") < whole * 0.7, "the weights that are kept did not move again"
    (model,) = server.store.active()
    assert [one.name for one in model.adapters] == ["intents"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_where_it_was(server: Server, tmp_path: Path, ranges: bool) -> None:
    size = len(server.serve(big_package(tmp_path)))
    server.manners.ranges, server.manners.breaks_after, server.manners.breaks = ranges, 150_000, 3
    moved = server.install()
    assert server.manners.breaks == 0 and [model.name for model in server.store.active()] == ["tiny"]
    assert moved <= size + 200_000 if ranges else moved > size, "without ranges it is read again from the start"


def test_a_source_that_gives_up_is_taken_up_by_the_next_try(server: Server, tmp_path: Path) -> None:
    size = len(server.serve(big_package(tmp_path)))
    server.manners.breaks_after = 30_000
    with pytest.raises(StoreError, match="5 connections in a row brought next to nothing") as caught:
        server.install()
    assert caught.value.cause is Cause.SOURCE and server.store.active() == ()
    server.manners.breaks_after = None
    assert server.install() < size - 30_000, "what was fetched is not fetched again"


def test_a_server_without_ranges_that_breaks_at_one_place_is_given_up(server: Server, tmp_path: Path) -> None:
    server.serve(big_package(tmp_path))
    server.manners.ranges, server.manners.breaks_after = False, 150_000
    with pytest.raises(StoreError, match="5 connections in a row brought next to nothing"):
        server.install()
    assert server.manners.sent <= 7 * 150_000, "the same bytes again are no progress"


@pytest.mark.parametrize("ranges", [True, False])
def test_what_a_power_cut_left_damaged_is_fetched_again(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.serve(big_package(tmp_path))
    server.manners.breaks_after, server.manners.ranges = 30_000 if ranges else 150_000, ranges
    with pytest.raises(StoreError):
        server.install()
    (partial,) = (tmp_path / "downloads").glob("*/partial/*")
    partial.write_bytes(bytes(partial.stat().st_size))
    server.manners.breaks_after = None
    server.install()
    assert [model.name for model in server.store.active()] == ["tiny"]


def test_a_manifest_that_is_too_large_is_not_fetched(server: Server, tmp_path: Path) -> None:
    """Manifests are fetched before room is looked for: a server could fill the disk with one."""
    data = server.serve(big_package(tmp_path))
    place, claimed = data.index(b"index.json\0"), 40 * 1024 * 1024
    size = int(data[place + 124 : place + 135], 8)
    digest = json.loads(data[place + 512 : place + 512 + size])["manifests"][0]["digest"].removeprefix("sha256:")
    name = f"blobs/sha256/{digest}"
    at = data.index(f"{name}\0".encode())
    body = -(-int(data[at + 124 : at + 135], 8) // 512) * 512
    server.manners.files["/p.tar"] = (
        data[:at] + tarform.header(name, claimed) + bytes(claimed) + data[at + 512 + body :]
    )
    with pytest.raises(PackageError, match=f"{name} has 4"):
        server.install()
    assert server.manners.sent < claimed / 10


def test_root_files_without_end_are_not_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come before a signature is checked: a server could fill the disk with them."""
    monkeypatch.setattr(package_download, "HEAD_BYTES", 64 * 1024)
    data, size = server.serve(big_package(tmp_path)), 16 * 1024
    end = data.index(b"oci-layout\0")
    start = data.index(b"root/") if b"root/" in data[:end] else end
    roots = b"".join(tarform.header(f"root/{one}.json", size) + bytes(size) for one in range(1, 10))
    server.manners.files["/p.tar"] = data[:start] + roots + data[end:]
    with pytest.raises(PackageError, match="before its blobs"):
        server.install()
    assert server.manners.sent < 8 * size


def test_two_downloads_from_one_url_are_not_mixed(server: Server, tmp_path: Path) -> None:
    server.serve(big_package(tmp_path))
    second = server.download()

    def check(_package: Package) -> None:
        with pytest.raises(StoreError, match="another process fetches from this URL") as caught:
            second.fetch()
        assert caught.value.cause is Cause.BUSY

    server.check = check
    first = server.download()
    server.store.install(first.fetch())
    assert [model.name for model in server.store.active()] == ["tiny"]
    second.fetch()


@pytest.mark.parametrize(
    ("manners", "error", "said"),
    [
        ({"status": 404}, StoreError, "the server answers 404"),
        ({"status": 503}, StoreError, "the server answers 503 .*5 connections in a row"),
        ({"no_length": True, "ranges": False}, StoreError, "does not state how large the file is"),
        ({"length": "9" * 5000, "ranges": False}, StoreError, "does not state how large the file is"),
        ({"states_more": 512, "ranges": False}, PackageError, "bytes, the package ends after"),
        ({"states_more": 512}, PackageError, "bytes, the package ends after"),
        ({"states_more": -2000, "ranges": False}, PackageError, "the package goes on behind them"),
        ({"states_more": -2000}, PackageError, "the package goes on behind them"),
        ({"wrong_place": True}, StoreError, "bytes from 0 on were asked for"),
    ],
)
def test_a_server_that_lies_or_refuses_is_told(
    server: Server, tmp_path: Path, manners: dict[str, Any], error: type[Exception], said: str
) -> None:
    server.serve(big_package(tmp_path))
    for name, value in manners.items():
        setattr(server.manners, name, value)
    with pytest.raises(error, match=said):
        server.install()
    assert server.store.active() == ()
    for name in manners:
        setattr(server.manners, name, getattr(Manners(), name))
    server.install()
    assert [model.name for model in server.store.active()] == ["tiny"], "what was kept of the lie does no harm"


def test_a_file_that_changes_under_the_download_is_noticed(server: Server, tmp_path: Path) -> None:
    server.serve(big_package(tmp_path))
    other = big_package(tmp_path, counter=2, seed=2).read_bytes()
    trusted = server.check

    def check(_package: Package) -> None:
        server.manners.files["/p.tar"] = other

    server.check = check
    download = server.download()
    server.check = trusted
    with pytest.raises(StoreError, match="changed on the server while it was fetched"):
        download.fetch()
    server.install()
    assert server.store.models()[0].current.counter == 2


def test_a_package_that_nobody_trusts_or_asked_for_moves_no_weights(server: Server, tmp_path: Path) -> None:
    size = len(server.serve(big_package(tmp_path)))

    def check(_package: Package) -> None:
        raise SignatureError("signed by nobody", "release.dsse.json")

    server.check = check
    with pytest.raises(SignatureError, match="signed by nobody"):
        server.install()
    assert server.manners.sent < size / 3


def test_a_damaged_blob_is_refused_and_fetched_anew(server: Server, tmp_path: Path) -> None:
    data = server.serve(big_package(tmp_path))
    place = data.index(b"\x01" * 1000)
    server.manners.files["/p.tar"] = data[: place + 7] + b"\x02" + data[place + 8 :]
    with pytest.raises(PackageError, match="damaged or exchanged"):
        server.install()
    server.manners.files["/p.tar"] = data
    server.install()
    assert server.store.scrub() == () and [model.name for model in server.store.active()] == ["tiny"]


@pytest.mark.parametrize("ranges", [True, False])
def test_room_is_looked_for_before_weights_move(server: Server, tmp_path: Path, ranges: bool) -> None:
    size = len(server.serve(big_package(tmp_path)))
    server.manners.ranges, server.free = ranges, size
    with pytest.raises(StoreError, match="are needed for the download and its install") as caught:
        server.install()
    assert caught.value.cause is Cause.DISK_FULL and server.download().moved_bytes == 0
    assert server.manners.sent < size / 3 or not ranges


@pytest.mark.parametrize("piece", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
def test_an_answer_that_never_begins_is_given_up(server: Server, piece: bytes) -> None:
    server.manners.drip = piece
    with pytest.raises(StoreError, match="5 connections in a row brought next to nothing") as caught:
        server.download(head_s=0.1).fetch()
    assert caught.value.cause is Cause.SOURCE


def test_ranges_of_a_byte_are_no_progress(server: Server, tmp_path: Path) -> None:
    server.serve(big_package(tmp_path))
    server.manners.short = 1
    with pytest.raises(StoreError, match="of 32768 bytes that were asked for it sends 1; 5 connections"):
        server.install()
    assert len(server.manners.asked) == 5
    server.manners.short = 10_000
    server.install()
    assert [model.name for model in server.store.active()] == ["tiny"], "a server may send less than was asked for"


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_left_of_another_package_is_not_counted_as_room(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.serve(big_package(tmp_path))
    server.manners.ranges, server.manners.breaks_after = ranges, 30_000 if ranges else 150_000
    with pytest.raises(StoreError, match="next to nothing"):
        server.install()
    (partial,) = (tmp_path / "downloads").glob("*/partial/*")
    partial.write_bytes(bytes(5_000_000))
    partial.rename(partial.with_name("0" * 64))
    server.manners.breaks_after, server.free = None, 200_000
    server.serve(big_package(tmp_path, counter=2, seed=2))
    with pytest.raises(StoreError, match="are needed for the download"):
        server.install()
    assert not list((tmp_path / "downloads").glob("*/partial/0000*"))


def test_old_downloads_go_unless_one_is_at_work(tmp_path: Path) -> None:
    old, busy, new = (tmp_path / name for name in ("old", "busy", "new"))
    for folder in (old, busy, new):
        folder.mkdir()
        (folder / "blob").write_bytes(b"x")
    for folder in (old, busy):
        os.utime(folder, (0.0, time.time() - old_downloads.KEPT_S - 60.0))
    with old_downloads.held(busy):
        old_downloads.remove_old(tmp_path)
    old_downloads.remove_old(tmp_path / "none")
    assert not old.exists() and busy.exists() and new.exists()


def test_the_limit_is_no_credit_for_a_source_that_stalled() -> None:
    slept, now = [], [0.0]
    pace = remote_file.TransferPace(TransferOptions(1000.0, sleep=slept.append, now_s=lambda: now[0]))
    now[0] = 600.0
    for _ in range(30):
        pace.took(100)
    assert sum(slept) > 0.0 and slept[-1] == pytest.approx(2.0), "3 s of data, 1 s of them free"


def test_what_another_file_or_page_at_the_url_is(server: Server, tmp_path: Path) -> None:
    """Of a package that is wanted by its digest, whatever else lies there is the fault of the source."""
    package = big_package(tmp_path)
    server.digest = package_digest(package)
    data = server.serve(package)
    place = data.index(b"\x01" * 1000)
    portal = b"<html>" + b"x" * 100_000
    for wrong in (portal, data[:-5000], data[: place + 7] + b"\x02" + data[place + 8 :]):
        server.manners.files["/p.tar"] = wrong
        with pytest.raises(PackageError) as caught:
            server.install()
        assert caught.value.cause is Cause.SOURCE, caught.value
    server.manners.files["/p.tar"] = data
    server.install()
    done, total = server.told[-1]
    assert done == total > 500_000, "progress was told"


def test_a_signature_is_no_fault_of_the_source(server: Server, tmp_path: Path) -> None:
    server.digest = package_digest(big_package(tmp_path))
    server.serve(big_package(tmp_path))

    def check(_package: Package) -> None:
        raise SignatureError("signed by nobody", "release.dsse.json")

    server.check = check
    with pytest.raises(SignatureError, match="signed by nobody"):
        server.install()


def test_what_is_no_package_is_refused_by_its_first_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>" + "x" * 100_000)
    server.serve(tmp_path / "page.html")
    with pytest.raises(PackageError, match="this is no package"):
        server.install()


def test_the_operators_limit_holds(server: Server, tmp_path: Path) -> None:
    """By the sleeps that are asked for, not by a clock."""
    size = len(server.serve(big_package(tmp_path)))
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    options = TransferOptions(100 * 1024, 5.0, sleep=sleep, now_s=lambda: now[0])
    downloads, store = tmp_path / "downloads", tmp_path / "store"
    download = PackageDownload(f"{server.url}/p.tar", downloads, store, options, Wishes(_trusted, RoomOptions(0)))
    download.fetch()
    assert (
        sum(slept) == pytest.approx(download.moved_bytes / (100 * 1024), rel=0.05) and download.moved_bytes > size / 2
    )


@pytest.mark.parametrize("place", ["http://[::1/p.tar", f"http://{'a' * 70}.invalid/p.tar", "http://host:port/p.tar"])
def test_a_redirection_to_what_is_no_url_is_told(server: Server, place: str) -> None:
    server.manners.redirect = place
    with pytest.raises(StoreError, match="5 connections in a row brought next to nothing") as caught:
        server.download("moved").fetch()
    assert caught.value.cause is Cause.SOURCE


def test_a_redirection_is_followed_to_http_alone(server: Server, tmp_path: Path) -> None:
    server.serve(big_package(tmp_path))
    server.manners.redirect = f"{server.url}/p.tar"
    server.install("moved")
    server.manners.redirect, asked = "file:///etc/passwd", len(server.manners.asked)
    with pytest.raises(StoreError, match=r"it sends on without an end, or nowhere.*file:///etc/passwd") as caught:
        server.install("moved")
    assert caught.value.cause is Cause.SOURCE
    assert len(server.manners.asked) == asked + 1, "and it is not asked again"


def test_a_redirection_from_https_to_http_names_its_host() -> None:
    request = urllib.request.Request("https://named.example/p.tar")
    with pytest.raises(remote_file.RedirectionRefused, match=r"it sends on to other\.example from https to http"):
        remote_file._Redirects().redirect_request(request, None, 302, "", {}, "http://other.example/p.tar")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_every_kind_of_redirection_is_followed_by_every_python(code: int) -> None:
    """`urllib` of Python 3.10 knows no 308."""
    request = urllib.request.Request("http://named.example/p.tar")
    found = remote_file._Redirects().redirect_request(request, None, code, "", {}, "https://other.example/p.tar")
    assert found.full_url == "https://other.example/p.tar" and found.unverifiable


def test_a_redirection_to_what_is_nearer_than_its_server_is_refused_unasked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for a server in the world: tests have no other addresses than the device's own."""
    server.serve(big_package(tmp_path))
    real = remote_file.distance
    world = {"127.0.0.2": remote_file.Distance.WORLD}
    monkeypatch.setattr(remote_file, "distance", lambda address: world.get(address) or real(address))
    port = server.url.rpartition(":")[2]
    handler = type("Other", (Handler,), {"manners": (other := Manners())})
    with http.server.ThreadingHTTPServer(("127.0.0.2", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            inside, server.url = server.url, f"http://127.0.0.2:{found.server_port}"
            for place, said_host in ((inside, "127.0.0.1"), (f"http://localhost:{port}", r"localhost \(")):
                other.redirect = f"{place}/p.tar"
                with pytest.raises(StoreError, match=f"sends on to {said_host}.*this device itself") as caught:
                    server.download("moved").fetch()
                assert caught.value.cause is Cause.SOURCE
            assert server.manners.asked == [], "not even asked"
            assert len(other.asked) == 2, "and nothing is tried again"
            # The other way round the operator has named what is near.
            other.files, server.url = server.manners.files, inside
            server.manners.redirect = f"http://127.0.0.2:{found.server_port}/p.tar"
            assert server.download("moved").fetch().is_dir()
        finally:
            found.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("address", "right"),
    [
        ("127.0.0.1", "DEVICE"), ("127.9.9.9", "DEVICE"), ("0.0.0.0", "DEVICE"), ("::1", "DEVICE"), ("::", "DEVICE"),
        ("::ffff:127.0.0.1", "DEVICE"), ("64:ff9b::7f00:1", "DEVICE"), ("2002:7f00:1::", "DEVICE"),
        ("169.254.169.254", "LINK"), ("fe80::1%eth0", "LINK"), ("::ffff:169.254.169.254", "LINK"),
        ("10.0.0.1", "SITE"), ("192.168.1.1", "SITE"), ("172.16.0.1", "SITE"), ("100.64.0.1", "SITE"),
        ("fd00:ec2::254", "SITE"), ("64:ff9b::a00:1", "SITE"), ("8.8.8.8", "WORLD"), ("2606:4700::1111", "WORLD"),
    ],
)  # fmt: skip
def test_how_far_an_address_is(address: str, right: str) -> None:
    assert remote_file.distance(address).name == right


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "http://", "http://h/a b", "http://u:p@h/x", "http://[x/"]
)
def test_urls_that_are_not_fetched(url: str) -> None:
    with pytest.raises(UsageError):
        check_url(url)


def test_edge_agent_installs_from_a_url(server: Server, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "device", 1)
    base = echo_package(tmp_path)
    server.serve(base, "echo.tar")
    server.serve(echo_adapter_package(tmp_path, base, "one"), "one.tar")
    text = said(done := cli("install", f"{server.url}/echo.tar", "--config", agent.config))
    assert done.returncode == 0 and "installed echo release 1" in text and "were fetched" in text
    wrong = cli("install", f"{server.url}/one.tar", "--digest", package_digest(base), "--config", agent.config)
    assert wrong.returncode == 1 and "another package lies at this URL" in said(wrong)
    gone = cli("install", f"{server.url}/none.tar", "--config", agent.config)
    assert gone.returncode == 1 and "the server answers 404" in said(gone)
