"""What unsigned bytes make the reader of a package hold, for the worst inputs known: at most 16 MiB.

Time is not judged here, since a busy machine has none to compare: `python -m tests.support.unsigned_bytes` prints it.
The counts that bound the steps are asserted by the sentences.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.base import limits
from tests.support.unsigned_bytes import FILES, peak_bytes, write


@pytest.mark.parametrize("allow_unsigned", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_unsigned_bytes_make_nothing_large(name: str, allow_unsigned: bool, tmp_path: Path) -> None:
    path = tmp_path / "p.tar"
    write(name, path)
    assert peak_bytes(path, allow_unsigned) <= 16 * limits.MIB
