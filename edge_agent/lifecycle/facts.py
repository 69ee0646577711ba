"""What `doctor` judges: a machine's state as plain values, gathered elsewhere, so that every verdict can be tested.

A field that is None was not looked at; its checks are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.base.reading import Reading
from edge_agent.lifecycle.service_status import ServiceStatus
from edge_agent.sensors.boards import Board


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The folder of the agent's state. `free_bytes` is what this user may still write on its file system."""

    path: Path
    exists: bool
    writable: bool
    free_bytes: int
    reserve_bytes: int


@dataclass(frozen=True, slots=True)
class RuntimeProbe:
    """What a worker child said of a backend: its version, or why it cannot be used and how to change that.

    With a version, `reason` is what could not be found out about it, '' for nothing.
    """

    backend: str
    version: str | None
    devices: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class BrokerProbe:
    """A try to reach the broker: medians of round trips by quality of service in ms, or why there was no connection."""

    address: str
    protocol: str | None
    qos0_ms: float | None = None
    qos1_ms: float | None = None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A device file that the agent would use, and whether this user may."""

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
    allow_unsigned: bool = False
    wall_s: float | None = None
    clock_synchronised: bool | None = None
    runtimes: tuple[RuntimeProbe, ...] | None = None
    broker: BrokerProbe | None = None
    service: ServiceStatus | None = None
