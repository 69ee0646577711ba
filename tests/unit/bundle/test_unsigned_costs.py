"""What unsigned bytes make the reader of a package hold, for the worst inputs known: at most 16 MiB.

Time is not judged here, since a busy machine has none to compare. Each of these takes at most 31 ms of processor time
of an x86-64 server core of 2026; the counts that bound the steps are asserted by the sentences.
"""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path

import pytest

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle import tarform
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import RELEASE_TYPE
from edge_agent.bundle.verify import read_release
from tests.support import packages as tiny

SIZE = limits.STATEMENT_BYTES - 16


def listed(item: bytes) -> bytes:
    """A list of as many of these as a statement may hold."""
    return b"[" + item * (SIZE // len(item)) + b"0]"


def envelope(payload: bytes) -> bytes:
    """An unsigned statement with this payload."""
    text = base64.b64encode(payload).decode()
    return json.dumps({"payloadType": RELEASE_TYPE, "payload": text, "signatures": []}).encode()


STATEMENTS = {
    "a quote, escaped over and over": b'{"' + rb"\"" * (SIZE // 2),
    "empty lists": listed(b"[],"),
    "empty objects": listed(b"{},"),
    "empty texts": listed(b'"",'),
    "texts of a bracket": listed(b'"[",'),
    "brackets and quotes behind a backslash": b'["' + b'[\\\\""' * (SIZE // 4),
    "numbers": listed(b"0,"),
    "fractions": listed(b"1.5,"),
    "long numbers": listed(b"9" * 4000 + b","),
    "keys": b"{" + b",".join(b'"%x":0' % number for number in range(SIZE // 9)) + b"}",
    "a long text": envelope(b"x" * (SIZE // 2)),
    "a text of escapes": b'["' + rb"\u00e4" * (SIZE // 6) + b'"]',
    "a text of four bytes each": b'{"a":"' + "\U0001f600".encode() * (SIZE // 4) + b'"}',
    "a payload of lists": envelope(listed(b"[],")[: SIZE // 2] + b"]"),
}
FILES = {
    **{name: {"release.dsse.json": data} for name, data in STATEMENTS.items()},
    "members": {"release.dsse.json": b"{}", **{f"blobs/sha256/{place:064x}": b"" for place in range(4000)}},
    "root files": {
        "release.dsse.json": envelope(b"{}"),
        **{f"root/{place}.json": STATEMENTS["keys"] for place in range(1, 9)},
    },
}


@pytest.mark.parametrize("allow_unsigned", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_unsigned_bytes_make_nothing_large(name: str, allow_unsigned: bool, tmp_path: Path) -> None:
    path = tmp_path / "p.tar"
    with path.open("wb") as file:
        for member, data in FILES[name].items():
            file.write(tarform.header(member, len(data)) + data + bytes(tarform.padding(len(data))))
        file.write(tarform.END)
    trust = tiny.trust()
    tracemalloc.start()
    try:
        with pytest.raises(EdgeError), open_package(path) as package:
            read_release(package, trust, allow_unsigned)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes <= 16 * limits.MIB
