"""A whole agent for tests: an echo model in a signed package, the real store, and the daemon as a real process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.app.packages import install
from edge_agent.backends.api import AdapterSource as Attached
from edge_agent.backends.api import Done, Limits, SessionJob
from edge_agent.backends.echo import EchoBackend
from edge_agent.demo import show
from edge_agent.demo.device import DEVICE
from edge_forge.package.build import base_descriptor, build
from edge_forge.package.sources import AdapterPackageSource, ModelSource, VariantSource
from tests.support.packages import BASE_ID, TEXTS, keys, onnx_bytes, release, safetensors_bytes

LABELS = ("alpha", "beta", "gamma")
READY_S = 60.0


def byte_ids(text: str) -> list[int]:
    """Tokens of a model without a tokenizer."""
    return list(text.encode())


def echo_rows(
    adapter: str | None, options: Mapping[str, object], ids: Callable[[str], list[int]] = byte_ids
) -> list[dict[str, list[float]]]:
    """What the echo backend puts out for the probe texts, whose tokens are `ids`."""
    session = EchoBackend().load({}, options)
    if adapter is not None:
        session.attach(Attached(adapter, "", BASE_ID))
    session.submit(SessionJob("probe", adapter, [ids(text) for text in TEXTS], {}))
    (event,) = session.step(Limits(64, 1))
    assert isinstance(event, Done)
    return [{name: rows[index] for name, rows in event.outputs.items()} for index in range(len(TEXTS))]


def echo_probes(
    folder: Path,
    adapter: str | None,
    options: Mapping[str, object],
    ids: Callable[[str], list[int]] = byte_ids,
    off: float = 0.0,
) -> Path:
    """Golden probes that the echo backend meets, unless they are `off` by something."""
    rows = echo_rows(adapter, options, ids)
    for row in rows:
        row["features"] = [value + off for value in row["features"]]
    entry: dict[str, object] = {"features": [row["features"] for row in rows], "features_tolerance": 1e-6}
    if adapter is not None:
        entry.update(logits=[row["logits"] for row in rows], logits_tolerance=1e-6, min_effect=1e-3)
    path = folder / f"probes-{adapter or 'base'}.json"
    path.write_text(json.dumps({"schema": 1, "texts": list(TEXTS), "expected": {"echo/fp32": entry}}))
    return path


def echo_package(
    folder: Path,
    name: str = "echo",
    counter: int = 1,
    peak_bytes: int = 1 << 20,
    kind: str = "classify",
    labels: Sequence[str] = LABELS,
    probes_off: float = 0.0,
    **options: object,
) -> Path:
    """A signed package of an echo model, of the kind 'classify' or 'embed'; `options` are the backend's. With
    `probes_off` its golden probes fail on every device."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}-{counter}.onnx"
    weights.write_bytes(onnx_bytes(f"{name}{counter}{sorted(options.items())}".encode() * 40))
    settings = {"base_id": BASE_ID, "labels": len(LABELS), **options}
    quick = {**settings, "delay_s": 0.0, "hold_mib": 0}
    model = ModelSource(
        name=name,
        base_id=BASE_ID,
        task={"kind": kind, "max_tokens": 64} | ({"labels": list(labels)} if kind == "classify" else {}),
        variants=[VariantSource(weights, "echo", "fp32", peak_bytes=peak_bytes, accuracy=1.0, options=settings)],
        probes=echo_probes(folder, None, quick, off=probes_off),
        licences=("Apache-2.0",),
    )
    out = folder / f"{name}-{counter}.tar"
    return build(out, release(name, counter), model, [], None, [keys().release_key]).path


def echo_adapter_package(
    folder: Path, base: Path, name: str, counter: int = 1, ids: Callable[[str], list[int]] = byte_ids
) -> Path:
    """A signed package of an echo adapter alone; `ids` as the base's tokenizer gives them."""
    weights = folder / f"{name}.safetensors"
    shapes = {"layer.0.A": (4, 2), "layer.0.B": (2, 4), "head.weight": (4, len(LABELS)), "head.bias": (len(LABELS),)}
    weights.write_bytes(safetensors_bytes(shapes, {"format": "edge-adapter/1", "base_id": BASE_ID, "rank": "2"}))
    adapter = AdapterPackageSource(
        name=name,
        base_id=BASE_ID,
        weights=weights,
        rank=2,
        alpha=4.0,
        targets=["layer.0"],
        task={"kind": "classify", "labels": list(LABELS), "max_tokens": 64},
        probes=echo_probes(folder, name, {"base_id": BASE_ID, "labels": len(LABELS)}, ids),
    )
    subject = base_descriptor(base, BASE_ID)
    return build(
        folder / f"{name}-{counter}.tar", release(name, counter), None, [adapter], subject, [keys().release_key]
    ).path


def demo_device(folder: Path, port: int, quick: bool = False) -> AgentProcess:
    """A device, not started yet, with the names of the demo's: what the pages' examples ask runs against it as it
    stands. Its bases answer embeddings without an adapter, as those of `edge-forge build` do. `quick`: also what
    `edge-agent demo --quick` serves."""
    found = AgentProcess(folder, port, device=DEVICE)
    for act in (show.LORA[0], *([show.QUICK] if quick else [])):
        for package in demo_packages(folder / act.base, act).values():
            found.install(package)
    return found


def demo_packages(folder: Path, act: show.Act = show.LORA[0]) -> dict[str, Path]:
    """Packages of the names that an act of the demo builds: `base` and `adapter`."""
    base = echo_package(folder, act.base, kind="embed")
    return {"base": base, "adapter": echo_adapter_package(folder, base, act.adapter)}


@dataclass
class AgentProcess:
    """`edge-agent run` with its own folder. `start` returns when it is ready, as systemd would see it. `sysroot`: where
    it reads sensors."""

    folder: Path
    port: int
    device: str = "dev1"
    extra: str = ""
    backends: Sequence[str] = ("echo",)
    sysroot: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "edge-agent.toml"
        backends = ", ".join(f'"{name}"' for name in self.backends)
        self.config.write_text(
            f'[device]\nid = "{self.device}"\n[mqtt]\nhost = "127.0.0.1"\nport = {self.port}\n'
            f'[store]\nstate_dir = "{self.folder / "state"}"\ntrust_root = "{keys().root_file}"\nreserve_bytes = 0\n'
            f"[worker]\nbackends = [{backends}]\nquarantine_deaths = 0\nnice = 0\n"
            f"[telemetry]\ninterval_s = 1.0\nheartbeat_s = 5.0\n{self.extra}\n"
        )

    def install(self, package: Path, trial: str | None = None) -> None:
        """Install a package by the function behind `edge-agent install`."""
        install(self.config, package, trial=trial)

    def start(self, **environment: str) -> None:
        """Start the daemon and wait for READY=1."""
        address = self.folder / "notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, (self.folder / "log").open("ab") as log:
            channel.bind(str(address))
            channel.settimeout(0.2)
            command = [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)]
            command += [] if self.sysroot is None else ["--sysroot", str(self.sysroot)]
            env = {**os.environ, "NOTIFY_SOCKET": str(address), **environment}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
            until_s = time.monotonic() + READY_S
            while True:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in channel.recv(4096):
                        return
                if self.process.poll() is not None or time.monotonic() > until_s:
                    raise AssertionError(f"the daemon did not get ready: {self.log}")

    @property
    def log(self) -> str:
        """What the daemon has said."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self.process is not None
        return self.process.pid

    def workers(self) -> list[int]:
        """The process ids of its children."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process = None
        return code


@contextlib.contextmanager
def running(agent: AgentProcess, **environment: str) -> Iterator[AgentProcess]:
    """An agent for the length of a block."""
    agent.start(**environment)
    try:
        yield agent
    finally:
        if agent.process is not None:
            agent.stop(signal.SIGKILL)
