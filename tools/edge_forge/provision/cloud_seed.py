"""`edge-forge provision --seed`: the same files as a seed of cloud-init on the boot partition, for images whose root
partition is not to be written. Raspberry Pi OS from 13 on reads `user-data`, `meta-data` and `network-config` there.

cloud-init unpacks one tar over the root at the first boot and removes it, because the boot partition (FAT) knows no
owners and no modes. It is told nothing else, so that the board ends up as one whose root was filled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.base.units import bytes_text
from edge_agent.lifecycle import service
from edge_forge.provision.image_plan import TarMember
from edge_forge.provision.image_writer import Entry

PAYLOAD: Final = "edge-agent/image.tar"
BOOT: Final = "/boot/firmware"
"""Where the board mounts the boot partition (Raspberry Pi OS from 12 on, Debian, Ubuntu)."""

MARK: Final = "# Written by edge-forge provision."
KEPT_AS: Final = ".before-edge-forge"
FAT_BYTES: Final = (1 << 32) - 1
"""The largest file that FAT32 takes."""

_COMMANDS: Final = (
    ("tar", "-C", "/", "-xpf", f"{BOOT}/{PAYLOAD}"),
    ("rm", "-rf", f"{BOOT}/{PAYLOAD.partition('/')[0]}"),
    ("systemd-sysusers",),
    ("systemd-tmpfiles", "--create"),
    ("systemctl", "daemon-reload"),
    ("systemctl", "start", "--no-block", service.UNIT, service.FACTORY_UNIT),
)
_NETWORK: Final = f"""{MARK}
# An address by DHCP where there is a network; the boot does not wait for one.
version: 2
ethernets:
  eth0:
    dhcp4: true
    optional: true
"""


def write_seed(boot: Path, entries: Sequence[Entry], dry: bool) -> list[str]:
    """Put the seed into the mounted boot partition; a line per file. `dry`: write nothing. A second time changes
    nothing. Raises EdgeError where a user-data of somebody else has settings; then nothing is written."""
    if not boot.is_dir():
        raise UsageError("is no folder", str(boot), "mount the image's boot partition and name where it is mounted")
    texts = {"user-data": _user_data(), "meta-data": "", "network-config": _NETWORK}
    payload = boot / PAYLOAD
    with tempfile.TemporaryDirectory(prefix="edge-seed-") as scratch:
        made = Path(scratch) / "image.tar"
        write_tar(made, entries)
        size, digest = made.stat().st_size, digest_of(made)
        same = payload.is_file() and digest_of(payload) == digest
        texts["meta-data"] = f"{MARK}\ninstance-id: edge-{digest[:16]}\n"
        wanted = {name: text for name, text in texts.items() if _is_to_write(boot / name, name, text)}
        if not same:
            _check_room(boot, size)
        if not dry:
            payload.parent.mkdir(exist_ok=True)
            if not same:
                _copy(made, payload)
            for name, text in wanted.items():
                _put(boot / name, text)
    done = [f"{'write' if name in wanted else 'same':<7} {name}" for name in texts]
    return [*done, f"{'same' if same else 'write':<7} {PAYLOAD}, {bytes_text(size)}"]


def _check_room(boot: Path, size: int) -> None:
    if size > FAT_BYTES:
        raise EdgeError(f"the seed has {bytes_text(size)}, FAT takes 4 GiB", str(boot), "fill the root instead")
    free = shutil.disk_usage(boot).free
    if size > free:
        raise EdgeError(
            f"too little space: the seed has {bytes_text(size)}, {bytes_text(free)} are free; nothing was changed",
            str(boot), "fill the root instead, or enlarge the boot partition",
        )  # fmt: skip


def _copy(made: Path, payload: Path) -> None:
    """Whole under its name, or not there."""
    fresh = _fresh(payload)
    try:
        shutil.copyfile(made, fresh)
        fresh.replace(payload)
    finally:
        fresh.unlink(missing_ok=True)


def _fresh(payload: Path) -> Path:
    """Where the payload is written before it has its name."""
    return payload.with_suffix(".new")


def remove_seed(boot: Path, dry: bool = False) -> list[str]:
    """Take the seed back, and put back what it replaced; `dry`: only say it. A run that was cut off leaves the payload,
    with its secrets, before anything else. Raises EdgeError where there is none."""
    found = [name for name in ("user-data", "meta-data", "network-config") if _is_ours(boot / name)]
    payloads = [path for path in (boot / PAYLOAD, _fresh(boot / PAYLOAD)) if path.is_file()]
    if not found and not payloads:
        raise EdgeError("holds no seed that provision wrote", str(boot), "name the mounted boot partition")
    done = [f"remove  {name}" for name in (*found, *(path.relative_to(boot).as_posix() for path in payloads))]
    if dry:
        return done
    for name in found:
        kept = boot / f"{name}{KEPT_AS}"
        if kept.is_file():
            kept.replace(boot / name)
        else:
            (boot / name).unlink()
    for path in payloads:
        path.unlink()
    with contextlib.suppress(OSError):
        (boot / PAYLOAD).parent.rmdir()
    return done


def _user_data() -> str:
    lines = "".join(f"  - {json.dumps(list(command))}\n" for command in _COMMANDS)
    return f"#cloud-config\n{MARK}\nruncmd:\n{lines}"


def _is_to_write(path: Path, name: str, text: str) -> bool:
    """True for what is missing, ours and different, or a template in which everything is a comment. A network
    configuration or an instance of somebody else stays. Raises EdgeError for user-data with settings."""
    if not path.is_file():
        return True
    there = path.read_text("utf-8", "replace")
    if _is_ours(path):
        return there != text
    if not [line for line in there.splitlines() if line.strip() and not line.lstrip().startswith("#")]:
        return True
    if name == "user-data":
        raise EdgeError(
            "has settings of somebody else", str(path),
            "move it away, or fill the root instead of a seed (cloud-init takes one user-data)",
        )  # fmt: skip
    return False


def _is_ours(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text("utf-8", "replace").splitlines()[:2]


def _put(path: Path, text: str) -> None:
    if path.is_file() and not _is_ours(path):
        path.replace(path.with_name(f"{path.name}{KEPT_AS}"))
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def write_tar(path: Path, entries: Sequence[Entry]) -> None:
    """Every entry, owned by root. Equal entries make equal bytes."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for entry in entries:
            if entry.is_folder:
                tar.addfile(TarMember(entry.name, entry.mode, tarfile.DIRTYPE))
            elif entry.link is not None:
                tar.addfile(TarMember(entry.name, entry.mode, tarfile.SYMTYPE, link=entry.link))
            elif entry.source is not None:
                with entry.source.open("rb") as file:
                    tar.addfile(TarMember(entry.name, entry.mode, tarfile.REGTYPE, entry.size), file)
            else:
                member = TarMember(entry.name, entry.mode, tarfile.REGTYPE, entry.size)
                tar.addfile(member, io.BytesIO(entry.data or b""))


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
