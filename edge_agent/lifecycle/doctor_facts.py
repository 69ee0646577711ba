"""What `doctor` judges: the state of this machine as plain values, and how it is gathered.

Results that need a broker or a worker process are passed in by `app`. A field that is None was not looked at; its
checks are skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.base.clock import Clock
from edge_agent.base.errors import ConfigError
from edge_agent.base.reading import Reading
from edge_agent.config.load import device_id
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import jetson, service_user
from edge_agent.lifecycle.jetson import JetsonFacts
from edge_agent.lifecycle.service import ServiceStatus
from edge_agent.protocol.worker_messages import RuntimeAvailable, RuntimeReport
from edge_agent.sensors.boards import Board, read_cpu_features
from edge_agent.sensors.memory import memory_controller
from edge_agent.sensors.suite import SensorSuite
from edge_agent.sensors.time_sync import ClockSync, clock_sync


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder of the agent's state. `free_bytes` is what this user may still write to its file system."""

    path: Path
    exists: bool
    writable: bool
    free_bytes: int
    reserve_bytes: int


@dataclass(frozen=True, slots=True)
class RuntimeProbe:
    """A worker process's answer about a backend: its version, or why it cannot be used and how to change that.

    With a version, `reason` is what could not be found out about it, '' for nothing. `crashed`: it is installed and
    ended the process that asked it.
    """

    backend: str
    version: str | None
    devices: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class BrokerProbe:
    """A try to reach the broker: medians of round trips by quality of service in ms, or why there was no connection.
    `deaf`: what is wrong with hearing the device's own topics, None where nothing is."""

    address: str
    protocol: str | None
    qos0_ms: float | None = None
    qos1_ms: float | None = None
    deaf: str | None = None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A device file that the agent would use, and whether this user may read it."""

    path: Path
    usable: bool
    group: str


@dataclass(frozen=True, slots=True)
class Program:
    """A process of this machine and its resident memory, shared pages included."""

    name: str
    pid: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class DoctorFacts:
    """Everything that `doctor.examine` looks at."""

    python: tuple[int, int, int]
    machine: str
    settings_source: str
    settings_problems: tuple[str, ...] = ()
    device_id: str | None = None
    device_id_set: bool = False
    board: Board | None = None
    cpu_features: frozenset[str] | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    reserve_bytes: int | None = None
    largest: tuple[Program, ...] = ()
    memory_controller: bool | None = None
    pressure: bool | None = None
    device_files: tuple[DeviceFile, ...] = ()
    open_secrets: tuple[Path, ...] = ()
    state: StateFolder | None = None
    trust_root: Path | None = None
    trust_root_exists: bool = False
    hidden_from_service: tuple[tuple[Path, str], ...] = ()
    allow_unsigned: bool = False
    wall_s: float | None = None
    clock_sync: ClockSync = ClockSync.UNKNOWN
    runtimes: tuple[RuntimeProbe, ...] | None = None
    broker: BrokerProbe | None = None
    service: ServiceStatus | None = None
    jetson: JetsonFacts | None = None


DEVICES = (("dev/vcio_gencmd", "video"), ("dev/vcio", "video"))
GPU_DEVICES = (
    ("dev/nvmap", "video"),
    # nvgpu's nodes, of which CUDA opens these; from JetPack 6 on they are below nvgpu/igpu0 alone.
    *((f"dev/{name}", "video") for name in ("nvhost-ctrl", "nvhost-ctrl-gpu", "nvhost-gpu", "nvhost-as-gpu")),
    *((f"dev/nvgpu/igpu0/{name}", "video") for name in ("ctrl", "channel", "as", "tsg")),
    # JetPack 7's driver.
    *((f"dev/{name}", "video") for name in ("nvidia0", "nvidiactl", "nvidia-uvm")),
    *((f"dev/dri/renderD{number}", "render") for number in (128, 129)),
)
"""What CUDA opens on a Jetson (nvgpu's ioctl.c; WendyOS#1699 for the render nodes), and the group that owns it."""
LARGEST = 3
"""How many programs a finding about memory names."""


def survey(
    settings: Settings,
    problems: tuple[ConfigError, ...],
    source: str,
    clock: Clock,
    runtimes: tuple[RuntimeProbe, ...] | None = None,
    broker: BrokerProbe | None = None,
    service: ServiceStatus | None = None,
) -> DoctorFacts:
    """Look at the machine under `settings.sensors.sysroot` and at the folders that the settings name. Never raises."""
    root = settings.sensors.sysroot
    suite = SensorSuite(root, clock.monotonic_s)
    readings = suite.sample()
    texts = [str(problem) for problem in problems]
    name: str | None = None
    try:
        name = device_id(settings)
    except ConfigError as problem:
        texts.append(str(problem))
    return DoctorFacts(
        python=sys.version_info[:3],
        machine=os.uname().machine,
        settings_source=source,
        settings_problems=tuple(texts),
        device_id=name,
        device_id_set=settings.device.id is not None,
        board=suite.board,
        cpu_features=read_cpu_features(root),
        readings=readings,
        reserve_bytes=settings.memory.reserve_bytes,
        largest=_largest() if root == Path("/") else (),
        memory_controller=memory_controller(root),
        pressure=readings["memory_pressure_some"].value is not None,
        device_files=_devices(root, suite.board),
        open_secrets=_open_secrets(settings),
        state=_state(settings),
        trust_root=settings.store.trust_root,
        trust_root_exists=_is_file(settings.store.trust_root),
        hidden_from_service=_hidden(settings, source),
        allow_unsigned=settings.store.allow_unsigned,
        wall_s=clock.wall_s(),
        clock_sync=clock_sync(root),
        runtimes=runtimes,
        broker=broker,
        service=service,
        jetson=jetson.look_at(root, settings, sys.executable) if suite.board.family == "jetson" else None,
    )


def _is_file(path: Path) -> bool:
    """False as well where this user may not look."""
    try:
        return path.is_file()
    except OSError:
        return False


def _hidden(settings: Settings, source: str) -> tuple[tuple[Path, str], ...]:
    paths = service_user.paths_to_read(settings, None if source == "defaults" else Path(source))
    return tuple((paths[words], sentence) for words, sentence in service_user.unreadable(paths).items())


def runtime_probes(answers: Mapping[str, RuntimeReport]) -> tuple[RuntimeProbe, ...]:
    """What a worker child answered for each backend (`worker.one_shot.available_backends`), as facts."""
    return tuple(
        RuntimeProbe(name, f"{answer.runtime} {answer.version}", answer.devices, answer.unchecked)
        if isinstance(answer, RuntimeAvailable)
        else RuntimeProbe(name, None, (), answer.reason, answer.remedy, answer.crashed)
        for name, answer in answers.items()
    )


def _largest() -> tuple[Program, ...]:
    """The programs that hold most, largest first; those that end meanwhile or may not be asked are left out."""
    import psutil  # costs a megabyte: only doctor needs it, and the daemon never does

    found = [
        Program(process.info["name"] or "?", process.info["pid"], process.info["memory_info"].rss)
        for process in psutil.process_iter(["name", "pid", "memory_info"])
        if process.info["memory_info"] is not None
    ]
    return tuple(sorted(found, key=lambda program: -program.rss_bytes)[:LARGEST])


def _devices(root: Path, board: Board) -> tuple[DeviceFile, ...]:
    """Those that are there. CUDA opens the GPU's for writing."""
    wanted = [(name, group, os.R_OK) for name, group in DEVICES]
    if board.family == "jetson":
        wanted += [(name, group, os.R_OK | os.W_OK) for name, group in GPU_DEVICES]
    return tuple(
        DeviceFile(root / name, os.access(root / name, mode), group)
        for name, group, mode in wanted
        if os.path.lexists(root / name)
    )


def _open_secrets(settings: Settings) -> tuple[Path, ...]:
    """The secret files that others may read."""
    found: list[Path] = []
    for path in (settings.mqtt.password_file, settings.mqtt.tls.key, settings.store.registry_auth):
        try:
            if path is not None and path.stat().st_mode & 0o007:
                found.append(path)
        except OSError:
            continue  # that it cannot be read is said when the broker is tried
    return tuple(found)


def _state(settings: Settings) -> StateFolder:
    path, reserve = settings.store.state_dir, settings.store.reserve_bytes
    try:
        free = os.statvfs(path)
    except OSError:
        return StateFolder(path, os.path.lexists(path), False, 0, reserve)
    return StateFolder(path, True, os.access(path, os.W_OK | os.X_OK), free.f_bavail * free.f_frsize, reserve)
