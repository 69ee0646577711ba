"""A package that is named by its digest is refused for what the digest covers; all else is the fault of a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import PackageError
from edge_agent.store.inbox_packages import package_digest
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from tests.support import packages as tiny


def library(tmp_path: Path, **changes: object) -> ModelStore:
    known = InstallContext(prober=tiny.TinyProber(), hardware=tiny.HARDWARE, trust=tiny.trust(), reserve_bytes=0)
    return ModelStore(tmp_path / "store", replace(known, **changes))  # type: ignore[arg-type]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a page of a captive portal": lambda _data: b"<html>" + b"x" * 4096,
    "cut off": lambda data: data[:-4096],
    "nothing": lambda _data: b"",
    "a byte of the weights": lambda data: flipped(data, len(data) - 1024 - 512),
    "a byte of the index": lambda data: flipped(data, data.index(b"index.json\0") + 512 + 20),
    "a byte of the statement": lambda data: flipped(data, 512 + 40),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_source_made_of_a_package_is_the_sources_fault(tmp_path: Path, damage: str) -> None:
    package = tiny.base_package(tmp_path)
    digest, good = package_digest(package), package.read_bytes()
    store = library(tmp_path)
    package.write_bytes(DAMAGES[damage](good))
    with pytest.raises(PackageError) as caught:
        store.install(package, digest=digest)
    assert caught.value.cause is Cause.SOURCE, caught.value
    with pytest.raises(PackageError) as caught:
        store.install(package)
    assert caught.value.cause is not Cause.SOURCE, "by hand it is this very file that was meant"
    package.write_bytes(good)
    assert store.install(package, digest=digest).changed


def test_another_package_under_the_name_is_not_installed(tmp_path: Path) -> None:
    one, two = tiny.base_package(tmp_path, 1), tiny.base_package(tmp_path, 2, seed=2)
    with pytest.raises(PackageError, match="was asked for") as caught:
        library(tmp_path).install(two, digest=package_digest(one))
    assert caught.value.cause is Cause.SOURCE and library(tmp_path).active() == ()


def test_a_package_that_is_whole_is_refused_for_good(tmp_path: Path) -> None:
    package = tiny.adapter_package(tmp_path, tiny.base_package(tmp_path))
    with pytest.raises(PackageError, match="no base is installed") as caught:
        library(tmp_path).install(package, digest=package_digest(package))
    assert caught.value.cause is Cause.PACKAGE_REFUSED
    off = tiny.model_source(tmp_path / "off", "off", 9, off=5.0)
    failing = tiny._built(tmp_path / "off.tar", tiny.release("off", 1), off).path
    with pytest.raises(PackageError) as caught:
        library(tmp_path).install(failing, digest=package_digest(failing))
    assert caught.value.cause is Cause.PROBES_FAILED


def test_a_signature_and_a_missing_trust_root_keep_their_causes(tmp_path: Path) -> None:
    package = tiny.base_package(tmp_path, 2)
    library(tmp_path).install(package)
    older = tiny.base_package(tmp_path, 1, seed=7)
    with pytest.raises(PackageError, match="is older than 2") as caught:
        library(tmp_path).install(older, digest=package_digest(older))
    assert caught.value.cause is Cause.SIGNATURE
    with pytest.raises(PackageError, match="no trust root") as caught:
        library(tmp_path, trust=None).install(package, digest=package_digest(package))
    assert caught.value.cause is Cause.NO_TRUST_ROOT
