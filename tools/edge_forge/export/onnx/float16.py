"""Float16 of an exported graph: what it may not hold stays float32, and how it is judged where nothing computes in it.

The largest float16 is 65,504. ONNX Runtime's CPU provider computes float16 graphs in float32, so that an overflow shows
on a GPU only (docs/decisions/0161). Therefore:

- `measure_range` runs the float graph over texts and finds the tensors that pass 65,504 divided by `MARGIN`, and the
  weights that pass 65,504. `to_float16` keeps every node that makes or reads one of them in float32.
- `emulated` turns a float16 graph into a float32 one that rounds each tensor to float16, infinities included. The plan
  scores it in place of the graph itself (`scored.py`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edge_forge.export.onnx.graph import GraphEditor, finished, run_session

if TYPE_CHECKING:
    from edge_forge.export.onnx.quantize import Feed

LARGEST = 65504.0
# Texts that were not measured may reach this many times the values of those that were. The additive mask (-1e4) must
# stay below the limit: it is the same for all texts.
MARGIN = 4.0
_ALWAYS_FLOAT = ("LayerNormalization", "ReduceSum")
_CAST_BACK = "_cast_to_fp16_node"


class HalfRange(NamedTuple):
    """What a graph needs of a number format's range: its largest finite magnitude, where, and the nodes to keep in
    float32. `infinite` names a tensor that is not finite in float32 either, as MPNet's logarithm of distance 0."""

    largest: float
    tensor: str
    kept: tuple[str, ...] = ()
    nodes: int = 0
    infinite: str = ""

    @property
    def sentence(self) -> str:
        """For people: what was found, and what was done about it."""
        if not self.kept:
            return f"Float16 holds every tensor: the largest value is {self.largest:,.0f} of {LARGEST:,.0f}."
        stay = f"{len(self.kept)} of {self.nodes} nodes stay in float32"
        if self.infinite and self.largest <= LARGEST / MARGIN:
            return f"{self.infinite} is not finite in float32 either; {stay}, the rest fits float16."
        return (
            f"Float16 would overflow: values reach {_figure(self.largest)} ({self.tensor}), {LARGEST:,.0f} is its "
            f"largest; {stay} (margin {MARGIN:g})."
        )


def _figure(value: float) -> str:
    """A magnitude for people; of float32's own limit, which some masks are filled with, three digits."""
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def measure_range(model: onnx.ModelProto, feeds: Sequence[Feed]) -> HalfRange:
    """The range of every float tensor of a float32 graph over `feeds`, padding included. Raises BackendError."""
    weights = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    peaks = _peaks(model, feeds)
    wide = {name for name, peak in weights.items() if not peak <= LARGEST}
    wide |= {name for name, peak in peaks.items() if not peak <= LARGEST / MARGIN}
    kept = tuple(node.name for node in model.graph.node if wide & {*node.input, *node.output})
    found = {**weights, **peaks}
    finite = {name: peak for name, peak in found.items() if np.isfinite(peak)} or {"": 0.0}
    tensor = max(finite, key=lambda name: finite[name])
    infinite = next((name for name in found if name not in finite), "")
    return HalfRange(finite[tensor], tensor, kept, len(model.graph.node), infinite)


def _peaks(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest magnitude of every computed float tensor. Reduced within the graph, so that no tensor is kept."""
    probe = GraphEditor(_copy(model))
    names = [name for name, kind in kinds(model).items() if kind == TensorProto.FLOAT and probe.maker(name)]
    for place, name in enumerate(names):
        probe.add("Abs", [name], [f"peak.{place}.abs"])
        probe.add("ReduceMax", [f"peak.{place}.abs"], [f"peak.{place}"], keepdims=0)
    session = run_session(probe.model, [f"peak.{place}" for place in range(len(names))])
    found = np.zeros(len(names))
    for feed in feeds:
        found = np.maximum(found, np.asarray(session.run(None, dict(feed)), np.float64))
    return dict(zip(names, found.tolist(), strict=True))


def kinds(model: onnx.ModelProto) -> Mapping[str, int]:
    """The element type of every computed tensor that inference knows."""
    inferred = onnx.shape_inference.infer_shapes(model)
    infos = [*inferred.graph.value_info, *inferred.graph.output]
    return {info.name: info.type.tensor_type.elem_type for info in infos}


def to_float16(
    model: onnx.ModelProto,
    kept: Sequence[str] = (),
    kept_kinds: Sequence[str] = (),
    half_inputs: Collection[str] = (),
) -> onnx.ModelProto:
    """Weights and arithmetic in float16; inputs, outputs, normalisations, sums over tokens and `kept` stay float32.

    `kept` are names of nodes (`HalfRange.kept`), `kept_kinds` further operators that stay, `half_inputs` the graph
    inputs that are handed over in float16. No weight is cut: those beyond float16 belong to kept nodes.
    On ONNX Runtime's CPU provider this saves bytes, not time; it is the format of the Jetson Nano.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # the tool logs through the root logger
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted: onnx.ModelProto = convert_float_to_float16(
                _copy(model),
                keep_io_types=[
                    given.name for given in (*model.graph.input, *model.graph.output) if given.name not in half_inputs
                ],
                max_finite_val=LARGEST,  # versions before 1.22 cut weights to 1e4
                op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_ALWAYS_FLOAT, *kept_kinds],
                node_block_list=list(kept),
            )
    finally:
        logging.getLogger().setLevel(level)
    editor = GraphEditor(converted)
    _join(editor)
    return finished(editor, model)


def _join(editor: GraphEditor) -> None:
    """Let float32 nodes read each other directly: the converter puts a cast to float16 and back between them."""
    narrowed = {
        node.output[0]: node.input[0]
        for node in editor.graph.node
        if node.op_type == "Cast" and node.name.endswith(_CAST_BACK)
    }
    widened = [
        node
        for node in editor.graph.node
        if node.op_type == "Cast" and node.input[0] in narrowed and _to(node) == TensorProto.FLOAT
    ]
    editor.remove(widened)
    for node in widened:
        editor.add("Identity", [narrowed[node.input[0]]], node.output)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 graph in float32 whose tensors are rounded to float16 wherever the graph holds float16.

    Products are summed in float32, as GPUs do; each result is rounded, so that what is too large becomes infinite.
    """
    found = kinds(model)
    result = _copy(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    editor = GraphEditor(result)
    for node in list(result.graph.node):
        if node.op_type == "Cast" and _to(node) == TensorProto.FLOAT16:
            editor.remove([node])
            editor.add("Cast", node.input, node.output, to=TensorProto.FLOAT)
        for name in node.output:
            if found.get(name) == TensorProto.FLOAT16:
                _round(editor, name)
    for given in result.graph.input:
        if given.type.tensor_type.elem_type == TensorProto.FLOAT16:
            given.type.tensor_type.MergeFrom(onnx.TypeProto.Tensor(elem_type=TensorProto.FLOAT))
            _round(editor, given.name)
    del result.graph.value_info[:]
    return finished(editor, model)


def _round(editor: GraphEditor, name: str) -> None:
    """Let the readers of a float32 tensor read its values in float16."""
    narrow = editor.add("Cast", [name], [f"{name}.half"], to=TensorProto.FLOAT16)
    editor.add("Cast", [f"{name}.half"], [f"{name}.rounded"], to=TensorProto.FLOAT)
    editor.redirect(name, f"{name}.rounded", keep=[narrow])


def _to(node: onnx.NodeProto) -> Any:
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
