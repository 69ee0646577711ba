"""A signed package of the small encoder, with a tokenizer of seven words and golden probes, made without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource as Attached
from edge_agent.backends.api import Done, Limits, SessionJob
from edge_forge.export.onnx.tensorrt_form import for_tensorrt
from edge_forge.package.build import build
from edge_forge.package.sources import AdapterPackageSource, ModelSource, VariantSource
from tests.support import small_graph
from tests.support.packages import keys, release

WORDS = ("[PAD]", "[UNK]", "turn", "on", "the", "light", "cold")
TEXTS = ("turn on the light", "the cold light")
LABELS = ["light", "heat", "other"]


def tokenizer(path: Path) -> Path:
    """A tokenizer of seven words."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
    return path


def rows() -> list[list[int]]:
    """The token ids of the probe texts."""
    return [[WORDS.index(word) for word in text.split()] for text in TEXTS]


def probes(folder: Path, variants: Sequence[str], graph: Path, adapter: Path | None) -> Path:
    """Golden probes as ONNX Runtime computes them here; variants in float16 may be farther off."""
    session = registry.create("onnx").load(
        {"model": str(graph)},
        {"max_rows": 4, "max_tokens": 16, "base_id": small_graph.BASE_ID, "threads": 1},
    )
    if adapter is not None:
        session.attach(Attached("one", str(adapter), small_graph.BASE_ID))
    session.submit(SessionJob("probe", None if adapter is None else "one", rows(), {}))
    (event,) = session.step(Limits(8, 1))
    assert isinstance(event, Done)
    entry: dict[str, Any] = {"features": [[float(x) for x in row] for row in event.outputs["features"]]}
    if adapter is not None:
        entry["logits"] = [[float(x) for x in row] for row in event.outputs["logits"]]
        entry["min_effect"] = 1e-3
    session.close()
    expected = {}
    for name in variants:
        off = 1e-3 if name.endswith("/fp32") else 2e-2
        expected[name] = {**entry, "features_tolerance": off}
        if adapter is not None:
            expected[name]["logits_tolerance"] = 5 * off
    path = folder / f"probes-{'base' if adapter is None else 'one'}.json"
    path.write_text(json.dumps({"schema": 1, "texts": list(TEXTS), "expected": expected}))
    return path


def _variant(graph: Path, name: str) -> VariantSource:
    runtime, _, dtype = name.partition("/")
    if runtime != "tensorrt":
        return VariantSource(graph, runtime, dtype, peak_bytes=1 << 20)
    shipped = graph.with_name("small-tensorrt.onnx")
    plain = small_graph.banked(graph.with_name("small-plain.onnx"), of_tokens=False)
    onnx.save(for_tensorrt(onnx.load(plain), small_graph.RANK), shipped)
    return VariantSource(shipped, runtime, dtype, peak_bytes=1 << 20, options={"precision": dtype})


def small_package(folder: Path, *variants: str, counter: int = 1) -> Path:
    """A signed package: a small encoder with an adapter bank, and one adapter. `variants`: onnx/fp32 (without any),
    tensorrt/fp32, tensorrt/fp16."""
    variants = variants or ("onnx/fp32",)
    graph = small_graph.banked(folder / "small.onnx")
    weights = small_graph.write_adapter(folder / "one.safetensors", small_graph.adapter(1))
    task = {"kind": "classify", "labels": LABELS, "max_tokens": 16}
    model = ModelSource(
        name="small",
        base_id=small_graph.BASE_ID,
        task={"kind": "embed", "max_tokens": 16},
        variants=[_variant(graph, name) for name in variants],
        probes=probes(folder, variants, graph, None),
        tokenizer=tokenizer(folder / "tokenizer.json"),
        licences=("Apache-2.0",),
    )
    adapter = AdapterPackageSource(
        name="one",
        base_id=small_graph.BASE_ID,
        weights=weights,
        rank=small_graph.RANK,
        alpha=8.0,
        targets=list(small_graph.MODULES),
        task=task,
        probes=probes(folder, variants, graph, weights),
    )
    return build(folder / "small.tar", release("small", counter), model, [adapter], None, [keys().release_key]).path
