"""Which files a board gets: those that all boards of an image share (program, service, trust root, packages), and those
that are one board's (settings, credentials)."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import edge_agent
from edge_agent.base.errors import ConfigError, PackageError, UsageError
from edge_agent.base.limits import MIB
from edge_agent.base.named_file import open_named
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import Now, check_time
from edge_agent.bundle.verify import check_weights, load_trust, read_package, read_release
from edge_agent.config.load import check
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import service
from edge_forge.provision.devices import Device, check_name
from edge_forge.provision.image_writer import Entry
from edge_forge.provision.target_root import host_name
from edge_forge.provision.target_wheels import VENV

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CREDENTIALS: Final = f"{service.CONFIG_DIR}/credentials"
FACTORY: Final = f"{service.STATE}/factory"
"""Packages that the first boot installs; edge-agent-factory.service names it."""

_COMMAND: Final = "usr/local/bin/edge-agent"
_EXTRAS: Final = ("onnx", "llamacpp", "litert")
"""Runtimes that the wheel of edge-agent has an extra for; TensorRT is the board's own."""
_HEAD: Final = """\
# Settings of edge-agent for this board, written by `edge-forge provision`.
# `edge-agent check-config --example` shows every key with its meaning and default.
"""


@dataclass(frozen=True, slots=True)
class FactoryPackage:
    """A package that was verified on the host. Its probes run on the board, at the first boot."""

    path: Path
    line: str
    models: tuple[str, ...]
    adapters: tuple[str, ...]
    runtimes: tuple[str, ...]
    size_bytes: int


def verify_packages(paths: Sequence[Path], root_file: Path | None) -> list[FactoryPackage]:
    """The packages in the order in which they are to be installed. `root_file` None: unsigned ones are taken.

    Raises PackageError, SignatureError; also for one whose omitted blobs are in no earlier one.
    """
    trust = None if root_file is None else load_trust(root_file)
    found: list[FactoryPackage] = []
    blobs: set[str] = set()
    for path in paths:
        if not path.is_file():
            raise PackageError("is no file", str(path), "name a package's tar")
        with open_package(path) as package:
            verified = read_release(package, trust, allow_unsigned=trust is None)
            check_time(verified.release, Now(time.time(), trusted=True))
            contents = read_package(package, verified.release)
            lacking = [one.digest for one in check_weights(package, contents) if one.digest not in blobs]
            blobs |= set(package.blobs())
            size_bytes = sum(package.sizes.values())
        if lacking:
            raise PackageError(
                f"it leaves out {len(lacking)} blobs that no package before it has", str(path),
                "name the package of its base before it",
            )  # fmt: skip
        found.append(
            FactoryPackage(
                path, f"{verified.release.line} counter {verified.release.counter}",
                () if contents.model is None else (contents.model.name,),
                tuple(item.config.name for item in contents.adapters),
                tuple(dict.fromkeys(item.info.runtime for item in contents.variants)), size_bytes,
            )
        )  # fmt: skip
    return found


def extras_for(packages: Iterable[FactoryPackage], signed: bool) -> tuple[str, ...]:
    """The extras of edge-agent that these packages need on the board."""
    runtimes = {name for one in packages for name in one.runtimes}
    return tuple(name for name in _EXTRAS if name in runtimes) + (("verify",) if signed else ())


def read_settings(path: Path | None) -> Mapping[str, Any]:
    """The settings that all boards share, as a table. Raises ConfigError."""
    if path is None:
        return {}
    try:
        with open_named(path) as file:
            return tomllib.loads(file.read(MIB).decode())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path), "name the settings file") from error
    except ValueError as error:
        raise ConfigError(f"is not valid TOML: {error}", str(path)) from error


def settings_text(shared: Mapping[str, Any], own: Mapping[str, Any], where: str) -> tuple[str, Settings]:
    """The settings file of a board, and what it says. Raises ConfigError with every problem; `where`: whose."""
    lines: list[str] = []
    _write_table(_over(shared, own), "", lines)
    text = _HEAD + "\n".join(lines) + "\n"
    with tempfile.TemporaryDirectory(prefix="edge-provision-") as scratch:
        path = Path(scratch) / "edge-agent.toml"
        path.write_text(text, encoding="utf-8")
        settings, problems = check(path, env={})
    if problems:
        listed = "; ".join(one.what for one in problems)
        raise ConfigError(f"the settings cannot be used: {listed}", where, "`edge-agent check-config` tells more")
    if settings.store.state_dir != Settings().store.state_dir:
        raise ConfigError(
            f"store.state_dir is {settings.store.state_dir}, but the service may write /{service.STATE} alone", where,
            "leave it at its default, and mount a disk there",
        )  # fmt: skip
    return text, settings


def check_own_name(settings: Settings, root: Path, where: str) -> None:
    """Raises UsageError where the board would come up under a name that every such image has."""
    name = settings.device.id
    if name is not None:
        check_name(name, where)
        return
    host = host_name(root)
    try:
        check_name((host or "").split(".")[0].lower(), f"{root}/etc/hostname")
    except UsageError as error:
        raise UsageError(
            f"the board has no name of its own: device.id is not set, and the image's host name is {host!r}", where,
            "set device.id in --settings, or list the board by --devices",
        ) from error  # fmt: skip


def shared_entries(
    stage: Path, packages: Sequence[FactoryPackage], trust_root: tuple[str, bytes] | None, drop_ins: Sequence[str]
) -> list[Entry]:
    """What every board of an image gets. `stage` holds the unpacked environment, `trust_root` is name and contents."""
    entries = _tree(stage)
    entries.append(Entry(_COMMAND, 0o777, link=f"/{VENV}/bin/edge-agent"))
    entries.append(Entry(service.CONFIG_DIR, 0o750, group=True))
    entries.append(Entry(CREDENTIALS, 0o700))
    for name, text in service.image_files(f"/{VENV}/bin/python", drop_ins).items():
        entries.append(Entry(name, 0o644, data=text.encode()))
    entries.append(Entry(service.WANTS, 0o777, link=f"/{service.SYSTEM}/{service.UNIT}"))
    entries.append(Entry(service.FACTORY_WANTS, 0o777, link=f"/{service.SYSTEM}/{service.FACTORY_UNIT}"))
    if trust_root is not None:
        entries.append(Entry(trust_root[0], 0o644, data=trust_root[1]))
    entries.append(Entry(service.STATE, 0o750, group=True))
    if packages:
        entries.append(Entry(FACTORY, 0o750))
    for place, package in enumerate(packages, 1):
        entries.append(Entry(f"{FACTORY}/{place:02d}-{package.path.name}", 0o640, source=package.path))
    return entries


def own_entries(settings: str, device: Device | None) -> list[Entry]:
    """What one board alone gets."""
    entries = [Entry(service.CONFIG, 0o644, data=settings.encode())]
    for name, data in sorted(device.credentials.items()) if device is not None else ():
        entries.append(Entry(f"{CREDENTIALS}/{name}", 0o600, data=data))
    return entries


def overlay(entries: Sequence[Entry]) -> bytes:
    """A board's own files as a tar that is unpacked over the image's root (`tar -C ROOT -xpf`): owned by root, with
    modes, equal bytes for equal contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in ((service.CONFIG_DIR, 0o750), (CREDENTIALS, 0o700)):
            tar.addfile(TarMember(name, mode, tarfile.DIRTYPE))
        for entry in entries:
            tar.addfile(TarMember(entry.name, entry.mode, tarfile.REGTYPE, entry.size), io.BytesIO(entry.data or b""))
    return out.getvalue()


class TarMember(tarfile.TarInfo):
    """A member that belongs to root; its time is 0."""

    def __init__(self, name: str, mode: int, kind: bytes, size: int = 0, link: str = "") -> None:
        super().__init__(name)
        self.mode, self.type, self.size, self.linkname = mode, kind, size, link


def agent_wheel(named: Path | None, folder: Path | None) -> Path:
    """The wheel of edge-agent: the one that is named, else of the folder of wheels, else of this clone's dist/, which
    must hold what this program is. Raises UsageError."""
    if named is not None:
        if not named.is_file() or named.suffix != ".whl":
            raise UsageError("is no wheel", str(named), "`make wheel` in a clone makes dist/edge_agent-*.whl")
        return named
    places = [folder] if folder is not None else [Path(edge_agent.__file__).parents[1] / "dist"]
    found = sorted((path for place in places for path in place.glob("edge_agent-*.whl")), key=_modified_ns)
    if not found:
        raise UsageError("holds no wheel of edge-agent", str(places[0]), "`make wheel` in a clone, then --wheel FILE")
    if folder is None and not _is_this_code(found[-1]):
        raise UsageError(
            "is not what this clone holds now", str(found[-1]), "`make wheel` makes it anew; --wheel FILE takes it"
        )
    return found[-1]


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_this_code(wheel: Path) -> bool:
    top = Path(edge_agent.__file__).parent
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if re.fullmatch(r"edge_agent/.*\.py", name)}
        there = {f"edge_agent/{path.relative_to(top).as_posix()}" for path in top.rglob("*.py")}
        return names == there and all(archive.read(name) == (top.parent / name).read_bytes() for name in names)


def _tree(stage: Path) -> list[Entry]:
    """Every file of a folder as it is to lie in the image."""
    entries = []
    for path in sorted(stage.rglob("*")):
        name = path.relative_to(stage).as_posix()
        if path.is_symlink():
            entries.append(Entry(name, 0o777, link=str(path.readlink())))
        elif path.is_file():
            entries.append(Entry(name, 0o755 if path.stat().st_mode & 0o100 else 0o644, source=path))
    return entries


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(shared)
    for key, value in own.items():
        under = found.get(key)
        found[key] = _over(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return found


def _write_table(table: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    """Settings as TOML: values first, then sections. JSON's texts, numbers, booleans and lists are TOML's, too."""
    for key, value in table.items():
        if not isinstance(value, Mapping):
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False, default=str)}")
    for key, value in table.items():
        if isinstance(value, Mapping):
            if any(not isinstance(one, Mapping) for one in value.values()):
                lines += ["", f"[{prefix}{key}]"]
            _write_table(value, f"{prefix}{key}.", lines)
