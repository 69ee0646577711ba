"""Where a recipe's base model comes from, and what makes two bases the same.

`resolve` tries the recipe's sources in their order; the first that holds a usable base wins, and the error of a
failure lists every attempt with its reason. A source is written

    ./folder or dir:FOLDER    a local directory (relative to the recipe)
    python:DISTRIBUTION       an installed Python distribution that carries the weights (it is not imported)
    owner/name or hf:ID       the Hugging Face cache, then, unless HF_HUB_OFFLINE is set, the hub; `hf:ID@REVISION`

A usable base is a folder with `config.json`, `tokenizer.json` and `model.safetensors` (one file or an index with
shards). Pickled weights (`pytorch_model.bin`) are refused: to load them is to run code. A base is a list of files
(`listed`); libraries read a folder of links to them (`only_listed`), so that nothing else beside them has an effect.

The identity of a base is in `base_identity`. This module loads no runtime.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError, PackageError, brief
from edge_agent.base.limits import SAFETENSORS_HEADER_BYTES
from edge_agent.base.named_file import open_named
from edge_agent.bundle.safetensors import TensorPlace, read_safetensors
from edge_forge.models import sentence_pooling

_PICKLES = ("pytorch_model.bin", "model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "tf_model.h5")
_WANTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
           "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "modules.json",
           "config_sentence_transformers.json", "sentence_*_config.json", "[1-9]_*/config.json",
           "[1-9]_*/model.safetensors", "README.md", "LICENSE*")  # fmt: skip
# What other programs would read beside the weights, and what is never read here.
_OTHERS_READ = ("adapter_config.json", "adapter_model.safetensors", "*.py", "*.bin", "*.pt", "*.pth", "*.h5",
                "*.msgpack", "*.pkl", "*.ckpt")  # fmt: skip
# Keys of config.json that name code or kernels; a base is computed by transformers' own code alone.
_NOT_TAKEN = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
              "_experts_implementation", "experts_implementation")  # fmt: skip
STORED_BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")
"""Ends of names of tensors that some versions of transformers wrote, and every runtime computes anew."""


class _NotHere(ConfigError):
    """A source does not hold a base; the text says why."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base found on this machine. `source` is the recipe's entry that led here; `tried` names those before it.

    `base_id` is '' until the plan has computed it (`base_identity`).
    """

    directory: Path
    source: str
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    tried: tuple[str, ...] = ()
    base_id: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self.weights)


def resolve(sources: Sequence[str], recipe_dir: Path) -> Base:
    """The first usable base among `sources`.

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
        return Base(directory, source, config, weights, tuple(tried))
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


_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
MOST_LAYERS = 1024
"""transformers makes one layer after another before it looks at the weights: a wrong figure would not end. The deepest
published models have some 130."""


def check(directory: Path) -> tuple[Mapping[str, Any], tuple[Path, ...]]:
    """The configuration and the weight files of a base folder. Raises when a file is missing, broken or pickled."""
    if not (directory / "config.json").exists() and (directory / "adapter_config.json").is_file():
        raise _NotHere("no config.json, but adapter_config.json: an adapter; name the base that it was trained on")
    config = read_json(directory / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise _NotHere("config.json lacks model_type: it is no transformer")
    if config.get("quantization_config"):
        raise _NotHere("config.json has a quantization_config: give the base with its float weights")
    for key in _LAYER_KEYS:
        if isinstance(count := config.get(key), int) and count > MOST_LAYERS:
            raise _NotHere(f"config.json says {key} = {brief(count)}, at most {MOST_LAYERS:,} layers can be")
    if not (directory / "tokenizer.json").is_file():
        raise _NotHere("no tokenizer.json (the fast tokenizer, which is what runs on the device)")
    weights = weight_files(directory)
    seen: dict[str, str] = {}
    for path in weights:
        for name in tensor_places(path):
            if name in seen:  # which of them counts would depend on who reads
                raise _NotHere(f"{path.name} holds the tensor {brief(name)}, which {seen[name]} holds too")
            seen[name] = path.name
    return config, weights


def require_tensors(
    directory: Path, reader: str, missing: Iterable[str], unread: Iterable[str], other_shapes: Iterable[tuple[Any, ...]]
) -> None:
    """Refuse a base whose tensors are not those that the class `reader` computes with, by the first one's name.

    `other_shapes` are (name, shape in the file, shape in the class). transformers fills what it lacks with random
    numbers and passes over the rest. Raises ConfigError.
    """
    lacking = sorted(missing)
    if lacking:
        raise ConfigError(
            f"the base lacks {len(lacking)} tensors, the first is {lacking[0]}", str(directory),
            "give the whole checkpoint: PyTorch would fill them with random numbers",
        )  # fmt: skip
    shapes = sorted((name, list(found), list(wanted)) for name, found, wanted in other_shapes)
    if shapes:
        name, found, wanted = shapes[0]
        raise ConfigError(
            f"the base has {len(shapes)} tensors of another shape than its config.json says, the first is {name}: "
            f"{found}, not {wanted}", str(directory), "give a checkpoint that fits its config.json",
        )  # fmt: skip
    beyond = sorted(unread)
    if beyond:
        raise ConfigError(
            f"the base has {len(beyond)} tensors that {reader} does not compute with, the first is {beyond[0]}",
            str(directory), "give a checkpoint that fits its config.json",
        )  # fmt: skip


def not_finite(directory: Path, name: str) -> ConfigError:
    """The error for a base with NaN or infinity in a tensor."""
    return ConfigError(
        f"the base's tensor {name} holds a value that is no finite number", str(directory),
        "take a whole copy of the base, or its weights in a wider number format",
    )  # fmt: skip


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a base: one, or those that its index names. Raises when there are none."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise _NotHere(f"{index.name} has no weight_map that names a file for each tensor")
        names = sorted(set(named.values()))
        for name in names:
            if Path(name).name != name or not (directory / name).is_file():
                raise _NotHere(f"the weight index names {name!r}, which is not in the folder")
        if names:
            return tuple(directory / name for name in names)
    pickled = [name for name in _PICKLES if (directory / name).is_file()]
    if pickled:
        raise _NotHere(f"it has only {pickled[0]}, and pickled weights are refused: convert it to safetensors")
    if files := sorted(directory.glob("*.gguf")):
        raise _NotHere(f"it has only {files[0].name}: a base is given with its float weights, as model.safetensors")
    if shards := sorted(directory.glob("model-*.safetensors")):
        raise _NotHere(f"{shards[0].name} is there, and no {index.name}, which says what belongs to the model")
    raise _NotHere("no model.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises when it is missing or holds something else."""
    try:
        with open_named(path) as file:
            found = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        raise _NotHere(f"no {path.name}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise _NotHere(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise _NotHere(f"{path.name} holds no object")
    return found


def tensor_places(path: Path) -> Mapping[str, TensorPlace]:
    """The tensors of a safetensors file by name, read as the device reads it. Raises when the header is broken or the
    file cut short."""
    try:
        with open_named(path) as file:
            return read_safetensors(file, path.stat().st_size, path.name, SAFETENSORS_HEADER_BYTES).tensors
    except (PackageError, OSError) as error:
        raise _NotHere(f"{path.name} is no whole safetensors file: {getattr(error, 'what', error)}") from error


def listed(directory: Path) -> tuple[Path, ...]:
    """The files that a base consists of: configuration, tokenizer, weights, and those of sentence-transformers."""
    extra = [directory / name for name in sentence_pooling.files(directory)]
    return (directory / "config.json", directory / "tokenizer.json", *weight_files(directory), *extra)


def beside(directory: Path) -> tuple[str, ...]:
    """Names of files in the folder that other programs would load and that are not used here: adapters, code,
    pickles."""
    names = (path.name for path in directory.iterdir() if path.is_file())
    return tuple(sorted(name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in _OTHERS_READ)))


def about_beside(directory: Path) -> str:
    """A sentence on `beside`; '' where there is nothing."""
    unused = beside(directory)
    return f"not used, though it lies beside the base's files: {', '.join(unused)}" if unused else ""


@contextlib.contextmanager
def only_listed(directory: Path, also: Sequence[str] = ()) -> Iterator[Path]:
    """A folder for transformers with the base's configuration and links to its weights and `also`, and nothing else.

    Left out of the configuration are the keys that name code or kernels. transformers applies an adapter that lies in
    the folder, and takes settings from further files. Raises for a model type that it does not know.
    """
    from transformers import CONFIG_MAPPING
    from transformers import __version__ as version

    config = {key: value for key, value in read_json(directory / "config.json").items() if key not in _NOT_TAKEN}
    if config.get("model_type") not in CONFIG_MAPPING:
        raise _NotHere(f"transformers {version} has no model type {brief(config.get('model_type'))} (config.json)")
    with tempfile.TemporaryDirectory(prefix="edge-forge-base-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        index = directory / "model.safetensors.index.json"
        weights = weight_files(directory)
        if directory / "model.safetensors" not in weights:  # transformers wants a key more than the names
            names = {"metadata": {}, "weight_map": read_json(index)["weight_map"]}
            (folder / index.name).write_text(json.dumps(names), encoding="utf-8")
        extra = [path for path in (directory / name for name in also) if path.is_file()]
        for path in (*weights, *extra):
            (folder / path.name).symlink_to(path.resolve())
        yield folder


def opening_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for a folder that it cannot open; checks of its configurations have their own class."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        OSError, ValueError, LookupError, RuntimeError, AttributeError, ImportError, TypeError, ArithmeticError,
        AssertionError, StrictDataclassError,
    )  # fmt: skip


def opening_reason(error: Exception) -> str:
    """One of `opening_errors` in a line."""
    if isinstance(error, KeyError):
        return f"transformers knows no {error} that config.json names"
    return " ".join(str(error).split())[:300] or type(error).__name__


def plain_tokenizer(text: str) -> Any:
    """The tokenizer (of `tokenizers`) in the text of a tokenizer.json, for texts as devices read them: it cuts and pads
    nothing, and takes nothing that is written in a text for a special token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
