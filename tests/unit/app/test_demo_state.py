"""The state of the demo's device: kept for the same packages, removed for others, which the device would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.base.errors import EdgeError
from edge_agent.demo.stage import DemoPackages, renew_state


def built(folder: Path, package: bytes, root: bytes = b"{}") -> DemoPackages:
    (folder / "minilm-v1.tar").write_bytes(package)
    (folder / "root.json").write_bytes(root)
    return DemoPackages((folder / "minilm-v1.tar",), folder / "root.json")


def committed(folder: Path) -> Path:
    """A state that a device committed something in."""
    mark = folder / "state" / "counters.json"
    mark.parent.mkdir(exist_ok=True)
    mark.write_text("{}")
    return mark


def test_a_second_run_with_the_same_packages_keeps_the_state(tmp_path: Path) -> None:
    assert not renew_state(tmp_path, built(tmp_path, b"one"))
    mark = committed(tmp_path)
    assert not renew_state(tmp_path, built(tmp_path, b"one"))
    assert mark.exists()


@pytest.mark.parametrize(("package", "root"), [(b"two", b"{}"), (b"one", b'{"keys": []}')])
def test_other_contents_of_a_version_or_other_keys_begin_anew(tmp_path: Path, package: bytes, root: bytes) -> None:
    renew_state(tmp_path, built(tmp_path, b"one"))
    mark = committed(tmp_path)
    assert renew_state(tmp_path, built(tmp_path, package, root))
    assert not mark.exists()
    mark = committed(tmp_path)
    assert not renew_state(tmp_path, built(tmp_path, package, root))
    assert mark.exists()


def test_a_state_of_unknown_packages_is_removed(tmp_path: Path) -> None:
    mark = committed(tmp_path)
    assert renew_state(tmp_path, built(tmp_path, b"one"))
    assert not mark.exists()


def test_a_missing_package_is_a_sentence_and_removes_nothing(tmp_path: Path) -> None:
    mark = committed(tmp_path)
    packages = built(tmp_path, b"one")
    packages.packages[0].unlink()
    with pytest.raises(EdgeError, match=r"minilm-v1\.tar"):
        renew_state(tmp_path, packages)
    assert mark.exists()
