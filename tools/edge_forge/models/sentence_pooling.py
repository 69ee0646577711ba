"""What turns hidden states into one vector: mean pooling, or what a sentence-transformers folder says.

Such a folder has `modules.json`, which lists its steps: Transformer, Pooling (CLS, mean, max and others, concatenated
where several are on), Dense, Normalize; and `config_sentence_transformers.json` with prompts. What is read here is
obeyed in training, in the exported graph and on the device; everything else is refused by name.

A Normalize at the end is not part of the features: it changes their length alone, the task `embed` scales every answer
to length 1, and a classifier's head learns better on features of their own length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.errors import ConfigError
from edge_agent.base.texts import Text

if TYPE_CHECKING:
    import torch

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
# Settings of the Transformer: the first that is there counts, as in sentence-transformers. Old classes had own names.
TRANSFORMER = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER = "tokenizer_config.json"
_POOLING, _DENSE, _NORMALIZE, _DROPOUT, _TRUNCATE = "Pooling", "Dense", "Normalize", "Dropout", "truncate_dim"
# What the Transformer hands on; other values of these settings name other outputs or heads.
_TRANSFORMER_IS = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_TEXT_IS = {"method": "forward", "method_output_name": "last_hidden_state"}
# Settings of the Transformer by which it computes otherwise than config.json says; these of them change nothing.
_OVERRIDES = ("config_args", "config_kwargs", "model_args", "model_kwargs")
_HARMLESS = frozenset({
    "trust_remote_code", "attn_implementation", "torch_dtype", "dtype", "revision", "token", "cache_dir",
    "local_files_only", "add_pooling_layer", "device_map", "low_cpu_mem_usage",
})  # fmt: skip
# In the order in which sentence-transformers concatenates those whose flags are on.
_MODES = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
_MODE_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MEAN_KEY, _SQRT_NAME = "pooling_mode_mean_tokens", "mean_sqrt_len_tokens"
_FEATURES = "sentence_embedding"
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_PROMPT_CHARS = 1024


class PoolingPlan:
    """The steps after the encoder: `modes` of pooling, then `steps` of (kind, activation, folder of the weights)."""

    def __init__(
        self, modes: Sequence[str] = ("mean",), steps: Sequence[tuple[str, str, str]] = (), prompt: str = ""
    ) -> None:
        self.modes = tuple(modes)
        self.steps = tuple(steps)
        self.prompt = prompt

    def described(self) -> dict[str, Any]:
        """As JSON values; equal exactly when two folders compute the same, given equal Dense weights."""
        return {
            "pooling": list(self.modes), "steps": [[kind, how] for kind, how, _ in self.steps], "prompt": self.prompt,
        }  # fmt: skip

    def build(self, base_dir: Path, hidden: int) -> torch.nn.Module:
        """The module: hidden states [rows, tokens, `hidden`] and mask [rows, tokens] to features [rows, width].

        Raises ConfigError for weights of Dense that cannot be read, or do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from edge_forge.models.pooling_layers import DenseStep, NormalizeStep, SentencePooling, TruncateStep

        steps: list[torch.nn.Module] = []
        width = hidden * len(self.modes)
        for kind, how, folder in self.steps:
            if kind == _NORMALIZE:
                steps.append(NormalizeStep())
            elif kind == _TRUNCATE:
                steps.append(TruncateStep(int(how)))
            else:
                path = base_dir / folder / "model.safetensors"
                try:
                    tensors = load_file(path)
                except (SafetensorError, OSError) as error:
                    raise _refused(path, f"it cannot be read: {error}") from error
                steps.append(DenseStep(*_dense_tensors(path, tensors, width), how))
                width = len(tensors["linear.weight"])
        return SentencePooling(self.modes, steps)


def read(base_dir: Path) -> PoolingPlan:
    """What the folder says, or mean pooling where it says nothing. Raises ConfigError that names what is not known."""
    if not (base_dir / MODULES).is_file():
        folder = base_dir / "1_Pooling"
        return PoolingPlan(_modes(folder, "") if (folder / "config.json").is_file() else ("mean",))
    prompt = _prompt(base_dir)
    modes: tuple[str, ...] | None = None
    steps: list[tuple[str, str, str]] = []
    for place, (kind, path) in enumerate(_modules(base_dir)):
        if place == 0:
            if kind != "Transformer" or path not in ("", "."):
                raise _refused(base_dir / MODULES, f"the first module is {kind} in {path!r}, not a Transformer in ''")
        elif kind == _POOLING and modes is None and not steps:
            modes = _modes(base_dir / path, prompt)
        elif kind == _DROPOUT and modes is not None:
            continue  # it acts in training alone
        elif kind in (_DENSE, _NORMALIZE) and modes is not None:
            _check_step(base_dir / path / "config.json", kind)
            steps.append((kind, _activation(base_dir / path) if kind == _DENSE else "", path))
        else:
            raise _refused(base_dir / MODULES, f"the module {kind} is not known here, or stands at the wrong place")
    if modes is None:
        raise _refused(base_dir / MODULES, "no Pooling module follows the Transformer")
    while steps and steps[-1][0] == _NORMALIZE:
        steps.pop()
    if width := _truncated(base_dir):
        steps.append((_TRUNCATE, str(width), ""))
    _check_case(base_dir)
    _check_transformer(base_dir)
    return PoolingPlan(modes, steps, prompt)


def longest_text(base_dir: Path) -> tuple[int, str] | None:
    """The most tokens of a text that sentence-transformers reads, special ones included, and the key that says so; it
    cuts longer ones. None where the folder says nothing, or is of another program."""
    if not (base_dir / MODULES).is_file():
        return None
    path = _transformer_file(base_dir)
    said = [(path, "max_seq_length")] if path is not None else []
    for file, key in (*said, (base_dir / TOKENIZER, "model_max_length")):
        value = _object(file).get(key) if file.is_file() else None
        # Infinity is JSON to Python, and limits nothing.
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < math.inf:
            return int(value), f"{key} of {file.name}"
    return None


def prompt_of(base_dir: Path) -> str:
    """The prompt that stands before every text of this base; '' for none. Raises ConfigError."""
    return _prompt(base_dir) if (base_dir / MODULES).is_file() else ""


def after_prompt(prompt: str, text: Text) -> Text:
    """The text with the base's prompt before it; of a pair before its first text."""
    return prompt + text if isinstance(text, str) else (prompt + text[0], text[1])


def files(base_dir: Path) -> tuple[str, ...]:
    """The files of the folder that `read` and `build` use, relative to it, as far as they are there."""
    names = [MODULES, SETTINGS, *TRANSFORMER]
    folders = ["1_Pooling"]
    if (base_dir / MODULES).is_file():
        names.append(TOKENIZER)
        folders = [path for _, path in _modules(base_dir) if path not in ("", ".")]
    names += [f"{folder}/{name}" for folder in folders for name in ("config.json", "model.safetensors")]
    return tuple(name for name in names if (base_dir / name).is_file())


def _modules(base_dir: Path) -> list[tuple[str, str]]:
    """(kind, folder) of every module in order."""
    path = base_dir / MODULES
    found = _read(path)
    entries = found if isinstance(found, list) else []
    modules = []
    for entry in entries:
        name = str(entry.get("type", "")) if isinstance(entry, dict) else ""
        if not name.startswith("sentence_transformers."):
            raise _refused(path, f"the module type {name!r} is code of the folder's own")
        folder = str(entry.get("path", ""))
        if folder.startswith("/") or ".." in Path(folder).parts:
            raise _refused(path, f"the module's folder {folder!r} is outside the base")
        modules.append((name.rpartition(".")[2], folder))
    if not modules:
        raise _refused(path, "it lists no modules")
    return modules


def _modes(folder: Path, prompt: str) -> tuple[str, ...]:
    path = folder / "config.json"
    found = _object(path)
    named = found.get("pooling_mode")
    if named is None:
        on = {key for key, value in found.items() if key.startswith("pooling_mode_") and value}
        if on and _MEAN_KEY not in found:
            raise _refused(
                path, f"{_MEAN_KEY} is not written beside {min(on)}: of sentence-transformers' versions some take the "
                "mean too, others do not; write true or false",
            )  # fmt: skip
        on = on or ({_MEAN_KEY} if found.get(_MEAN_KEY, True) else set())
        unknown = sorted(on - _MODE_KEYS.keys())
        modes = [mode for mode in _MODES if mode in {_MODE_KEYS.get(key) for key in on}]
    else:  # a name, or a list whose order counts; the flags beside it do not
        modes = [str(name).lower() for name in ([named] if isinstance(named, str) else list(named))]
        modes = ["mean_sqrt_len" if name == _SQRT_NAME else name for name in modes]
        unknown = sorted(set(modes) - set(_MODES))
    if unknown:
        raise _refused(path, f"the pooling {unknown[0]} is not known here")
    if not modes:
        raise _refused(path, "no pooling mode is on")
    if prompt and found.get("include_prompt") is False:
        raise _refused(
            path, "include_prompt is false: pooling that leaves out the prompt's tokens is not possible here"
        )
    return tuple(modes)


def _check_step(path: Path, kind: str) -> None:
    """Refuse settings by which Dense or Normalize computes something else than one map of the features."""
    found = _object(path) if kind == _DENSE or path.is_file() else {}
    if found.get("use_residual"):
        raise _refused(path, "use_residual is true: a Dense with a residual is not known here")
    for key in ("module_input_name", "module_output_name"):
        if found.get(key) not in (None, _FEATURES):
            raise _refused(path, f"{key} is {found[key]!r}: {kind} is known here for {_FEATURES!r} alone")


def _dense_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], width: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a Dense for features of `width`. Raises ConfigError where they are others."""
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2:
        raise _refused(path, "it has no matrix linear.weight")
    if weight.shape[1] != width:
        raise _refused(path, f"linear.weight takes {weight.shape[1]} features, and {width} come in")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise _refused(path, f"linear.bias has the shape {list(bias.shape)}, not [{len(weight)}]")
    if (bias is not None) != bool(_object(path.with_name("config.json")).get("bias", True)):
        raise _refused(path, f"linear.bias is {'missing' if bias is None else 'there'}, and config.json says otherwise")
    others = sorted(tensors.keys() - {"linear.weight", "linear.bias"})
    if others:
        raise _refused(path, f"it holds the tensor {others[0]!r}, with which a Dense does not compute")
    if not all(bool(one.isfinite().all()) for one in (weight, bias) if one is not None):
        raise _refused(path, "a weight is no finite number")
    return weight.float(), bias


def _activation(folder: Path) -> str:
    found = _object(folder / "config.json")
    place, _, name = str(found.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")
    if name not in _ACTIVATIONS or not f"{place}.".startswith("torch.nn."):
        raise _refused(folder / "config.json", f"the activation {found.get('activation_function')} is not known here")
    if not (folder / "model.safetensors").is_file():
        raise _refused(folder, "it has no model.safetensors (pickled weights are not read)")
    return name


def _prompt(base_dir: Path) -> str:
    """The prompt that stands before every text; '' without a default prompt."""
    path = base_dir / SETTINGS
    if not path.is_file():
        return ""
    found = _object(path)
    name, prompts = found.get("default_prompt_name"), found.get("prompts") or {}
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str) or len(prompt) > _PROMPT_CHARS:
        raise _refused(
            path, f"default_prompt_name is {name!r}, and prompts has no such text of {_PROMPT_CHARS} characters"
        )
    return prompt


def _truncated(base_dir: Path) -> int:
    """The dimensions of features that are kept; 0: all."""
    path = base_dir / SETTINGS
    value = _object(path).get("truncate_dim") if path.is_file() else None
    if value is not None and (type(value) is not int or value < 1):
        raise _refused(path, f"truncate_dim is {value!r}, which is no whole number above 0")
    return value or 0


def _transformer_file(base_dir: Path) -> Path | None:
    return next((base_dir / name for name in TRANSFORMER if (base_dir / name).is_file()), None)


def _check_transformer(base_dir: Path) -> None:
    """Refuse settings of the Transformer by which other states than those of the last layer are pooled."""
    path = _transformer_file(base_dir)
    if path is None:
        return
    found = _object(path)
    told = found.get("modality_config")
    text = told.get("text") if isinstance(told, dict) else None
    for place, is_so in ((found, _TRANSFORMER_IS), (text if isinstance(text, dict) else {}, _TEXT_IS)):
        for key, value in is_so.items():
            if place.get(key, value) != value:
                raise _refused(path, f"{key} is {place[key]!r}: only {value!r} is known here")
    for key in _OVERRIDES:
        given = found.get(key) or {}
        if not isinstance(given, dict):
            raise _refused(path, f"{key} is no object")
        beyond = sorted(given.keys() - _HARMLESS)
        if beyond:
            raise _refused(path, f"{key} sets {beyond[0]!r} beside config.json: write it there")


def _check_case(base_dir: Path) -> None:
    """`do_lower_case` lowers texts before the tokenizer; it is redundant where the tokenizer does so itself."""
    path = _transformer_file(base_dir)
    if path is not None and _object(path).get("do_lower_case"):
        normalizer = json.dumps((_object(base_dir / "tokenizer.json").get("normalizer")) or {})
        if '"lowercase": true' not in normalizer and '"Lowercase"' not in normalizer:
            raise _refused(path, "do_lower_case is on, and tokenizer.json does not lower the case")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refused(path, "the file is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path, f"it cannot be read: {error}") from error


def _object(path: Path) -> Mapping[str, Any]:
    found = _read(path)
    if not isinstance(found, dict):
        raise _refused(path, "it holds no object")
    return found


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(
        why,
        str(path),
        "use a base with CLS, mean or max pooling, Dense and Normalize, or remove modules.json and 1_Pooling",
    )
