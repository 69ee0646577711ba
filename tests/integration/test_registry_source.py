"""Packages from an OCI registry: tokens, credentials, ranges, only what is missing; registries that lie or refuse."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError, StoreError, UsageError
from edge_agent.bundle.verify import read_release
from edge_agent.store import remote_file
from edge_agent.store.download_folder import RoomOptions, Wishes
from edge_agent.store.inbox_packages import package_digest
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.registry import RegistryPlace, credentials
from edge_agent.store.registry_download import RegistryDownload
from edge_agent.store.remote_file import TransferOptions
from edge_forge.package.oci_layout import write_layout
from tests.integration.test_http_source import big_package
from tests.support import packages as tiny
from tests.support.agents import AgentProcess, echo_package
from tests.support.certificates import Authority, Pair
from tests.support.desk import cli, said

BASIC = base64.b64encode(b"reader:secret").decode()


@dataclass
class Manners:
    """How the registry behaves; a test edits it."""

    token: str | None = None
    basic: bool = False
    realm: str | None = None
    redirects: bool = False
    breaks_after: int | None = None
    tags: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the distribution API that is read by."""

    manners: Manners

    def do_GET(self) -> None:
        """See `BaseHTTPRequestHandler`."""
        manners = self.manners
        if self.path.startswith("/token?"):
            manners.tokens.append(self.headers.get("Authorization"))
            self._answer(200, json.dumps({"token": manners.token}).encode())
            return
        manners.asked.append(self.path)
        if manners.redirects and "/blobs/" in self.path and not self.path.startswith("/elsewhere"):
            port = self.headers["Host"].partition(":")[2]
            self._answer(302, b"", {"Location": f"http://localhost:{port}/elsewhere{self.path}"})
            return
        wanted = {f"Bearer {manners.token}" if manners.token else None, f"Basic {BASIC}" if manners.basic else None}
        if wanted != {None} and self.headers.get("Authorization") not in wanted - {None}:
            realm = manners.realm or f"http://{self.headers['Host']}/token"
            scheme = (
                'Basic realm="x"' if manners.basic else f'Bearer realm="{realm}",service="s",scope="repository:r:pull"'
            )
            self._answer(401, b"{}", {"WWW-Authenticate": scheme})
            return
        found = re.fullmatch(r"/v2/edge/tiny/(manifests|blobs)/([^/]+)", self.path)
        held = {} if found is None else manners.tags if found[1] == "manifests" else manners.blobs
        data = None if found is None else held.get(found[2])
        if data is None:
            self._answer(404, b'{"errors":[]}')
            return
        self._send(data, ranges=found is not None and found[1] == "blobs")

    def _send(self, data: bytes, *, ranges: bool) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None or not ranges:
            self._answer(200, data)
            return
        start, end = int(span[1]), min(len(data), int(span[2]) + 1)
        self._answer(206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        limit = self.manners.breaks_after
        with contextlib.suppress(OSError):
            self.wfile.write(data if limit is None or status != 206 else data[:limit])

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@dataclass
class Registry:
    """A registry on this machine, and a store to install into."""

    manners: Manners
    host: str
    folder: Path
    digest: str | None = None
    basic: str | None = None
    free: int = 1 << 40
    tls: bool = False

    def push(self, package: Path, tag: str = "1") -> str:
        """What `skopeo copy` does with the layout; the digest of the artefact."""
        layout = self.folder / f"layout-{tag}-{package.stem}"
        digest = write_layout(package, layout)
        for blob in (layout / "blobs" / "sha256").iterdir():
            self.manners.blobs[f"sha256:{blob.name}"] = blob.read_bytes()
        self.manners.tags[tag] = self.manners.tags[digest] = self.manners.blobs.pop(digest)
        return digest

    def download(self, reference: str = ":1", **transfer: Any) -> RegistryDownload:
        """A download of that artefact, which sleeps nowhere."""
        place = RegistryPlace.parse(f"oci://{self.host}/edge/tiny{reference}")
        options = TransferOptions(sleep=lambda _s: None, timeout_s=5.0, **transfer)
        check = lambda package: read_release(package, tiny.trust()) and None  # noqa: E731
        wishes = Wishes(check, RoomOptions(0, lambda _folder: self.free), self.digest)
        downloads, store = self.folder / "downloads", self.folder / "store"
        return RegistryDownload(
            place, downloads, store, options, wishes, plain=() if self.tls else (self.host,), basic=self.basic
        )

    def install(self, reference: str = ":1") -> int:
        """Fetch and install; how many bytes were moved."""
        download = self.download(reference)
        self.store.install(download.fetch())
        download.done()
        assert not download._folder.top.exists()
        return download.moved_bytes

    @property
    def store(self) -> ModelStore:
        """The store that is installed into."""
        context = InstallContext(prober=tiny.TinyProber(), hardware=tiny.HARDWARE, trust=tiny.trust(), reserve_bytes=0)
        return ModelStore(self.folder / "store", context)


@contextlib.contextmanager
def served(folder: Path, pair: Pair | None = None) -> Iterator[Registry]:
    """A registry; with TLS where it has a certificate."""
    manners = Manners()
    handler = type("Bound", (Handler,), {"manners": manners})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.cert, pair.key)
            found.socket = context.wrap_socket(found.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Registry(manners, f"127.0.0.1:{found.server_port}", folder, tls=pair is not None)
        finally:
            found.shutdown()
            thread.join()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with served(tmp_path) as found:
        yield found


def test_a_registry_with_tls_is_believed_by_its_authority_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))  # as one of the system's store
    base = big_package(tmp_path)
    with served(tmp_path, authority.issue("registry", server=True)) as known:
        known.push(base)
        known.manners.token, known.basic = "t1", BASIC
        known.manners.realm = f"https://{known.host}/token"
        assert known.install() > 600_000 and known.manners.tokens == [f"Basic {BASIC}"]
    for pair, word in (
        (stranger.issue("stranger", server=True), "certificate verify failed"),
        (authority.issue("another-name"), "certificate verify failed"),
        (Authority(tmp_path / "old", from_day=-9).issue("old", server=True), "certificate verify failed"),
        (None, "(?i)wrong version|http request|ssl|tls"),
    ):
        with served(tmp_path, pair) as found:
            found.tls, found.basic = True, BASIC
            with pytest.raises(StoreError, match=word) as caught:
                found.install()
            assert caught.value.cause is Cause.SOURCE and found.manners.asked == found.manners.tokens == []
    assert [model.name for model in known.store.active()] == ["tiny"]


def test_a_package_is_fetched_by_tag_and_by_digest_and_an_adapter_moves_alone(
    registry: Registry, tmp_path: Path
) -> None:
    base = big_package(tmp_path)
    registry.push(base)
    whole = registry.install()
    assert whole > 600_000 and [model.name for model in registry.store.active()] == ["tiny"]
    pinned = registry.push(tiny.adapter_package(tmp_path, base), "adapter")
    assert registry.install(f"@{pinned}") < whole / 20
    (model,) = registry.store.active()
    assert [one.name for one in model.adapters] == ["intents"]
    registry.push(big_package(tmp_path, counter=2), "2")
    assert registry.install(":2") < whole * 0.7, "the weights that are kept did not move again"


def test_a_token_is_fetched_with_the_credentials_and_again_when_it_has_run_out(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.token, registry.basic = "t1", BASIC
    registry.install()
    assert registry.manners.tokens == [f"Basic {BASIC}"]
    registry.push(big_package(tmp_path, counter=2, seed=2))
    download = registry.download()
    download._access._authorization = "Bearer old"
    registry.store.install(download.fetch())
    assert len(registry.manners.tokens) == 2


def test_a_registry_that_asks_for_a_password(registry: Registry, tmp_path: Path) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.basic = True
    with pytest.raises(StoreError, match=r"asks for a user and a password \(`skopeo login") as caught:
        registry.install()
    assert caught.value.cause is Cause.SOURCE
    registry.basic = base64.b64encode(b"reader:wrong").decode()
    with pytest.raises(StoreError, match="the server answers 401"):
        registry.install()
    registry.basic = BASIC
    registry.install()
    assert [model.name for model in registry.store.active()] == ["tiny"]


@pytest.mark.parametrize("realm", ["http://elsewhere.invalid/token", "file:///etc/passwd", "https://", "nonsense"])
def test_a_token_is_not_asked_for_at_a_place_that_is_not_safe(registry: Registry, tmp_path: Path, realm: str) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.token, registry.manners.realm, registry.basic = "t", realm, BASIC
    with pytest.raises(StoreError, match="which is no https address"):
        registry.install()
    assert registry.manners.tokens == []


def test_a_registry_that_always_answers_401_is_given_up(registry: Registry, tmp_path: Path) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.token = "changes"
    download = registry.download()
    download._access._token = lambda _asked: "another"  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="the server answers 401"):
        download.fetch()
    assert len(registry.manners.asked) == 4


def test_a_registry_that_asks_now_and_then_and_gives_nothing_is_given_up(registry: Registry, tmp_path: Path) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.token = "changes"
    download = registry.download()
    download._access.renew = lambda _challenge: True  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="the server answers 401"):
        download.fetch()
    assert len(registry.manners.asked) == 4


def test_who_a_registry_sends_to_gets_neither_token_nor_password(registry: Registry, tmp_path: Path) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.token, registry.basic, registry.manners.redirects = "t", BASIC, True
    with pytest.raises(StoreError, match="the server answers 401"):
        registry.install()
    assert len(registry.manners.tokens) == 1, "the registry's own, for its manifest"


def test_a_registry_cannot_send_nearer_than_itself_for_a_token(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor with the password: a registry in the world that names a token server inside the device's network."""
    registry.manners.token, registry.manners.realm = "t", "https://127.0.0.2/token"
    registry.basic = BASIC
    real = remote_file.distance
    world = {"127.0.0.1": remote_file.Distance.WORLD}
    monkeypatch.setattr(remote_file, "distance", lambda address: world.get(address) or real(address))
    with pytest.raises(StoreError, match=r"gives no token: for one it sends on to 127\.0\.0\.2, this device"):
        registry.download().fetch()
    assert registry.manners.tokens == []


def test_a_download_goes_on_where_it_was(registry: Registry, tmp_path: Path) -> None:
    registry.push(big_package(tmp_path))
    registry.manners.breaks_after = 20_000
    with pytest.raises(StoreError, match="next to nothing"):
        registry.install()
    registry.manners.breaks_after = None
    assert registry.install() < 520_000, "what was fetched is not fetched again"


def test_what_a_registry_exchanged_is_the_sources_fault(registry: Registry, tmp_path: Path) -> None:
    package = big_package(tmp_path)
    registry.digest = package_digest(package)
    digest = registry.push(package)
    good, artefact = dict(registry.manners.blobs), registry.manners.tags["1"]
    weights = max(good, key=lambda one: len(good[one]))
    layers = json.loads(artefact)["layers"]
    twice = json.dumps({**json.loads(artefact), "layers": [*layers, layers[0]]}).encode()
    stray = json.dumps({**json.loads(artefact), "layers": [{**layers[0], "annotations": {}}]}).encode()
    for tag, blob in (
        (b"<html>" + b"x" * 5000, good[weights]),
        (twice, good[weights]),
        (stray, good[weights]),
        (artefact, bytes(len(good[weights]))),
        (artefact, b"short"),
    ):
        registry.manners.tags["1"], registry.manners.blobs[weights] = tag, blob
        with pytest.raises((PackageError, StoreError)) as caught:
            registry.install()
        assert caught.value.cause is Cause.SOURCE, caught.value
    registry.manners.tags[digest], registry.manners.blobs[weights] = artefact + b" ", good[weights]
    with pytest.raises(PackageError, match="its SHA-256 is not its name"):
        registry.install(f"@{digest}")
    registry.manners.tags["1"] = artefact
    registry.install()
    assert [model.name for model in registry.store.active()] == ["tiny"]


def test_room_is_looked_for_before_weights_move(registry: Registry, tmp_path: Path) -> None:
    registry.push(big_package(tmp_path))
    registry.free = 700_000
    download = registry.download()
    with pytest.raises(StoreError, match="are needed for the download and its install") as caught:
        download.fetch()
    assert caught.value.cause is Cause.DISK_FULL and download.moved_bytes < 100_000


@pytest.mark.parametrize(
    "url",
    ["oci://host", "oci://host/", "oci://u:p@host/r", "oci://host/Repo", "oci://host/r:", "oci://host/r@sha256:12",
     "oci://host:port/r", "oci:///r", "oci://host/r?x=1", "oci://host/../r"],
)  # fmt: skip
def test_what_is_no_place_in_a_registry(url: str) -> None:
    with pytest.raises(UsageError, match="it is no place in a registry"):
        RegistryPlace.parse(url)


def test_places_in_a_registry() -> None:
    place = RegistryPlace.parse("oci://[::1]:5000/a/b-c:7")
    assert (place.root(()), place.tag, place.digest) == ("https://[::1]:5000/v2/a/b-c", "7", None)
    digest = "sha256:" + "0" * 64
    place = RegistryPlace.parse(f"oci://host/a@{digest}")
    assert (place.root(("host",)), place.tag, place.digest) == ("http://host/v2/a", "latest", digest)


def test_credentials_are_read_from_a_file_that_not_everybody_can_read(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {"host:5000": {"auth": BASIC}, "odd": {"auth": "!"}}}))
    path.chmod(0o640)
    assert credentials(path, "host:5000") == BASIC and credentials(path, "host") is None
    assert credentials(None, "host:5000") is None
    with pytest.raises(StoreError, match="it is no file of credentials for odd"):
        credentials(path, "odd")
    path.chmod(0o644)
    with pytest.raises(StoreError, match="every user of this machine can read it"):
        credentials(path, "host:5000")
    for text in ("[]", "{", "x" * 100_000, '{"auths": {"host:5000": 7}}'):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(StoreError, match="no file of credentials"):
            credentials(path, "host:5000")
    with pytest.raises(StoreError, match="No such file"):
        credentials(tmp_path / "none", "host:5000")


def test_edge_agent_installs_from_a_registry(registry: Registry, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "device", 1)
    registry.push(echo_package(tmp_path), "7")
    url = f"oci://{registry.host}/edge/tiny:7"
    refused = cli("install", url, "--config", agent.config)
    assert refused.returncode == 1 and url.removeprefix("oci://").split("/")[0] in said(refused)
    assert registry.manners.asked == [], "https alone, unless the operator has named the registry"
    text = agent.config.read_text()
    agent.config.write_text(text.replace("[store]\n", f'[store]\nregistries_plain = ["{registry.host}"]\n'))
    done = cli("install", url, "--progress", "--config", agent.config)
    assert done.returncode == 0 and "installed echo release 1" in said(done)
    assert '{"step": "fetching"' in done.stderr and '{"step": "committed"' in done.stderr
