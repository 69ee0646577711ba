"""Hostile packages as files: each gets its own sentence, and the store stays byte for byte the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import EdgeError, PackageError, SignatureError
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import check_weights, load_trust, read_package, read_release
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_forge.package.keys import keygen, rotate, sign_package
from tests.support import hostile
from tests.support import packages as tiny
from tests.support.attacks_container import CONTAINER
from tests.support.attacks_documents import DOCUMENTS
from tests.support.attacks_signature import SIGNATURE, swapped_payload
from tests.support.hostile import GIB, Forge, Good, unpinned


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    base = tiny.base_package(folder, counter=5)
    newer = tiny.base_package(folder, counter=6, seed=2)
    return Good(base, newer, tiny.adapter_package(folder, base), folder)


def install_context(**changes: Any) -> InstallContext:
    known = {
        "prober": tiny.TinyProber(),
        "hardware": tiny.HARDWARE,
        "trust": tiny.trust(),
        "clock": ManualClock(wall_s=tiny.WALL_S),
        "time_trusted": lambda: True,
        "reserve_bytes": 0,
    }
    return InstallContext(**{**known, **changes})


@pytest.fixture
def store(good: Good, tmp_path: Path) -> Path:
    root = tmp_path / "device" / "store"
    ModelStore(root, install_context()).install(good.base)
    return root


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of the store with its bytes and time."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "change.lock"]
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refuse(store: Path, package: Path, error: type[EdgeError], says: str, **context: Any) -> None:
    """Install must raise exactly this error with this sentence and change nothing."""
    before = snapshot(store)
    library = ModelStore(store, install_context(**context))
    with pytest.raises(EdgeError) as caught:
        library.install(package)
    assert type(caught.value) is error, repr(caught.value)
    assert says in str(caught.value)
    assert snapshot(store) == before
    assert [model.version for model in library.active()] == [1]


ATTACKS = {**CONTAINER, **SIGNATURE, **DOCUMENTS}


@pytest.mark.parametrize("name", ATTACKS)
def test_refused_by_name_and_without_a_trace(name: str, good: Good, store: Path, tmp_path: Path) -> None:
    attack = ATTACKS[name]
    package = attack.make(good, tmp_path)
    started = time.monotonic()
    refuse(store, package, attack.error, attack.says, free_bytes=lambda _path: 4 * GIB)
    assert time.monotonic() - started < 5, "refusing must not cost the work of accepting"


def test_the_good_ones_are_good(good: Good, tmp_path: Path) -> None:
    """What the attacks start from installs; else every one of them would be refused for nothing."""
    library = ModelStore(tmp_path / "store", install_context())
    for package in (good.base, good.newer, good.adapter):
        assert library.install(package).changed


# --- folders -----------------------------------------------------------------------------------------------------


def unpack(package: Path, folder: Path) -> Path:
    for name, data in hostile.read_parts(package).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def a_blob(folder: Path) -> Path:
    return max((folder / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def link_blob(folder: Path) -> None:
    blob = a_blob(folder)
    blob.rename(folder.parent / "elsewhere")
    blob.symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    (folder / "blobs").rename(folder.parent / "blobs")
    (folder / "blobs").symlink_to(folder.parent / "blobs")


def fifo(folder: Path) -> None:
    blob = a_blob(folder)
    blob.unlink()
    os.mkfifo(blob)


def sparse(folder: Path) -> None:
    os.truncate(a_blob(folder), 5 * GIB)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "linked-blob": (link_blob, "a link or device"),
    "linked-folder": (link_folder, "a link or no folder"),
    "fifo": (fifo, "a link or device"),
    "sparse-5-gib": (sparse, "its descriptor says"),
    "extra-file": (lambda folder: (folder / "install.sh").write_text("x"), "is no file of a package"),
    "extra-folder": (lambda folder: (folder / "scripts").mkdir(), "is no file of a package"),
    "file-for-folder": (lambda folder: (folder / "root").write_text("x"), "a link or no folder"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_refused(name: str, good: Good, store: Path, tmp_path: Path) -> None:
    change, says = FOLDERS[name]
    folder = unpack(good.newer, tmp_path / "package")
    change(folder)
    refuse(store, folder, PackageError, says)


def test_a_good_folder_installs(good: Good, tmp_path: Path) -> None:
    assert ModelStore(tmp_path / "store", install_context()).install(unpack(good.base, tmp_path / "package")).changed


def test_neither_file_nor_folder(store: Path, tmp_path: Path) -> None:
    refuse(store, tmp_path / "absent.tar", PackageError, "there is no such file")
    refuse(store, Path(os.devnull), PackageError, "neither a file nor a folder")


# --- bit flips ---------------------------------------------------------------------------------------------------


def accepted(package: Path) -> bool:
    """True when every check of package, signature and contents passes."""
    try:
        with open_package(package) as opened:
            verified = read_release(opened, tiny.trust())
            check_weights(opened, read_package(opened, verified.release))
    except PackageError:
        return False
    return True


def flipped(data: bytes, at: int, bit: int, out: Path) -> Path:
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    out.write_bytes(damaged)
    return out


def test_no_flipped_bit_is_accepted(good: Good, tmp_path: Path) -> None:
    """Statement, layout and index: a bit of every byte; the rest: a bit of every thirteenth."""
    out = tmp_path / "flipped.tar"
    for package in (good.base, good.adapter):
        data = package.read_bytes()
        assert accepted(package)
        head = [*range(3000), *range(3000, len(data), 13)]
        through = [at for at in head if accepted(flipped(data, at, at % 8, out))]
        assert through == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit(good: Good, tmp_path: Path, place: float, bit: int) -> None:
    data = good.base.read_bytes()
    assert not accepted(flipped(data, int(place * len(data)), bit, tmp_path / "flipped.tar"))


def test_a_flip_in_every_kind_of_file_leaves_the_store_alone(good: Good, store: Path, tmp_path: Path) -> None:
    parts = hostile.read_parts(good.newer)
    for name, data in parts.items():
        damaged = bytearray(data)
        damaged[len(data) // 2] ^= 4
        package = hostile.write_parts(tmp_path / "flip.tar", {**parts, name: bytes(damaged)})
        before = snapshot(store)
        with pytest.raises(PackageError):
            ModelStore(store, install_context()).install(package)
        assert snapshot(store) == before, name


def test_a_flip_in_a_rotated_root(good: Good, tmp_path: Path) -> None:
    """A root file that travels is covered by its own signatures."""
    keys = keygen(tmp_path / "keys")
    trust = load_trust(keys.root_file)
    second = rotate(keys.path)
    package = tmp_path / "rotated.tar"
    package.write_bytes(good.base.read_bytes())
    sign_package(package, [keys.release_key], [second])
    with open_package(package) as opened:
        assert read_release(opened, trust).trust.root.version == 2  # type: ignore[union-attr]
    parts = hostile.read_parts(package)
    data = parts["root/2.json"]
    for at in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        hostile.write_parts(tmp_path / "flip.tar", {**parts, "root/2.json": bytes(damaged)})
        with pytest.raises(PackageError), open_package(tmp_path / "flip.tar") as opened:
            read_release(opened, trust)


# --- time --------------------------------------------------------------------------------------------------------


def test_expiry_needs_a_trusted_clock_or_proof(good: Good, tmp_path: Path) -> None:
    """A clock in 1970 or in 2099 that nobody vouches for refuses nothing; what was signed later does."""
    old = tiny.base_package(tmp_path, counter=1, issued_at="2026-07-02T00:00:00Z", expires="2026-07-20T00:00:00Z")
    for wall_s in (0.0, 4e9):
        context = install_context(clock=ManualClock(wall_s=wall_s), time_trusted=lambda: False)
        assert ModelStore(tmp_path / f"{wall_s}", context).install(old).changed
    context = install_context(clock=ManualClock(wall_s=0.0), time_trusted=lambda: False)
    library = ModelStore(tmp_path / "later", context)
    library.install(tiny.base_package(tmp_path, counter=1, name="other"))
    with pytest.raises(SignatureError, match="expired at"):
        library.install(old)


def test_unsigned_only_when_allowed_and_loudly(good: Good, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = Forge(good.base).write(tmp_path / "unsigned.tar", keys=[])
    library = ModelStore(tmp_path / "store", install_context(allow_unsigned=True))
    report = library.install(package)
    assert report.changed and "unsigned" in report.warnings[0]
    assert any("UNSIGNED PACKAGE" in record.message for record in caplog.records)
    # What nobody signed raises no counter: a signed package of a lower one still installs.
    assert library.install(tiny.base_package(tmp_path, counter=1, seed=9)).changed


def test_without_trust_root_nothing_is_let_in(good: Good, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="no trust root"):
        ModelStore(tmp_path / "store", install_context(trust=None)).install(good.base)


def test_allow_unsigned_does_not_excuse_a_broken_signature(good: Good, tmp_path: Path) -> None:
    package = unpinned(swapped_payload)(good, tmp_path)
    with pytest.raises(SignatureError, match="does not fit"):
        ModelStore(tmp_path / "store", install_context(allow_unsigned=True)).install(package)
