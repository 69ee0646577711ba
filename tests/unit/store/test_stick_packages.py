"""Packages on sticks: found by digest, never written to; hostile sticks are bounded, one pulled out is told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError
from edge_agent.core.desired_state import FoundPackage
from edge_agent.store import stick_packages
from edge_agent.store.inbox_packages import file_mark, package_digest
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.stick_packages import StickLook, StickPackages, mounted
from tests.support import packages as tiny


def stick(tmp_path: Path, name: str = "usb") -> Path:
    folder = tmp_path / "media" / name
    folder.mkdir(parents=True)
    return folder


def paths(packages: StickPackages, digest: str) -> list[str]:
    return [one.name for one in packages.find({digest}).values()]


def test_a_package_on_a_stick_is_found_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, folder = tiny.base_package(tmp_path), stick(tmp_path)
    digest = package_digest(package)
    found = StickPackages(folder)
    assert found.find({digest}) == {}
    target = folder / "anything.tar"
    target.write_bytes(package.read_bytes()[:-1])
    assert found.find({digest}) == {}, "still being copied"
    target.write_bytes(package.read_bytes())
    assert paths(found, digest) == [str(target)] and found.find({"sha256:0"}) == {}
    given = found.find({digest})[digest]
    with monkeypatch.context() as patch:
        patch.setattr(stick_packages, "file_mark", lambda path: pytest.fail("the stick was asked on the daemon's loop"))
        found.refused(given)
    assert found.find({digest}) == {}
    data = target.read_bytes()
    target.unlink()
    assert found.find({digest}) == {}
    target.write_bytes(data)
    assert paths(found, digest) == [str(target)], "put in again, it is looked at again"
    assert StickPackages(tmp_path / "none").find({digest}) == {}


def test_a_refusal_holds_though_a_look_is_under_way(tmp_path: Path) -> None:
    """A stick that answers late gives what it held before the install had refused it."""
    package, folder = tiny.base_package(tmp_path), stick(tmp_path)
    digest = package_digest(package)
    target = folder / "a.tar"
    target.write_bytes(package.read_bytes())
    during, given = [False], FoundPackage(str(target), file_mark(target) or ())

    def now_s() -> float:
        if during[0]:
            found.refused(given)
        return 0.0

    found = StickPackages(folder, now_s)
    assert found.find({digest}) == {digest: given}
    during[0] = True
    assert found.find({digest}) == {}
    during[0] = False
    assert found.find({digest}) == {}


def test_links_devices_pipes_and_folders_are_passed_by(tmp_path: Path) -> None:
    package, folder = tiny.base_package(tmp_path), stick(tmp_path)
    digest = package_digest(package)
    (folder / "link.tar").symlink_to(package)
    (folder / "folder.tar").mkdir()
    (folder / ".hidden.tar").write_bytes(package.read_bytes())
    (folder / "readme.txt").write_bytes(package.read_bytes())
    os.mkfifo(folder / "pipe.tar")
    (tmp_path / "media" / "linked").symlink_to(tmp_path)
    (tmp_path / "media" / "file").write_bytes(b"")
    (tmp_path / "media" / ".hidden").mkdir()
    (folder / "zeros.tar").write_bytes(bytes(100_000))
    assert StickPackages(folder).find({digest}) == {}
    assert mounted(tmp_path / "media") == [folder]


def test_endless_names_and_slow_sticks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        folder = stick(tmp_path, f"usb{number}")
        for other in range(20):
            (folder / f"{other:03}.tar").write_bytes(b"x" * 2000)
    looked: list[Path] = []
    real = stick_packages.file_mark
    monkeypatch.setattr(stick_packages, "file_mark", lambda path: looked.append(path) or real(path))
    monkeypatch.setattr(stick_packages, "MOST_STICKS", 2)
    monkeypatch.setattr(stick_packages, "MOST_ENTRIES", 5)
    asyncio.run(StickLook(tmp_path / "media").find({"sha256:0"}))
    assert len(looked) == 10
    looked.clear()
    times = iter(range(0, 1000, 8))
    StickPackages(tmp_path / "media" / "usb0", lambda: float(next(times))).find({"sha256:0"})
    assert len(looked) == 2, "20 s, 8 s each"


class Dying(StickPackages):
    """A stick whose name begins with "dead": a read that the kernel does not give up before `let_go`."""

    let_go = threading.Event()

    def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """See `StickPackages`."""
        if self._folder.name.startswith("dead"):
            self.let_go.wait()
        return super().find(wanted)


def end_threads() -> None:
    Dying.let_go.set()
    for thread in threading.enumerate():
        if thread.name == "sticks":
            thread.join()


def test_a_stick_that_does_not_answer_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tiny.base_package(tmp_path)
    digest = package_digest(package)
    stick(tmp_path, "dead-1")
    good = stick(tmp_path, "usb") / "a.tar"
    good.write_bytes(package.read_bytes())
    Dying.let_go.clear()
    monkeypatch.setattr(stick_packages, "MOST_STICKS", 3)

    async def run() -> None:
        look = StickLook(tmp_path / "media", 0.2, Dying)
        for _ in range(3):
            found = await look.find({digest})
            assert found[digest].name == str(good)
        assert sum("does not answer" in one.message for one in caplog.records) == 1, "said once"
        look.refused(found[digest])
        assert await look.find({digest}) == {}
        # Pulled out and put in under another name: its thread stays with the kernel, and their number is bounded.
        for number in range(2, 6):
            (tmp_path / "media" / f"dead-{number - 1}").rmdir()
            stick(tmp_path, f"dead-{number}")
            await look.find({digest})
        assert sum(thread.name == "sticks" for thread in threading.enumerate()) <= 3 + 1, "and that of the list"
        end_threads()
        late = stick(tmp_path, "dead-9") / "b.tar"
        late.write_bytes(package.read_bytes())
        await look.find({digest})
        assert (await look.find({digest}))[digest].name == str(late)
        late.unlink()
        late.parent.rmdir()
        (tmp_path / "media" / "usb").rename(tmp_path / "away")
        assert await look.find({digest}) == {}
        (tmp_path / "away").rename(tmp_path / "media" / "usb")
        assert (await look.find({digest}))[digest].name == str(good), "put in again, it is looked at again"

    try:
        asyncio.run(run())
    finally:
        end_threads()


def library(tmp_path: Path, at: Callable[[str], None]) -> ModelStore:
    known = InstallContext(prober=tiny.TinyProber(), hardware=tiny.HARDWARE, trust=tiny.trust(), reserve_bytes=0)
    return ModelStore(tmp_path / "store", replace(known, at=at))


@pytest.mark.parametrize("point", ["opened", "verified", "blob-begun"])
def test_a_stick_that_is_pulled_out_changes_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    package = tiny.base_package(tmp_path)
    digest = package_digest(package)
    real, away = os.pread, [False]

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        if away[0]:
            raise OSError(5, "Input/output error")
        return real(descriptor, count, offset)

    def at(reached: str) -> None:
        away[0] = away[0] or reached == point

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(PackageError, match=r"cannot be read: Input/output error \(is the stick still there") as caught:
        library(tmp_path, at).install(package, digest=digest)
    assert caught.value.cause is Cause.SOURCE
    away[0] = False
    assert library(tmp_path, lambda _point: None).active() == ()
    assert library(tmp_path, lambda _point: None).install(package, digest=digest).changed


def test_a_file_that_grows_or_shrinks_while_it_is_read(tmp_path: Path) -> None:
    package = tiny.base_package(tmp_path)
    digest, size = package_digest(package), package.stat().st_size

    def shrinks(point: str) -> None:
        if point == "verified":
            os.truncate(package, 4096)

    def grows(point: str) -> None:
        with package.open("ab") as file:
            file.write(bytes(4096))

    data = package.read_bytes()
    with pytest.raises(PackageError, match=r"ends \d+ bytes early") as caught:
        library(tmp_path, shrinks).install(package, digest=digest)
    assert caught.value.cause is Cause.SOURCE
    package.write_bytes(data)
    assert library(tmp_path, grows).install(package, digest=digest).changed, "read as far as it was when it was opened"
    assert package.stat().st_size > size
