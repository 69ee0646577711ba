"""Graphs in the form that TensorRT 8.2 and later parse: opset 13, every bank input required and of one fixed rank.

ONNX Runtime keeps its own graph (`inject.py`): there a free rank makes a batch without adapters cheap. TensorRT builds
an engine for shapes: a fixed rank and head spare it a profile per input, smaller adapters are padded with zeros, and an
adapter of zeros is the base. The first axis of the bank inputs stays free (`rows`).

Opset 13 is what the parser of TensorRT 8.2 (JetPack 4.6) knows. Lowered are the five operators of these graphs that
changed after it: LayerNormalization (written out), ReduceMean's axes, Split's `num_outputs`, Shape's `start` and `end`,
Reshape's `allowzero`. Sign of integers and Gather of truth values, which it knows but refuses, go through another type.
Layers named with the prefix `FP32_PREFIX` must be computed in FP32 also in an FP16 engine: the squares inside a
normalisation pass 65,504.

`make` writes the files that are packed. TensorRT 10 and later compute in the types that a graph declares, TensorRT 8 in
those that the builder is allowed and the layers' names restrict; an FP16 graph here says both. Its equal for ONNX
Runtime's CPU backend is `on_cpu`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_agent.base.errors import BackendError, ConfigError
from edge_agent.base.texts import Text
from edge_forge.evaluate.probes import BASE_TEXTS
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.float16 import emulated, kinds, measure_range, to_float16
from edge_forge.export.onnx.graph import GraphEditor, metadata, save, set_metadata
from edge_forge.export.onnx.inject import COLUMNS, KEY, LABELS_AXIS, inject_bank

if TYPE_CHECKING:
    from edge_forge.export.onnx.export_graphs import Bank

OPSET = 13
# The file version that goes with it; ONNX Runtime 1.10, the last one for Python 3.6, reads up to 8.
IR_VERSION = 7
FP32_PREFIX = "fp32:"
RUNTIME = "tensorrt"
FLOAT32, FLOAT16, INT8 = "fp32", "fp16", "int8"
# Sums over many values beside those that `float16` always keeps, and bounds that float16 would round to 0.
_SUMS = ("Softmax", "ReduceMean", "Clip")
# Operators of exported encoders whose meaning is the same in opset 13 and 18 as they are used here.
_SAME = frozenset(
    (
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Cos", "CumSum", "DequantizeLinear", "Div", "Equal",
        "Erf", "Expand", "Gather", "GatherElements", "GatherND", "Gemm", "Greater", "GreaterOrEqual", "Identity",
        "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Pow", "QuantizeLinear", "Range",
        "Reciprocal", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Shape", "Sigmoid", "Sign", "Sin", "Slice",
        "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    )
)  # fmt: skip


def make(
    *,
    encoder_path: Path,
    out_dir: Path,
    tokenizer_path: Path,
    formats: Sequence[str],
    texts: Sequence[Text] = BASE_TEXTS,
    reading: quantize.TokenCut = quantize.TokenCut(),  # noqa: B008 - it cannot be changed
    bank: tuple[Bank, Sequence[str]] | None = None,
) -> quantize.MadeFormats:
    """Write `<format>.onnx` for every format, as `quantize.make` does for ONNX Runtime.

    `fp32`; `fp16` with float16 weights and bank, normalisations, softmax, sums and what `texts` drive near 65,504 in
    float32; `int8` with symmetric int8 codes for weights and activations (QuantizeLinear, DequantizeLinear), ranges
    from general texts, and the rest as `fp32`. Raises BackendError, ConfigError.
    """
    encoder = onnx.load(encoder_path)
    out_dir.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    half = None
    for name in formats:
        if name not in (FLOAT32, FLOAT16, INT8):
            raise ConfigError(f"there is no format {name!r}", "TensorRT form", "there are: fp32, fp16, int8")
        model = encoder
        if name == INT8:
            model = quantize.quantize_static(
                encoder, quantize.calibrate(encoder, quantize.feeds(BASE_TEXTS, tokenizer_path, *reading))
            )
        given = dict.fromkeys(node.name for node in model.graph.input)
        if bank is not None:
            model = _copy(model)
            inject_bank(model, bank[1], bank[0].rank, bank[0].max_labels, of_tokens=False)
        arrays = {one.name: _zeros(one) for one in model.graph.input if one.name not in given}
        rows = quantize.feeds([*texts, quantize.longest(texts, reading.max_tokens)], tokenizer_path, *reading)
        found = measure_range(model, [{**one, **arrays} for one in rows])
        if name == FLOAT16:
            half = found
            model = to_float16(model, found.kept, _SUMS, half_inputs=list(arrays))
        kept = found.kept if name == INT8 else ()
        made = lower(model, kept) if bank is None else for_tensorrt(model, bank[0].rank, kept=kept)
        written[name] = out_dir / f"{name}.onnx"
        save(made, written[name])
    return quantize.MadeFormats(written, half)


def _zeros(given: onnx.ValueInfoProto) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The base alone, in one position: a free axis has the length 1."""
    return np.zeros([dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim], np.float32)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def on_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a graph of this form computes, as a graph for the device's ONNX Runtime backend.

    Float16 is emulated, and the ranks and labels of the bank are free again: an adapter of fewer columns computes the
    same as one that is padded with zeros.
    """
    result = emulated(model)
    bank = metadata(result, KEY)
    if bank is not None:
        free = _head_axes(LABELS_AXIS)
        for site in bank["sites"]:
            columns = f"rank.{site['a']}"
            free |= {site["a"]: (2, columns), site["b"]: (1, columns)}
        _set_axes(result, free)
    return result


def for_tensorrt(
    model: onnx.ModelProto, rank: int, labels: int | None = None, kept: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy of a banked graph in opset 13 whose bank inputs all have `rank` and `labels`, at most the bank's own.

    `labels` None: the bank's. `kept` as in `lower`. Raises BackendError for a graph without a bank, a rank or head that
    the bank does not have, or an operator that is not known to mean the same in opset 13.
    """
    bank = metadata(model, KEY)
    if bank is None:
        raise BackendError("the graph has no adapter bank", "TensorRT form", "inject the bank first")
    if "tokens" in bank:
        raise BackendError("a bank with heads for tokens has no form for TensorRT", "TensorRT form")
    if not 1 <= rank <= bank["rank"]:
        raise BackendError(f"rank {rank} is not in the bank, which takes 1 to {bank['rank']}", "TensorRT form")
    width = bank["max_labels"] if labels is None else labels
    if not 1 <= width <= bank["max_labels"]:
        raise BackendError(
            f"{width} labels are not in the bank, which takes 1 to {bank['max_labels']}", "TensorRT form"
        )
    result = lower(model, kept)
    _fix_axes(result, bank, rank, width)
    return result


def lower(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a graph in opset 13, with or without a bank. Raises BackendError for an operator that has no form.

    Named with `FP32_PREFIX` are the nodes of `kept`, and in a graph with float16 every node whose result is float32.
    """
    result = _copy(model)
    editor = GraphEditor(result)
    for node in _float32_nodes(result, kept):
        node.MergeFrom(onnx.NodeProto(name=FP32_PREFIX + node.name))
    types = kinds(result)
    for node in list(result.graph.node):
        if node.op_type not in _SAME and node.op_type != "LayerNormalization":
            raise BackendError(f"the operator {node.op_type} has no form in opset {OPSET} here", "TensorRT form")
        _lower(editor, node)
        _retype(editor, node, types.get(node.input[0], 0) if node.input else 0)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", OPSET))
    result.MergeFrom(onnx.ModelProto(ir_version=IR_VERSION))
    del result.graph.value_info[:]
    return editor.finish()


def _float32_nodes(model: onnx.ModelProto, kept: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes of `kept`; in a graph with float16 all whose results are float32, casts apart."""
    found = kinds(model)
    typed = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return [
        node
        for node in model.graph.node
        if node.name in kept
        or (typed and node.op_type not in ("Cast", "Identity") and found.get(node.output[0]) == TensorProto.FLOAT)
    ]


def _fix_axes(model: onnx.ModelProto, bank: dict[str, object], rank: int, labels: int) -> None:
    """Replace the free axes of the bank inputs and of the logits, rank and labels, by numbers."""
    wanted = _head_axes(labels)
    sites = bank["sites"]
    assert isinstance(sites, list)  # noqa: S101 - written by inject.py
    for site in sites:
        # TensorRT takes no axis of length 0: columns beyond `rank` are one column of zeros.
        columns = max(1, min(COLUMNS, rank - site["first"]))
        wanted |= {site["a"]: (2, columns), site["b"]: (1, columns)}
    _set_axes(model, wanted)
    set_metadata(model, KEY, {**bank, "rank": rank, "max_labels": labels})


def _head_axes(labels: int | str) -> dict[str, tuple[int, int | str]]:
    return {"head.weight": (2, labels), "head.bias": (1, labels), "logits": (1, labels)}


def _set_axes(model: onnx.ModelProto, wanted: Mapping[str, tuple[int, int | str]]) -> None:
    """Set one axis of each named graph input or output: a number is its length, a text the name of a free one."""
    for given in (*model.graph.input, *model.graph.output):
        if given.name in wanted:
            axis, length = wanted[given.name]
            given.type.tensor_type.shape.dim[axis].CopyFrom(
                onnx.TensorShapeProto.Dimension(dim_param=length)
                if isinstance(length, str)
                else onnx.TensorShapeProto.Dimension(dim_value=length)
            )


def _lower(editor: GraphEditor, node: onnx.NodeProto) -> None:
    if node.op_type == "LayerNormalization":
        _normalisation(editor, node)
    elif node.op_type == "Split":
        _drop(node, "num_outputs")  # without sizes, opset 13 splits into equal parts
    elif node.op_type in ("ReduceMean", "ReduceMin") and len(node.input) > 1:
        axes = editor.constant(node.input[1])
        if axes is None or _value(node, "noop_with_empty_axes", 0):
            raise BackendError(f"{node.name} computes the axes of its reduction", "TensorRT form")
        node.input.pop()
        _drop(node, "noop_with_empty_axes")
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))
    elif node.op_type == "Reshape":
        shape = editor.constant(node.input[1])
        if _value(node, "allowzero", 0) and shape is not None and 0 in shape:
            raise BackendError(f"{node.name} reshapes to a length of 0", "TensorRT form")
        _drop(node, "allowzero")
    elif node.op_type == "Shape":
        _shape(editor, node)
    elif node.op_type == "DequantizeLinear":
        _quantise_here(editor, node)


def _retype(editor: GraphEditor, node: onnx.NodeProto, kind: int) -> None:
    """Compute a node in another element type where the parsers of TensorRT 8 refuse it in its own, `kind`."""
    if node.op_type == "Sign" and kind in (TensorProto.INT32, TensorProto.INT64):
        through = TensorProto.FLOAT  # exact: these are distances between tokens
    elif node.op_type in ("Gather", "GatherElements", "GatherND") and kind == TensorProto.BOOL:  # refused by 8.2 alone
        through = TensorProto.INT32
    else:
        return
    given, out = node.input[0], node.output[0]
    again = helper.make_node(node.op_type, [f"{out}.given", *node.input[1:]], [f"{out}.found"], name=node.name)
    again.attribute.extend(node.attribute)
    editor.remove([node])
    editor.add("Cast", [given], [f"{out}.given"], to=through)
    editor.graph.node.append(again)
    editor.add("Cast", [f"{out}.found"], [out], to=kind)


def _value(node: onnx.NodeProto, name: str, default: object) -> object:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _drop(node: onnx.NodeProto, name: str) -> None:
    for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
        node.attribute.remove(attribute)


def _shape(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """Shape with a range becomes Shape and Slice."""
    start, end = _value(node, "start", 0), _value(node, "end", np.iinfo(np.int64).max)
    whole = start == 0 and _value(node, "end", None) is None
    _drop(node, "start")
    _drop(node, "end")
    if whole:
        return
    out = node.output[0]
    node.output[0] = f"{out}.whole"
    limits = [
        editor.add_constant(f"{out}.{name}", np.asarray([value], np.int64))
        for name, value in (("start", start), ("end", end), ("axis", 0))
    ]
    editor.add("Slice", [node.output[0], *limits], [out])


def _quantise_here(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """A constant of int8 codes becomes their float values and a QuantizeLinear, which TensorRT folds.

    TensorRT 8.6 parses the codes and then fails on them ("weights.type() != DataType::kINT8").
    """
    codes, scale = editor.constant(node.input[0]), editor.constant(node.input[1])
    if codes is None or scale is None:
        return
    axis, out = int(str(_value(node, "axis", 1))), node.output[0]
    spread = scale.reshape([-1 if place == axis % codes.ndim else 1 for place in range(codes.ndim)])
    values = editor.add_constant(f"{node.input[0]}.float", codes.astype(np.float32) * spread)
    editor.add("QuantizeLinear", [values, node.input[1], node.input[2]], [f"{out}.q"], axis=axis)
    node.input[0] = f"{out}.q"


def _normalisation(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias over the last axis; some have no bias."""
    if _value(node, "axis", -1) != -1 or len(node.input) not in (2, 3) or len(node.output) != 1:
        raise BackendError(f"{node.name} does not normalise the last axis alone", "TensorRT form")
    x, scale, *bias = node.input
    out = node.output[0]
    epsilon = editor.add_constant(f"{out}.eps", np.asarray(_value(node, "epsilon", 1e-5), np.float32))
    steps = (
        ("ReduceMean", [x], f"{out}.mean"),
        ("Sub", [x, f"{out}.mean"], f"{out}.centred"),
        ("Mul", [f"{out}.centred", f"{out}.centred"], f"{out}.squares"),
        ("ReduceMean", [f"{out}.squares"], f"{out}.variance"),
        ("Add", [f"{out}.variance", epsilon], f"{out}.safe"),
        ("Sqrt", [f"{out}.safe"], f"{out}.deviation"),
        ("Div", [f"{out}.centred", f"{out}.deviation"], f"{out}.normal"),
        ("Mul", [f"{out}.normal", scale], f"{out}.scaled" if bias else out),
        *((("Add", [f"{out}.scaled", *bias], out),) if bias else ()),
    )
    editor.remove([node])
    for op_type, inputs, made in steps:
        axes: dict[str, Any] = {"axes": [-1], "keepdims": 1} if op_type == "ReduceMean" else {}
        editor.graph.node.append(helper.make_node(op_type, inputs, [made], name=f"{FP32_PREFIX}{made}", **axes))
