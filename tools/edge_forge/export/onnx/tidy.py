"""Write what the exporter wrote in the order in which runtimes recognise it. Values stay the same up to rounding."""

from __future__ import annotations

import numpy as np
import onnx

from .graph import GraphEditor


def tidy(model: onnx.ModelProto) -> int:
    """x * (0.5 * (1 + erf)) becomes (x * (1 + erf)) * 0.5, which ONNX Runtime fuses to one GELU.

    Edits the model; returns how many were rewritten. PyTorch's exporter writes the first form; the element-wise passes
    that it leaves over the widest tensors cost MiniLM about 3 % of its run time.
    """
    editor = GraphEditor(model)
    found = 0
    for erf in [node for node in model.graph.node if node.op_type == "Erf"]:
        plus = _only_reader(editor, erf.output[0], "Add")
        half = _only_reader(editor, plus.output[0], "Mul") if plus is not None else None
        last = _only_reader(editor, half.output[0], "Mul") if half is not None else None
        if plus is None or half is None or last is None:
            continue
        constant = next((name for name in half.input if _is_half(editor, name)), None)
        x = next((name for name in last.input if name != half.output[0]), None)
        if constant is None or x is None:
            continue
        out = last.output[0]
        editor.remove([half, last])
        editor.add("Mul", [x, plus.output[0]], [f"{out}.double"])
        editor.add("Mul", [f"{out}.double", constant], [out])
        found += 1
    editor.finish()
    return found


def _only_reader(editor: GraphEditor, name: str, op_type: str) -> onnx.NodeProto | None:
    readers = editor.readers(name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None


def _is_half(editor: GraphEditor, name: str) -> bool:
    value = editor.constant(name)
    return value is not None and value.size == 1 and bool(np.isclose(value.item(), 0.5))
