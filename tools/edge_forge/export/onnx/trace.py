"""Trace a PyTorch encoder to one float ONNX graph with pooled features and named linear sites.

`tidy` reorders what the exporter wrote so that runtimes recognise and fuse it; values stay the same up to rounding.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import onnx
import torch

from edge_agent.base.errors import BackendError
from edge_forge.export.onnx.graph import GraphEditor, opset, set_metadata
from edge_forge.export.onnx.inject import STATES
from edge_forge.models.encoder import RUN_ERRORS, Encoder

OPSET = 18
# The file version that goes with it: the exporter writes 10, which ONNX Runtime reads from 1.18 on only.
IR_VERSION = 8
# Far below any score and far from the end of float16: exp(-1e4) is exactly 0 in both widths.
MASKED = -1.0e4
# Largest difference of features, relative to the largest feature, that rounding alone may make between both masks.
ADDITIVE_TOLERANCE = 1e-5
_COLOUR, _REASON_CHARACTERS = re.compile(r"\x1b\[[0-9;]*m"), 300


class TokenHead(torch.nn.Linear):
    """A head for every token: it is given hidden states, where another one is given features."""


class PooledEncoder(torch.nn.Module):
    """Features [batch, width] of token ids, and logits with a head (of every token with a `TokenHead`): the export.

    With `states`, and no head, also the hidden states [batch, seq, hidden] that a bank's heads of tokens read.

    With `additive` the encoder is handed the mask in its four-dimensional additive form, which spares the graph the
    indexing that transformers' own mask code leaves in it and that no runtime fuses. Not every encoder may be given it:
    ModernBERT makes another mask for its layers with a window, DeBERTa multiplies by the plain one (`takes_additive`).
    """

    def __init__(
        self, encoder: Encoder, head: torch.nn.Linear | None = None, additive: bool = True, states: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.pooling = encoder.pooling
        self.head = head
        self.additive = additive
        self.states = states

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Token ids and mask [batch, seq] to features [batch, width] (and logits [batch, labels], or hidden states)."""
        mask = attention_mask
        if self.additive:
            mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * MASKED
        hidden = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        features = self.pooling(hidden, attention_mask)
        if self.head is None:
            return (features, hidden) if self.states else features
        return features, self.head(hidden if isinstance(self.head, TokenHead) else features)


def takes_additive(encoder: Encoder, tokens: int) -> bool:
    """Whether the encoder computes the same with the additive form of the mask as with the plain one.

    Tried on padded rows as long as texts may be (`tokens`), so that every window of attention shows.
    """
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(0, encoder.vocabulary, (3, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, (tokens + 1) // 2 :] = 0
    mask[2, 1:] = 0
    with torch.inference_mode():
        wanted = PooledEncoder(encoder, additive=False)(ids, mask)
        try:
            found = PooledEncoder(encoder, additive=True)(ids, mask)
        except RUN_ERRORS:
            return False
    return bool((found - wanted).abs().max() <= ADDITIVE_TOLERANCE * max(1.0, float(wanted.abs().max())))


def trace(module: PooledEncoder, max_tokens: int, opset_version: int = OPSET) -> onnx.ModelProto:
    """Export with free batch and sequence axes (sequence up to `max_tokens`). Raises BackendError.

    Inputs input_ids, attention_mask int64 [batch, seq]; outputs features, and logits where the module has a head. Of
    hidden states the metadata says which tensor they are; they are no output.
    """
    module.eval()
    ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)  # never one object for both
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq", max=max_tokens)
    outputs = ["features", *(["logits"] if module.head is not None else ["states"] if module.states else [])]
    chatter = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(chatter), redirect_stderr(chatter):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (ids, mask),
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=opset_version,
                input_names=["input_ids", "attention_mask"],
                output_names=outputs,
                dynamic_shapes={"input_ids": {0: batch, 1: seq}, "attention_mask": {0: batch, 1: seq}},
            )
    except (torch.onnx.OnnxExporterError, *RUN_ERRORS) as error:
        raise BackendError(
            f"PyTorch cannot export this encoder: {_reason(error)}", "ONNX export",
            "choose a base of a family that docs/figures.md lists",
        ) from error  # fmt: skip
    if program is None:
        raise BackendError("PyTorch exported nothing", "ONNX export")
    model: onnx.ModelProto = program.model_proto
    if opset(model) != opset_version:
        raise BackendError(f"asked for opset {opset_version}, the exporter gave {opset(model)}", "ONNX export")
    for entry in list(model.metadata_props):
        model.metadata_props.remove(entry)
    model.ir_version = IR_VERSION
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    if module.states and module.head is None:
        _name_states(model)
    return model


def _reason(error: BaseException) -> str:
    """The exporter's first cause in a line; its own message is a page of advice with colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:_REASON_CHARACTERS]


def _name_states(model: onnx.ModelProto) -> None:
    """Take the hidden states from the outputs and note their tensor and width in the metadata."""
    output = next(one for one in model.graph.output if one.name == "states")
    model.graph.output.remove(output)
    model.graph.value_info.append(output)
    tensor, hidden = output.name, int(output.type.tensor_type.shape.dim[2].dim_value)
    maker = GraphEditor(model).maker(tensor)
    while maker is not None and maker.op_type == "Identity":
        # What nothing reads is dropped by later edits.
        tensor = maker.input[0]
        maker = GraphEditor(model).maker(tensor)
    set_metadata(model, STATES, {"tensor": tensor, "hidden": hidden})


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
