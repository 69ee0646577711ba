"""Hostile packages, made as files: each function takes a good package and a folder and writes one attack.

An attack on what is inside the signature is signed with the good key: the reader's own bounds must hold even when the
signer is careless or bought.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.base.errors import EdgeError
from edge_agent.bundle import jsonio, sign, tarform
from edge_agent.bundle.layout import blob_name, open_package
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE
from tests.support import packages as tiny

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
GIB = 1024**3


Make = Callable[["Good", Path], Path]
"""Writes an attack into a folder and returns its path."""


class Good(NamedTuple):
    """Good packages to start from: the base that is installed, a newer base, an adapter."""

    base: Path
    newer: Path
    adapter: Path
    folder: Path


class Attack(NamedTuple):
    """How to make it, the error it must get, and a part of its sentence."""

    make: Make
    error: type[EdgeError]
    says: str


def read_parts(package: Path) -> dict[str, bytes]:
    """Every file of a package by name."""
    with open_package(package) as opened:
        return {name: b"".join(opened.stream(name)) for name in opened.sizes}


def write_parts(out: Path, parts: Mapping[str, bytes], order: list[str] | None = None) -> Path:
    """A tar of these files, in the format's order or in the one given (a name may come twice)."""
    names = sorted(parts, key=tarform.order) if order is None else order
    with out.open("wb") as file:
        for name in names:
            file.write(member(name, parts[name]))
        file.write(tarform.END)
    return out


def member(name: str, data: bytes) -> bytes:
    """One well-formed member."""
    return tarform.header(name, len(data)) + data + bytes(tarform.padding(len(data)))


def raw_header(name: bytes, size: int = 0, **fields: bytes) -> bytes:
    """A header with a right checksum in which any field may be wrong: mode, kind, link, size_field, magic, prefix."""
    block = bytearray(512)
    block[0 : len(name[:100])] = name[:100]
    block[100:108] = fields.get("mode", b"0000644\x00")
    block[108:124] = b"0000000\x000000000\x00"
    block[124:136] = fields.get("size_field", b"%011o\x00" % size)
    block[136:148] = b"00000000000\x00"
    block[148:156] = b" " * 8
    block[156:157] = fields.get("kind", b"0")
    link = fields.get("link", b"")
    block[157 : 157 + len(link)] = link
    block[257:265] = fields.get("magic", b"ustar\x0000")
    block[329:345] = b"0000000\x000000000\x00"
    prefix = fields.get("prefix", b"")
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


class Forge:
    """A good package taken apart: change documents, then `write` pins digests again and signs."""

    def __init__(self, package: Path) -> None:
        self.parts = read_parts(package)
        self.index: Any = json.loads(self.parts["index.json"])
        envelope = json.loads(self.parts[RELEASE_FILE])
        self.release: Any = json.loads(sign._from_base64(envelope["payload"], "test"))

    def blob(self, data: bytes) -> dict[str, Any]:
        """Add a blob; its digest and size."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.parts[blob_name(digest)] = data
        return {"digest": digest, "size": len(data)}

    def manifest(self, number: int = 0) -> Any:
        """A manifest as JSON values."""
        return json.loads(self.parts[blob_name(self.index["manifests"][number]["digest"])])

    def set_manifest(self, manifest: object, number: int = 0, raw: bytes | None = None) -> None:
        """Put a changed manifest in the place of one; the old blob goes."""
        entry = self.index["manifests"][number]
        self.parts.pop(blob_name(entry["digest"]), None)
        entry.update(self.blob(json.dumps(manifest).encode() if raw is None else raw))

    def edit(self, change: Callable[[Any], None], number: int = 0) -> None:
        """Change a manifest in place."""
        manifest = self.manifest(number)
        change(manifest)
        self.set_manifest(manifest, number)

    def edit_layer(self, path: str, data: bytes, number: int = 0) -> None:
        """Put other contents behind a layer, with the right digest and size."""

        def change(manifest: Any) -> None:
            layer = self.layer(manifest, path)
            self.parts.pop(blob_name(layer["digest"]), None)
            layer.update(self.blob(data))

        self.edit(change, number)

    @staticmethod
    def layer(manifest: Any, path: str) -> Any:
        """The layer of that file path."""
        return next(one for one in manifest["layers"] if one["annotations"]["org.cncf.model.filepath"] == path)

    def write(self, out: Path, index: bytes | None = None, keys: list[sign.PrivateKey] | None = None) -> Path:
        """Pin the index, sign, write the tar."""
        raw = json.dumps(self.index).encode() if index is None else index
        self.parts["index.json"] = raw
        self.release["index"] = {"digest": "sha256:" + hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        self.sign(keys)
        return write_parts(out, self.parts)

    def sign(self, keys: list[sign.PrivateKey] | None = None) -> None:
        """Sign the statement as it is."""
        signers = [sign.PrivateKey.load(tiny.keys().release_key)] if keys is None else keys
        self.parts[RELEASE_FILE] = sign.wrap(RELEASE_TYPE, jsonio.encode(self.release), signers)


def forged(change: Callable[[Forge], None], **write: Any) -> Make:
    """A newer base package that is changed, pinned again and signed with the good key."""

    def make(good: Good, folder: Path) -> Path:
        forge = Forge(good.newer)
        change(forge)
        return forge.write(folder / "forged.tar", **write)

    return make


def unpinned(change: Callable[[Forge], None]) -> Make:
    """A newer base package whose parts are changed under the old signature."""

    def make(good: Good, folder: Path) -> Path:
        forge = Forge(good.newer)
        change(forge)
        return write_parts(folder / "unpinned.tar", forge.parts)

    return make


def deep_json(levels: int = 5000) -> bytes:
    """`levels` arrays inside each other."""
    return b"[" * levels + b"]" * levels


def bad_safetensors(kind: str, base_id: str) -> bytes:
    """A safetensors file that lies: 'header-size', 'overlap', 'shape', 'gap', 'base'."""
    good = tiny.safetensors_bytes(
        {"head.weight": (8, 2), "head.bias": (2,)},
        {"format": "edge-adapter/1", "base_id": base_id if kind != "base" else tiny.OTHER_BASE_ID},
    )
    if kind == "base":
        return good
    if kind == "header-size":
        return struct.pack("<Q", 2**62) + good[8:]
    length = struct.unpack("<Q", good[:8])[0]
    table = json.loads(good[8 : 8 + length])
    if kind == "overlap":
        table["head.bias"]["data_offsets"] = [0, 8]
    elif kind == "shape":
        table["head.bias"]["shape"] = [2**20]
    elif kind == "gap":
        table["head.bias"]["data_offsets"] = [72, 80]
    head = json.dumps(table).encode()
    return struct.pack("<Q", len(head)) + head + good[8 + length :]
