"""What unsigned bytes make the reader of a package hold, for the worst inputs known: at most 16 MiB.

Time is not judged here, since a busy machine has none to compare: `python -m tests.support.unsigned_bytes` prints it.
The counts that bound the steps are asserted by the sentences.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from edge_agent.base import limits
from tests.support.unsigned_bytes import ARTEFACTS, FILES, peak_bytes, read_manifest, refuse, write


@pytest.mark.parametrize("allow_unsigned", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_unsigned_bytes_make_nothing_large(name: str, allow_unsigned: bool, tmp_path: Path) -> None:
    path = tmp_path / "p.tar"
    write(name, path)
    assert peak_bytes(functools.partial(refuse, path, allow_unsigned)) <= 16 * limits.MIB


@pytest.mark.parametrize("name", ARTEFACTS)
def test_what_a_registry_gives_makes_nothing_large(name: str) -> None:
    assert len(ARTEFACTS[name]) > limits.ARTEFACT_BYTES / 2
    assert peak_bytes(functools.partial(read_manifest, ARTEFACTS[name])) <= 16 * limits.MIB
