"""Checks of a package's weight files: the kind that the suffix says, and for an adapter what its manifest says.

`check_file` looks at the first bytes and the table of contents. Refused: a pickle, a zip, a script or a library in the
place of weights; a header that claims more than the file holds; an ONNX graph or a TensorFlow Lite model whose
tensors lie in another file (`onnx_graph`, `tflite_model`). Source: ggml docs/gguf.md.

`check_adapter` compares base, rank, labels and number format of an adapter's file with its manifest.
`adapter.safetensors` (encoders): tensors are named by the module they adapt, `<module>.A` [d_in, rank] and `<module>.B`
[rank, d_out], plus `head.weight` [hidden, labels] and `head.bias` [labels]; the string metadata carries
{format: "edge-adapter/1", base_id, rank, ...}, and {head: "tokens"} where the head reads every token: it then has
the outputs of a token (of slots the classes of a word, of answers two). `adapter.gguf` (generators): llama.cpp's own
form (general.type "adapter", adapter.type "lora"), tensors `<tensor>.lora_a` and `<tensor>.lora_b` in pairs; where it
has the key `edge.base_id`, that names its base.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.base.words import classes
from edge_agent.bundle.gguf_header import GgufTable, read_table
from edge_agent.bundle.manifest import ADAPTER_FILE, ADAPTER_GGUF_FILE, AdapterConfig
from edge_agent.bundle.onnx_graph import check_graph
from edge_agent.bundle.safetensors import OF_TOKENS, read_safetensors
from edge_agent.bundle.tflite_model import check_model

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (PyTorch checkpoints are such)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x7fELF", "a program or library"),
    (b"#!", "a script"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
)


def check_file(path: Path, name: str) -> None:
    """Raises PackageError when the file at `path` is not of the kind that `name`'s suffix says."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(16)
        for magic, kind in _FOREIGN:
            if head.startswith(magic):
                raise PackageError(f"{name} is {kind}, which is never loaded", name)
        if name.endswith(".onnx"):
            check_graph(file, size, name)
        elif name.endswith(".tflite"):
            check_model(file, size, name)
        elif name.endswith(".gguf"):
            read_table(file, name)
        elif name.endswith(".safetensors"):
            read_safetensors(file, size, name, limits.SAFETENSORS_HEADER_BYTES)
        elif name.endswith(".json") and not head.lstrip(b" \t\r\n").startswith(b"{"):
            raise PackageError("it does not begin as a JSON object", name)


FORMAT = "edge-adapter/1"
GGUF_BASE_ID = "edge.base_id"
_DTYPES = {"float32": "F32", "float16": "F16"}
_GGUF_DTYPES = {"float32": "f32", "float16": "f16", "f32": "f32", "f16": "f16"}


def check_adapter(path: Path, config: AdapterConfig) -> None:
    """Raises PackageError when base, rank, labels or number format of the file are not those of the manifest."""
    where = f"adapter {config.name}"
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            _check_gguf(read_table(file, ADAPTER_GGUF_FILE), config, where)
            return
        size_bytes = os.fstat(file.fileno()).st_size
        header = read_safetensors(file, size_bytes, ADAPTER_FILE, limits.SAFETENSORS_HEADER_BYTES)
    metadata = header.metadata
    if metadata.get("format") != FORMAT:
        raise PackageError(f"its file does not say that it is {FORMAT}", where)
    _check_base(metadata.get("base_id"), config, where)
    labels, kind = len(config.task.labels), config.task.kind
    of_tokens = {"slots": classes(labels), "answers": 2}.get(kind)
    outputs = labels if of_tokens is None else of_tokens
    bias = header.tensors.get("head.bias")
    if outputs and (bias is None or bias.shape != (outputs,)):
        raise PackageError(f"its head is not for the {labels} labels of its task", where)
    if (metadata.get("head") == OF_TOKENS) is (of_tokens is None):
        reads = "tokens" if of_tokens is None else "texts"
        raise PackageError(f"its head reads {reads}, which is not what its task {kind!r} needs", where)
    for name, (dtype, shape, _, _) in header.tensors.items():
        if dtype != _DTYPES.get(config.dtype):
            raise PackageError(f"tensor {name[:80]} is {dtype}, the manifest says {config.dtype}", where)
        if name.endswith((".A", ".B")) and (len(shape) != 2 or shape[name.endswith(".A")] > config.rank):
            raise PackageError(f"tensor {name[:80]} has a rank above the manifest's {config.rank}", where)


def _check_base(said: object, config: AdapterConfig, where: str) -> None:
    if said != config.base_id:
        raise PackageError(f"its file is for base {str(said)[:19]}, the manifest says otherwise", where)


def _check_gguf(table: GgufTable, config: AdapterConfig, where: str) -> None:
    if table.text("general.type") != "adapter" or table.text("adapter.type") != "lora":
        raise PackageError("its file is a GGUF, but no LoRA adapter", where)
    if GGUF_BASE_ID in table.keys:
        _check_base(table.text(GGUF_BASE_ID), config, where)
    alpha = table.number("adapter.lora.alpha")
    if alpha is None or not table.tensors:
        raise PackageError("its file lacks adapter.lora.alpha, or has no tensors", where)
    if not 0 < alpha < math.inf:
        raise PackageError(f"its adapter.lora.alpha is {alpha}, a number above 0 is needed", where)
    for name, tensor in table.tensors.items():
        stem, _, side = name.rpartition(".")
        other = {"lora_a": "lora_b", "lora_b": "lora_a"}.get(side)
        if other is None or f"{stem}.{other}" not in table.tensors:
            raise PackageError(f"tensor {name[:80]} is not one of a pair .lora_a, .lora_b", where)
        if len(tensor.shape) != 2 or tensor.shape[side == "lora_a"] > config.rank:
            raise PackageError(f"tensor {name[:80]} has a rank above the manifest's {config.rank}", where)
        if tensor.dtype != _GGUF_DTYPES[config.dtype]:
            raise PackageError(f"tensor {name[:80]} is {tensor.dtype}, the manifest says {config.dtype}", where)
