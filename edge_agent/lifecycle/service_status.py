"""What has become of the service: installed, enabled, running, since when, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.lifecycle.service import SYSTEM, WANTS, ServiceTarget
from edge_agent.lifecycle.units import UNIT, rendered_unit

_PROPERTIES = (
    "ActiveState", "SubState", "Result", "UnitFileState", "MainPID", "NRestarts", "StatusText", "MemoryCurrent",
    "ActiveEnterTimestamp", "DropInPaths",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The service at one moment. On an image only `installed`, `enabled` and `current` are known; the rest is None.

    `current` is False when the installed unit differs from the one of this version (`service install` renews it).
    """

    installed: bool
    enabled: bool
    current: bool
    state: str | None = None
    says: str | None = None
    pid: int | None = None
    restarts: int | None = None
    memory_bytes: int | None = None
    since: str | None = None
    drop_ins: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """True when it runs (or, on an image, when it will be started at boot)."""
        return self.installed and (self.enabled if self.state is None else self.state.startswith("active"))

    def lines(self) -> list[str]:
        """The status for a person."""
        if not self.installed:
            return ["not installed; `edge-agent service install` does that"]
        shown = [f"installed, {'started at boot' if self.enabled else 'not started at boot'}"]
        if not self.current:
            shown.append("the unit is of another version; `edge-agent service install` renews it")
        for name, value in (("state", self.state), ("since", self.since), ("says", self.says), ("pid", self.pid),
                            ("restarts", self.restarts), ("drop-ins", ", ".join(self.drop_ins) or None)):  # fmt: skip
            if value is not None:
                shown.append(f"{name}: {value}")
        return shown


def parse_show(text: str) -> dict[str, str]:
    """The output of `systemctl show` as a table; lines without '=' are left out."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def status(target: ServiceTarget) -> ServiceStatus:
    """Ask systemd, or look into the image. A systemctl that fails leaves the running state unknown."""
    unit = target.path(f"{SYSTEM}/{UNIT}")
    installed = unit.is_file()
    current = installed and unit.read_text(encoding="utf-8") == rendered_unit(target.python)
    enabled = target.path(WANTS).is_symlink()
    if not target.live:
        return ServiceStatus(installed, enabled, current)
    ran = target.runner(["systemctl", "show", UNIT, *(f"--property={name}" for name in _PROPERTIES)])
    table = parse_show(ran.output) if ran.code == 0 else {}
    if not installed or not table:
        return ServiceStatus(installed, enabled, current)
    result = table.get("Result", "success")
    state = f"{table.get('ActiveState', 'unknown')} ({table.get('SubState', 'unknown')})"
    return ServiceStatus(
        installed,
        table.get("UnitFileState") == "enabled",
        current,
        state if result == "success" else f"{state}, last result: {result}",
        table.get("StatusText") or None,
        _number(table.get("MainPID")) or None,
        _number(table.get("NRestarts")),
        _number(table.get("MemoryCurrent")),
        table.get("ActiveEnterTimestamp") or None,
        tuple(path.rpartition("/")[2].removesuffix(".conf") for path in table.get("DropInPaths", "").split()),
    )


def _number(text: str | None) -> int | None:
    """A figure of systemd; '[not set]' and the largest 64-bit number mean that it has none."""
    if text is None or not text.isdigit() or int(text) >= 2**64 - 1:
        return None
    return int(text)
