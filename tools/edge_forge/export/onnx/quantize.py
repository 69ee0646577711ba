"""Number formats of an exported graph, INT8 (dynamic, or static QDQ) and float16, and which INT8 is shipped.

`make` writes every candidate of a format into a folder: `fp16`, or `int8-dynamic` and `int8-static`. The plan measures
them with the device's backend (`evaluate.measure_onnx`), and `choose` says which one is packed, and why.

Graphs are quantised node by node here instead of by ONNX Runtime's quantiser, which fails on graphs of PyTorch's
current exporter (onnxruntime#25890), counts padding into its ranges and wants calibration batches of one length; the
patterns are the ones that ONNX Runtime fuses and TensorRT parses (docs/decisions/0032). Quantised are the named linear
sites, per output channel and symmetric, and large embedding tables (int8 rows with a scale each). All else stays float;
tensor names and the site map survive, so the bank can be injected afterwards. Every conversion returns a new model.
`calibrate` measures the ranges of the sites' inputs on texts of the task, for static INT8.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.export.onnx.graph import FloatArray, GraphEditor, opset, save
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.sites import LinearSite, read_sites

if TYPE_CHECKING:
    from edge_forge.export.onnx.export_graphs import Bank

# The smallest table worth it: below this the extra nodes cost more than the bytes.
EMBEDDING_BYTES_MIN = 1 << 20


class ValueRange(NamedTuple):
    """The interval of a site's input that its int8 codes cover (always contains 0), and the channels left out of it.

    A few channels of a BERT-like encoder reach ten times the others' values. They are multiplied in float32 beside the
    int8 product (Dettmers et al. 2022, LLM.int8(), with the channels fixed by calibration), so that they neither widen
    the range of the rest nor are clipped.
    """

    low: float
    high: float
    outliers: tuple[int, ...] = ()


def quantize_dynamic(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """INT8 weights; activations get uint8 codes at run time, one range per tensor.

    The range spans the whole batch, so a row's result depends slightly on what shares its batch. Sites with a module in
    `keep_float` stay float.
    """
    result = _copy(model)
    editor = GraphEditor(result)
    codes: dict[str, list[str]] = {}
    for _, product in _products(editor, read_sites(model), keep_float):
        weight, scale = _weight_codes(_weight(editor, product))
        x, out = product.input[0], product.output[0]
        if x not in codes:
            codes[x] = [f"{x}.u8", f"{x}.u8_scale", f"{x}.u8_zero"]
            editor.add("DynamicQuantizeLinear", [x], codes[x])
        name = product.input[1]
        w = editor.add_constant(f"{name}.int8", weight)
        w_zero = editor.add_constant(f"{name}.zero", np.zeros(weight.shape[1], np.int8))
        editor.remove([product])
        editor.add("MatMulInteger", [codes[x][0], w, codes[x][2], w_zero], [f"{out}.int32"])
        editor.add("Cast", [f"{out}.int32"], [f"{out}.wide"], to=onnx.TensorProto.FLOAT)
        editor.add("Mul", [codes[x][1], editor.add_constant(f"{name}.scale", scale)], [f"{out}.scale"])
        editor.add("Mul", [f"{out}.wide", f"{out}.scale"], [out])
    return _finished(editor, model)


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, ValueRange], symmetric: bool = False, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """INT8 weights and activations with fixed `ranges` per input tensor (see ``calibrate``), as QDQ nodes.

    A row's result does not depend on its batch. Outlier channels of a range stay float.
    uint8 codes with a zero point are what ONNX Runtime computes fastest; `symmetric` gives int8 codes without one, the
    only form that TensorRT parses. Outputs stay float, so that adapters added to them are never clipped.
    """
    result = _copy(model)
    editor = GraphEditor(result)
    for site, product in _products(editor, read_sites(model), keep_float):
        x = product.input[0]
        if x not in ranges:
            raise BackendError(f"no calibrated range for the input of {site.modules[0]}", "quantize", "calibrate first")
        interval, name = ranges[x], product.input[1]
        values = _weight(editor, product)
        if interval.outliers:
            values = _set_apart(editor, product, values, interval.outliers)
        weight, scale = _weight_codes(values)
        if editor.maker(f"{x}.dq") is None:
            _activation(editor, x, interval, symmetric)
        parts = [
            editor.add_constant(f"{name}.int8", weight),
            editor.add_constant(f"{name}.scale", scale),
            editor.add_constant(f"{name}.zero", np.zeros(weight.shape[1], np.int8)),
        ]
        editor.add("DequantizeLinear", parts, [f"{name}.dq"], axis=1)
        product.input[0], product.input[1] = f"{x}.dq", f"{name}.dq"
    return _finished(editor, model)


def quantize_embeddings(model: onnx.ModelProto) -> onnx.ModelProto:
    """Large tables read by Gather become int8 rows with one float scale each: table[i] = scale[i] * int8[i]."""
    result = _copy(model)
    editor = GraphEditor(result)
    for node in [node for node in result.graph.node if node.op_type == "Gather"]:
        table = editor.constant(node.input[0])
        if table is None or table.dtype != np.float32 or table.ndim != 2 or table.nbytes < EMBEDDING_BYTES_MIN:
            continue
        name, indices, out = node.input[0], node.input[1], node.output[0]
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127.0, 1e-12).astype(np.float32)
        rows = editor.add_constant(f"{name}.int8", np.rint(table / scale).astype(np.int8))
        scales = editor.add_constant(f"{name}.scale", scale)
        editor.remove([node])
        editor.add("Gather", [rows, indices], [f"{out}.int8"])
        editor.add("Cast", [f"{out}.int8"], [f"{out}.wide"], to=onnx.TensorProto.FLOAT)
        editor.add("Gather", [scales, indices], [f"{out}.scale"])
        editor.add("Mul", [f"{out}.wide", f"{out}.scale"], [out])
    return _finished(editor, model)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; inputs, outputs, normalisations and sums over tokens stay float32.

    On ONNX Runtime's CPU provider this saves bytes, not time; it is the format of the Jetson Nano.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # the tool logs through the root logger
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            blocked = [*DEFAULT_OP_BLOCK_LIST, "LayerNormalization", "ReduceSum"]
            converted: onnx.ModelProto = convert_float_to_float16(
                _copy(model), keep_io_types=True, op_block_list=blocked
            )
    finally:
        logging.getLogger().setLevel(level)
    return _finished(GraphEditor(converted), model)


def _products(
    editor: GraphEditor, sites: Sequence[LinearSite], keep_float: Collection[str]
) -> list[tuple[LinearSite, onnx.NodeProto]]:
    """Every site to quantise with its MatMul. Raises BackendError when the graph lost one."""
    by_weight = {node.input[1]: node for node in editor.graph.node if node.op_type == "MatMul"}
    found = []
    for site in sites:
        if not set(site.modules) & set(keep_float):
            product = by_weight.get(site.weight)
            if product is None:
                raise BackendError(f"the product of {site.modules[0]} is not in the graph any more", "quantize")
            found.append((site, product))
    return found


def _weight(editor: GraphEditor, product: onnx.NodeProto) -> FloatArray:
    return np.asarray(editor.constant(product.input[1]), np.float32)


def _weight_codes(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Symmetric int8 codes [d_in, d_out] and one scale per output channel [d_out]."""
    scale = np.maximum(np.abs(weight).max(axis=0) / 127.0, 1e-12).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def _set_apart(editor: GraphEditor, product: onnx.NodeProto, weight: FloatArray, channels: Sequence[int]) -> FloatArray:
    """Multiply some input channels in float32 and add them to the product; returns the weight without them."""
    x, name, out = product.input[0], product.input[1], product.output[0]
    chosen = np.asarray(channels, np.int64)
    taken = editor.add_constant(f"{name}.channels", chosen)
    editor.add("Gather", [x, taken], [f"{out}.x_wide"], axis=-1)
    editor.add("MatMul", [f"{out}.x_wide", editor.add_constant(f"{name}.wide", weight[chosen])], [f"{out}.wide"])
    product.output[0] = f"{out}.narrow"
    editor.add("Add", [f"{out}.narrow", f"{out}.wide"], [out])
    rest = weight.copy()
    rest[chosen] = 0.0
    return rest


def _activation(editor: GraphEditor, x: str, interval: ValueRange, symmetric: bool) -> None:
    if symmetric:
        scale = max(-interval.low, interval.high, 1e-12) / 127.0
        zero: npt.NDArray[np.int8] | npt.NDArray[np.uint8] = np.asarray(0, np.int8)
    else:
        scale = max(interval.high - interval.low, 1e-12) / 255.0
        zero = np.asarray(np.clip(np.rint(-interval.low / scale), 0, 255), np.uint8)
    names = [
        editor.add_constant(f"{x}.q_scale", np.asarray(scale, np.float32)),
        editor.add_constant(f"{x}.q_zero", zero),
    ]
    editor.add("QuantizeLinear", [x, *names], [f"{x}.q"])
    editor.add("DequantizeLinear", [f"{x}.q", *names], [f"{x}.dq"])


def _finished(editor: GraphEditor, original: onnx.ModelProto) -> onnx.ModelProto:
    """The edited model, with the original's metadata. Raises BackendError when a tool changed the opset."""
    model = editor.finish()
    if opset(model) != opset(original):
        raise BackendError(f"the opset changed from {opset(original)} to {opset(model)}", "quantize")
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


Feed = Mapping[str, npt.NDArray[np.int64]]


# Share of a tensor's channels that stay float. Measured on MiniLM: with 0, 1, 2 and 5 % the features are 12.4, 6.9, 4.3
# and 3.9 % off FP32 (docs/decisions/0033).
OUTLIERS = 0.02


def calibrate(model: onnx.ModelProto, feeds: Sequence[Feed], outliers: float = OUTLIERS) -> dict[str, ValueRange]:
    """The range of every tensor that a site's product reads, over `feeds` (input_ids, attention_mask [batch, seq]).

    The `outliers` share of channels with the largest values is left out of the range. The range of the rest is the
    median over the feeds of each feed's smallest and largest value, and contains 0: one odd text does not widen it.
    Padding is not counted. Raises BackendError without feeds.
    """
    if not feeds:
        raise BackendError("INT8 needs calibration rows", "quantize", "give texts of the task")
    names = product_inputs(model)
    session = _session(model, names)
    lows: dict[str, list[FloatArray]] = {name: [] for name in names}
    highs: dict[str, list[FloatArray]] = {name: [] for name in names}
    for feed in feeds:
        kept = feed["attention_mask"].astype(bool)
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            lows[name].append(value[kept].min(axis=0))
            highs[name].append(value[kept].max(axis=0))
    return {name: _range(np.asarray(lows[name]), np.asarray(highs[name]), outliers) for name in names}


def _session(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """The model with `names` as its outputs."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])


def _range(lows: FloatArray, highs: FloatArray, share: float) -> ValueRange:
    """From the least and greatest value per feed and channel [feeds, channels]."""
    peaks = np.maximum(-lows.min(axis=0), highs.max(axis=0))
    count = math.ceil(share * len(peaks)) if share > 0 else 0
    apart = np.sort(np.argsort(-peaks, kind="stable")[:count])
    rest = np.delete(np.arange(len(peaks)), apart)
    low, high = np.median(lows[:, rest].min(axis=1)), np.median(highs[:, rest].max(axis=1))
    return ValueRange(min(0.0, float(low)), max(0.0, float(high)), tuple(int(channel) for channel in apart))


def product_inputs(model: onnx.ModelProto) -> list[str]:
    """The tensors that the sites' products read."""
    weights = {site.weight for site in read_sites(model)}
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights))


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
