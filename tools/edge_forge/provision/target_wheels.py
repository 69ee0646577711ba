"""The wheels that a target needs, whole for its own Python and architecture, and unpacked as a virtual environment.

pip downloads, but evaluates environment markers ("python_version < '3.11'") for the interpreter that it runs on, not
for the target. So the set is closed here: the metadata of every wheel is read, its markers are evaluated for the
target, what is missing is asked for, and what the target does not need stays out. The PyPA's `packaging` and
`installer` read and unpack.
"""

from __future__ import annotations

import email.parser
import hashlib
import os
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.exceptions import InstallerError
from installer.sources import WheelFile
from packaging import tags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from edge_agent.base.child_python import child_environment, module_command
from edge_agent.base.errors import EdgeError
from edge_forge.provision.target_root import TargetRoot

AGENT: Final = "edge-agent"
VENV: Final = "opt/edge-agent"
"""The virtual environment in the target, from its root; `edge-agent service install` expects it there, too."""

_ROUNDS: Final = 5
"""Downloads until the set is closed: the first lacks at most what markers of one level hide."""
_DOWNLOAD_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class WheelOrder:
    """What is to be installed: the wheel of edge-agent with extras, for a target."""

    agent: Path
    extras: tuple[str, ...]
    target: TargetRoot


def wheels_for(order: WheelOrder, folder: Path | None, cache: Path) -> list[Path]:
    """The wheels to install, the agent's among them: from `folder` alone, or downloaded into a folder of `cache` that
    a second call reads without the network.

    Raises EdgeError with the names of what is missing, or with pip's words.
    """
    if folder is not None:
        found, missing = _closed(order, folder)
        if missing:
            raise _missing(order, missing, folder)
        return found
    place = cache / _key(order)
    place.mkdir(parents=True, exist_ok=True)
    found, missing = _closed(order, place)
    wanted = [f"{order.agent.resolve()}[{','.join(order.extras)}]"]
    for _ in range(_ROUNDS):
        if not missing:
            return found
        _download(order, wanted, place)
        found, missing = _closed(order, place)
        # Without the marker, which pip would evaluate for the host and then drop.
        wanted = [f"{one.name}{_in_brackets(one.extras)}{one.specifier}" for one in missing]
    raise _missing(order, missing, place)


def unpack(wheels: Sequence[Path], target: TargetRoot, stage: Path, venv: str = VENV) -> None:
    """Lay the virtual environment of these wheels out in `stage`, as it is to lie in the target's root at `venv`."""
    top = stage / venv
    library = f"{top}/lib/python{target.python[0]}.{target.python[1]}/site-packages"
    scheme = {"purelib": library, "platlib": library, "scripts": f"{top}/bin", "data": str(top),
              "headers": f"{top}/include"}  # fmt: skip
    for path in wheels:
        destination = SchemeDictionaryDestination(scheme, interpreter=f"/{venv}/bin/python", script_kind="posix")
        with WheelFile.open(path) as source, warnings.catch_warnings():
            # Byte code in a wheel is left out, as it should be; nobody here can do anything about it.
            warnings.simplefilter("ignore", RuntimeWarning)
            install(source=source, destination=destination, additional_metadata={"INSTALLER": b"edge-forge\n"})
    # The system's packages stay visible, as in an environment made on the board: JetPack's Python modules, picamera2.
    (top / "pyvenv.cfg").write_text(
        f"home = {Path(target.interpreter).parent}\ninclude-system-site-packages = true\n"
        f"version = {target.python[0]}.{target.python[1]}\n"
    )
    (top / "bin").mkdir(exist_ok=True)
    for name in ("python", "python3"):
        (top / "bin" / name).symlink_to(target.interpreter)


def platform_tags(target: TargetRoot) -> list[str]:
    """The platforms whose wheels run in the target, best first (PEP 600)."""
    oldest = 5 if target.machine == "x86_64" else 17
    legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    found: list[str] = []
    for minor in range(target.glibc[1], oldest - 1, -1):
        found.append(f"manylinux_{target.glibc[0]}_{minor}_{target.machine}")
        if minor in legacy:
            found.append(f"{legacy[minor]}_{target.machine}")
    return [*found, f"linux_{target.machine}"]


def _target_tags(target: TargetRoot) -> Mapping[tags.Tag, int]:
    """Every tag that the target takes, with its place in the order of preference."""
    platforms, abi = platform_tags(target), f"cp{target.python[0]}{target.python[1]}"
    native = tags.cpython_tags(target.python, [abi], platforms)
    pure = tags.compatible_tags(target.python, abi, platforms)
    return {tag: place for place, tag in enumerate([*native, *pure])}


def _environment(target: TargetRoot) -> dict[str, str]:
    """The markers' variables (PEP 508) as the target's interpreter has them. Its patch level is not known: 0."""
    version = f"{target.python[0]}.{target.python[1]}"
    return {
        "implementation_name": "cpython", "implementation_version": f"{version}.0", "os_name": "posix",
        "platform_machine": target.machine, "platform_python_implementation": "CPython", "platform_release": "",
        "platform_system": "Linux", "platform_version": "", "python_full_version": f"{version}.0",
        "python_version": version, "sys_platform": "linux",
    }  # fmt: skip


def _closed(order: WheelOrder, folder: Path) -> tuple[list[Path], list[Requirement]]:
    """The wheels of the folder that the target needs, and the requirements that none of them meets."""
    available = _best(folder, order.target)
    available[canonicalize_name(AGENT)] = (Version("0"), order.agent)
    environment = _environment(order.target)
    waiting = [Requirement(f"{AGENT}[{','.join(order.extras)}]")]
    seen: set[tuple[str, str]] = set()
    found: dict[str, Path] = {}
    missing: dict[str, Requirement] = {}
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in available or (name != AGENT and not wanted.specifier.contains(available[name][0], True)):
            missing[str(wanted)] = wanted
            continue
        found[name] = available[name][1]
        for extra in {"", *wanted.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _requirements(available[name][1], {**environment, "extra": extra})
    return [found[name] for name in sorted(found)], list(missing.values())


def _requirements(wheel: Path, environment: Mapping[str, str]) -> Iterator[Requirement]:
    """What a wheel needs in this environment. Raises EdgeError for a file that is no sound wheel."""
    for text in _metadata(wheel):
        requirement = Requirement(text)
        if requirement.marker is None and environment["extra"]:
            continue  # counted with the wheel itself
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            yield requirement


def _metadata(wheel: Path) -> list[str]:
    try:
        with WheelFile.open(wheel) as source:
            head = email.parser.HeaderParser().parsestr(source.read_dist_info("METADATA"))
    except (OSError, ValueError, KeyError, BadZipFile, InstallerError) as error:
        raise EdgeError(f"it is no sound wheel: {error}", str(wheel), "download it again") from error
    return list(head.get_all("Requires-Dist", []))


def _best(folder: Path, target: TargetRoot) -> dict[str, tuple[Version, Path]]:
    """The newest wheel of each project that the target takes."""
    accepted = _target_tags(target)
    found: dict[str, tuple[tuple[Version, int], Path]] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _build, wheel_tags = parse_wheel_filename(path.name)
        except ValueError:
            continue
        places = [accepted[tag] for tag in wheel_tags if tag in accepted]
        if places:
            rank = (version, -min(places))
            if name not in found or rank > found[name][0]:
                found[name] = (rank, path)
    return {name: (rank[0], path) for name, (rank, path) in found.items()}


def _download(order: WheelOrder, wanted: Sequence[str], place: Path) -> None:
    target = order.target
    version = f"{target.python[0]}{target.python[1]}"
    command = module_command(
        "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
        "--dest", str(place), "--implementation", "cp", "--python-version", version, "--abi", f"cp{version}",
        "--abi", "abi3", "--abi", "none", *(f"--platform={one}" for one in platform_tags(target)), *wanted,
    )  # fmt: skip
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_TIMEOUT_S, cwd=place,
            env=child_environment(os.environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EdgeError("pip's download did not end", str(place), "try again, or name a folder by --wheels") from error
    if ended.returncode:
        words = [line.strip() for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise EdgeError(
            f"pip cannot download the wheels for {target.machine}, Python {target.python[0]}.{target.python[1]}: "
            f"{words[-1][7:]}",
            None,
            "without the network, or for a project without such a wheel: collect them in a folder, --wheels DIR "
            "(`pip wheel` on a board compiles)",
        )


def _in_brackets(extras: Iterable[str]) -> str:
    return f"[{','.join(sorted(extras))}]" if extras else ""


def _missing(order: WheelOrder, missing: Sequence[Requirement], folder: Path) -> EdgeError:
    target = order.target
    names = ", ".join(sorted(str(one) for one in missing))
    return EdgeError(
        f"no wheel for {target.machine}, Python {target.python[0]}.{target.python[1]} is there for: {names}",
        str(folder), "put them into it (`pip wheel` on a board compiles what has none)",
    )  # fmt: skip


def _key(order: WheelOrder) -> str:
    """A name for the set: what the agent requires, extras and the target's tags."""
    target = order.target
    needs = "\n".join([*sorted(_metadata(order.agent)), *order.extras])
    digest = hashlib.sha256(needs.encode()).hexdigest()[:12]
    return f"{target.machine}-cp{target.python[0]}{target.python[1]}-glibc2.{target.glibc[1]}-{digest}"
