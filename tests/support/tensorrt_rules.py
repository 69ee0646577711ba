"""What the parsers of TensorRT 8.2 to 8.6 refuse in a graph, and what NVIDIA asks of a quantised one.

Neither can be tried without a GPU: these parsers ask CUDA for a builder first. Their source is open (onnx-tensorrt,
branches 8.2-GA and 8.6-GA), and what it asserts of an operator's types and constants is written down here for the
operators that these graphs have. What the builder then finds no kernel for, nobody can read there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_BOOL, _WHOLE = TensorProto.BOOL, (TensorProto.INT32, TensorProto.INT64)
# `unaryHelper`: only Abs and Neg have a way for integers, only Not takes truth values.
_FLOAT_ALONE = frozenset(
    ("Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "MatMul", "Pow", "Reciprocal", "Sigmoid", "Sign", "Sin", "Softmax",
     "Sqrt", "Tanh")
)  # fmt: skip
# `elementwiseCheck`, and the importers of Gather.
_NO_TRUTH_VALUES = frozenset(
    ("Abs", "Add", "Div", "Equal", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Less",
     "LessOrEqual", "Max", "Min", "Mul", "Neg", "ReduceMean", "ReduceMin", "ReduceSum", "Sub")
)  # fmt: skip
_TRUTH_VALUES_ALONE = frozenset(("And", "Not"))
# Operators of which the first input alone has the type in question.
_FIRST_INPUT = frozenset(("Gather", "GatherElements", "GatherND", "ReduceMean", "ReduceMin", "ReduceSum"))
# The input that must be a constant, by its place.
_CONSTANT_INPUTS = {"CumSum": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Slice": (3,), "Split": (1,), "ReduceSum": (1,)}


def refusals(model: onnx.ModelProto) -> list[str]:
    """A sentence for every node that an old parser refuses; none where it takes the graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {one.name: one.type.tensor_type.elem_type for one in _values(inferred.graph)}
    constants = {tensor.name for tensor in model.graph.initializer}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return [
        f"{node.op_type} {node.name}: {why}" for node in model.graph.node for why in _of_node(node, kinds, constants)
    ]


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.input
    yield from graph.output


def _of_node(node: onnx.NodeProto, kinds: dict[str, int], constants: set[str]) -> Iterator[str]:
    given = [name for name in node.input if name]
    typed = given[:1] if node.op_type in _FIRST_INPUT else given
    if any(name not in kinds for name in typed):
        yield f"the type of {next(name for name in typed if name not in kinds)} is not known"
    found = [kinds.get(name, 0) for name in typed]
    if node.op_type in _FLOAT_ALONE and any(kind == _BOOL or kind in _WHOLE for kind in found):
        yield "it takes no integers"
    if node.op_type in _NO_TRUTH_VALUES and _BOOL in found:
        yield "it takes no truth values"
    if node.op_type in _TRUTH_VALUES_ALONE and any(kind != _BOOL for kind in found):
        yield "it takes truth values alone"
    if node.op_type == "Where" and (_BOOL in found[1:] or found[1] != found[2]):
        yield "its two values have one type, and are no truth values"
    if node.op_type == "Range" and found[0] not in _WHOLE and not set(given) <= constants:
        yield "a range of floats is one of constants"
    for place in _CONSTANT_INPUTS.get(node.op_type, ()):
        if place < len(node.input) and node.input[place] and node.input[place] not in constants:
            yield f"its input {place} is a constant"


def quantisation(model: onnx.ModelProto) -> list[str]:
    """A sentence for every node that breaks a rule of explicit quantisation; none for a graph that keeps them.

    NVIDIA's guide ("Explicit Quantization", "Q/DQ Layer-Placement Recommendations"): float weights in the file, scales
    by channel for weights and by tensor for activations, no zero points, both inputs of a product and nothing else.
    Its quantiser (ModelOpt) and ONNX Runtime's for TensorRT add: no pair of nodes has two readers.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    found = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += [f"{node.output[0]}: {why}" for why in _of_pair(node, constants, makers, readers)]
        quantised = [_is(makers.get(name), "DequantizeLinear") for name in node.input]
        if any(quantised) and (node.op_type != "MatMul" or not all(quantised)):
            found.append(f"{node.op_type} {node.output[0]}: not all that it reads is quantised, or it is no product")
        elif any(quantised):
            weight = makers[makers[node.input[1]].input[0]]
            values = constants.get(weight.input[0])
            if values is None or values.dtype != np.float32 or values.ndim != 2:
                found.append(f"MatMul {node.output[0]}: its weight is no float32 matrix in the file")
            elif constants[weight.input[1]].shape != (values.shape[1],):
                found.append(f"MatMul {node.output[0]}: its weight has no scale for each output")
    return found


def _of_pair(
    node: onnx.NodeProto, constants: dict[str, Any], makers: dict[str, onnx.NodeProto], readers: Counter[str]
) -> Iterator[str]:
    scale, zero = (constants.get(name) for name in (*node.input[1:], "", "")[:2])
    if scale is None or zero is None or (scale <= 0).any() or zero.any() or zero.dtype != np.int8:
        yield "its scale is a positive constant and its zero point a constant int8 of 0"
        return
    if scale.size != zero.size:
        yield "there is a zero point for every scale"
    axis = next((helper.get_attribute_value(one) for one in node.attribute if one.name == "axis"), 1)
    source = node if node.op_type == "QuantizeLinear" else makers.get(node.input[0])
    if not _is(source, "QuantizeLinear"):
        yield "what is read was not quantised in the graph"
    elif scale.size > 1 and (source.input[0] not in constants or axis != constants[source.input[0]].ndim - 1):
        yield "scales by channel are for the last axis of a constant"
    if readers[node.output[0]] != 1:
        yield f"it has {readers[node.output[0]]} readers"


def _is(node: onnx.NodeProto | None, kind: str) -> bool:
    return node is not None and node.op_type == kind
