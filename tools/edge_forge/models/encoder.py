"""A Hugging Face encoder opened for training and export: its layers by name, and how its lower part is cut off.

What differs between families is found by running the encoder once on six tokens (`_survey`), not by tables of names:
which linear layers a text goes through and how often, how many positions it has, what its layers return, and whether
its first token sees the last one. A causal model fails there.

A cut encoder is the model's own class. Its embeddings and lower layers are replaced by modules that return their input,
so its forward pass, its masks and every remaining module's name stay those of the full model, and adapters trained on
it fit the full model by name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from edge_agent.base.errors import ConfigError
from edge_forge.models import bases, kept_heads, segments, sentence_pooling

_QKV = frozenset({"query", "key", "value", "q", "k", "v", "q_lin", "k_lin", "v_lin", "q_proj", "k_proj", "v_proj",
                  "query_proj", "key_proj", "value_proj", "Wqkv"})  # fmt: skip
_ATTENTION = re.compile(r"(^|\.)(attention|attn|self_attn)(\.|$)")
# Modules below the layers whose output a cut encoder is given; others (rotary tables, relative positions) are kept.
_BELOW = frozenset({"embeddings", "embed_tokens", "embeddings_project", "encoder.embedding_hidden_mapping_in"})
# Tensors of an encoder, and buffers among them that old versions of transformers stored.
_INSIDE = re.compile(r"\.(embeddings|embed_tokens)\.")
_BUFFERS = re.compile(r"(position_ids|token_type_ids|inv_freq|\.bias_mask)$")
_SOME_TOKENS = 3
# What the code of a family that is asked for something else than it knows raises.
RUN_ERRORS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError, ArithmeticError)
# Tokens of a family that limits nothing, as XLNet writes with -1.
_UNLIMITED = 512
# Beyond this a cut encoder is said to compute something else than the whole one.
_CUT_TOLERANCE = 1e-4


class _Through(nn.Module):
    """Replaces a frozen module: returns its input, which is that module's known output.

    `returns` is the length of the tuple that the module returned, with the hidden states in front; 0: no tuple. Plain
    values of the module stay readable: ModernBERT asks each layer for its kind of attention.
    """

    def __init__(self, replaced: nn.Module, returns: int = 0) -> None:
        super().__init__()
        for name, value in vars(replaced).items():
            if not name.startswith("_") and isinstance(value, str | int | float):
                setattr(self, name, value)
        self.returns = returns

    def forward(self, *given: Any, **named: Any) -> Any:
        """The hidden states as given to a layer, or `inputs_embeds` as given to the embeddings."""
        states = (*given, named.get("hidden_states"), named.get("inputs_embeds"))
        given_states = next((value for value in states if _are_states(value)), None)
        if given_states is None:
            raise ConfigError("a cut encoder was given token ids", "training", "give it the kept hidden states")
        return (given_states, *[None] * (self.returns - 1)) if self.returns else given_states


def _are_states(value: object) -> bool:
    """Whether a value is hidden states [rows, tokens, hidden]; token ids and masks are something else."""
    return isinstance(value, torch.Tensor) and value.ndim == 3 and value.is_floating_point()


class _Reached(Exception):
    """Ends a forward pass once the wanted hidden states are there."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("reached")
        self.hidden = hidden


@dataclass(frozen=True)
class Survey:
    """What one run on a few tokens showed.

    `linears` are the names of the linear layers that every row of the batch goes through, in the order in which they
    ran: a layer whose weights are shared by several depths stands there more than once. A linear layer that also maps
    something else, such as DeBERTa's relative positions, is none of them: an adapter of its own for every row has no
    place there. `positions` is the largest number of tokens, `returns` as in `_Through`, `causal` whether no token
    sees a later one.
    """

    linears: tuple[str, ...]
    positions: int
    returns: int
    causal: bool


@dataclass(frozen=True)
class Encoder:
    """An encoder and where its layers are: `model.get_submodule(f"{path}.{i}")` is layer i of `layers`.

    `pooling` makes features [rows, `width`] of hidden states [rows, tokens, `hidden`] and a mask.
    """

    model: Any
    path: str
    layers: int
    hidden: int
    survey: Survey
    pooling: nn.Module
    width: int

    @property
    def positions(self) -> int:
        """The largest number of tokens of a text, special ones included."""
        return self.survey.positions

    @property
    def vocabulary(self) -> int:
        """Rows of the table that token ids are looked up in."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def layer(self, index: int) -> nn.Module:
        """Layer `index`, counted from the embeddings."""
        found: nn.Module = self.model.get_submodule(f"{self.path}.{index}")
        return found

    def linears(self, first_layer: int = 0) -> Iterator[tuple[str, str, nn.Linear]]:
        """(full module name, name within its layer, module) of every linear that can be adapted, from `first_layer`
        up."""
        able = frozenset(self.survey.linears)
        for index in range(first_layer, self.layers):
            for name, module in self.layer(index).named_modules():
                if isinstance(module, nn.Linear) and f"{self.path}.{index}.{name}" in able:
                    yield f"{self.path}.{index}.{name}", name, module

    def features(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features [rows, width] of token ids and mask [rows, tokens]."""
        found: torch.Tensor = self.pooling(self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state, mask)
        return found


def open_encoder(base_dir: Path, dropout: float = 0.0, *, segmented: bool = True) -> Encoder:
    """Load the encoder of a Hugging Face folder in float32, in evaluation mode, with `dropout` in every place.

    `segmented`: it finds the segments of pairs itself, where it has some (`segments.attach`).
    Only the listed files are read (`bases.only_listed`). Raises ConfigError when the folder holds no encoder, when a
    tensor of it is missing or has another shape, and for a causal or an encoder-decoder model.
    """
    model = _load(base_dir, dropout)
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise _no_encoder(base_dir, f"{config.model_type} has a decoder")
    if segmented:
        segments.attach(model, base_dir)
    path, layers = _layers(model, base_dir)
    survey = _survey(model, path, base_dir)
    if survey.causal:
        raise _no_encoder(base_dir, f"{config.model_type} is a causal model: no token sees the ones after it")
    hidden = int(config.hidden_size)
    pooling = sentence_pooling.read(base_dir).build(base_dir, hidden)
    with torch.inference_mode():
        width = int(pooling(torch.zeros(1, 1, hidden), torch.ones(1, 1, dtype=torch.int64)).shape[1])
    return Encoder(model, path, layers, hidden, survey, pooling.eval(), width)


def _load(base_dir: Path, dropout: float) -> Any:
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its table of tensors is said in one sentence below
    try:
        with bases.only_listed(base_dir) as folder:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            for key, value in config.to_dict().items():
                if "dropout" in key and isinstance(value, int | float) and not isinstance(value, bool):
                    setattr(config, key, dropout)
            model, report = AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(
            f"the base cannot be opened: {error.what}", str(base_dir), "give a Hugging Face encoder"
        ) from error
    except bases.opening_errors() as error:
        reason = bases.opening_reason(error)
        raise ConfigError(
            f"the base cannot be opened: {reason}", str(base_dir), "give a Hugging Face encoder"
        ) from error
    mismatched = [one for one in report["mismatched_keys"] if not _is_of_pooler(one[0])]
    if getattr(config, kept_heads.KEPT_HEADS, None) is not None:
        mismatched = _with_kept_heads(model, base_dir, mismatched)
    bases.require_tensors(
        base_dir, type(model).__name__,
        (name for name in report["missing_keys"] if not _is_of_pooler(name)),
        _inside(model, base_dir, report["unexpected_keys"]),
        mismatched,
    )  # fmt: skip
    _check_positions(model, base_dir)
    for name, value in model.state_dict().items():
        if not _is_of_pooler(name) and not bool(value.isfinite().all()):
            raise bases.not_finite(base_dir, name)
    return model.eval()


def _with_kept_heads(model: Any, base_dir: Path, mismatched: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Give the model the attention of a folder that says how many heads stay; what is left of `mismatched`."""
    config = model.config
    width = int(getattr(config, kept_heads.KEPT_HEADS)) * head_size(config)
    fitting = [one[0] for one in mismatched if of_attention(one[0]) and width in list(one[1])]
    tensors: dict[str, torch.Tensor] = {}
    for path in bases.weight_files(base_dir):
        tensors |= load_file(path)
    taken = kept_heads.narrow(model, tensors, fitting)
    return [one for one in mismatched if one[0] not in taken]


def head_size(config: Any) -> int:
    """Channels of an attention head."""
    return int(getattr(config, "head_dim", None) or int(config.hidden_size) // int(config.num_attention_heads))


def of_attention(name: str) -> bool:
    """Whether a module of this name within a layer belongs to its attention."""
    return _ATTENTION.search(name) is not None


def _is_of_pooler(name: str) -> bool:
    """Whether a tensor belongs to the pooler, which features never read."""
    return name.startswith("pooler.")


def _inside(model: Any, base_dir: Path, unread: Iterable[str]) -> list[str]:
    """Of the tensors that a class does not compute with, those inside its layers or embeddings.

    They are of another function: more layers than config.json says, relative positions that transformers no longer
    computes, adapters that were not merged. Heads and poolers of other tasks are not read, and are no fault.
    """
    path, _ = _layers(model, base_dir)
    return [
        name for name in unread if _INSIDE.search(f".{name}") or f".{path}." in f".{name}" if not _BUFFERS.search(name)
    ]


def _check_positions(model: Any, base_dir: Path) -> None:
    """Refuse relative positions that this version of transformers would leave out silently."""
    positions = getattr(model.config, "position_embedding_type", "absolute")
    if positions != "absolute" and "position_embedding_type" not in type(model.config)().to_dict():
        raise ConfigError(
            f"position_embedding_type = {positions!r} is not computed by this version of transformers",
            str(base_dir / "config.json"), "choose a base with absolute positions",
        )  # fmt: skip
    for rope in _ropes(getattr(model.config, "rope_parameters", None)):
        before = rope.get("original_max_position_embeddings") or model.config.max_position_embeddings
        if rope.get("rope_type") == "dynamic" or (
            rope.get("rope_type") == "longrope" and before < model.config.max_position_embeddings
        ):
            raise ConfigError(
                f"rotary scaling of type {rope['rope_type']!r} depends on the longest text of a batch, so that a "
                "text's answer would depend on its neighbours",
                str(base_dir / "config.json"), "choose a base without, or with linear, yarn or llama3 scaling",
            )  # fmt: skip


def _ropes(given: Any) -> Iterator[Mapping[str, Any]]:
    """The rotary parameters of a configuration: one, or one for each kind of layer."""
    if isinstance(given, Mapping):
        by_kind = [one for one in given.values() if isinstance(one, Mapping)]
        yield from by_kind or [given]


def _no_encoder(base_dir: Path, why: str) -> ConfigError:
    return ConfigError(f"the base is not an encoder: {why}", str(base_dir), "choose an encoder such as BERT or MiniLM")


def _layers(model: nn.Module, base_dir: Path) -> tuple[str, int]:
    """(path, length) of the list of layers; of ALBERT's groups of layers that share their weights."""
    config: Any = model.config
    counts = [getattr(config, name, None) for name in ("num_hidden_layers", "num_hidden_groups")]
    for count in counts:
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == count and name:
                return name, len(module)
    raise _no_encoder(base_dir, "no list of layers is found in it")


def _survey(model: nn.Module, path: str, base_dir: Path) -> Survey:
    """Run two rows that differ in their last token, and watch."""
    try:
        size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (AttributeError, NotImplementedError) as error:
        raise _no_encoder(base_dir, "it looks token ids up in no single table") from error
    if size < 5:
        raise _no_encoder(base_dir, f"its table holds {size} tokens")
    ids = torch.tensor([[size // 2, size // 3, size - 1], [size // 2, size // 3, size - 2]])
    shapes: list[tuple[str, torch.Size]] = []
    seen: list[tuple[int, int]] = []
    returned: list[int] = []

    def linear(name: str) -> Any:
        return lambda _, given: shapes.append((name, given[0].shape))

    def table(module: nn.Embedding) -> Any:
        return lambda _, given: seen.append((module.num_embeddings, int(given[0].max())))

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.startswith(f"{path}."):
                hooks.callback(module.register_forward_pre_hook(linear(name)).remove)
            elif isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
                hooks.callback(module.register_forward_pre_hook(table(module)).remove)
        handle = model.get_submodule(f"{path}.0").register_forward_hook(
            lambda _, __, output: returned.append(len(output) if isinstance(output, tuple) else 0)
        )
        hooks.callback(handle.remove)
        try:
            with torch.inference_mode():
                states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        except RUN_ERRORS as error:
            raise _no_encoder(
                base_dir, f"it cannot be run on token ids ({' '.join(str(error).split())[:160]})"
            ) from error
    other = {name for name, shape in shapes if shape[:2] != ids.shape}
    linears = tuple(name for name, _ in shapes if name not in other)
    return Survey(
        linears, _positions(model, seen), max(returned, default=0), bool(torch.equal(states[0, 0], states[1, 0]))
    )


def _positions(model: nn.Module, seen: Sequence[tuple[int, int]]) -> int:
    """Tokens that have a position: rows of the table less those before the first one that was looked up.

    RoBERTa and its kin count from padding_idx + 1. Without a table it is what the configuration says. BigBird's sparse
    attention ends below the length from which on it is sparse: a model that has seen a shorter text attends to
    everything from then on, so that its answers would depend on what it was asked before.
    """
    config: Any = model.config
    found = min((rows - (highest - (_SOME_TOKENS - 1)) for rows, highest in seen), default=None)
    if found is None:
        found = int(getattr(config, "max_position_embeddings", _UNLIMITED))
        found = found if found > 0 else _UNLIMITED
    if getattr(config, "attention_type", None) == "block_sparse":
        found = min(found, (5 + 2 * int(config.num_random_blocks)) * int(config.block_size))
    return found


def resolve_layer(first_layer: int, layers: int) -> int:
    """The index of the lowest adapted layer; a negative one counts from the top. Raises ConfigError out of range."""
    index = first_layer + layers if first_layer < 0 else first_layer
    if not 0 <= index < layers:
        raise ConfigError(
            f"first_layer = {first_layer} is outside the base's {layers} layers", "train", f"use 0 to {layers - 1}"
        )
    return index


def target_names(encoder: Encoder, targets: Sequence[str], first_layer: int) -> list[str]:
    """Full names of the linears that `targets` select from `first_layer` up, in the model's order.

    Raises ConfigError for a target that selects nothing.
    """
    chosen: list[str] = []
    used: set[str] = set()
    for full, name, _ in encoder.linears(first_layer):
        hits = {target for target in targets if _selects(target, name)}
        used |= hits
        if hits:
            chosen.append(full)
    unused = [target for target in targets if target not in used]
    if unused:
        names = ", ".join(sorted({name for _, name, _ in encoder.linears()}))
        raise ConfigError(
            f"targets names {unused[0]!r}, which no linear of the base matches",
            "train",
            f"use all, attention, qkv, mlp, or the end of one of: {names}",
        )
    return chosen


def _selects(target: str, name: str) -> bool:
    attention = _ATTENTION.search(name) is not None
    groups = {
        "all": True,
        "attention": attention,
        "qkv": attention and name.rpartition(".")[2] in _QKV,
        "mlp": not attention,
    }
    return groups[target] if target in groups else name == target or name.endswith(f".{target}")


def run_below(encoder: Encoder, first_layer: int, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states [rows, tokens, hidden] that layer `first_layer` is given, without a graph."""

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(arguments[0] if arguments else named["hidden_states"])

    handle = encoder.layer(first_layer).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode():
            encoder.model(input_ids=input_ids, attention_mask=mask)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise ConfigError(f"layer {first_layer} of the base was never run", "training", "use first_layer = 0")


def below_names(encoder: Encoder, first_layer: int) -> list[str]:
    """Names of the modules below layer `first_layer`: the layers, and what is before them."""
    known = {full for full, _ in encoder.model.named_modules()}
    return sorted(known & _BELOW) + [f"{encoder.path}.{index}" for index in range(first_layer)]


def sublayer_ends(encoder: Encoder, first_layer: int) -> list[str]:
    """Names of the linears that end a sublayer, from `first_layer` up: the last one of attention, and of the rest."""
    chosen: list[str] = []
    names = {full: name for full, name, _ in encoder.linears(first_layer)}
    for index in range(first_layer, encoder.layers):
        last = {
            _ATTENTION.search(names[full]) is not None: full
            for full in encoder.survey.linears
            if full in names and full.startswith(f"{encoder.path}.{index}.")
        }
        chosen += last.values()
    return chosen


class _Given(nn.Module):
    """Stands for an encoder whose features are known: gives them back as hidden states of one token."""

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Features as [rows, 1, width]."""
        return SimpleNamespace(last_hidden_state=inputs_embeds)


class _OneToken(nn.Module):
    """Pooling over one token."""

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[rows, 1, width] -> [rows, width]."""
        return states[:, 0]


def features_only(encoder: Encoder) -> Encoder:
    """The encoder without its layers, for training on features that were computed before."""
    return replace(encoder, model=_Given(), pooling=_OneToken())


def cut_below(encoder: Encoder, first_layer: int) -> None:
    """Free the embeddings and the layers below `first_layer`; the model then takes their output as `inputs_embeds`.

    Ask `can_be_cut` before.
    """
    _replace_below(encoder, first_layer)
    if getattr(encoder.model, "pooler", None) is not None:
        encoder.model.pooler = None
    for parameter in encoder.model.parameters():
        # The weights are mapped from one file; copies of the few that stay let go of all of it.
        parameter.data = parameter.data.clone()


def can_be_cut(encoder: Encoder, first_layer: int, ids: Sequence[int]) -> bool:
    """Whether the encoder without its lower part computes the same for one text, given that part's hidden states.

    The encoder is as before afterwards. `ids` are the tokens of the text; padding is added to them.
    """
    rows = torch.tensor([[*ids, 0, 0], [*ids[: max(1, len(ids) // 2)], *[0] * (len(ids) + 2 - max(1, len(ids) // 2))]])
    mask = torch.tensor(
        [[1] * len(ids) + [0, 0], [1] * max(1, len(ids) // 2) + [0] * (len(ids) + 2 - max(1, len(ids) // 2))]
    )
    states = run_below(encoder, first_layer, rows, mask)
    with torch.inference_mode():
        whole = encoder.features(rows, mask)
    replaced = _replace_below(encoder, first_layer)
    try:
        with torch.inference_mode():
            hidden = encoder.model(inputs_embeds=states, attention_mask=mask).last_hidden_state
            found = encoder.pooling(hidden, mask)
    except (*RUN_ERRORS, ConfigError):
        return False
    finally:
        for holder, name, module in replaced:
            holder.add_module(name, module)
    scale = max(1.0, float(whole.abs().max()))
    return bool((found - whole).abs().max() <= _CUT_TOLERANCE * scale)


def _replace_below(encoder: Encoder, first_layer: int) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put `_Through` in the place of what is below; returns (holder, name, what was there)."""
    replaced = []
    layers = {f"{encoder.path}.{index}" for index in range(first_layer)}
    for full, module in list(encoder.model.named_modules()):
        if full in _BELOW or full in layers:
            holder, _, name = full.rpartition(".")
            parent = encoder.model.get_submodule(holder)
            parent.add_module(name, _Through(module, encoder.survey.returns if full in layers else 0))
            replaced.append((parent, name, module))
    return replaced
