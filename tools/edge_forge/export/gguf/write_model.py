"""A Hugging Face folder as one GGUF file: matrices in float16, vectors in float32, tokenizer and template inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edge_agent.base.errors import ConfigError
from edge_forge.export.gguf import families, vocabulary
from edge_forge.export.gguf.families import Family
from edge_forge.export.gguf.tensors import BASE_ID_KEY, Floats, Tensors, as_float16
from edge_forge.models import bases

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FLOATS = ("F16", "BF16", "F32", "F64")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "max_position_embeddings")  # fmt: skip
# llama.cpp gives tokens other attributes in a model of such a name, and ends with an exception where they are missing.
_NAMES_THAT_CHANGE = ("phi-3", "phi3", "modern-bert")


@dataclass(frozen=True)
class Converted:
    """What was written: the architecture, how many tensors, and what the tokenizer was taken for."""

    arch: str
    tensors: int
    size_bytes: int
    tokenizer: str
    pre: str
    chat_template: bool


Delta = Callable[[str], Floats | None]
"""What is added to the weight of a module, in the shape and the order of Hugging Face; None: nothing."""


def convert(folder: Path, out: Path, name: str, base_id: str, delta: Delta | None = None) -> Converted:
    """Write `folder` (config.json, tokenizer.json, safetensors) as `out`, with `delta` (a merged adapter) added.

    Raises ConfigError for what has no form.
    """
    config = read_config(folder)
    found = families.family(config)
    words = vocabulary.read(folder, int(config["vocab_size"]))
    writer = gguf.GGUFWriter(out, found.name)
    writer.add_type(gguf.GGUFType.MODEL)
    if not any(word in name.lower() for word in _NAMES_THAT_CHANGE):
        writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(BASE_ID_KEY, base_id)
    families.write_keys(writer, found, config)
    words.write(writer)
    with Tensors(bases.weight_files(folder)) as tensors:
        count = _write_tensors(writer, tensors, found, config, delta)
    writer.close()
    return Converted(found.name, count, out.stat().st_size, words.model, words.pre, words.chat_template is not None)


class ModelConfig(dict[str, Any]):
    """config.json as a mapping; a key that is asked for and absent is a ConfigError that names it.

    `transformers` fills an absent key with the default of its class, which is not the model's: no GGUF key is guessed.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"it has no {key}, which a GGUF file states", str(self._path), f"add {key} of the model")


def read_config(folder: Path) -> ModelConfig:
    """config.json of a folder. Raises ConfigError, also for a size that is no whole number above 0."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config.json cannot be read: {error}", str(folder)) from error
    if not isinstance(found, dict):
        raise ConfigError("config.json is no JSON object", str(folder), "give a Hugging Face folder")
    for key in _SIZES:
        value = found.get(key, 1)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ConfigError(f"{key} = {value!r} is no whole number above 0", str(path), "take the model's own config")
    return ModelConfig(found, path)


def check_names(folder: Path) -> None:
    """Raise ConfigError for a model whose tensors have no place in a GGUF file, or whose config.json lacks what such a
    file states. Reads no weights but a tied head's."""
    config = read_config(folder)
    found = families.family(config)
    families.write_keys(gguf.GGUFWriter(None, found.name), found, config)
    with Tensors(bases.weight_files(folder)) as tensors:
        list(_names(tensors, found, config))


def check_values(folder: Path) -> None:
    """Raise ConfigError for a tensor of integers, with NaN or infinity, or a matrix beyond float16. Holds one tensor
    at a time."""
    for path in bases.weight_files(folder):
        for name, place in bases.tensor_places(path).items():
            if place.dtype not in _FLOATS and not name.endswith(bases.STORED_BUFFERS):
                raise ConfigError(
                    f"the tensor {name} is stored as {place.dtype}", str(path), "give the base with its float weights"
                )
    with Tensors(bases.weight_files(folder)) as tensors:
        for source in tensors:
            value = tensors.read(source)
            if not np.isfinite(value).all():
                raise bases.not_finite(folder, source)
            if value.ndim > 1:
                as_float16(value, source)


def _write_tensors(writer: Any, tensors: Tensors, found: Family, config: Mapping[str, Any], delta: Delta | None) -> int:
    names = list(_names(tensors, found, config))
    extra = families.rope_factors(config)
    if extra is not None:
        writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
    for source, target in names:
        shape = tensors.shape(source)
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(target, shape, kind, int(np.prod(shape)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if extra is not None:
        writer.write_tensor_data(extra)
    for source, _ in names:
        writer.write_tensor_data(_converted(tensors, source, found, config, delta))
    return len(names) + (extra is not None)


def _names(tensors: Tensors, found: Family, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name in safetensors, name in GGUF), in the order of the files."""
    known = gguf.get_tensor_name_map(found.arch, int(config["num_hidden_layers"]))
    for source in tensors:
        if source.endswith(bases.STORED_BUFFERS):
            continue
        if source == _HEAD and not found.needs_head and _is_tied(tensors, found, config):
            continue
        target = known.get_name(source, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ConfigError(f"tensor {source!r} has no place in a GGUF of architecture {found.name}", "gguf")
        yield source, target
    if found.needs_head and _HEAD not in tensors:
        yield _EMBEDDING, "output.weight"


def _is_tied(tensors: Tensors, found: Family, config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding: not where the flag says so and the file has another one, which PyTorch uses.

    Raises ConfigError for a head of its own that llama.cpp does not read.
    """
    tied = config.get("tie_word_embeddings")
    if not (found.tied if tied is None else tied):
        return False
    if _EMBEDDING not in tensors or tensors.equal(_HEAD, _EMBEDDING):
        return True
    if not found.own_head:
        raise ConfigError(
            f"tie_word_embeddings is true, and {_HEAD} differs from {_EMBEDDING}: llama.cpp reads no head in a model "
            f"of architecture {found.name}", "base.source", "take the base as it was published",
        )  # fmt: skip
    return False


def _converted(
    tensors: Tensors, source: str, found: Family, config: Mapping[str, Any], delta: Delta | None
) -> NDArray[Any]:
    module, _, part = source.rpartition(".")
    value = tensors.read(source)
    added = delta(module) if delta is not None and part == "weight" else None
    if added is not None:
        value = value + added
    if found.norm_add and module.endswith("norm") and part == "weight":
        value = value + np.float32(found.norm_add)
    value = families.rows_permuted(found, config, module, value)
    return value if value.ndim == 1 else as_float16(value, source)
