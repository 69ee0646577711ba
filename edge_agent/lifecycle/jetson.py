"""What `doctor` looks at on a Jetson alone: its system, its power modes, which Python has TensorRT. Reads files only.

TensorRT comes with JetPack and for JetPack's own Python (3.6 on a Nano), pycuda is compiled for it by the owner. Which
interpreter has what is told by the folders of packages that it searches, so that nothing is run or imported and a
simulated board can be looked at. Folders: those of Debian's Python, and a virtual environment's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.actuators.power_mode import PowerModes, read_modes
from edge_agent.config.settings import Settings
from edge_agent.sensors.files import read_text

RELEASE = "etc/nv_tegra_release"
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?")
# NVIDIA's release notes; jetson-stats has the same table. By L4T's release, the longest prefix counts.
_JETPACK = {
    "32": "4", "32.6": "4.6", "32.7": "4.6", "34": "5.0", "35": "5", "35.1": "5.0.2", "35.2": "5.1", "35.3": "5.1.1",
    "35.4": "5.1.2", "35.5": "5.1.3", "35.6": "5.1.4", "36": "6", "36.2": "6.0", "36.3": "6.0", "36.4": "6.1",
    "36.4.3": "6.2", "36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5": "6.2.2", "38": "7.0", "38.4": "7.1", "39": "7.2",
}  # fmt: skip
_GROUP_BYTES = 256 * 1024
_LINKS = 8
MODULES = ("tensorrt", "pycuda", "numpy")
"""What the interpreter that runs engines must have."""


@dataclass(frozen=True, slots=True)
class GpuPython:
    """An interpreter, and the version of each of `MODULES` that it has; '' where the version is not told. `managed`: it
    is the system's, whose packages pip may not touch (Ubuntu 24.04). `old_pip`: Ubuntu 18.04's, whose pip fetches what
    its Python 3.6 cannot run."""

    path: str
    found: dict[str, str]
    managed: bool = False
    old_pip: bool = False

    @property
    def lacks(self) -> tuple[str, ...]:
        """Of `MODULES`, what is not there."""
        return tuple(name for name in MODULES if name not in self.found)

    def shown(self, name: str) -> str:
        """'TensorRT 10.3.0' where the version is told."""
        return f"{'TensorRT' if name == 'tensorrt' else name} {self.found.get(name, '')}".strip()


@dataclass(frozen=True, slots=True)
class JetsonFacts:
    """`l4t`: '36.4.3', `jetpack`: '6.2', None where not known. `chosen`: the interpreter that would run engines;
    `pythons`: the system's. `asked`: the settings name the backend 'tensorrt'. `jtop_members`: of the group jtop, None
    where there is no such group. `drop_in`: the service has the drop-in `jetson`."""

    l4t: str | None
    jetpack: str | None
    modes: PowerModes | None
    chosen: GpuPython
    pythons: Sequence[GpuPython]
    asked: bool
    jtop_wanted: bool
    jtop_socket: bool
    jtop_members: tuple[str, ...] | None
    drop_in: bool


def look_at(root: Path, settings: Settings, own_python: str) -> JetsonFacts:
    """The Jetson under `root`; `own_python` runs this program, and the workers where the settings name none."""
    l4t = parse_release(read_text(str(root / RELEASE)).text or "")
    chosen = str(settings.worker.tensorrt_python or settings.worker.python or own_python)
    folders = sorted((root / "usr/bin").glob("python3.*"), key=lambda path: _version(path.name))
    names = [f"/usr/bin/{path.name}" for path in folders if re.fullmatch(r"python3\.\d+", path.name)]
    return JetsonFacts(
        l4t=l4t,
        jetpack=jetpack(l4t),
        modes=read_modes(root),
        chosen=examined(root, chosen),
        pythons=[examined(root, name) for name in names],
        asked="tensorrt" in settings.worker.backends,
        jtop_wanted=settings.sensors.jtop,
        jtop_socket=os.path.lexists(root / "run/jtop.sock"),
        jtop_members=_members(root, "jtop"),
        drop_in=os.path.lexists(root / "etc/systemd/system/edge-agent.service.d/jetson.conf"),
    )


def parse_release(text: str) -> str | None:
    """'36.4.3' of L4T's first line, '# R36 (release), REVISION: 4.3, GCID: ...'."""
    found = _RELEASE.match(text)
    return None if found is None else ".".join(part for part in found.groups() if part is not None)


def jetpack(l4t: str | None) -> str | None:
    """The JetPack that came with a release of L4T, as exactly as it is known here."""
    parts = l4t.split(".") if l4t is not None else []
    return next((name for n in range(len(parts), 0, -1) if (name := _JETPACK.get(".".join(parts[:n])))), None)


def examined(root: Path, python: str) -> GpuPython:
    """Which modules an interpreter has; `python` is its path inside `root`."""
    folders = [root / folder.lstrip("/") for folder in package_folders(root, python)]
    found = {}
    for name in MODULES:
        place = next((folder for folder in folders if _has(folder, name)), None)
        if place is not None:
            found[name] = _version_of(place, name)
    version = _resolved(root, python).rpartition("/")[2]
    in_environment = os.path.lexists(root / python.rpartition("/bin/")[0].lstrip("/") / "pyvenv.cfg")
    managed = os.path.lexists(root / f"usr/lib/{version}/EXTERNALLY-MANAGED")
    return GpuPython(python, found, managed and not in_environment, version == "python3.6" and not in_environment)


def package_folders(root: Path, python: str) -> list[str]:
    """The folders, inside `root`, that an interpreter takes packages from. Of a virtual environment its own come
    first, and the system's only where it was made with them."""
    home = python.rpartition("/bin/")[0]
    config = read_text(str(root / home.lstrip("/") / "pyvenv.cfg")).text if home else None
    if config is None:
        return _of_system(_resolved(root, python))
    keys = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in config.splitlines())}
    version = "python" + ".".join(keys.get("version", keys.get("version_info", "3")).split(".")[:2])
    own = [f"{home}/lib/{version}/site-packages"]
    return own + (_of_system(version) if keys.get("include-system-site-packages") == "true" else [])


def _of_system(path: str) -> list[str]:
    version = path.rpartition("/")[2]
    return [
        f"/usr/local/lib/{version}/dist-packages",
        "/usr/lib/python3/dist-packages",
        f"/usr/lib/{version}/dist-packages",
    ]


def _resolved(root: Path, python: str) -> str:
    """`/usr/bin/python3` as `/usr/bin/python3.10`: links are followed inside `root`, wherever they point."""
    for _ in range(_LINKS):
        try:
            target = str((root / python.lstrip("/")).readlink())
        except OSError:
            break
        python = os.path.normpath(os.path.join(os.path.dirname(python), target))  # noqa: PTH118, PTH120 (inside root)
    return python


def _has(folder: Path, name: str) -> bool:
    return (folder / name / "__init__.py").is_file() or (folder / f"{name}.py").is_file()


def _version_of(folder: Path, name: str) -> str:
    """From the metadata's folder, 'tensorrt-8.2.1.8.dist-info'; '' without one, as after Debian's own packages."""
    found = re.compile(rf"{name}-(\d[^-]*)(?:-.*)?\.(?:dist|egg)-info")
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ""
    return next((match[1] for one in names if (match := found.fullmatch(one))), "")


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name))


def _members(root: Path, group: str) -> tuple[str, ...] | None:
    try:
        with (root / "etc/group").open("rb") as stream:
            lines = stream.read(_GROUP_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    fields = next((line.split(":") for line in lines if line.startswith(f"{group}:")), None)
    return None if fields is None else tuple(name for name in fields[-1].split(",") if name)
