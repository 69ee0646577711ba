"""`edge-forge provision`: takes parsed arguments, fills a root file system or takes back what was put there, prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edge_agent.base.errors import UsageError
from edge_agent.base.units import bytes_text
from edge_agent.config.settings import Settings
from edge_agent.lifecycle.service import ServiceTarget, make_user
from edge_forge.package.package_commands import root_near
from edge_forge.provision import image_plan
from edge_forge.provision.cloud_seed import remove_seed, write_seed
from edge_forge.provision.devices import Device, read_devices
from edge_forge.provision.first_boot import FirstBoot, check_can_boot, first_boot
from edge_forge.provision.image_layer import write_layer
from edge_forge.provision.image_writer import GROUP, Action, Entry, ImageWriter
from edge_forge.provision.raw_image import mounted_image
from edge_forge.provision.target_root import TargetRoot, group_id, inspect_root
from edge_forge.provision.target_wheels import WheelOrder, unpack, wheels_for
from edge_forge.provision.user_space_image import has_loop_devices, unpacked_image

_CACHE: Final = "edge-forge/wheels"


@dataclass(frozen=True, slots=True)
class BoardFiles:
    """One board's own: its settings, and the files that hold them and its credentials."""

    name: str
    settings: Settings
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class ImageJob:
    """What is to be put into one image: the shared files, and for each board its own. `into`: the board whose own files
    go into the image itself; '' for none."""

    target: TargetRoot
    packages: Sequence[image_plan.FactoryPackage]
    settings: Settings
    shared: Sequence[Entry]
    own: Sequence[BoardFiles]
    into: str


def provision_verb(arguments: argparse.Namespace) -> int:
    """`edge-forge provision ROOT`: the exit code. Raises UsageError before anything is written."""
    if os.geteuid() != 0 and not arguments.dry_run:
        raise UsageError("files of a root file system are root's", None, "run it with sudo; --dry-run needs no rights")
    named = str(arguments.root)
    if not arguments.root.is_file():
        return _provision(argparse.Namespace(**{**vars(arguments), "named": named}))
    read_only = arguments.dry_run or arguments.seed is not None or arguments.layer is not None
    if has_loop_devices():
        with mounted_image(arguments.root, read_only) as root:
            return _provision(argparse.Namespace(**{**vars(arguments), "root": root, "named": named}))
    print("no loop devices here: the image is unpacked, filled and written by e2fsprogs", file=sys.stderr, flush=True)
    with unpacked_image(arguments.root, read_only) as image:
        more = {"root": image.folder, "named": named, "free_bytes": image.free_bytes}
        return _provision(argparse.Namespace(**{**vars(arguments), **more}))


def _provision(arguments: argparse.Namespace) -> int:
    """`root` is a folder; `named`: what the user called it."""
    if arguments.remove:
        return _remove(arguments)
    with tempfile.TemporaryDirectory(prefix="edge-provision-") as scratch:
        job = _job(arguments, Path(scratch))
        if arguments.seed is not None or arguments.layer is not None:
            return _beside(arguments, job)
        writer = _writer(arguments)
        entries = [*job.shared, *(one for board in job.own if board.name == job.into for one in board.entries)]
        actions = writer.plan(entries)
        writer.check_room(actions, _first_boot_bytes(job))
        boot = _boot(arguments, job) if arguments.boot else None
        if not arguments.dry_run:
            _user(arguments.root)
            writer.write(actions)
            _write_overlays(job, arguments.out)
        _print(arguments, job, actions, boot)
    return 0


def _writer(arguments: argparse.Namespace) -> ImageWriter:
    free = getattr(arguments, "free_bytes", None)
    own = os.geteuid() == 0
    return ImageWriter(arguments.root, own=own) if free is None else ImageWriter(arguments.root, own, lambda _: free)


def _beside(arguments: argparse.Namespace, job: ImageJob) -> int:
    """A seed for the boot partition, or a layer of rpi-image-gen; the root is only looked at."""
    if arguments.boot or (arguments.seed is not None and arguments.layer is not None):
        raise UsageError("--seed, --layer and --boot are three things", None, "give one of them")
    own = [one for board in job.own if board.name == job.into for one in board.entries]
    if arguments.seed is not None:
        if not job.into:
            raise UsageError("a seed is one board's", None, "name it by --device, without --out")
        kind, folder = "seed", arguments.seed
        done = write_seed(folder, [*job.shared, *own], arguments.dry_run)
    else:
        kind, folder = "layer", arguments.layer
        done = write_layer(folder, [*job.shared, *own], arguments.dry_run)
        if not arguments.dry_run:
            _write_overlays(job, arguments.out)
    print(json.dumps({kind: str(folder), "files": done}, indent=2) if arguments.json else "\n".join(done))
    return 0


def _boot(arguments: argparse.Namespace, job: ImageJob) -> FirstBoot:
    """Boot a copy with the files of one board: the one that is put into the image, else the table's first."""
    models = [name for one in job.packages for name in one.models]
    if not models:
        raise UsageError("there is no model to ask", None, "--boot needs a --package with one")
    check_can_boot(job.target)
    board = next(one for one in job.own if not job.into or one.name == job.into)
    if not arguments.json:
        print(f"boot      a copy of the image as {board.name}, without a network", file=sys.stderr, flush=True)
    return first_boot(job.target, [*job.shared, *board.entries], board.settings, models)


def _job(arguments: argparse.Namespace, scratch: Path) -> ImageJob:
    devices = read_devices(arguments.devices) if arguments.devices else []
    into = _into(arguments, devices)
    shared_settings = image_plan.read_settings(arguments.settings)
    target = inspect_root(arguments.root, arguments.arch)
    where = str(arguments.settings or arguments.root)
    own: list[BoardFiles] = []
    settings = Settings()
    for device in devices:
        text, settings = image_plan.settings_text(shared_settings, device.settings, device.where)
        own.append(BoardFiles(device.name, settings, image_plan.own_entries(text, device)))
    if not devices:
        text, settings = image_plan.settings_text(shared_settings, {}, where)
        image_plan.check_own_name(settings, arguments.root, where)
        own.append(BoardFiles(into, settings, image_plan.own_entries(text, None)))
    root_file = _root_file(arguments, settings)
    packages = image_plan.verify_packages(arguments.package, root_file)
    trust = None
    if root_file is not None:
        trust = (str(settings.store.trust_root).lstrip("/"), root_file.read_bytes())
    stage = scratch / "stage"
    stage.mkdir()
    extras = tuple(arguments.extra) or image_plan.extras_for(packages, signed=root_file is not None)
    wheel = image_plan.agent_wheel(arguments.wheel, arguments.wheels)
    unpack(wheels_for(WheelOrder(wheel, extras, target), arguments.wheels, _cache()), target, stage)
    shared = image_plan.shared_entries(stage, packages, trust, arguments.drop_in)
    return ImageJob(target, packages, settings, shared, own, into)


def _into(arguments: argparse.Namespace, devices: Sequence[Device]) -> str:
    """The board whose own files go into the image; '' for none."""
    if not devices:
        if arguments.device or arguments.out:
            raise UsageError("--device and --out are for the boards of a table", None, "name it by --devices FILE")
        return "the board"
    if arguments.device is None and arguments.out is None:
        raise UsageError(
            f"{arguments.devices} names {len(devices)} boards, and the image is one", None,
            "--out DIR makes a tar for each, to be unpacked over the image; --device NAME puts one's files into it",
        )  # fmt: skip
    if arguments.device is not None and arguments.device not in {one.name for one in devices}:
        raise UsageError(
            f"the table has no device {arguments.device!r}", str(arguments.devices),
            f"it has {', '.join(one.name for one in devices[:10])}",
        )  # fmt: skip
    return arguments.device or ""


def _root_file(arguments: argparse.Namespace, settings: Settings) -> Path | None:
    """The trust root that goes into the image; None where the settings take unsigned packages. Raises UsageError."""
    if arguments.trust_root is not None:
        return Path(arguments.trust_root)
    if settings.store.allow_unsigned:
        return None
    if arguments.package:
        return root_near(arguments.package[0])
    raise UsageError(
        "no trust root was named, so the boards could install nothing", None,
        "--trust-root FILE, the root.json of `edge-forge keygen`",
    )  # fmt: skip


def _cache() -> Path:
    """Downloaded wheels of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE


def _first_boot_bytes(job: ImageJob) -> int:
    """What the first boot takes beside the files: the store's copy of each package, and an install's reserve."""
    if not job.packages:
        return 0
    return sum(one.size_bytes for one in job.packages) + job.settings.store.reserve_bytes


def _user(root: Path) -> None:
    """The service's user; nothing where it is there already."""
    if group_id(root, GROUP) is None:
        make_user(ServiceTarget(root, "/usr/bin/python3"), [])


def _write_overlays(job: ImageJob, out: Path | None) -> None:
    if out is None:
        return
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for board in job.own:
        data = image_plan.overlay(board.entries)
        path = out / f"{board.name}.tar"
        if path.is_file() and path.read_bytes() == data:
            path.chmod(0o600)  # it holds the board's secrets, whoever copied it here
            continue
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        fresh.replace(path)


def _print(arguments: argparse.Namespace, job: ImageJob, actions: Sequence[Action], boot: FirstBoot | None) -> None:
    changed = [one for one in actions if one.kind != "same"]
    if arguments.json:
        report = _report(arguments, job, actions)
        print(json.dumps(report if boot is None else {**report, "boot": asdict(boot)}, indent=2))
        return
    print(job.target.text())
    if arguments.dry_run:
        print("\n".join(one.text() for one in actions))
    if boot is not None:
        print("\n".join(boot.lines()))
    for package in job.packages:
        names = ", ".join([*package.models, *(f"adapter {one}" for one in package.adapters)])
        print(f"package   {package.line}: {names}, {bytes_text(package.size_bytes)}; verified, tried at the first boot")
    for board in job.own:
        place = f"{arguments.out / board.name}.tar" if arguments.out is not None else arguments.named
        if arguments.out is not None or board.name == job.into:
            print(f"board     {board.name}: {len(board.entries)} files of its own in {place}")
    did = "would be" if arguments.dry_run else "were"
    written = sum(one.entry.size for one in changed if one.entry is not None)
    print(
        f"{len(changed)} of {len(actions)} files {did} changed, {bytes_text(written)}" if changed
        else f"nothing to change, {len(actions)} files are as they should be"
    )  # fmt: skip


def _report(arguments: argparse.Namespace, job: ImageJob, actions: Sequence[Action]) -> dict[str, object]:
    return {
        "root": arguments.named,
        "system": job.target.system,
        "arch": job.target.machine,
        "python": f"{job.target.python[0]}.{job.target.python[1]}",
        "packages": [{"release": one.line, "models": one.models, "adapters": one.adapters} for one in job.packages],
        "boards": [board.name for board in job.own],
        "files": [{"action": one.kind, "name": f"/{one.name}"} for one in actions],
        "changed": sum(one.kind != "same" for one in actions),
    }


def _remove(arguments: argparse.Namespace) -> int:
    if arguments.seed is not None:
        done = remove_seed(arguments.seed, arguments.dry_run)
        print(json.dumps({"seed": str(arguments.seed), "files": done}, indent=2) if arguments.json else "\n".join(done))
        return 0
    if arguments.layer is not None:
        raise UsageError("a layer is a folder of its own", str(arguments.layer), "delete it")
    actions = _writer(arguments).remove(arguments.dry_run)
    kept = [one for one in actions if one.kind == "keep"]
    if arguments.json:
        print(json.dumps({"files": [{"action": one.kind, "name": f"/{one.name}"} for one in actions]}, indent=2))
        return 0
    for one in actions if arguments.dry_run else kept:
        print(one.text())
    did = "would be" if arguments.dry_run else "were"
    print(f"{len(actions) - len(kept)} files {did} removed; the user {GROUP} stays, files elsewhere may be its own")
    return 0
