"""Number formats of an exported graph: INT8 with a scale per token, float16, and INT8 as TensorRT parses it.

`make` writes the files that are packed for ONNX Runtime, `int8.onnx` and `fp16.onnx` (`tensorrt_form.make` those for
TensorRT). The plan measures them with the device's backend (`evaluate.measure_onnx`).

Graphs are quantised node by node here instead of by ONNX Runtime's quantiser, which fails on graphs of PyTorch's
current exporter (onnxruntime#25890), counts padding into its ranges and has one scale for a whole batch
(docs/decisions/0032, 0160). Quantised are the named linear sites, per output channel and symmetric, and large embedding
tables (int8 rows with a scale each). All else stays float; tensor names and the site map survive, so the bank can be
injected afterwards. Every conversion returns a new model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from edge_agent.base.errors import BackendError, ConfigError
from edge_agent.base.texts import Text, parts_of
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx.float16 import HalfRange, measure_range, to_float16
from edge_forge.export.onnx.graph import FloatArray, GraphEditor, finished, run_session, save
from edge_forge.export.onnx.inject import inject_bank
from edge_forge.export.onnx.sites import LinearSite, read_sites
from edge_forge.models.bases import plain_tokenizer
from edge_forge.models.sentence_pooling import after_prompt
from edge_forge.models.wide_channels import LEAST, wide

if TYPE_CHECKING:
    from edge_forge.export.onnx.export_graphs import Bank

# The smallest table worth it: below this the extra nodes cost more than the bytes.
EMBEDDING_BYTES_MIN = 1 << 20


_MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
_MIDDLE = 128
"""The uint8 code of 0. ONNX Runtime has no fast kernel for signed activation codes: they take seven times as long."""


class ValueRange(NamedTuple):
    """The interval of a site's input that its int8 codes cover (always contains 0), and the channels left out of it.

    A few channels of a BERT-like encoder reach ten times the others' values. They are multiplied in float32 beside the
    int8 product (Dettmers et al. 2022, LLM.int8(), with the channels fixed by calibration), so that they neither widen
    the range of the rest nor are clipped.
    """

    low: float
    high: float
    outliers: tuple[int, ...] = ()


def quantize_per_token(
    model: onnx.ModelProto, apart: Mapping[str, Sequence[int]] | None = None, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """INT8 weights; activations get uint8 codes at run time, with a scale of its own for every token.

    A token's scale is the largest magnitude of its channels, those that `apart` names for the tensor excepted (see
    `wide_channels`): they are multiplied in float32. No token's codes depend on another token, so that a row's answer
    depends on that row alone; nothing is clipped, whatever an adapter adds. Sites with a module in `keep_float` stay
    float.
    """
    result = _copy(model)
    editor = GraphEditor(result)
    if all(entry.domain != _MICROSOFT for entry in result.opset_import):
        result.opset_import.add(domain=_MICROSOFT, version=1)
    unit = editor.add_constant("token.unit", np.asarray(1.0 / 127.0, np.float32))
    middle = editor.add_constant("token.middle", np.asarray(_MIDDLE, np.uint8))
    largest: dict[str, str] = {}
    for _, product in _products(editor, read_sites(model), keep_float):
        x, name = product.input[0], product.input[1]
        channels = tuple((apart or {}).get(x, ()))
        values = _weight(editor, product)
        if channels:
            values = _set_apart(editor, product, values, channels)
        weight, scale = _weight_codes(values)
        if x not in largest:
            largest[x] = _token_codes(editor, x, channels, values.shape[0], (unit, middle))
        out = product.output[0]
        tag = f"{name}.{_tag(channels)}" if channels else name
        w = editor.add_constant(f"{tag}.int8", weight)
        w_scale = editor.add_constant(f"{tag}.scale", scale)
        # Said although it is 0: where ONNX Runtime 1.17 makes weights unsigned (AVX2), it aborts without it.
        zero = editor.add_constant(f"{name}.zero", np.asarray(0, np.int8))
        editor.remove([product])
        # The fused form of MatMulInteger, Cast and Mul; its scale of x is one number, so the token's follows.
        operands = [f"{x}.u8", w, unit, w_scale, middle, zero]
        editor.add("MatMulIntegerToFloat", operands, [f"{out}.of_unit"], domain=_MICROSOFT)
        editor.add("Mul", [f"{out}.of_unit", largest[x]], [out])
    return finished(editor, model)


def _token_codes(editor: GraphEditor, x: str, apart: Sequence[int], width: int, constants: tuple[str, str]) -> str:
    """Add the nodes of `x.u8`, the codes of x over each token's largest magnitude; returns that tensor's name."""
    axis = "token.axis"
    if editor.constant(axis) is None:
        editor.add_constant(axis, np.asarray([-1], np.int64))
        editor.add_constant("token.least", np.asarray(LEAST, np.float32))
    kept = x
    if apart:
        mask = np.ones(width, np.float32)
        mask[list(apart)] = 0.0
        kept = f"{x}.kept"
        editor.add("Mul", [x, editor.add_constant(f"{x}.mask", mask)], [kept])
    editor.add("Abs", [kept], [f"{x}.abs"])
    editor.add("ReduceMax", [f"{x}.abs", axis], [f"{x}.peak"], keepdims=1)
    editor.add("Add", [f"{x}.peak", "token.least"], [f"{x}.largest"])
    # A product with the reciprocal is one multiplication per value; Div is sixteen times slower.
    editor.add("Reciprocal", [f"{x}.largest"], [f"{x}.inverse"])
    editor.add("Mul", [x, f"{x}.inverse"], [f"{x}.unit"])
    editor.add("QuantizeLinear", [f"{x}.unit", *constants], [f"{x}.u8"])
    return f"{x}.largest"


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, ValueRange], keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """INT8 weights and activations with fixed `ranges` per input tensor (see ``calibrate``), as QDQ nodes.

    The form that TensorRT parses: int8 codes without a zero point, and for every product a pair of nodes of its own on
    either side. TensorRT fuses a product with the nodes before it, which a pair with several readers hinders
    (`DedicatedQDQPair` in the quantisers of NVIDIA and ONNX Runtime). ONNX Runtime computes it correctly, but has no
    fast kernel for it. A row's result does not depend on its batch. Outlier channels of a range stay float, and so do
    outputs: adapters added to them are never clipped.
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
        tag = f"{name}.{_tag(interval.outliers)}" if interval.outliers else name
        parts = [
            editor.add_constant(f"{tag}.int8", weight),
            editor.add_constant(f"{tag}.scale", scale),
            editor.add_constant(f"{tag}.zero", np.zeros(weight.shape[1], np.int8)),
        ]
        out = product.output[0]
        editor.add("DequantizeLinear", parts, [f"{out}.w"], axis=1)
        product.input[0], product.input[1] = _activation(editor, x, interval, f"{out}.x"), f"{out}.w"
    return finished(editor, model)


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
    return finished(editor, model)


def _products(
    editor: GraphEditor, sites: Sequence[LinearSite], keep_float: Collection[str]
) -> list[tuple[LinearSite, onnx.NodeProto]]:
    """Every site to quantise with its MatMul. Raises BackendError when the graph lost one."""
    places = {(node.input[0], node.input[1]): node for node in editor.graph.node if node.op_type == "MatMul"}
    found = []
    for site in sites:
        if not set(site.modules) & set(keep_float):
            product = places.get((site.x, site.weight))
            if product is None:
                raise BackendError(f"the product of {site.modules[0]} is not in the graph any more", "quantize")
            found.append((site, product))
    return found


def _weight(editor: GraphEditor, product: onnx.NodeProto) -> FloatArray:
    return np.asarray(editor.constant(product.input[1]), np.float32)


def _tag(channels: Sequence[int]) -> str:
    """Names the constants of a weight without `channels`: sites that share a weight may leave out other ones."""
    return "without." + ".".join(map(str, channels))


def _weight_codes(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Symmetric int8 codes [d_in, d_out] and one scale per output channel [d_out]."""
    scale = np.maximum(np.abs(weight).max(axis=0) / 127.0, 1e-12).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def _set_apart(editor: GraphEditor, product: onnx.NodeProto, weight: FloatArray, channels: Sequence[int]) -> FloatArray:
    """Multiply some input channels in float32 and add them to the product; returns the weight without them."""
    x, name, out = product.input[0], product.input[1], product.output[0]
    chosen = np.asarray(channels, np.int64)
    name = f"{name}.{_tag(channels)}"
    taken = editor.add_constant(f"{name}.channels", chosen)
    editor.add("Gather", [x, taken], [f"{out}.x_wide"], axis=-1)
    editor.add("MatMul", [f"{out}.x_wide", editor.add_constant(f"{name}.wide", weight[chosen])], [f"{out}.wide"])
    product.output[0] = f"{out}.narrow"
    editor.add("Add", [f"{out}.narrow", f"{out}.wide"], [out])
    rest = weight.copy()
    rest[chosen] = 0.0
    return rest


def _activation(editor: GraphEditor, x: str, interval: ValueRange, name: str) -> str:
    """Add the pair of nodes that rounds x for one reader; returns the name of its result."""
    scale = max(-interval.low, interval.high, 1e-12) / 127.0
    names = [
        editor.add_constant(f"{x}.q_scale", np.asarray(scale, np.float32)),
        editor.add_constant(f"{x}.q_zero", np.asarray(0, np.int8)),
    ]
    editor.add("QuantizeLinear", [x, *names], [f"{name}.q"])
    editor.add("DequantizeLinear", [f"{name}.q", *names], [f"{name}.dq"])
    return f"{name}.dq"


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


Feed = Mapping[str, npt.NDArray[np.int64 | np.float32]]
"""Inputs of a graph by name: ids and mask; of a banked graph its arrays, too."""


def wide_channels(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, tuple[int, ...]]:
    """Per tensor that a site's product reads, the channels to set apart from per-token INT8: mostly 0 to 4.

    They are those with the largest values over `feeds`, as many as make the tokens' scales smaller. They are a property
    of the base, so general texts find them. Raises BackendError without feeds.
    """
    return {name: wide(np.concatenate(parts)) for name, parts in _magnitudes(model, feeds).items()}


def _magnitudes(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, list[FloatArray]]:
    """Absolute values [tokens, channels] per feed of every tensor that a site reads, padding left out."""
    names = product_inputs(model)
    session = _session(model, names, feeds)
    found: dict[str, list[FloatArray]] = {name: [] for name in names}
    for feed in feeds:
        kept = feed["attention_mask"].astype(bool)
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            found[name].append(np.abs(value[kept]))
    return found


# Share of a tensor's channels that stay float in static INT8. Measured on MiniLM: with 0, 1, 2 and 5 % the features are
# 12.4, 6.9, 4.3 and 3.9 % off FP32 (docs/decisions/0033).
OUTLIERS = 0.02


def calibrate(model: onnx.ModelProto, feeds: Sequence[Feed], outliers: float = OUTLIERS) -> dict[str, ValueRange]:
    """The range of every tensor that a site's product reads, over `feeds` (input_ids, attention_mask [batch, seq]).

    The `outliers` share of channels with the largest values is left out of the range. The range of the rest is the
    median over the feeds of each feed's smallest and largest value, and contains 0: one odd text does not widen it.
    Padding is not counted. Raises BackendError without feeds.
    """
    names = product_inputs(model)
    session = _session(model, names, feeds)
    lows: dict[str, list[FloatArray]] = {name: [] for name in names}
    highs: dict[str, list[FloatArray]] = {name: [] for name in names}
    for feed in feeds:
        kept = feed["attention_mask"].astype(bool)
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            lows[name].append(value[kept].min(axis=0))
            highs[name].append(value[kept].max(axis=0))
    return {name: _range(np.asarray(lows[name]), np.asarray(highs[name]), outliers) for name in names}


def _session(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> Any:
    """The model with `names` as its outputs. Raises BackendError when there is nothing to feed it."""
    if not feeds:
        raise BackendError("INT8 needs calibration rows", "quantize", "give texts")
    return run_session(model, names)


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


INT8, FLOAT16 = "int8", "fp16"
_BATCH_ROWS = 16


class MadeFormats(NamedTuple):
    """The files by format, and of float16 what it was found to need."""

    paths: dict[str, Path]
    half: HalfRange | None


class TokenCut(NamedTuple):
    """How texts become tokens, as on devices: cut to `max_tokens`, with the base's `prompt` before each."""

    max_tokens: int = 128
    prompt: str = ""


def make(
    *,
    encoder_path: Path,
    out_dir: Path,
    tokenizer_path: Path,
    formats: Sequence[str] = (INT8, FLOAT16),
    texts: Sequence[Text] = BASE_TEXTS,
    reading: TokenCut = TokenCut(),  # noqa: B008 - it cannot be changed
    bank: tuple[Bank, Sequence[str]] | None = None,
) -> MadeFormats:
    """Write `<format>.onnx` for every format.

    `encoder_path` is the export step's float `encoder.onnx`. `texts` show what float16 must hold; one of as many tokens
    as are taken is added to them. General texts show which channels INT8 sets apart.
    `bank` (the settings and the modules of the export) is injected last. Raises BackendError, ConfigError.
    """
    if bank is not None and FLOAT16 in formats:
        raise ConfigError("a banked base has no float16 form yet", "quantize", "ship fp16 as a merged model")
    model = onnx.load(encoder_path)
    out_dir.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    half = None
    for name in formats:
        if name == INT8:
            found = wide_channels(model, feeds(BASE_TEXTS, tokenizer_path, *reading))
            converted = quantize_embeddings(quantize_per_token(model, found))
        elif name == FLOAT16:
            rows = feeds([*texts, longest(texts, reading.max_tokens)], tokenizer_path, *reading)
            half = measure_range(model, rows)
            converted = to_float16(model, half.kept)
        else:
            raise ConfigError(f"there is no format {name!r}", "quantize", f"there are: {INT8}, {FLOAT16}")
        if bank is not None:
            settings, modules = bank
            inject_bank(converted, modules, settings.rank, settings.max_labels)
        written[name] = out_dir / f"{name}.onnx"
        save(converted, written[name])
    return MadeFormats(written, half)


def longest(texts: Sequence[Text], max_tokens: int) -> str:
    """A text of at least `max_tokens` tokens, made of the given ones."""
    joined = " ".join(part for text in texts for part in parts_of(text)) or "."
    return joined if len(joined.split()) >= max_tokens else joined + f" {joined}" * max_tokens


def feeds(texts: Sequence[Text], tokenizer_path: Path, max_tokens: int, prompt: str = "") -> list[Feed]:
    """Padded batches of `texts` with the base's prompt before each, texts of like length together."""
    tokenizer = plain_tokenizer(tokenizer_path.read_text(encoding="utf-8"))
    tokenizer.enable_truncation(max_tokens)
    rows = sorted(
        (encoding.ids for encoding in tokenizer.encode_batch([after_prompt(prompt, text) for text in texts])), key=len
    )
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
