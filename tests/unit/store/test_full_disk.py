"""A disk without room: what is removed makes the room that its removal needs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import StoreError
from edge_agent.store import state_file
from edge_agent.store.announced_state import AnnouncedFile
from edge_agent.store.disk import free_bytes, replace_file
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from tests.support import packages as tiny


def full(root: Path, number: int, room_bytes: int) -> Callable[..., None]:
    """`replace_file` on a disk that holds `room_bytes` of blobs and not a byte more."""

    def replace(path: Path, data: bytes, written: Callable[[], None] = lambda: None) -> None:
        if sum(one.stat().st_size for one in (root / "blobs" / "sha256").iterdir()) >= room_bytes:
            raise OSError(number, os.strerror(number), str(path))
        replace_file(path, data, written)

    return replace


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with two models."""
    context = InstallContext(
        prober=tiny.TinyProber(), hardware=tiny.HARDWARE, trust=tiny.trust(), clock=ManualClock(wall_s=tiny.WALL_S),
        reserve_bytes=0,
    )  # fmt: skip
    store = ModelStore(tmp_path / "store", context)
    store.install(tiny.base_package(tmp_path))
    return store


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_model_is_removed_from_a_full_disk(
    store: ModelStore, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = sum(one.stat().st_size for one in (tmp_path / "store/blobs/sha256").iterdir())
    monkeypatch.setattr(state_file, "replace_file", full(tmp_path / "store", number, held))
    store.remove("tiny")
    assert store.active() == ()
    assert ModelStore(tmp_path / "store").models() == ()
    assert list((tmp_path / "store/blobs/sha256").iterdir()) == []


def test_an_adapter_whose_version_is_kept_needs_room_and_nothing_is_lost(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(tiny.adapter_package(tmp_path, tmp_path / "tiny-1.tar"))
    held = sum(one.stat().st_size for one in (tmp_path / "store/blobs/sha256").iterdir())
    monkeypatch.setattr(state_file, "replace_file", full(tmp_path / "store", errno.ENOSPC, held))
    with pytest.raises(StoreError, match="remove a model"):
        store.remove("tiny", "intents")
    (model,) = store.active()
    assert [one.name for one in model.adapters] == ["intents"]


def test_another_fault_of_the_disk_deletes_nothing(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "replace_file", full(tmp_path / "store", errno.EIO, 0))
    with pytest.raises(StoreError, match="the disk reports errors"):
        store.remove("tiny")
    assert [one.name for one in store.active()] == ["tiny"]


def test_to_look_into_a_store_writes_nothing(tmp_path: Path) -> None:
    """Else root's `edge-agent models` would leave files that the service cannot change."""
    reader = ModelStore(tmp_path / "store")
    assert reader.active() == ()
    assert reader.models() == ()
    assert reader.installed() == {}
    assert reader.generation() == 0
    assert not (tmp_path / "store").exists()


def test_the_announced_state_survives_and_a_damaged_one_is_none(store: ModelStore, tmp_path: Path) -> None:
    kept = AnnouncedFile(tmp_path)
    assert kept.read() is None
    kept.write(store.installed())
    assert kept.read() == store.installed()
    (tmp_path / "announced.json").write_bytes(b"\xff{")
    assert kept.read() is None


def test_a_file_system_that_says_no_size_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE without `statfs` answers zeros; the install would be refused for want of room."""
    real = os.statvfs(tmp_path)
    assert free_bytes(tmp_path) <= real.f_blocks * real.f_frsize
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((512, 0, 0, 0, 0, 0, 0, 0, 0, 255)))
    assert free_bytes(tmp_path) > 1 << 50
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((512, 512, 9, 0, 0, 0, 0, 0, 0, 255)))
    assert free_bytes(tmp_path) == 0
