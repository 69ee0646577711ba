"""The state of the demo's device: kept while its packages fit, removed for others, which the device would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.base.errors import EdgeError
from edge_agent.demo.device import renew_state, stamp, state_fits


def package(folder: Path, name: str, contents: bytes) -> Path:
    path = folder / name
    path.write_bytes(contents)
    return path


def root(folder: Path, contents: bytes = b"{}") -> Path:
    return package(folder, "root.json", contents)


def committed(folder: Path) -> Path:
    """A state that a device committed something in."""
    mark = folder / "state" / "counters.json"
    mark.parent.mkdir(exist_ok=True)
    mark.write_text("{}")
    return mark


def test_a_second_run_with_the_same_packages_keeps_the_state(tmp_path: Path) -> None:
    packages = [package(tmp_path, "minilm-aa.tar", b"one")]
    assert state_fits(tmp_path, packages, root(tmp_path))
    stamp(tmp_path, packages, root(tmp_path))
    committed(tmp_path)
    assert state_fits(tmp_path, packages, root(tmp_path))


def test_a_further_package_fits_what_was_installed_before(tmp_path: Path) -> None:
    first = [package(tmp_path, "minilm-aa.tar", b"one")]
    stamp(tmp_path, first, root(tmp_path))
    committed(tmp_path)
    more = [*first, package(tmp_path, "urgency-v1.tar", b"two")]
    assert state_fits(tmp_path, more, root(tmp_path))
    stamp(tmp_path, more, root(tmp_path))
    assert state_fits(tmp_path, first, root(tmp_path))


@pytest.mark.parametrize(
    ("name", "contents", "keys"),
    [("minilm-aa.tar", b"two", b"{}"), ("minilm-bb.tar", b"two", b"{}"), ("minilm-aa.tar", b"one", b'{"keys": []}')],
)
def test_other_contents_of_a_product_or_other_keys_do_not_fit(
    tmp_path: Path, name: str, contents: bytes, keys: bytes
) -> None:
    stamp(tmp_path, [package(tmp_path, "minilm-aa.tar", b"one")], root(tmp_path))
    mark = committed(tmp_path)
    others = [package(tmp_path, name, contents)]
    assert not state_fits(tmp_path, others, root(tmp_path, keys))
    renew_state(tmp_path)
    assert not mark.exists()
    stamp(tmp_path, others, root(tmp_path, keys))
    committed(tmp_path)
    assert state_fits(tmp_path, others, root(tmp_path, keys))


def test_a_state_of_unknown_packages_does_not_fit(tmp_path: Path) -> None:
    committed(tmp_path)
    assert not state_fits(tmp_path, [package(tmp_path, "minilm-aa.tar", b"one")], root(tmp_path))


def test_a_missing_package_is_a_sentence_and_removes_nothing(tmp_path: Path) -> None:
    mark = committed(tmp_path)
    with pytest.raises(EdgeError, match=r"minilm-v1\.tar"):
        state_fits(tmp_path, [tmp_path / "minilm-v1.tar"], root(tmp_path))
    assert mark.exists()


@pytest.mark.parametrize("contents", [b"\xff\xfe", b"no digest"])
def test_a_damaged_note_is_a_sentence(tmp_path: Path, contents: bytes) -> None:
    committed(tmp_path)
    package(tmp_path, "packages.sha256", contents)
    with pytest.raises(EdgeError, match="cannot be compared"):
        state_fits(tmp_path, [package(tmp_path, "minilm-aa.tar", b"one")], root(tmp_path))
