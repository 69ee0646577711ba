"""Debian's docker-registry and skopeo: a base and an adapter are pushed, and a device installs them; bytes measured.

`python -m tests.conformance.docker_registry`, or `make registry`; the programs are in Debian (`apt install
docker-registry skopeo apache2-utils`). Without and with a password.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from edge_agent.store.registry import CREDENTIAL_BYTES
from tests.integration.test_http_source import big_package
from tests.support import packages as tiny
from tests.support.agents import AgentProcess, echo_adapter_package, echo_package
from tests.support.certificates import Authority
from tests.support.desk import cli, said

USER, PASSWORD = "reader", "a-password-of-this-test"


def main() -> int:
    """0 when all went well; the figures are printed."""
    for program in ("docker-registry", "skopeo", "htpasswd"):
        if shutil.which(program) is None:
            print(f"{program} is not installed: apt install docker-registry skopeo apache2-utils", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as name:
        for secret, tls in ((False, False), (True, False), (True, True)):
            folder = Path(name) / f"{'secret' if secret else 'open'}-{'tls' if tls else 'plain'}"
            folder.mkdir()
            with registry(folder, secret=secret, tls=tls) as host:
                play(folder, host, secret=secret, tls=tls)
    return 0


@contextlib.contextmanager
def registry(folder: Path, *, secret: bool, tls: bool) -> Iterator[str]:
    """A registry on this machine, by HOST:PORT; `secret`: with a user and a password; `tls`: with a certificate of an
    authority of its own, ours/ca.pem."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    auth = ""
    if secret:
        hashed = subprocess.run(
            ["htpasswd", "-Bbn", USER, PASSWORD], check=True, capture_output=True, text=True
        ).stdout.strip()
        (folder / "htpasswd").write_text(f"{hashed}\n")
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    config = folder / "config.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
    pair = Authority(folder / "ours").issue("registry", server=True)
    files = f", tls: {{certificate: {pair.cert}, key: {pair.key}}}" if tls else ""
    config.write_text(f'version: 0.1\nlog: {{level: error}}\n{storage}{auth}http: {{addr: "{host}"{files}}}\n')
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait(host)
        yield host
    finally:
        process.terminate()
        process.wait(30)


def _wait(host: str) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection((host.partition(":")[0], int(host.split(":")[1]))):
            return
        time.sleep(0.1)
    raise RuntimeError("docker-registry did not start")


def push(folder: Path, package: Path, place: str, *, secret: bool) -> None:
    """As docs/desired.md tells it."""
    layout = folder / f"layout-{package.stem}"
    subprocess.run(
        [sys.executable, "-m", "edge_forge.cli", "oci", str(package), str(layout)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    login = ["--dest-creds", f"{USER}:{PASSWORD}"] if secret else []
    command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", *login]
    subprocess.run([*command, f"oci:{layout}", f"docker://{place}"], check=True)


def play(folder: Path, host: str, *, secret: bool, tls: bool) -> None:
    """Push a base and an adapter, install both, and say how many bytes moved."""
    base = echo_package(folder)
    adapter = echo_adapter_package(folder, base, "one")
    for package, tag in ((base, "1"), (adapter, "one")):
        push(folder, package, f"{host}/edge/echo:{tag}", secret=secret)
    agent = AgentProcess(folder / "device", 1)
    lines = "" if tls else f'registries_plain = ["{host}"]\n'
    if tls:
        refused = _install(agent, lines, f"oci://{host}/edge/echo:1")
        assert refused.returncode == 1 and "certificate" in said(refused), said(refused)
        os.environ["SSL_CERT_FILE"] = str(folder / "ours/ca.pem")  # as one of the system's store
    if secret:
        auth = folder / "auth.json"
        subprocess.run(
            ["skopeo", "login", "--authfile", str(auth), "--tls-verify=false", "-u", USER, "--password-stdin", host],
            input=PASSWORD, text=True, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert auth.stat().st_size < CREDENTIAL_BYTES
        refused = _install(agent, lines, f"oci://{host}/edge/echo:1")
        assert refused.returncode == 1 and "asks for a user and a password" in said(refused), said(refused)
        lines += f'registry_auth = "{auth}"\n'
    for tag in ("1", "one"):
        done = _install(agent, lines, f"oci://{host}/edge/echo:{tag}")
        assert done.returncode == 0, said(done)
        moved = json.loads(done.stdout)["moved_bytes"]
        size = {"1": base, "one": adapter}[tag].stat().st_size
        how = f"{'with' if secret else 'without'} a password, {'with' if tls else 'without'} TLS"
        print(f"{how}, {tag}: package {size} bytes, moved {moved}")
    if not secret:
        _adapter_of_a_larger_base(folder, host, agent)


def _install(agent: AgentProcess, lines: str, url: str) -> subprocess.CompletedProcess[str]:
    text = agent.config.read_text().split("[store]\n")
    kept = "\n".join(line for line in text[1].splitlines() if not line.startswith(("registries_", "registry_")))
    agent.config.write_text(f"{text[0]}[store]\n{lines}{kept}\n")
    return cli("install", "--json", url, "--config", agent.config)


def _adapter_of_a_larger_base(folder: Path, host: str, agent: AgentProcess) -> None:
    """What an update of an adapter moves beside a base that the store has, by the download alone."""
    from tests.integration.test_registry_source import Manners, Registry  # its store takes packages of tiny models

    place = Registry(Manners(), host, folder / "tiny")
    (folder / "tiny").mkdir()
    base = big_package(folder)
    adapters = [tiny.adapter_package(folder, base, counter, "intents", counter) for counter in (1, 2)]
    push(folder, base, f"{host}/edge/tiny:base", secret=False)
    print(f"base: package {base.stat().st_size} bytes, moved {place.install(':base')}")
    for number, adapter in enumerate(adapters, 1):
        push(folder, adapter, f"{host}/edge/tiny:adapter-{number}", secret=False)
        moved = place.install(f":adapter-{number}")
        print(f"adapter {number}: package {adapter.stat().st_size} bytes, moved {moved}")
        assert moved < base.stat().st_size / 20
    with urllib.request.urlopen(f"http://{host}/v2/edge/tiny/tags/list") as answer:
        print(f"tags: {sorted(json.load(answer)['tags'])}")


if __name__ == "__main__":
    raise SystemExit(main())
