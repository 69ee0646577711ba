"""A banked graph in the form that TensorRT 8.2 and later parse: opset 13, every bank input of one fixed rank.

ONNX Runtime keeps its own graph (`inject.py`): there a free rank makes a batch without adapters cheap. TensorRT builds
an engine for shapes: a fixed rank and head spare it a profile per input, smaller adapters are padded with zeros, and an
adapter of zeros is the base. The first axis of the bank inputs stays free (`rows`).

Opset 13 is what the parser of TensorRT 8.2 (JetPack 4.6) knows. Lowered are the four operators of these graphs that
changed after it: LayerNormalization (written out), Split's `num_outputs`, Shape's `start` and `end`, Reshape's
`allowzero`. Layers named with the prefix `FP32_PREFIX` must be computed in FP32 also in an FP16 engine: the squares
inside a normalisation pass 65,504.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from edge_agent.base.errors import BackendError

from .graph import GraphEditor, metadata, set_metadata
from .inject import COLUMNS, KEY

OPSET = 13
# The file version that goes with it; ONNX Runtime 1.10, the last one for Python 3.6, reads up to 8.
IR_VERSION = 7
FP32_PREFIX = "fp32:"
# Operators of exported encoders whose meaning is the same in opset 13 and 18 as they are used here.
_SAME = frozenset(
    (
        "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "Erf", "Expand", "Gather", "GatherElements",
        "MatMul", "Mul", "Pow", "QuantizeLinear", "ReduceSum", "Reshape", "Shape", "Slice", "Softmax", "Split", "Sqrt",
        "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    )
)  # fmt: skip


def for_tensorrt(model: onnx.ModelProto, rank: int, labels: int | None = None) -> onnx.ModelProto:
    """A copy of a banked graph in opset 13 whose bank inputs all have `rank` and `labels`, at most the bank's own.

    `labels` None: the bank's. Raises BackendError for a graph without a bank, a rank or head that the bank does not
    have, or an operator that is not known to mean the same in opset 13.
    """
    bank = metadata(model, KEY)
    if bank is None:
        raise BackendError("the graph has no adapter bank", "TensorRT form", "inject the bank first")
    if not 1 <= rank <= bank["rank"]:
        raise BackendError(f"rank {rank} is not in the bank, which takes 1 to {bank['rank']}", "TensorRT form")
    width = bank["max_labels"] if labels is None else labels
    if not 1 <= width <= bank["max_labels"]:
        raise BackendError(
            f"{width} labels are not in the bank, which takes 1 to {bank['max_labels']}", "TensorRT form"
        )
    result = lower(model)
    _fix_axes(result, bank, rank, width)
    return result


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph in opset 13, with or without a bank. Raises BackendError for an operator that has no form."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    editor = GraphEditor(result)
    for node in list(result.graph.node):
        if node.op_type not in _SAME and node.op_type != "LayerNormalization":
            raise BackendError(f"the operator {node.op_type} has no form in opset {OPSET} here", "TensorRT form")
        _lower(editor, node)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", OPSET))
    result.MergeFrom(onnx.ModelProto(ir_version=IR_VERSION))
    del result.graph.value_info[:]
    return editor.finish()


def _fix_axes(model: onnx.ModelProto, bank: dict[str, object], rank: int, labels: int) -> None:
    """Replace the free axes of the bank inputs and of the logits, rank and labels, by numbers."""
    wanted: dict[str, tuple[int, int]] = {"head.weight": (2, labels), "head.bias": (1, labels), "logits": (1, labels)}
    sites = bank["sites"]
    assert isinstance(sites, list)  # noqa: S101 - written by inject.py
    for site in sites:
        # TensorRT takes no axis of length 0: columns beyond `rank` are one column of zeros.
        columns = max(1, min(COLUMNS, rank - site["first"]))
        wanted |= {site["a"]: (2, columns), site["b"]: (1, columns)}
    for given in (*model.graph.input, *model.graph.output):
        if given.name in wanted:
            axis, length = wanted[given.name]
            fixed = onnx.TensorShapeProto.Dimension(dim_value=length)
            given.type.tensor_type.shape.dim[axis].CopyFrom(fixed)
    set_metadata(model, KEY, {**bank, "rank": rank, "max_labels": labels})


def _lower(editor: GraphEditor, node: onnx.NodeProto) -> None:
    if node.op_type == "LayerNormalization":
        _normalisation(editor, node)
    elif node.op_type == "Split":
        _drop(node, "num_outputs")  # without sizes, opset 13 splits into equal parts
    elif node.op_type == "Reshape":
        shape = editor.constant(node.input[1])
        if _value(node, "allowzero", 0) and shape is not None and 0 in shape:
            raise BackendError(f"{node.name} reshapes to a length of 0", "TensorRT form")
        _drop(node, "allowzero")
    elif node.op_type == "Shape":
        _shape(editor, node)
    elif node.op_type == "DequantizeLinear":
        _quantise_here(editor, node)


def _value(node: onnx.NodeProto, name: str, default: object) -> object:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _drop(node: onnx.NodeProto, name: str) -> None:
    for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
        node.attribute.remove(attribute)


def _shape(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """Shape with a range becomes Shape and Slice."""
    start, end = _value(node, "start", 0), _value(node, "end", np.iinfo(np.int64).max)
    if start == 0 and _value(node, "end", None) is None:
        return
    out = node.output[0]
    _drop(node, "start")
    _drop(node, "end")
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
    axis = int(str(_value(node, "axis", 1)))
    name = node.input[0]
    spread = scale.reshape([-1 if place == axis % codes.ndim else 1 for place in range(codes.ndim)])
    values = editor.add_constant(f"{name}.float", codes.astype(np.float32) * spread)
    editor.add("QuantizeLinear", [values, node.input[1], node.input[2]], [f"{name}.q"], axis=axis)
    node.input[0] = f"{name}.q"


def _normalisation(editor: GraphEditor, node: onnx.NodeProto) -> None:
    """y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + bias over the last axis."""
    if _value(node, "axis", -1) != -1 or len(node.input) != 3 or len(node.output) != 1:
        raise BackendError(f"{node.name} does not normalise the last axis alone", "TensorRT form")
    x, scale, bias = node.input
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
        ("Mul", [f"{out}.normal", scale], f"{out}.scaled"),
        ("Add", [f"{out}.scaled", bias], out),
    )
    editor.remove([node])
    for op_type, inputs, made in steps:
        axes: dict[str, Any] = {"axes": [-1], "keepdims": 1} if op_type == "ReduceMean" else {}
        editor.graph.node.append(helper.make_node(op_type, inputs, [made], name=f"{FP32_PREFIX}{made}", **axes))
