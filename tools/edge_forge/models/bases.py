"""Where a recipe's base model comes from, and what makes two bases the same.

`resolve` tries the recipe's sources in their order; the first that holds a usable base wins, and the error of a
failure lists every attempt with its reason. A source is written

    ./folder or dir:FOLDER    a local directory (relative to the recipe)
    python:DISTRIBUTION       an installed Python distribution that carries the weights (it is not imported)
    owner/name or hf:ID       the Hugging Face cache, then, unless HF_HUB_OFFLINE is set, the hub; `hf:ID@REVISION`

A usable base is a folder with `config.json`, `tokenizer.json` and `model.safetensors` (one file or an index with
shards). Pickled weights (`pytorch_model.bin`) are refused: to load them is to run code.

`base_id` is the identity that adapters are tied to; see its docstring. This module loads no runtime.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError

# The fields of config.json that change what the encoder computes. Names, versions, training-time settings (dropout,
# initialisation) and caches do not, and hubs rewrite them.
CONFIG_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_act",
    "hidden_activation",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "norm_eps",
    "rms_norm_eps",
    "position_embedding_type",
    "rope_theta",
    "rope_scaling",
    "pad_token_id",
)
# What the features (mean pooling of the last hidden state) never read, so that a checkpoint with or without them,
# or with another head on top, is the same base.
_UNUSED_PREFIXES = ("pooler.", "cls.", "classifier.", "score.", "lm_head.")
_UNUSED_SUFFIXES = ("position_ids", "token_type_ids_buffer")
_CONFIG_DEFAULTS: Mapping[str, object] = {"position_embedding_type": "absolute"}
# A language model's answers depend on more: its head, and how it is attached and scaled.
LANGUAGE_FIELDS = (
    *CONFIG_FIELDS,
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "sliding_window",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_HEADER_BYTES_MAX = 100_000_000  # the bound of the safetensors format itself
_CHUNK_BYTES = 1 << 22
_PICKLES = ("pytorch_model.bin", "model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "tf_model.h5")
_WANTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
           "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "1_Pooling/config.json",
           "README.md", "LICENSE*")  # fmt: skip


class _NotHere(ConfigError):
    """A source does not hold a base; the text says why."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base found on this machine. `source` is the recipe's entry that led here; `tried` names those before it."""

    directory: Path
    source: str
    base_id: str
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tried: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self.weights)


def resolve(sources: Sequence[str], recipe_dir: Path, language: bool = False) -> Base:
    """The first usable base among `sources`; `language`: for a generator (see `base_id`).

    Raises ConfigError that lists what was tried, in order.
    """
    tried: list[str] = []
    for source in sources:
        try:
            directory = _locate(source, recipe_dir)
            config, weights = check(directory)
        except _NotHere as reason:
            tried.append(f"{source}: {reason}")
            continue
        return Base(directory, source, base_id(directory, language), config, weights, tuple(tried))
    attempts = "; ".join(f"{number}) {attempt}" for number, attempt in enumerate(tried, 1)) or "no source was named"
    raise ConfigError(
        f"no base model was found. Tried, in this order: {attempts}",
        "base.source",
        "name a folder, install the package that carries the weights, or let the hub be reached once",
    )


def _locate(source: str, recipe_dir: Path) -> Path:
    kind, _, rest = source.partition(":")
    ways: dict[str, Callable[[str], Path]] = {
        "dir": lambda text: _from_directory(text, recipe_dir),
        "python": _from_distribution,
        "hf": _from_hub,
    }
    if rest and kind in ways:
        return ways[kind](rest)
    if source.startswith((".", "/", "~")) or (recipe_dir / source).is_dir():
        return _from_directory(source, recipe_dir)
    return _from_hub(source)


def _from_directory(text: str, recipe_dir: Path) -> Path:
    path = recipe_dir / Path(text).expanduser()
    if not path.is_dir():
        raise _NotHere(f"no folder {path}")
    return path.resolve()


def _from_distribution(name: str) -> Path:
    try:
        files = importlib.metadata.distribution(name).files or ()
    except importlib.metadata.PackageNotFoundError:
        raise _NotHere(f"no Python package {name} is installed here (pip install {name})") from None
    for file in files:
        if file.name == "config.json":
            folder = Path(str(file.locate())).parent
            if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
                return folder.resolve()
    raise _NotHere("the installed package has no folder with config.json and model.safetensors")


def _from_hub(identifier: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise _NotHere("huggingface_hub is not installed (pip install huggingface_hub)") from None
    name, _, revision = identifier.partition("@")
    arguments: dict[str, Any] = {"repo_id": name, "revision": revision or None, "allow_patterns": list(_WANTED)}
    try:
        cached = Path(snapshot_download(**arguments, local_files_only=True))
        check(cached)
        return cached
    except HFValidationError:
        raise _NotHere("it is neither a folder nor a valid hub id (owner/name)") from None
    except (LocalEntryNotFoundError, _NotHere):
        pass
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _NotHere("not in the Hugging Face cache, and HF_HUB_OFFLINE forbids to ask the hub")
    try:
        return Path(snapshot_download(**arguments, etag_timeout=10))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise _NotHere(f"not in the Hugging Face cache, and the hub did not give it: {reason}") from error


def check(directory: Path) -> tuple[Mapping[str, Any], tuple[Path, ...]]:
    """The configuration and the weight files of a base folder. Raises when a file is missing, broken or pickled."""
    config = _read_json(directory / "config.json")
    if not isinstance(config.get("model_type"), str) or not isinstance(config.get("hidden_size"), int):
        raise _NotHere("config.json lacks model_type or hidden_size: it is no transformer")
    if not (directory / "tokenizer.json").is_file():
        raise _NotHere("no tokenizer.json (the fast tokenizer, which is what runs on the device)")
    weights = _weight_files(directory)
    for path in weights:
        _header(path)
    return config, weights


def _weight_files(directory: Path) -> tuple[Path, ...]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        names = sorted(set(map(str, _read_json(index).get("weight_map", {}).values())))
        for name in names:
            if Path(name).name != name or not (directory / name).is_file():
                raise _NotHere(f"the weight index names {name!r}, which is not in the folder")
        if names:
            return tuple(directory / name for name in names)
    pickled = [name for name in _PICKLES if (directory / name).is_file()]
    if pickled:
        raise _NotHere(f"it has only {pickled[0]}, and pickled weights are refused: convert it to safetensors")
    raise _NotHere("no model.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _NotHere(f"no {path.name}") from None
    except (ValueError, OSError) as error:
        raise _NotHere(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise _NotHere(f"{path.name} holds no object")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensor table of a safetensors file and the offset where the bytes begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_HEADER_BYTES_MAX, size - 8):
            raise _NotHere(f"{path.name} is no safetensors file, or is cut short")
        try:
            table = json.loads(file.read(length))
        except ValueError as error:
            raise _NotHere(f"{path.name} has a broken header") from error
    table.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in table.values()]
    if not ends or 8 + length + max(ends) != size:
        raise _NotHere(f"{path.name} is cut short: its table promises more or fewer bytes than it has")
    return table, 8 + length


def base_id(directory: Path, language: bool = False) -> str:
    """The identity of a base: `sha256:<hex>`, equal exactly when two bases compute the same features.

    The digest runs over, each part ended by a newline:
      1. the text `edge-base/1`;
      2. canonical JSON (sorted keys, no spaces) of those `CONFIG_FIELDS` that config.json has and that are not null;
      3. for every tensor of the encoder in order of its name: canonical JSON `[name, dtype, shape]`, then its bytes.
    Names lose the model type's prefix (`bert.encoder...` = `encoder...`); poolers, heads and position-id buffers
    are left out (`_UNUSED_*`), since the features never read them. The order and the sharding of files, metadata
    and alignment play no part. Costs one read of the weights (about 0.3 s for 90 MB).

    With `language` it is that of a generator: the text is `edge-base/1 language`, the fields are `LANGUAGE_FIELDS`, and
    heads count, since answers come from them.
    """
    config = _read_json(directory / "config.json")
    names = LANGUAGE_FIELDS if language else CONFIG_FIELDS
    fields = {**_CONFIG_DEFAULTS, **{key: config[key] for key in names if config.get(key) is not None}}
    title = b"edge-base/1 language\n" if language else b"edge-base/1\n"
    digest = hashlib.sha256(title + _canonical(fields) + b"\n")
    prefix = f"{config.get('model_type')}."
    found: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for path in _weight_files(directory):
        table, start = _header(path)
        for name, entry in table.items():
            short = name.removeprefix(prefix)
            if not short.startswith(() if language else _UNUSED_PREFIXES) and not short.endswith(_UNUSED_SUFFIXES):
                found[short] = (path, start, entry)
    for name in sorted(found):
        path, start, entry = found[name]
        digest.update(_canonical([name, entry["dtype"], entry["shape"]]) + b"\n")
        for chunk in _bytes_of(path, start, entry["data_offsets"]):
            digest.update(chunk)
        digest.update(b"\n")
    return f"sha256:{digest.hexdigest()}"


def _bytes_of(path: Path, start: int, offsets: Sequence[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start + offsets[0])
        left = offsets[1] - offsets[0]
        while left > 0:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ConfigError("the file ended while it was read", str(path), "fetch the base again")
            left -= len(chunk)
            yield chunk


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
