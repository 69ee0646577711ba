"""The worst unsigned packages known, and what their reader takes of time and memory.

`python -m tests.support.unsigned_bytes` prints the table of docs/figures.md: processor time of one thread, the shortest
of ten readings, and the most memory that Python held.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import EdgeError
from edge_agent.bundle import tarform
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import RELEASE_TYPE
from edge_agent.bundle.verify import read_release
from edge_agent.store.registry_download import read_artefact
from tests.support import packages as tiny

ROUNDS = 10
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
    "members": {
        "release.dsse.json": b"{}",
        **{f"blobs/sha256/{place:064x}": b"" for place in range(limits.PACKAGE_MEMBERS - 8)},
    },
    "root files": {
        "release.dsse.json": envelope(b"{}"),
        **{f"root/{place}.json": STATEMENTS["keys"] for place in range(1, 9)},
    },
}


D = b'{"mediaType":"application/octet-stream","digest":"sha256:' + b"a" * 64 + b'","size":1,"annotations":{'
TITLED = D + b'"org.opencontainers.image.title":"x"}}'
ARTEFACT = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
    b'"artifactType":"application/vnd.edge-agent.package.v1+json","config":' + TITLED + b',"layers":['
)
ARTEFACTS = {
    **STATEMENTS,
    "layers": ARTEFACT + b",".join([TITLED] * 1000) + b"]}",
    "annotations": ARTEFACT + D + b",".join(b'"%x":""' % number for number in range(SIZE // 12)) + b"}}]}",
}
"""What a registry may give as the manifest of a package."""


def write(name: str, path: Path) -> None:
    """The package of that name as a tar."""
    with path.open("wb") as file:
        for member, data in FILES[name].items():
            file.write(tarform.header(member, len(data)) + data + bytes(tarform.padding(len(data))))
        file.write(tarform.END)


def refuse(path: Path, allow_unsigned: bool) -> None:
    """Have the package read. Raises AssertionError where it is not refused."""
    trust = tiny.trust()
    try:
        with open_package(path) as package:
            read_release(package, trust, allow_unsigned)
    except EdgeError:
        return
    raise AssertionError(f"{path} was not refused")


def read_manifest(data: bytes) -> None:
    """Have the manifest of a package in a registry read; whether it is refused is not asked: its files are next."""
    with contextlib.suppress(EdgeError):
        read_artefact(data, "registry")


def peak_bytes(read: Callable[[], None]) -> int:
    """The most memory that reading it takes."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def cpu_ms(read: Callable[[], None]) -> float:
    """Processor time of one reading, the shortest of several."""
    found = []
    for _ in range(ROUNDS):
        began_s = time.process_time()
        read()
        found.append(time.process_time() - began_s)
    return min(found) * 1000.0


def figures(read: Callable[[], None]) -> tuple[float, int]:
    """(milliseconds, bytes)."""
    return cpu_ms(read), peak_bytes(read)


def main() -> None:
    """Print the table, and the worst of all."""
    worst_ms, worst_bytes, found = (0.0, ""), (0, ""), dict[str, tuple[float, int]]()
    tiny.trust()
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            path = Path(folder) / "p.tar"
            write(name, path)
            for allow in (False, True):
                when = "allowed" if allow else "refused"
                found[f"{name}, unsigned {when}"] = figures(functools.partial(refuse, path, allow))
        for name, data in ARTEFACTS.items():
            found[f"{name}, in a registry"] = figures(functools.partial(read_manifest, data))
    for name, (took_ms, held) in found.items():
        print(f"{name:<64} {took_ms:6.1f} ms  {held / limits.MIB:5.1f} MiB")
        worst_ms, worst_bytes = max(worst_ms, (took_ms, name)), max(worst_bytes, (held, name))
    print(f"worst: {worst_ms[0]:.1f} ms ({worst_ms[1]}), {worst_bytes[0] / limits.MIB:.1f} MiB ({worst_bytes[1]})")


if __name__ == "__main__":
    main()
