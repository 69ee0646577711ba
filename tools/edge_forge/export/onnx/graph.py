"""A small editor over an ONNX graph: who makes a tensor, who reads it, constants as numpy, metadata as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edge_agent.base.errors import BackendError

FloatArray = npt.NDArray[np.float32]


class GraphEditor:
    """Edits `model` in place. Call `finish` once the edits are done: it sorts, drops what nothing reads, and checks."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of an initializer, or None when the tensor is computed."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def add_constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Store `value` (a scalar as one element) under `name` and return the name.

        Sites that share a weight store the same value twice. Raises BackendError for another value under a held name.
        """
        value = np.ascontiguousarray(value)
        held = self.constant(name)
        if held is not None:
            if held.dtype != value.dtype or not np.array_equal(held, value):
                raise BackendError(f"two constants would be named {name}", "export")
            return name
        tensor = numpy_helper.from_array(value, name)
        self.graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name

    def add(self, op_type: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any) -> onnx.NodeProto:
        """Append a node; `finish` puts it where its inputs are known."""
        names = list(outputs)
        node = helper.make_node(op_type, list(inputs), names, name=f"{op_type}:{names[0]}", **attributes)
        self.graph.node.append(node)
        appended: onnx.NodeProto = self.graph.node[-1]
        return appended

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return [node for node in self.graph.node if name in node.input]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor, or None for inputs and constants."""
        return next((node for node in self.graph.node if name in node.output), None)

    def redirect(self, old: str, new: str, keep: Iterable[onnx.NodeProto] = ()) -> None:
        """Let every reader of `old` read `new`, save the nodes in `keep`. Graph outputs are not touched."""
        kept = [node.name for node in keep]
        for node in self.graph.node:
            if node.name not in kept:
                for index, name in enumerate(node.input):
                    if name == old:
                        node.input[index] = new

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take nodes out."""
        for node in list(nodes):
            self.graph.node.remove(node)

    def finish(self) -> onnx.ModelProto:
        """Sort the nodes, drop dead ones, unused constants and stale shapes, and check the model.

        Shapes of tensors that are still made are kept: without them ONNX Runtime misses fusions.
        """
        ordered = _sorted_nodes(self.graph)
        del self.graph.node[:]
        self.graph.node.extend(ordered)
        made = {name for node in ordered for name in node.output}
        shapes = [info for info in self.graph.value_info if info.name in made]
        del self.graph.value_info[:]
        self.graph.value_info.extend(shapes)
        used = {name for node in ordered for name in node.input} | {output.name for output in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        onnx.checker.check_model(self.model)
        return self.model


def _sorted_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes in an order in which every input is known, without the ones no output needs."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    ordered: list[onnx.NodeProto] = []
    done: set[int] = set()
    stack = [(makers[output.name], False) for output in reversed(graph.output) if output.name in makers]
    while stack:
        index, expanded = stack.pop()
        if index in done:
            continue
        node = graph.node[index]
        if expanded:
            done.add(index)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            ordered.append(copy)
            continue
        stack.append((index, True))
        stack.extend((makers[name], False) for name in reversed(node.input) if name in makers)
    return ordered


def metadata(model: onnx.ModelProto, key: str) -> Any:
    """The JSON kept under `key` in the model's metadata, or None."""
    text = next((entry.value for entry in model.metadata_props if entry.key == key), None)
    return None if text is None else json.loads(text)


def set_metadata(model: onnx.ModelProto, key: str, value: Any) -> None:
    """Keep `value` as canonical JSON under `key` in the model's metadata."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = text
            return
    model.metadata_props.add(key=key, value=text)


def finished(editor: GraphEditor, original: onnx.ModelProto) -> onnx.ModelProto:
    """The edited model, with the original's metadata. Raises BackendError when a tool changed the opset."""
    model = editor.finish()
    if opset(model) != opset(original):
        raise BackendError(f"the opset changed from {opset(original)} to {opset(model)}", "quantize")
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    return model


def run_session(model: onnx.ModelProto, names: Sequence[str]) -> Any:
    """ONNX Runtime's session of a float graph with the float tensors `names` as its outputs."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operator set that the model declares."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write one self-contained file (weights inside), by way of a temporary name."""
    if model.ByteSize() >= 2**31:
        raise BackendError("the graph is over 2 GB, which one ONNX file cannot hold", str(path))
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_bytes(model.SerializeToString(deterministic=True))
    temporary.replace(path)
