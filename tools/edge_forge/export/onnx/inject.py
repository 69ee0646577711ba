"""Inject the adapter bank: `y += (x @ A) @ B` per banked module, with A and B as required graph inputs.

The first axis of every bank input is `rows`: 1 (one adapter for the whole batch, broadcast) or the batch size (row i of
the batch uses row i of the bank, so that each may use another adapter). The rank axis is free, and 0 is allowed: a
site that no adapter touches, or a batch of the base alone, costs next to nothing.

Every module has its own A `[rows, d_in, rank]` and B `[rows, rank, d_out]`. One A for the modules that read the same
tensor would be wider than 16 columns. ONNX Runtime splits such a product between threads where a text is alone and not
where it has company, and sums it in another order: enough for another INT8 code behind it (docs/decisions/0031). The
classifier is banked in the same way.

The bank is injected last, into a graph that is already quantised: ONNX Runtime's `quantize_dynamic` folds or drops such
inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_agent.base.errors import BackendError
from edge_forge.export.onnx.graph import GraphEditor, metadata, set_metadata
from edge_forge.export.onnx.sites import LinearSite, read_sites

KEY = "edge.bank"
VERSION = 2
LABELS_AXIS = "labels"


def inject_bank(model: onnx.ModelProto, modules: Collection[str], rank: int, max_labels: int) -> list[dict[str, Any]]:
    """Add bank inputs for `modules` and a banked head of up to `max_labels`; edits `model`, returns the bank's sites.

    `rank` and `max_labels` are the largest that the bank promises to take. The description goes to the metadata key
    `edge.bank`: {version, rank, max_labels, hidden, sites: [{a, b: [...], modules: [...], d_in, d_out: [...]}]}.
    Raises BackendError for a module that the graph does not have.
    """
    if metadata(model, KEY) is not None:
        raise BackendError("the graph already has an adapter bank", "ONNX graph", "inject into the export without one")
    editor = GraphEditor(model)
    wanted = set(modules)
    banked: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, site in enumerate(read_sites(model)):
        for index, module in enumerate(site.modules):
            if module in wanted:
                names = (module,)
                if names not in banked:
                    banked[names] = _bank_inputs(editor, site, [index], len(banked))
                _inject_site(editor, site, [index], banked[names], f"lora.at{number}.{index}")
    absent = wanted.difference(*banked)
    if absent:
        raise BackendError(f"the graph has no linear module {min(absent)}", "ONNX graph")
    hidden = _inject_head(editor)
    editor.finish()
    sites = list(banked.values())
    description = {"version": VERSION, "rank": rank, "max_labels": max_labels, "hidden": hidden, "sites": sites}
    set_metadata(model, KEY, description)
    return sites


def _input(editor: GraphEditor, name: str, shape: list[str | int]) -> str:
    editor.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return name


def _bank_inputs(editor: GraphEditor, site: LinearSite, chosen: list[int], number: int) -> dict[str, Any]:
    """Add A and B of the chosen modules as inputs; returns their description."""
    tag, count = f"lora.{number}", len(chosen)
    rank = f"rank_{number}"
    width = rank if count == 1 else f"{count}*{rank}"
    return {
        "a": _input(editor, f"{tag}.A", ["rows", site.d_in, width]),
        "b": [
            _input(editor, f"{tag}.B.{index}", ["rows", rank, site.d_out[position]])
            for index, position in enumerate(chosen)
        ],
        "modules": [site.modules[position] for position in chosen],
        "d_in": site.d_in,
        "d_out": [site.d_out[position] for position in chosen],
    }


def _inject_site(editor: GraphEditor, site: LinearSite, chosen: list[int], bank: dict[str, Any], tag: str) -> None:
    """Add the branches of one site. Sites of the same modules read the same inputs."""
    count = len(chosen)
    editor.add("MatMul", [site.x, bank["a"]], [f"{tag}.xa"])
    parts = [f"{tag}.xa"]
    if count > 1:
        parts = [f"{tag}.xa.{index}" for index in range(count)]
        editor.add("Split", [f"{tag}.xa"], parts, axis=-1, num_outputs=count)
    for index, (part, position) in enumerate(zip(parts, chosen, strict=True)):
        out = site.outs[position]
        editor.add("MatMul", [part, bank["b"][index]], [f"{tag}.xab.{index}"])
        total = editor.add("Add", [out, f"{tag}.xab.{index}"], [f"{tag}.y.{index}"])
        editor.redirect(out, total.output[0], keep=[total])


def _inject_head(editor: GraphEditor) -> int:
    """logits [batch, labels] = features @ head.weight + head.bias, per row; returns the hidden size.

    The labels' axis is free: a device pays for the largest head of its resident adapters, not for what is promised.
    """
    features = next(output for output in editor.graph.output if output.name == "features")
    hidden = int(features.type.tensor_type.shape.dim[1].dim_value)
    batch = features.type.tensor_type.shape.dim[0].dim_param
    weight = _input(editor, "head.weight", ["rows", hidden, LABELS_AXIS])
    bias = _input(editor, "head.bias", ["rows", LABELS_AXIS])
    axis = editor.add_constant("head.axis", np.asarray([1], np.int64))
    editor.add("Unsqueeze", ["features", axis], ["head.features"])
    editor.add("MatMul", ["head.features", weight], ["head.product"])
    editor.add("Squeeze", ["head.product", axis], ["head.squeezed"])
    editor.add("Add", ["head.squeezed", bias], ["logits"])
    editor.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, LABELS_AXIS]))
    return hidden
