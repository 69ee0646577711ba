"""`edge-forge provision IMAGE`: a raw image file gets the same files as a mounted root. Real file systems in real loop
devices, as root."""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.base.errors import EdgeError, UsageError
from edge_forge.cli import main
from edge_forge.provision.raw_image import Partition, mounted_image, partitions
from edge_forge.provision.user_space_image import unpacked_image
from tests.support.agents import echo_package, keys
from tests.support.made_up_root import made_up_root, made_up_wheel

MIB = 1 << 20
SECTOR = 512
FIRST = 2048
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists() or shutil.which("mkfs.ext4") is None,
    reason="needs root, loop devices and mkfs.ext4: NO IMAGE WAS FILLED",
)


def mbr(sizes: Sequence[int]) -> bytes:
    """A partition table of the old form, with partitions of these sectors from FIRST on."""
    head = bytearray(SECTOR)
    start = FIRST
    for place, size in enumerate(sizes):
        struct.pack_into("<B3sB3sII", head, 446 + 16 * place, 0, b"", 0x83, b"", start, size)
        start += size
    head[510:] = b"\x55\xaa"
    return bytes(head)


def gpt(sizes: Sequence[int], sectors: int) -> tuple[bytes, bytes]:
    """The same as GPT: what begins the disk, and what ends it."""
    rows = bytearray(128 * 128)
    start = FIRST
    for place, size in enumerate(sizes):
        struct.pack_into(
            "<16s16sQQQ72s", rows, 128 * place, LINUX, bytes([place + 1]) * 16, start, start + size - 1, 0, b""
        )
        start += size

    def header(own: int, other: int, table: int) -> bytes:
        def packed(crc: int) -> bytes:
            return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, sectors - 34,
                               b"\x07" * 16, table, 128, 128, binascii.crc32(rows))  # fmt: skip

        return packed(binascii.crc32(packed(0))).ljust(SECTOR, b"\0")

    guard = bytearray(SECTOR)
    struct.pack_into("<B3sB3sII", guard, 446, 0, b"", 0xEE, b"", 1, sectors - 1)
    guard[510:] = b"\x55\xaa"
    return bytes(guard) + header(1, sectors - 1, 2) + bytes(rows), bytes(rows) + header(sectors - 1, 1, sectors - 33)


def image_of(path: Path, roots: Sequence[Path | None], size_mib: int = 24, form: str = "mbr") -> Path:
    """An image with a partition for each entry: a file system with the files of that folder, or zeros (a boot
    partition)."""
    sizes = [size_mib * MIB // SECTOR if root is not None else FIRST for root in roots]
    sectors = FIRST + sum(sizes) + 64
    begin, end = (mbr(sizes), b"") if form == "mbr" else gpt(sizes, sectors)
    with path.open("wb") as file:
        file.truncate(sectors * SECTOR)
        file.write(begin)
        file.seek(sectors * SECTOR - len(end))
        file.write(end)
    start = FIRST
    for root, size in zip(roots, sizes, strict=True):
        if root is not None:
            subprocess.run(
                ["mkfs.ext4", "-q", "-F", "-d", str(root), "-E", f"offset={start * SECTOR}", str(path), f"{size_mib}M"],
                check=True, capture_output=True,
            )  # fmt: skip
        start += size
    return path


def tree(root: Path) -> dict[str, tuple[int, int, int, object]]:
    """Mode, owners and contents of everything below a folder."""
    found: dict[str, tuple[int, int, int, object]] = {}
    for path in sorted(root.rglob("*")):
        name, one = path.relative_to(root).as_posix(), path.lstat()
        what = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        if not name.startswith("lost+found"):
            found[name] = (stat.S_IFMT(one.st_mode) | stat.S_IMODE(one.st_mode), one.st_uid, one.st_gid, what)
    return found


def options(tmp_path: Path) -> list[str]:
    """Of provision, beside the root."""
    wheels = tmp_path / "wheels"
    wheel = made_up_wheel(wheels, "edge-agent")
    settings = tmp_path / "fleet.toml"
    settings.write_text('[device]\nid = "gh-1"\n[store]\nreserve_bytes = 0\n')
    return ["--wheel", str(wheel), "--wheels", str(wheels), "--settings", str(settings), "--trust-root",
            str(keys().root_file), "--package", str(echo_package(tmp_path / "packages"))]  # fmt: skip


def without_loop_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """provision finds none; the tests themselves go on mounting images."""
    monkeypatch.setattr("edge_forge.provision.provision_commands.has_loop_devices", lambda: False)


@needs_root
@pytest.mark.parametrize(("form", "loop"), [("mbr", True), ("gpt", True), ("gpt", False)])
def test_an_image_gets_the_same_files_as_a_mounted_root(
    tmp_path: Path, form: str, loop: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not loop:
        without_loop_devices(monkeypatch)
    folder = made_up_root(tmp_path / "root", "aarch64")
    image = image_of(tmp_path / "board.img", [None, folder], form=form)
    with mounted_image(image, read_only=True) as root:
        before = tree(root)
    first = hashlib.sha256(image.read_bytes()).digest()
    assert main(["provision", str(image), *options(tmp_path), "--dry-run"]) == 0
    assert hashlib.sha256(image.read_bytes()).digest() == first, "a dry run changes no byte of the image"
    assert main(["provision", str(folder), *options(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["provision", str(image), *options(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["root"] == str(image)
    with mounted_image(image, read_only=True) as root:
        assert tree(root) == tree(folder)
    assert main(["provision", str(image), *options(tmp_path)]) == 0
    assert "nothing to change" in capsys.readouterr().out
    assert main(["provision", str(image), "--remove"]) == 0
    with mounted_image(image, read_only=True) as root:
        after = tree(root)
    users = {"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/.pwd.lock"}
    assert {name: one for name, one in after.items() if name.rstrip("-") not in users} == before
    part = partitions(image)[-1]
    raw = tmp_path / "part"
    raw.write_bytes(image.read_bytes()[part.start : part.start + part.size])
    assert subprocess.run(["e2fsck", "-fn", str(raw)], check=False, capture_output=True).returncode == 0


@needs_root
@pytest.mark.parametrize("loop", [True, False], ids=["mounted", "unpacked"])
def test_images_that_cannot_be_filled_are_refused_by_what_they_lack(
    tmp_path: Path, loop: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not loop:
        without_loop_devices(monkeypatch)
    folder = made_up_root(tmp_path / "root", "x86_64")
    small = image_of(tmp_path / "small.img", [None, folder], size_mib=4)
    bare = made_up_root(tmp_path / "bare")
    (bare / "usr/bin/python3.11").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "large.toml").write_text('[device]\nid = "gh-1"\n[store]\nreserve_bytes = 500_000_000\n')
    cases = (
        (small, [], "too little space"),
        (image_of(tmp_path / "a.img", [None, folder]), ["--arch", "aarch64"], "a.img: its programs are of x86_64, not"),
        (image_of(tmp_path / "bare.img", [None, bare]), [], "it has no Python"),
        (image_of(tmp_path / "none.img", [None, tmp_path / "empty"]), [], "no partition holds a root file system"),
        (image_of(tmp_path / "two.img", [folder, folder]), [], "2 root file systems: partition 1, partition 2"),
    )  # fmt: skip
    for image, more, sentence in cases:
        words = options(tmp_path)
        words[words.index("--settings") + 1] = str(tmp_path / "large.toml")
        assert main(["provision", str(image), *words, *more]) != 0
        assert sentence in capsys.readouterr().err, image
    with mounted_image(small, read_only=True) as root:
        assert not (root / "opt").exists() and not (root / "etc/edge-agent").exists()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert "edge-image-" not in Path("/proc/mounts").read_text(), "nothing stays mounted"


def test_what_is_no_raw_image_is_said(tmp_path: Path) -> None:
    text = tmp_path / "notes.img"
    text.write_text("no image")
    with pytest.raises(UsageError, match="neither a partition table nor a file system"):
        partitions(text)
    packed = tmp_path / "board.img.xz"
    packed.write_bytes(b"\xfd7zXZ\0rest")
    with pytest.raises(UsageError, match=r"is compressed \(xz\) \(unxz board\.img\.xz\)"):
        partitions(packed)
    cut = tmp_path / "cut.img"
    cut.write_bytes(mbr([2048, 8192]) + bytes(FIRST * SECTOR))
    with pytest.raises(EdgeError, match=r"it ends within partition 1: \d+ bytes are there, 2097152 are needed"):
        partitions(cut)


@pytest.mark.parametrize("form", ["mbr", "gpt"])
def test_partitions_are_read_from_either_table(tmp_path: Path, form: str) -> None:
    image = image_of(tmp_path / "board.img", [None, None], form=form)
    size = FIRST * SECTOR
    assert partitions(image) == [Partition(1, size, size), Partition(2, 2 * size, size)]


def test_only_root_mounts_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only root can mount an image"), mounted_image(tmp_path / "i", True):
        pass


@needs_root
def test_without_loop_devices_a_file_system_that_is_not_closed_or_full_is_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_loop_devices(monkeypatch)
    image = image_of(tmp_path / "board.img", [None, made_up_root(tmp_path / "root", "aarch64")])
    part = partitions(image)[-1]
    with pytest.raises(EdgeError, match="too little space"), unpacked_image(image, read_only=False) as root:
        (root.folder / "large").write_bytes(os.urandom(part.size))
    with pytest.raises(ZeroDivisionError), unpacked_image(image, read_only=False) as root:
        (root.folder / "half").write_text("x")
        raise ZeroDivisionError
    with mounted_image(image, read_only=True) as mounted:
        assert not (mounted / "large").exists() and not (mounted / "half").exists()
    name = f"{image}?offset={part.start}"
    subprocess.run(["debugfs", "-w", "-R", "ssv state 0", name], check=True, capture_output=True)
    assert main(["provision", str(image), *options(tmp_path)]) != 0
    assert "its file system was not closed (`e2fsck -f` on its root partition)" in capsys.readouterr().err


@needs_root
def test_without_loop_devices_links_modes_owners_and_removals_are_written_back(tmp_path: Path) -> None:
    folder = made_up_root(tmp_path / "root", "aarch64")
    (folder / "etc/old").mkdir()
    (folder / "etc/old/one").write_text("1")
    image = image_of(tmp_path / "board.img", [None, folder])
    with unpacked_image(image, read_only=False) as root:
        top = root.folder
        shutil.rmtree(top / "etc/old")
        (top / "etc/a b").mkdir(mode=0o750)
        os.chown(top / "etc/a b", 7, 8)
        (top / "etc/a b/deep").write_bytes(os.urandom(300_000))
        (top / "etc/a b/link").symlink_to("../passwd")
        (top / "etc/os-release").chmod(0o600)
        wanted = tree(top)
    with mounted_image(image, read_only=True) as mounted:
        assert tree(mounted) == wanted
    with unpacked_image(image, read_only=True) as root:
        (root.folder / "etc/never").write_text("x")
    with mounted_image(image, read_only=True) as mounted:
        assert tree(mounted) == wanted


def test_a_layer_of_rpi_image_gen_holds_the_same_files_and_is_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, layer = made_up_root(tmp_path / "root", "aarch64"), tmp_path / "layer"
    words = ["provision", str(folder), *options(tmp_path), "--layer", str(layer)]
    assert main([*words, "--dry-run"]) == 0 and not layer.exists()
    if os.geteuid() != 0:
        return
    assert main(words) == 0
    text = (layer / "edge-agent.yaml").read_text()
    assert "# X-Env-Layer-Name: edge-agent\n" in text and 'tar -C "$1"' in text
    payload = layer / "edge-agent.tar"
    assert stat.S_IMODE(payload.stat().st_mode) == 0o600, "it may hold a board's password"
    with tarfile.open(payload) as tar:
        names = set(tar.getnames())
    assert {"etc/edge-agent/edge-agent.toml", "opt/edge-agent/bin/python"} <= names
    first = payload.read_bytes()
    capsys.readouterr()
    assert main(words) == 0 and payload.read_bytes() == first
    assert capsys.readouterr().out.startswith("same    edge-agent.yaml\nsame    edge-agent.tar")
    assert main([*words, "--seed", str(tmp_path)]) != 0 and main([*words, "--remove"]) != 0
    (layer / "edge-agent.yaml").write_text("mine")
    assert main(words) != 0 and "was not written by provision" in capsys.readouterr().err
