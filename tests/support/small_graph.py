"""A small encoder as an ONNX graph, written by hand: no PyTorch, built in milliseconds. One attention layer, width 16.

`reference` computes the same in numpy, with adapters in the device's form, so that a backend is checked against
arithmetic that shares no code with it.
"""

import json
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_forge.export.onnx.graph import save, set_metadata
from edge_forge.export.onnx.inject import STATES, inject_bank
from edge_forge.export.onnx.sites import name_sites

VOCABULARY, HIDDEN, RANK, MAX_LABELS = 50, 16, 4, 6
BASE_ID = "sha256:" + "ab" * 32
MODULES = ("layer.0.query", "layer.0.key", "layer.0.value", "layer.0.out")


def weights(seed=1):
    """Every weight of the encoder by name; linear weights are [d_out, d_in] as in PyTorch."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32) * np.float32(0.12)

    found = {"embedding": normal(VOCABULARY, HIDDEN), "gamma": 1 + normal(HIDDEN), "beta": normal(HIDDEN)}
    for module in MODULES:
        found[module] = normal(HIDDEN, HIDDEN)
        found[f"{module}.bias"] = normal(HIDDEN)
    return found


def encoder(seed=1):
    """The float graph without a bank: input_ids, attention_mask [batch, seq] -> features [batch, HIDDEN]."""
    values = weights(seed)
    constants = {
        "embedding": values["embedding"], "gamma": values["gamma"], "beta": values["beta"],
        "axis_mid": np.asarray([1], np.int64), "axis_last": np.asarray([2], np.int64),
        "one": np.asarray(1.0, np.float32), "masked": np.asarray(1e4, np.float32),
        "scale": np.asarray(HIDDEN**-0.5, np.float32),
    }  # fmt: skip
    nodes = [
        ("Gather", ["embedding", "input_ids"], "x0", {}),
        ("LayerNormalization", ["x0", "gamma", "beta"], "x", {"axis": -1}),
        ("Cast", ["attention_mask"], "mask", {"to": TensorProto.FLOAT}),
        ("Sub", ["mask", "one"], "mask_less", {}),
        ("Mul", ["mask_less", "masked"], "mask_low", {}),
        ("Unsqueeze", ["mask_low", "axis_mid"], "mask_row", {}),
        *_linear("query", "x", constants, values), *_linear("key", "x", constants, values),
        *_linear("value", "x", constants, values),
        ("Transpose", ["key"], "key_t", {"perm": [0, 2, 1]}),
        ("MatMul", ["query", "key_t"], "scores", {}), ("Mul", ["scores", "scale"], "scaled", {}),
        ("Add", ["scaled", "mask_row"], "masked_scores", {}), ("Softmax", ["masked_scores"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "value"], "mixed", {}),
        *_linear("out", "mixed", constants, values),
        ("Add", ["x", "out"], "hidden", {}), ("Unsqueeze", ["mask", "axis_last"], "mask_column", {}),
        ("Mul", ["hidden", "mask_column"], "kept", {}), ("ReduceSum", ["kept", "axis_mid"], "sum", {"keepdims": 0}),
        ("ReduceSum", ["mask_column", "axis_mid"], "count", {"keepdims": 0}), ("Div", ["sum", "count"], "features", {}),
    ]  # fmt: skip
    ids = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"]) for n in ("input_ids", "attention_mask")
    ]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", HIDDEN])
    made = [helper.make_node(op, inputs, [out], name=f"{op}:{out}", **rest) for op, inputs, out, rest in nodes]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(made, "small", ids, [features], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    name_sites(model, {module: values[module] for module in MODULES})
    set_metadata(model, "edge.base_id", BASE_ID)
    set_metadata(model, STATES, {"tensor": "hidden", "hidden": HIDDEN})
    return model


def _linear(name, x, constants, values):
    module = f"layer.0.{name}"
    constants[f"{name}.w"] = np.ascontiguousarray(values[module].T)
    constants[f"{name}.b"] = values[f"{module}.bias"]
    return [("MatMul", [x, f"{name}.w"], f"{name}.xw", {}), ("Add", [f"{name}.xw", f"{name}.b"], name, {})]


def banked(path: Path, modules=MODULES, rank=RANK, seed=1, of_tokens=True):
    """Write the encoder with an adapter bank, `of_tokens` with heads for tokens too; returns the path."""
    model = encoder(seed)
    inject_bank(model, modules, rank, MAX_LABELS, of_tokens=of_tokens)
    save(model, path)
    return path


def adapter(seed, modules=MODULES, rank=RANK, labels=3, scale=0.3):
    """The tensors of an adapter in the device's form."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module in modules:
        tensors[f"{module}.A"] = random.standard_normal((HIDDEN, rank)).astype(np.float32) * np.float32(scale)
        tensors[f"{module}.B"] = random.standard_normal((rank, HIDDEN)).astype(np.float32) * np.float32(scale)
    tensors["head.weight"] = random.standard_normal((HIDDEN, labels)).astype(np.float32)
    tensors["head.bias"] = random.standard_normal(labels).astype(np.float32)
    return tensors


def safetensors(tensors, metadata=None):
    """The bytes of a safetensors file, written without the library that a backend might read it with."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, value in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        dtype = {"float32": "F32", "float16": "F16", "int64": "I64"}[value.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_adapter(path: Path, tensors, base_id=BASE_ID, of_tokens=False):
    """Write an adapter file, `of_tokens` one whose head reads every token; returns its path."""
    head = {"head": "tokens"} if of_tokens else {}
    path.write_bytes(safetensors(tensors, {"format": "edge-adapter/1", "base_id": base_id, **head}))
    return path


def reference(rows, tensors=None, seed=1):
    """features [rows, HIDDEN] and logits [rows, labels] (None without an adapter), one row at a time."""
    found = np.asarray([states.mean(0) for states in hidden_states(rows, tensors, seed)])
    return found, found @ tensors["head.weight"] + tensors[
        "head.bias"
    ] if tensors and "head.weight" in tensors else None


def token_reference(rows, tensors):
    """The logits [its tokens, classes] of each row by an adapter whose head reads tokens."""
    return [states @ tensors["head.weight"] + tensors["head.bias"] for states in hidden_states(rows, tensors)]


def hidden_states(rows, tensors=None, seed=1):
    """The hidden states [its tokens, HIDDEN] of each row."""
    values, tensors = weights(seed), tensors or {}

    def linear(name, x):
        module = f"layer.0.{name}"
        y = x @ values[module].T + values[f"{module}.bias"]
        return y + (x @ tensors[f"{module}.A"]) @ tensors[f"{module}.B"] if f"{module}.A" in tensors else y

    found = []
    for row in rows:
        x = values["embedding"][np.asarray(row)]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * values["gamma"] + values["beta"]
        scores = linear("query", x) @ linear("key", x).T * HIDDEN**-0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        found.append(x + linear("out", shares @ linear("value", x)))
    return found
