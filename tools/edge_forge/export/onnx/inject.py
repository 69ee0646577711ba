"""Inject the adapter bank: `y += (x @ A) @ B` per banked module, with A and B as required graph inputs.

The first axis of every bank input is `rows`: 1 (one adapter for the whole batch, broadcast) or the batch size (row i of
the batch uses row i of the bank, so that each may use another adapter). The rank axis is free, and 0 is allowed: a
site that no adapter touches, or a batch of the base alone, costs next to nothing.

Every module has an A `[rows, d_in, columns]` and a B `[rows, columns, d_out]` for each 16 columns of the bank's rank. A
wider A (one for the modules that read the same tensor, or one of a larger rank) would not do: ONNX Runtime splits such
a product between threads where a text is alone and not where it has company, and sums it in another order, which is
enough for another INT8 code behind it (docs/decisions/0031). The classifier is banked in the same way, and a second
head that reads the hidden states of every token (docs/decisions/0227).

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
from edge_agent.base.limits import SLOT_LABELS
from edge_agent.base.words import classes
from edge_forge.export.onnx.graph import GraphEditor, metadata, set_metadata
from edge_forge.export.onnx.sites import LinearSite, read_sites

KEY = "edge.bank"
VERSION, WITH_TOKENS = 3, 4
COLUMNS = 16
LABELS_AXIS, CLASSES_AXIS = "labels", "classes"
CLASSES = classes(SLOT_LABELS)
"""The most classes of a token that a bank promises to take."""
STATES = "edge.states"
"""The metadata key that names the tensor of the hidden states [batch, seq, hidden]."""


def inject_bank(
    model: onnx.ModelProto, modules: Collection[str], rank: int, max_labels: int, of_tokens: bool = True
) -> list[dict[str, Any]]:
    """Add bank inputs for `modules` and a banked head of up to `max_labels`; edits `model`, returns the bank's sites.

    `rank` and `max_labels` are the largest that the bank promises to take. `of_tokens`: also heads of every token,
    where the graph says which tensor holds the hidden states. The description goes to the metadata key `edge.bank`:
    {version, rank, max_labels, hidden, sites: [{a, b, module, first, d_in, d_out}]}, with heads of tokens also
    {tokens: {hidden, max_classes}}; `first` is the column of the module's rank that the site begins with.
    Raises BackendError for a module that the graph does not have.
    """
    if metadata(model, KEY) is not None:
        raise BackendError("the graph already has an adapter bank", "ONNX graph", "inject into the export without one")
    editor = GraphEditor(model)
    wanted = set(modules)
    banked: dict[str, list[dict[str, Any]]] = {}
    for number, site in enumerate(read_sites(model)):
        for index, module in enumerate(site.modules):
            if module in wanted:
                if module not in banked:
                    tag = f"lora.{len(banked)}"
                    banked[module] = [
                        _bank_inputs(editor, site, index, first, tag) for first in range(0, rank, COLUMNS)
                    ]
                _inject_site(editor, site.x, site.outs[index], banked[module], f"lora.at{number}.{index}")
    absent = wanted.difference(banked)
    if absent:
        raise BackendError(f"the graph has no linear module {min(absent)}", "ONNX graph")
    description: dict[str, Any] = {
        "version": VERSION,
        "rank": rank,
        "max_labels": max_labels,
        "hidden": _inject_head(editor),
    }
    states = metadata(model, STATES)
    if of_tokens and states is not None:
        _inject_token_head(editor, states["tensor"], states["hidden"])
        description |= {"version": WITH_TOKENS, "tokens": {"hidden": states["hidden"], "max_classes": CLASSES}}
    editor.finish()
    sites = [part for parts in banked.values() for part in parts]
    set_metadata(model, KEY, {**description, "sites": sites})
    return sites


def _input(editor: GraphEditor, name: str, shape: list[str | int]) -> str:
    editor.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return name


def _bank_inputs(editor: GraphEditor, site: LinearSite, index: int, first: int, tag: str) -> dict[str, Any]:
    """Add A and B of the site's module `index` for the columns from `first` on as inputs; returns their description."""
    d_out, columns = site.d_out[index], f"rank.{tag}.{first}"
    return {
        "a": _input(editor, f"{tag}.A.{first}", ["rows", site.d_in, columns]),
        "b": _input(editor, f"{tag}.B.{first}", ["rows", columns, d_out]),
        "module": site.modules[index], "first": first, "d_in": site.d_in, "d_out": d_out,
    }  # fmt: skip


def _inject_site(editor: GraphEditor, x: str, out: str, parts: list[dict[str, Any]], tag: str) -> None:
    """Add to `out`, one after the other, the branches of a module that reads `x`."""
    total, added = out, []
    for part in parts:
        name = f"{tag}.{part['first']}"
        editor.add("MatMul", [x, part["a"]], [f"{name}.xa"])
        editor.add("MatMul", [f"{name}.xa", part["b"]], [f"{name}.xab"])
        added.append(editor.add("Add", [total, f"{name}.xab"], [f"{name}.y"]))
        total = added[-1].output[0]
    editor.redirect(out, total, keep=added)


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


def _inject_token_head(editor: GraphEditor, states: str, hidden: int) -> None:
    """token_logits [batch, seq, classes] = states @ token_head.weight + token_head.bias, per row.

    The classes' axis is free, and 0 is allowed: a batch without such a head computes nothing here.
    """
    batch, seq = (dim.dim_param for dim in editor.graph.input[0].type.tensor_type.shape.dim)
    weight = _input(editor, "token_head.weight", ["rows", hidden, CLASSES_AXIS])
    bias = _input(editor, "token_head.bias", ["rows", CLASSES_AXIS])
    editor.add("MatMul", [states, weight], ["token_head.product"])
    editor.add("Unsqueeze", [bias, "head.axis"], ["token_head.bias.row"])
    editor.add("Add", ["token_head.product", "token_head.bias.row"], ["token_logits"])
    editor.graph.output.append(
        helper.make_tensor_value_info("token_logits", TensorProto.FLOAT, [batch, seq, CLASSES_AXIS])
    )
