"""GGUF models with random weights, written by the `gguf` library: small ones for tests, known shapes for the
benchmarks.

The vocabulary is byte-level BPE: the 256 bytes, four control tokens, and fillers up to the size that a shape has. The
text that such a model generates is random; the code around it is what is tested and timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BASE_ID = "sha256:" + "99" * 32
BOS, EOS, TURN, END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALPHA = 16.0

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """A Llama architecture: numbers of layers, heads and values per layer. The head size is `width / heads`. `tied`:
    the output layer uses the weights of the embedding.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 256
    vocab: int = 320
    context: int = 1024
    tied: bool = True


class Lora(NamedTuple):
    """A random LoRA adapter; the same seed, rank and targets give the same adapter."""

    seed: int = 1
    rank: int = 4
    targets: Sequence[str] = ("attn_q", "attn_v", "ffn_down")


TINY = Shape()
SMOLLM2_135M = Shape(576, 30, 9, 3, 1536, 49152, 8192)
# Sizes of the models' config.json. All are written as Llama, so that Qwen2.5 lacks its biases of q, k and v.
SHAPES = {
    "smollm2-135m": SMOLLM2_135M,
    "qwen2.5-0.5b": Shape(896, 24, 14, 2, 4864, 151936, 32768),
    "tinyllama-1.1b": Shape(2048, 22, 32, 4, 5632, 32000, 2048, tied=False),
}
# Numbers of the file types as in llama.cpp's `llama_ftype`.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}


def write_model(
    path: Path,
    shape: Shape = TINY,
    seed: int = 1,
    dtype: str = "f16",
    template: str | None = TEMPLATE,
    merged: Lora | None = None,
) -> Path:
    """Write a model with random weights. `dtype`: one of `FILE_TYPES`, for matrices; norms are float32. `merged`: an
    adapter that is added to the weights.
    """
    gguf = _library()
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, gguf, shape, template)
    writer.add_file_type(FILE_TYPES[dtype])
    rng = np.random.default_rng(seed)
    factors = dict(_factors(merged, shape)) if merged is not None else {}
    for name, size in _tensors(shape):
        if len(size) == 1:
            writer.add_tensor(name, np.ones(size, np.float32))
            continue
        weights = rng.standard_normal(size, np.float32) * (size[1] ** -0.5)
        if merged is not None and name in factors:
            a, b = factors[name]
            weights += (ALPHA / merged.rank) * (b @ a)
        _add(writer, gguf, name, weights, dtype)
    return _finish(writer, path)


def write_adapter(
    path: Path,
    seed: int = 1,
    rank: int = 4,
    targets: Sequence[str] = ("attn_q", "attn_v", "ffn_down"),
    shape: Shape = TINY,
    arch: str = "llama",
) -> Path:
    """Write a LoRA adapter of `write_model`'s base that clearly changes its output."""
    gguf = _library()
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, (a, b) in _factors(Lora(seed, rank, targets), shape):
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    return _finish(writer, path)


def _factors(lora: Lora, shape: Shape) -> Iterator[tuple[str, tuple[Matrix, Matrix]]]:
    """The weights that an adapter changes, by name, with its A [rank, in] and B [out, rank]."""
    rng = np.random.default_rng(lora.seed + 1000)
    sizes = dict(_tensors(shape))
    for layer in range(shape.layers):
        for target in lora.targets:
            name = f"blk.{layer}.{target}.weight"
            out, into = sizes[name]
            a = rng.standard_normal((lora.rank, into), np.float32) * np.float32(into**-0.5)
            yield name, (a, rng.standard_normal((out, lora.rank), np.float32) * np.float32(0.5))


def _library() -> Any:
    import gguf

    return gguf


def _describe(writer: Any, gguf: Any, shape: Shape, template: str | None) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    pieces = [*_byte_pieces(), BOS, EOS, TURN, END]
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    kinds = [normal] * 256 + [control] * 4
    extra = shape.vocab - len(pieces)
    if extra < 0:
        raise ValueError("a vocabulary holds at least the bytes and the control tokens")
    pieces += [f"filler{number}" for number in range(extra)]
    kinds += [normal] * extra
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_merges(["filler filler"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    writer.add_eot_token_id(259)
    if template is not None:
        writer.add_chat_template(template)


def _byte_pieces() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in = {byte: chr(byte) for byte in shown}
    hidden = [byte for byte in range(256) if byte not in stand_in]
    stand_in.update({byte: chr(256 + place) for place, byte in enumerate(hidden)})
    return [stand_in[byte] for byte in range(256)]


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes, the output dimension first (numpy's order)."""
    kv_width = shape.width // shape.heads * shape.kv_heads
    yield "token_embd.weight", (shape.vocab, shape.width)
    yield "output_norm.weight", (shape.width,)
    if not shape.tied:
        yield "output.weight", (shape.vocab, shape.width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (shape.width,)
        yield block + "attn_q.weight", (shape.width, shape.width)
        yield block + "attn_k.weight", (kv_width, shape.width)
        yield block + "attn_v.weight", (kv_width, shape.width)
        yield block + "attn_output.weight", (shape.width, shape.width)
        yield block + "ffn_norm.weight", (shape.width,)
        yield block + "ffn_gate.weight", (shape.feed_forward, shape.width)
        yield block + "ffn_up.weight", (shape.feed_forward, shape.width)
        yield block + "ffn_down.weight", (shape.width, shape.feed_forward)


def _add(writer: Any, gguf: Any, name: str, weights: Any, dtype: str) -> None:
    if dtype in {"q8_0", "q4_0"}:
        kind = gguf.GGMLQuantizationType[dtype.upper()]
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weights.astype(np.float16 if dtype == "f16" else np.float32))


def _finish(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
