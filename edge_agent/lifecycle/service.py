"""`edge-agent service install | uninstall | status`, on this system or in the root file system of an image.

Every step says what it did; done twice, the second time changes nothing. Settings and state survive an uninstall
unless it purges. In an image nothing is started and no systemctl is called; systemd-sysusers --root makes the user.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.config.example import example_toml
from edge_agent.config.load import check
from edge_agent.lifecycle.running_code import code_stamp

COMMAND_TIMEOUT_S = 120.0
"""`systemctl start` waits for READY; other commands take less."""

OUTPUT_CHARS = 2000


class CommandResult(NamedTuple):
    """The exit code of a command (127: there is no such command) and its output, shortened."""

    code: int
    output: str


Runner = Callable[[Sequence[str]], CommandResult]


def run_command(command: Sequence[str]) -> CommandResult:
    """Run a command and wait. Never raises for it: a missing one is 127, one that hangs is 124."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return CommandResult(127, f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return CommandResult(124, f"{command[0]} did not end within {COMMAND_TIMEOUT_S:g} s")
    except OSError as problem:
        return CommandResult(126, f"{command[0]}: {problem.strerror}")
    return CommandResult(done.returncode, (done.stdout + done.stderr).strip()[-OUTPUT_CHARS:])


UNIT = "edge-agent.service"
FACTORY_UNIT = "edge-agent-factory.service"
"""Installs at the first boot what was put into an image (`edge-forge provision`)."""

HIDDEN_FROM_SERVICE = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not written to
"""Hidden by the unit's ProtectHome and PrivateTmp: an interpreter there cannot be started."""

_PYTHON = re.compile(r"^ExecStart=(/[A-Za-z0-9_./+@-]+) ", re.MULTILINE)
_EXEC = re.compile(r"^ExecStart=\S+(?P<rest> .*)$", re.MULTILINE)


def units_dir() -> Path:
    """The folder with the unit and what belongs to it. Raises EdgeError when this installation lacks it."""
    packaged = Path(__file__).parent / "systemd"
    checkout = Path(__file__).parents[2] / "systemd"
    for folder in (packaged, checkout):
        if (folder / UNIT).is_file():
            return folder
    raise EdgeError(
        "the unit files are not part of this installation", str(packaged), "install edge-agent from its wheel"
    )


def drop_in_names() -> tuple[str, ...]:
    """The drop-ins that may be chosen."""
    return tuple(sorted(path.stem for path in (units_dir() / "drop-ins").glob("*.conf")))


def read_unit_file(name: str) -> str:
    """The text of a file of the folder, by its name there ('drop-ins/jetson.conf')."""
    return (units_dir() / name).read_text(encoding="utf-8")


def rendered_unit(python: str, unit: str = UNIT) -> str:
    """A unit with the interpreter that has edge-agent installed. Raises UsageError for an unfit path."""
    if not re.fullmatch(r"/[A-Za-z0-9_./+@-]+", python):
        raise UsageError(
            f"the interpreter's path {python!r} is not absolute or has characters that a unit does not take",
            None,
            "name one with --python, for example /opt/edge-agent/bin/python",
        )
    text, count = _EXEC.subn(rf"ExecStart={python}\g<rest>", read_unit_file(unit))
    if count != 1:
        raise EdgeError("has no single ExecStart line", str(units_dir() / unit), "reinstall edge-agent")
    return text


def check_interpreter(python: str) -> None:
    """Refuse an interpreter that the service's user cannot see. Raises UsageError with what to do."""
    for path in (Path(python), Path(python).resolve()):
        hidden = next((folder for folder in HIDDEN_FROM_SERVICE if path.is_relative_to(folder)), None)
        if hidden is not None:
            raise UsageError(
                f"the interpreter {path} lies under {hidden}, which the service cannot see",
                None,
                "install into /opt: python3 -m venv --system-site-packages /opt/edge-agent && "
                "install edge-agent with its extra pi, then /opt/edge-agent/bin/edge-agent service install",
            )


IMAGE_PYTHON = "/opt/edge-agent/bin/python"
"""Where an image is expected to have its interpreter when none is named."""

SYSTEM = "etc/systemd/system"
VENDOR = ("usr/lib/systemd/system", "lib/systemd/system")
"""Where the Debian package puts the units; systemd takes one of the same name in SYSTEM before them."""
PACKAGED_SYSUSERS = "usr/lib/sysusers.d/edge-agent.conf"
PACKAGED_TMPFILES = "usr/lib/tmpfiles.d/edge-agent.conf"
WANTS = f"{SYSTEM}/multi-user.target.wants/{UNIT}"
FACTORY_WANTS = f"{SYSTEM}/multi-user.target.wants/{FACTORY_UNIT}"
DROP_INS = f"{SYSTEM}/{UNIT}.d"
SYSUSERS = "etc/sysusers.d/edge-agent.conf"
TMPFILES = "etc/tmpfiles.d/edge-agent.conf"
CONFIG_DIR = "etc/edge-agent"
CONFIG = f"{CONFIG_DIR}/edge-agent.toml"
STATE = "var/lib/edge-agent"


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """The system to work on: `root` is / or an image's root, `python` the interpreter as seen from inside it.

    `running` tells which code the daemon on a state folder runs (`store.state_folder.running_code`).
    """

    root: Path
    python: str
    runner: Runner = run_command
    running: Callable[[Path], str | None] = lambda _state_dir: None

    @property
    def live(self) -> bool:
        """True for this running system."""
        return self.root == Path("/")

    def path(self, name: str) -> Path:
        """A place in the target. Raises EdgeError when a link leads out of the image (into the host)."""
        path = self.root / name
        if not self.live and not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise EdgeError("a link leads out of the image", str(path), "check the image's folders")
        return path


def install(target: ServiceTarget, drop_ins: Sequence[str] | None = None, start: bool = True) -> list[str]:
    """Make the agent a service and say what was done, a line per step.

    `drop_ins`: exactly these of `drop_in_names()`; None keeps those that are there. `start` counts on a live system
    only. Where this installation is the Debian package's, the package keeps its unit, user and folders, and files of an
    earlier installation that come before them are removed. Raises UsageError before anything is written, or EdgeError
    when a step fails.
    """
    _check(target, drop_ins or ())
    done: list[str] = []
    packaged = _packaged_unit(target)
    if packaged is None:
        changed = _put(target, f"{SYSTEM}/{UNIT}", _wanted_unit(target), done)
        _put(target, SYSUSERS, read_unit_file("edge-agent.sysusers.conf"), done)
        _put(target, TMPFILES, read_unit_file("edge-agent.tmpfiles.conf"), done)
    else:
        changed = _remove(target, f"{SYSTEM}/{UNIT}", done)
        if changed:
            # It led to the file that is gone; what enables the package's unit makes it anew.
            _remove(target, WANTS, done)
        for name in (f"{SYSTEM}/{FACTORY_UNIT}", SYSUSERS, TMPFILES):
            _remove(target, name, done)
        done.append(f"kept {packaged}, which is the Debian package's")
    if drop_ins is not None:
        changed |= _choose_drop_ins(target, drop_ins, done)
    if target.path(CONFIG).exists():
        done.append(f"kept {target.path(CONFIG)}")
    else:
        _put(target, CONFIG, example_toml(), done)
    if target.live:
        _activate(target, start, changed, done)
    else:
        _prepare_image(target, done)
    return done


def _unit(target: ServiceTarget) -> Path:
    """The unit that systemd takes; the place of an installed one where there is none."""
    places = [target.path(f"{folder}/{UNIT}") for folder in (SYSTEM, *VENDOR)]
    return next((path for path in places if path.is_file()), places[0])


def _packaged_unit(target: ServiceTarget) -> Path | None:
    """The Debian package's unit, where it starts this interpreter: then this installation is the package's. None where
    there is no package, or another installation beside it."""
    for folder in VENDOR:
        path = target.path(f"{folder}/{UNIT}")
        if _interpreter_of(target, path) is not None:
            return path
    return None


def _wanted_unit(target: ServiceTarget) -> str:
    """The unit of this version, with the interpreter's path as the installed unit writes it where that is the same one:
    an image names `python`, the board's own command is run by `python3`."""
    return rendered_unit(_interpreter_of(target, _unit(target)) or target.python)


def _interpreter_of(target: ServiceTarget, unit: Path) -> str | None:
    """The interpreter that a unit starts, as written there, where it is the target's; None for another or none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        there = _PYTHON.search(unit.read_text(encoding="utf-8"))
        if there is not None and _same_interpreter(target.root, there[1], target.python):
            return there[1]
    return None


def _same_interpreter(root: Path, one: str, other: str) -> bool:
    """Whether two paths are names of one interpreter of one environment (a virtual environment is known by the folder,
    the file is a link to the system's)."""
    paths = [root / path.lstrip("/") for path in (one, other)]
    return one == other or (paths[0].parent == paths[1].parent and paths[0].resolve() == paths[1].resolve())


def uninstall(target: ServiceTarget, purge: bool = False) -> list[str]:
    """Remove the service and say what was done. `purge` also removes settings, keys and every installed package."""
    _check(target, ())
    done: list[str] = []
    if target.live and _unit(target).exists():
        _run(target, ["systemctl", "disable", "--now", UNIT], done)
    for name in (WANTS, FACTORY_WANTS, f"{SYSTEM}/{UNIT}", f"{SYSTEM}/{FACTORY_UNIT}", SYSUSERS, TMPFILES):
        _remove(target, name, done)
    _choose_drop_ins(target, (), done)
    folder = target.path(DROP_INS)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    for name in (CONFIG_DIR, STATE):
        path = target.path(name)
        if path.is_symlink():
            done.append(f"kept {path}; it is a link")
        elif path.is_dir() and purge:
            shutil.rmtree(path)
            done.append(f"removed {path}")
        elif path.is_dir():
            done.append(f"kept {path}; --purge removes it")
    if target.live:
        _run(target, ["systemctl", "daemon-reload"], done)
    if _unit(target).exists():
        done.append(f"kept {_unit(target)}, which is the Debian package's; `apt remove edge-agent` removes it")
    return done or ["nothing was installed"]


def _check(target: ServiceTarget, drop_ins: Sequence[str]) -> None:
    _check_drop_ins(drop_ins)
    if target.live:
        if os.geteuid() != 0:
            raise UsageError(
                "a system service is installed by root", None, "run it with sudo, or use --root DIR for an image"
            )
        if not Path("/run/systemd/system").is_dir():
            raise UsageError(
                "this system was not started by systemd",
                None,
                "use --root DIR for an image, or let your own supervisor run `edge-agent run`",
            )
        check_interpreter(target.python)
    elif not (target.root / "etc").is_dir():
        raise UsageError(
            f"{target.root} is no root file system: it has no folder etc", None, "mount the image and name its root"
        )


def _check_drop_ins(drop_ins: Sequence[str]) -> None:
    unknown = [name for name in drop_ins if name not in drop_in_names()]
    if unknown:
        raise UsageError(f"unknown drop-in {unknown[0]!r}", None, f"known: {', '.join(drop_in_names())}")


def _put(target: ServiceTarget, name: str, text: str, done: list[str]) -> bool:
    """Write a file whole or not at all; True when it changed."""
    path = target.path(name)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        done.append(f"unchanged {path}")
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.path(f"{name}.new")
        fresh.unlink(missing_ok=True)
        with fresh.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as problem:
        raise EdgeError(
            f"cannot be written: {problem.strerror}", str(path), "check permissions and free space"
        ) from problem
    done.append(f"wrote {path}")
    return True


def _remove(target: ServiceTarget, name: str, done: list[str]) -> bool:
    path = target.path(name)
    if not path.is_symlink() and not path.exists():
        return False
    path.unlink()
    done.append(f"removed {path}")
    return True


def _choose_drop_ins(target: ServiceTarget, chosen: Sequence[str], done: list[str]) -> bool:
    """Install exactly the chosen drop-ins; a file that an operator put there under another name stays."""
    changed = False
    for name in drop_in_names():
        path = f"{DROP_INS}/{name}.conf"
        if name in chosen:
            changed |= _put(target, path, read_unit_file(f"drop-ins/{name}.conf"), done)
        else:
            changed |= _remove(target, path, done)
    return changed


def _activate(target: ServiceTarget, start: bool, changed: bool, done: list[str]) -> None:
    for command, places in ((["systemd-sysusers"], (SYSUSERS, PACKAGED_SYSUSERS)),
                            (["systemd-tmpfiles", "--create"], (TMPFILES, PACKAGED_TMPFILES))):  # fmt: skip
        _run(target, [*command, str(next(path for path in map(target.path, places) if path.exists()))], done)
    _run(target, ["systemctl", "daemon-reload"], done)
    _run(target, ["systemctl", "enable", UNIT], done)
    if start:
        running = target.running(_state_dir(target))
        restart = changed or (running is not None and running != code_stamp())
        _run(target, ["systemctl", "restart" if restart else "start", UNIT], done)


def _state_dir(target: ServiceTarget) -> Path:
    """The state folder that the service's settings name, for who may read them; else the usual one."""
    settings, _ = check(target.path(CONFIG), env={})
    folder = settings.store.state_dir
    return folder if target.live else target.root / str(folder).lstrip("/")


def _prepare_image(target: ServiceTarget, done: list[str]) -> None:
    link = target.path(WANTS)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        done.append(f"unchanged {link}")
    else:
        link.symlink_to(f"/{_unit(target).relative_to(target.root).as_posix()}")
        done.append(f"enabled by {link}")
    make_user(target, done)
    if not os.path.lexists(target.root / target.python.lstrip("/")):
        done.append(f"warning: the image has no {target.python} yet; install edge-agent there before it boots")


def make_user(target: ServiceTarget, done: list[str]) -> None:
    """Make the service's user in an image, or see to it that the first boot makes it; adds to `done` which of the
    two."""
    rules = [line for line in read_unit_file("edge-agent.sysusers.conf").splitlines() if line and line[0] != "#"]
    ran = target.runner(["systemd-sysusers", f"--root={target.root.resolve()}", "--inline", *rules])
    if ran.code == 0:
        done.append("the user edge-agent is in the image")
        return
    # systemd-sysusers at boot runs when /usr is newer than /etc/.updated
    usr = target.root / "usr"
    if usr.is_dir():
        os.utime(usr)
    done.append(f"the user edge-agent will be made at the first boot (not here: {ran.output or ran.code})")


def image_files(python: str, drop_ins: Sequence[str] = ()) -> Mapping[str, str]:
    """The files of the service in an image, by their names from its root. Raises UsageError for an unknown drop-in."""
    _check_drop_ins(drop_ins)
    return {
        f"{SYSTEM}/{UNIT}": rendered_unit(python),
        f"{SYSTEM}/{FACTORY_UNIT}": rendered_unit(python, FACTORY_UNIT),
        SYSUSERS: read_unit_file("edge-agent.sysusers.conf"),
        TMPFILES: read_unit_file("edge-agent.tmpfiles.conf"),
        **{f"{DROP_INS}/{name}.conf": read_unit_file(f"drop-ins/{name}.conf") for name in drop_ins},
    }


def _run(target: ServiceTarget, command: list[str], done: list[str]) -> CommandResult:
    ran = target.runner(command)
    text = " ".join(command)
    if ran.code != 0:
        raise EdgeError(
            f"`{text}` ended with {ran.code}: {ran.output or 'no output'}", None, f"`journalctl -u {UNIT}` tells more"
        )
    done.append(text)
    return ran


_PROPERTIES = (
    "ActiveState", "SubState", "Result", "UnitFileState", "MainPID", "NRestarts", "StatusText", "MemoryCurrent",
    "ActiveEnterTimestamp", "DropInPaths",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The service at one moment. On an image only `installed`, `enabled` and `current` are known; the rest is None.

    `current` is False when the installed unit differs from the one of this version (`service install` renews it).
    `runs` and `on_disk`: the code of the daemon as it began, and of this installation (`running_code.code_stamp`).
    `active` and `substate` are systemd's ActiveState and SubState, `result` its Result where that is not 'success'.
    """

    installed: bool
    enabled: bool
    current: bool
    active: str | None = None
    substate: str = "unknown"
    result: str | None = None
    says: str | None = None
    pid: int | None = None
    restarts: int | None = None
    memory_bytes: int | None = None
    since: str | None = None
    drop_ins: tuple[str, ...] = ()
    runs: str | None = None
    on_disk: str | None = None

    @property
    def stale(self) -> bool:
        """True when the daemon runs other code than what is on the disk: it was upgraded and not restarted."""
        return self.runs is not None and self.runs != self.on_disk

    @property
    def state(self) -> str | None:
        """ActiveState, SubState and a bad result for a person; None where they are not known."""
        if self.active is None:
            return None
        failed = "" if self.result is None else f", last result: {self.result}"
        return f"{self.active} ({self.substate}){failed}"

    @property
    def stale_text(self) -> str:
        """What runs and what is on the disk."""
        return f"the daemon runs {self.runs or 'an older version'}, on the disk is {self.on_disk}"

    @property
    def healthy(self) -> bool:
        """True when it runs (or, on an image, when it will be started at boot)."""
        return self.installed and (self.enabled if self.active is None else self.active == "active")

    def lines(self) -> list[str]:
        """The status for a person."""
        if not self.installed:
            return ["not installed; `edge-agent service install` does that"]
        shown = [f"installed, {'started at boot' if self.enabled else 'not started at boot'}"]
        if not self.current:
            shown.append("the unit is of another version; `edge-agent service install` renews it")
        if self.stale:
            shown.append(f"{self.stale_text}; `sudo systemctl restart edge-agent` takes the new code over")
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
    unit = _unit(target)
    installed = unit.is_file()
    current = installed and unit.read_text(encoding="utf-8") == _wanted_unit(target)
    enabled = target.path(WANTS).is_symlink()
    if not target.live:
        return ServiceStatus(installed, enabled, current)
    ran = target.runner(["systemctl", "show", UNIT, *(f"--property={name}" for name in _PROPERTIES)])
    table = parse_show(ran.output) if ran.code == 0 else {}
    if not installed or not table:
        return ServiceStatus(installed, enabled, current)
    result = table.get("Result", "success")
    return ServiceStatus(
        installed,
        table.get("UnitFileState") == "enabled",
        current,
        active=table.get("ActiveState", "unknown"),
        substate=table.get("SubState", "unknown"),
        result=None if result == "success" else result,
        says=table.get("StatusText") or None,
        pid=_number(table.get("MainPID")) or None,
        restarts=_number(table.get("NRestarts")),
        memory_bytes=_number(table.get("MemoryCurrent")),
        since=table.get("ActiveEnterTimestamp") or None,
        runs=target.running(_state_dir(target)),
        on_disk=code_stamp(),
        drop_ins=tuple(path.rpartition("/")[2].removesuffix(".conf") for path in table.get("DropInPaths", "").split()),
    )


def _number(text: str | None) -> int | None:
    """A figure of systemd; '[not set]' and the largest 64-bit number mean that it has none."""
    if text is None or not text.isdigit() or int(text) >= 2**64 - 1:
        return None
    return int(text)
