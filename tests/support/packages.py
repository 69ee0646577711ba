"""Tiny real packages, keys and a prober for tests of the format and the store. Everything is a few kilobytes."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.bundle.probes import ProbeOutcome, ProbeOutputs, ProbeRequest
from edge_agent.bundle.trust import Trust
from edge_agent.bundle.verify import load_trust
from edge_agent.core.paired_times import PairedTimes
from edge_agent.store.variant_selection import Hardware
from edge_forge.package.build import BuiltPackage, base_descriptor, build
from edge_forge.package.keys import KeyFolder, keygen
from edge_forge.package.sources import AdapterPackageSource, ModelSource, ReleaseSource, VariantSource

BASE_ID = "sha256:" + "ba5e" * 16
OTHER_BASE_ID = "sha256:" + "0dd0" * 16
TEXTS = ("turn on the light", "it is cold in here")
ISSUED, EXPIRES = "2026-08-01T00:00:00Z", "2030-01-01T00:00:00Z"
WALL_S = 1_788_000_000.0  # 2026-08-29
CLASSIFY: Mapping[str, object] = {"kind": "classify", "labels": ["light", "heat"], "max_tokens": 32}
HARDWARE = Hardware(names=("test-board", "vendor,test", "x86_64"), runtimes=("onnx", "echo"))


@functools.cache
def keys() -> KeyFolder:
    """One set of keys for a test run. The folder holds private keys and goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="edge-test-keys-")
    atexit.register(folder.cleanup)
    return keygen(Path(folder.name) / "keys")


@functools.cache
def trust() -> Trust:
    """The root of `keys()`."""
    return load_trust(keys().root_file)


def onnx_bytes(payload: bytes) -> bytes:
    """The least that reads as an ONNX model: ir_version 8 and a graph whose doc_string is `payload`."""
    graph = b"\x52" + _varint(len(payload)) + payload
    return b"\x08\x08" + b"\x3a" + _varint(len(graph)) + graph


def safetensors_bytes(tensors: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], seed: int = 0) -> bytes:
    """A safetensors file of float32 tensors with values that depend on `seed`."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    data = b""
    for name, shape in tensors.items():
        count = functools.reduce(lambda a, b: a * b, shape, 1)
        values = struct.pack(f"<{count}f", *[(seed + index) % 7 / 7 for index in range(count)])
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def features(text: str, variant: str, adapter: str | None) -> tuple[float, ...]:
    """What the imaginary model puts out: depends on text and adapter, and by a hair on the variant."""
    digest = hashlib.sha256(text.encode()).digest()[:8]
    shift = 0.0 if adapter is None else 0.5 + len(adapter) / 100
    return tuple(byte / 255 + shift + len(variant) * 1e-4 for byte in digest)


def probe_file(folder: Path, variants: Sequence[str], adapter: str | None = None, off: float = 0.0) -> Path:
    """Golden probes that the `TinyProber` meets; `off` shifts what is expected, so that it does not."""
    expected: dict[str, object] = {}
    for name in variants:
        rows = [[value + off for value in features(text, name, adapter)] for text in TEXTS]
        entry: dict[str, object] = {"features": rows, "features_tolerance": 0.01}
        if adapter is not None:
            entry.update(min_effect=0.05, logits=[row[:2] for row in rows], logits_tolerance=0.01)
        expected[name] = entry
    path = folder / f"probes-{adapter or 'base'}.json"
    path.write_text(json.dumps({"schema": 1, "texts": list(TEXTS), "expected": expected}))
    return path


@dataclass
class TinyProber:
    """Answers as `features` says; can be told to ignore adapters or to fail, and remembers what it was asked."""

    deaf: bool = False
    error: Exception | None = None
    asked: list[tuple[str, tuple[str | None, ...]]] = field(default_factory=list)

    def probe(self, model: InstalledModel, requests: Sequence[ProbeRequest]) -> ProbeOutcome:
        """See `install_plan.Prober`."""
        self.asked.append((model.name, tuple(request.adapter for request in requests)))
        if self.error is not None:
            raise self.error
        assert all(Path(path).exists() for path in model.variant.files.values())
        measured = []
        for request in requests:
            adapter = None if self.deaf else request.adapter
            rows = [features(text, model.variant.name, adapter) for text in request.texts]
            measured.append(ProbeOutputs(rows, [row[:2] for row in rows]))
        names = [request.adapter for request in requests if request.adapter is not None]
        adapters = {name: TrialFigures(2.5, 0, 0.0, len(TEXTS[0])) for name in names}
        return ProbeOutcome(tuple(measured), TrialFigures(1.5, 1000, 0.5, 0), adapters)

    def compare_times(self, models: Sequence[InstalledModel], text: str) -> PairedTimes:
        """See `install_plan.Prober`: all variants are as fast as each other."""
        return PairedTimes({model.variant.digest: [1.5] * 31 for model in models})


def release(product: str, counter: int = 1, **fields: object) -> ReleaseSource:
    """A release that is valid at `WALL_S`."""
    known: dict[str, object] = {"issued_at": ISSUED, "expires": EXPIRES, **fields}
    return ReleaseSource(product=product, counter=counter, **known)  # type: ignore[arg-type]


def model_source(
    folder: Path, name: str = "tiny", seed: int = 1, base_id: str = BASE_ID, off: float = 0.0
) -> ModelSource:
    """A model in two variants, with a tokenizer and a card."""
    folder.mkdir(parents=True, exist_ok=True)
    variants = []
    for dtype, accuracy, size in (("fp32", 0.91, 4000), ("int8", 0.905, 1000)):
        weights = folder / f"{dtype}.onnx"
        weights.write_bytes(onnx_bytes(f"{dtype}{seed}".encode() * (size // 8)))
        variants.append(VariantSource(weights, "onnx", dtype, peak_bytes=size * 10, accuracy=accuracy))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text('{"version": "1.0", "model": {}}')
    card = folder / "card.md"
    card.write_text("# Tiny\n\nA model for tests.\n")
    return ModelSource(
        name=name,
        base_id=base_id,
        task={"kind": "embed", "max_tokens": 32},
        variants=variants,
        probes=probe_file(folder, ["onnx/fp32", "onnx/int8"], off=off),
        tokenizer=tokenizer,
        docs={"README.md": card},
        licences=("Apache-2.0",),
        architecture="bert",
    )


def adapter_source(folder: Path, name: str = "intents", seed: int = 1, base_id: str = BASE_ID) -> AdapterPackageSource:
    """An adapter of rank 4 with two labels."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    shapes = {"layer.0.query.A": (8, 4), "layer.0.query.B": (4, 8), "head.weight": (8, 2), "head.bias": (2,)}
    weights.write_bytes(safetensors_bytes(shapes, {"format": "edge-adapter/1", "base_id": base_id, "rank": "4"}, seed))
    return AdapterPackageSource(
        name=name,
        base_id=base_id,
        weights=weights,
        rank=4,
        alpha=8.0,
        targets=["layer.0.query"],
        task=CLASSIFY,
        probes=probe_file(folder, ["onnx/fp32", "onnx/int8"], adapter=name),
    )


def base_package(folder: Path, counter: int = 1, name: str = "tiny", seed: int = 1, **fields: object) -> Path:
    """A signed base package as a tar."""
    out = folder / f"{name}-{counter}.tar"
    return _built(out, release(name, counter, **fields), model_source(folder / f"src-{name}-{seed}", name, seed)).path


def adapter_package(
    folder: Path, base: Path, counter: int = 1, name: str = "intents", seed: int = 1, base_id: str = BASE_ID
) -> Path:
    """A signed package of one adapter alone."""
    source = adapter_source(folder / f"src-{name}-{seed}", name, seed, base_id)
    subject = base_descriptor(base, BASE_ID)
    out = folder / f"{name}-{counter}.tar"
    return build(out, release(name, counter), None, [source], subject, [keys().release_key]).path


def _built(
    out: Path, statement: ReleaseSource, model: ModelSource, adapters: Sequence[AdapterPackageSource] = ()
) -> BuiltPackage:
    return build(out, statement, model, adapters, keys=[keys().release_key])


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])
