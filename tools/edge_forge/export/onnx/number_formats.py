"""The quantize step: number formats of an exported graph, and which INT8 is shipped.

`make` writes every candidate of a format into a folder: `fp16`, or `int8-dynamic` and `int8-static`. The candidates are
measured with the device's backend (`edge_forge.evaluate.measure_onnx`), and `choose` says which one is packed, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.export.onnx.export_graphs import Bank
from edge_forge.export.onnx.graph import save
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.quantize import (
    Feed,
    calibrate,
    quantize_dynamic,
    quantize_embeddings,
    quantize_static,
    to_float16,
)

DYNAMIC, STATIC, FLOAT16 = "int8-dynamic", "int8-static", "fp16"
_BATCH_ROWS = 16
# Losses closer than this (in accuracy, as a fraction) are taken for equal, and the faster candidate wins.
_SAME_LOSS = 0.001


class Int8Candidate(NamedTuple):
    """A measured candidate: accuracy on held-out rows (fraction), median latency of one text."""

    accuracy: float
    p50_ms: float


class Int8Choice(NamedTuple):
    """The candidate to pack, its accuracy loss against FP32 (fraction; negative is a gain), and the reason in words."""

    name: str
    loss: float
    reason: str


def make(
    *,
    encoder_path: Path,
    out_dir: Path,
    formats: Sequence[str] = (DYNAMIC, STATIC, FLOAT16),
    calibration: Sequence[str] = (),
    tokenizer_path: Path | None = None,
    max_tokens: int = 128,
    bank: tuple[Bank, Sequence[str]] | None = None,
) -> dict[str, Path]:
    """Write `<format>.onnx` for every format and return the paths.

    `encoder_path` is the export step's float `encoder.onnx`. `calibration` are texts like those to come (static INT8).
    `bank` (the settings and the modules of the export) is injected last. Raises BackendError, ConfigError.
    """
    model = onnx.load(encoder_path)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in formats:
        converted = _converted(model, name, calibration, tokenizer_path, max_tokens)
        if bank is not None:
            if name == FLOAT16:
                raise ConfigError("a banked base has no float16 form yet", "quantize", "ship fp16 as a merged model")
            settings, modules = bank
            inject_bank(converted, modules, settings.rank, settings.max_labels)
        written[name] = out_dir / f"{name}.onnx"
        save(converted, written[name])
    return written


def choose(reference: Int8Candidate, candidates: Mapping[str, Int8Candidate]) -> Int8Choice:
    """The INT8 candidate with the least loss; among those within 0.1 points of it, the fastest. Pure."""
    if not candidates:
        raise BackendError("no INT8 candidate was measured", "quantize")
    least = min(reference.accuracy - found.accuracy for found in candidates.values())
    near = {n: c for n, c in candidates.items() if reference.accuracy - c.accuracy <= least + _SAME_LOSS + 1e-9}
    name = min(near, key=lambda candidate: (near[candidate].p50_ms, candidate))
    loss = reference.accuracy - candidates[name].accuracy
    measured = "; ".join(
        f"{n}: {(reference.accuracy - c.accuracy) * 100:+.2f} points lost, {c.p50_ms:.2f} ms"
        for n, c in sorted(candidates.items())
    )
    why = "the least loss" if len(near) == 1 else "the fastest of those with the least loss"
    return Int8Choice(name, loss, f"{name} has {why} ({measured}; FP32: {reference.p50_ms:.2f} ms)")


def feeds(texts: Sequence[str], tokenizer_path: Path, max_tokens: int) -> list[Feed]:
    """Padded batches of `texts`, texts of like length together."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    rows = sorted((encoding.ids for encoding in tokenizer.encode_batch(list(texts))), key=len)
    batches: list[Feed] = []
    for start in range(0, len(rows), _BATCH_ROWS):
        part = rows[start : start + _BATCH_ROWS]
        ids = np.zeros((len(part), len(part[-1])), np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(part):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def _converted(
    model: onnx.ModelProto, name: str, calibration: Sequence[str], tokenizer_path: Path | None, max_tokens: int
) -> onnx.ModelProto:
    if name == DYNAMIC:
        return quantize_embeddings(quantize_dynamic(model))
    if name == FLOAT16:
        return to_float16(model)
    if name != STATIC:
        raise ConfigError(f"there is no format {name!r}", "quantize", f"there are: {DYNAMIC}, {STATIC}, {FLOAT16}")
    if tokenizer_path is None or not calibration:
        raise ConfigError("static INT8 needs calibration texts and a tokenizer", "quantize")
    ranges = calibrate(model, feeds(calibration, tokenizer_path, max_tokens))
    return quantize_embeddings(quantize_static(model, ranges))
