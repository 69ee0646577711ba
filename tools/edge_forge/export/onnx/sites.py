"""Linear sites: which tensors of the graph belong to which module of the encoder.

The exporter folds transposes and drops the names of weights, so a site is found by the *values* of its weight, which
also proves that the graph holds what PyTorch holds. Modules that read the same tensor are fused into one product
(Q, K and V: one quantisation of the input, one LoRA branch). The map is kept in the model's metadata under
`edge.sites`; quantisation keeps tensor names, so that the bank can be injected afterwards (`inject.py`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from edge_agent.base.errors import BackendError
from edge_forge.export.onnx.graph import FloatArray, GraphEditor, metadata, set_metadata

KEY = "edge.sites"


class LinearSite(NamedTuple):
    """One product `x @ W + b` of one or several modules that read the same x.

    `x` and `outs` are tensor names: x [batch, seq, d_in]; `outs[i]` [batch, seq, d_out[i]] is the output of
    `modules[i]` (HF module paths), after the bias. `weight` is the name of W [d_in, sum(d_out)] in the float graph.
    """

    modules: tuple[str, ...]
    x: str
    weight: str
    outs: tuple[str, ...]
    d_in: int
    d_out: tuple[int, ...]


class _Linear(NamedTuple):
    """A product found in the graph, before fusion."""

    module: str
    matmul: onnx.NodeProto
    add: onnx.NodeProto | None


def name_sites(
    model: onnx.ModelProto, weights: Mapping[str, FloatArray], uses: Sequence[str] | None = None
) -> list[LinearSite]:
    """Find, fuse and name the linear modules. `weights` maps a module path to its weight [d_out, d_in].

    `uses` are the modules in the order in which they run, with one that runs several times (ALBERT's layers share their
    weights) named as often; None: each runs once. Such a module has a site for every use, all of one weight.

    Edits the model, keeps the map in its metadata, and returns it. Raises BackendError for a module not found.
    """
    editor = GraphEditor(model)
    linears = _find(editor, weights, uses if uses is not None else tuple(weights))
    by_input: dict[str, list[_Linear]] = defaultdict(list)
    for linear in linears:
        by_input[linear.matmul.input[0]].append(linear)
    sites: list[LinearSite] = []
    weight_of: dict[tuple[str, ...], str] = {}
    for index, group in enumerate(by_input.values()):
        tag = weight_of.setdefault(tuple(linear.module for linear in group), f"site{index:03d}")
        sites.append(_fuse(editor, f"site{index:03d}", tag, group))
    editor.finish()
    set_metadata(model, KEY, [site._asdict() for site in sites])
    return sites


def read_sites(model: onnx.ModelProto) -> list[LinearSite]:
    """The sites that `name_sites` kept in the model. Raises BackendError when there are none."""
    found = metadata(model, KEY)
    if found is None:
        raise BackendError("the graph has no site map; export it with edge-forge", "ONNX graph")
    return [
        LinearSite(tuple(e["modules"]), e["x"], e["weight"], tuple(e["outs"]), e["d_in"], tuple(e["d_out"]))
        for e in found
    ]


def _digest(value: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(value, dtype=np.float32).tobytes()).hexdigest()


def _find(editor: GraphEditor, weights: Mapping[str, FloatArray], uses: Sequence[str]) -> list[_Linear]:
    wanted: dict[str, list[str]] = defaultdict(list)
    digests = {module: _digest(weight.T) for module, weight in weights.items()}
    for module in uses:
        if module in digests:
            wanted[digests[module]].append(module)
    found = []
    for node in editor.graph.node:
        value = editor.constant(node.input[1]) if node.op_type == "MatMul" else None
        names = wanted.get(_digest(value)) if value is not None and value.ndim == 2 else None
        if names:
            found.append(_Linear(names.pop(0), node, _bias_add(editor, node)))
    missing = sorted(name for names in wanted.values() for name in names)
    if missing:
        raise BackendError(
            f"{len(missing)} linear modules are not in the exported graph, the first is {missing[0]}", "ONNX export"
        )
    return found


def _bias_add(editor: GraphEditor, matmul: onnx.NodeProto) -> onnx.NodeProto | None:
    readers = editor.readers(matmul.output[0])
    if len(readers) == 1 and readers[0].op_type == "Add":
        other = next(name for name in readers[0].input if name != matmul.output[0])
        value = editor.constant(other)
        if value is not None and value.ndim == 1:
            return readers[0]
    return None


def _bias(editor: GraphEditor, linear: _Linear, d_out: int) -> FloatArray:
    if linear.add is None:
        return np.zeros(d_out, np.float32)
    name = next(name for name in linear.add.input if name != linear.matmul.output[0])
    return np.asarray(editor.constant(name), np.float32)


def _fuse(editor: GraphEditor, tag: str, weight_tag: str, group: Sequence[_Linear]) -> LinearSite:
    """Replace a group that shares its input by one product, one bias and a split.

    `weight_tag` names the constants: those of the first site of the same modules.
    """
    values = [np.asarray(editor.constant(linear.matmul.input[1])) for linear in group]
    biases = [_bias(editor, linear, value.shape[1]) for linear, value in zip(group, values, strict=True)]
    weight, bias = f"{weight_tag}.weight", f"{weight_tag}.bias"
    if weight_tag == tag:
        editor.add_constant(weight, np.concatenate(values, axis=1))
        editor.add_constant(bias, np.concatenate(biases))
    x, y = group[0].matmul.input[0], f"{tag}.y"
    d_out = tuple(int(value.shape[1]) for value in values)
    ends = [(linear.add or linear.matmul).output[0] for linear in group]
    editor.remove([node for linear in group for node in (linear.matmul, linear.add) if node is not None])
    editor.add("MatMul", [x, weight], [f"{tag}.xw"])
    editor.add("Add", [f"{tag}.xw", bias], [y])
    if len(group) == 1:
        editor.redirect(ends[0], y)
        ends = [y]
    else:
        sizes = editor.add_constant(f"{tag}.split", np.asarray(d_out, np.int64))
        editor.add("Split", [y, sizes], ends, axis=-1)
    return LinearSite(tuple(linear.module for linear in group), x, weight, tuple(ends), int(values[0].shape[0]), d_out)
