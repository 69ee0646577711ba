"""Structured pruning of an encoder: fewer attention heads and fewer feed-forward neurons in every layer.

Importance is the first-order Taylor term of a gate at 1 before the last product of a sublayer (Michel et al. 2019;
Molchanov et al. 2017): the mean over rows of |sum over tokens of a * dL/da|, where a is what a head, or a neuron,
hands on. Every layer keeps equally many, since a configuration has one number for all.

The weights shrink: rows of the products before and columns of the last one are taken out. No class of transformers can
say that heads are fewer than its configuration's at the same size, so a key of ours does (`KEPT_HEADS`), which
`encoder.open_encoder` obeys. Families whose products have another form than this module knows are refused by name: the
modules are found by one run and their shapes, and what is cut is compared with the whole encoder in which the same
parts are zero (`keep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from edge_agent.base.errors import ConfigError
from edge_forge.models.encoder import Encoder, head_size, of_attention
from edge_forge.models.kept_heads import KEPT_HEADS, replace_linear

_INNER_KEYS = ("intermediate_size", "hidden_dim")
# What is cut is compared with zeros in its place, up to the order of sums.
_TOLERANCE = 1e-4


class LayerParts(NamedTuple):
    """The products of one layer by name: of attention (query, key, value) and its end; of the feed-forward part those
    that begin it (one, or two where a gate multiplies) and its end."""

    before_heads: tuple[str, ...]
    after_heads: str
    before_neurons: tuple[str, ...]
    after_neurons: str


class Kept(NamedTuple):
    """What stays of one layer: numbers of heads and of neurons, in order."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


class LayerShape(NamedTuple):
    """Heads of a layer, their size, and its feed-forward neurons."""

    heads: int
    head_size: int
    neurons: int


def refused(encoder: Encoder, what: str, where: str) -> ConfigError:
    """The error for a family that is not known how to be cut."""
    return ConfigError(
        f"{encoder.model.config.model_type}: {what}", where, "set it to 0, or take a base such as BERT or MiniLM"
    )


def shape(encoder: Encoder, where: str, *, heads: bool, neurons: bool) -> LayerShape:
    """The shape of the encoder's layers. Raises ConfigError at `where` for a family whose `heads` or `neurons` are not
    known how to be cut."""
    size = head_size(encoder.model.config)
    found = set()
    for parts in layer_parts(encoder, where, heads=heads, neurons=neurons):
        width = _linear(encoder, parts.after_heads).in_features if heads else size
        if heads and (width % size or any(_linear(encoder, one).out_features != width for one in parts.before_heads)):
            raise refused(encoder, "its heads do not have a query, key and value each", f"{where}.heads")
        inner = _linear(encoder, parts.after_neurons).in_features if neurons else 0
        if neurons and any(_linear(encoder, one).out_features != inner for one in parts.before_neurons):
            raise refused(encoder, "its feed-forward part is one product of several", f"{where}.feed_forward")
        found.add(LayerShape(width // size, size, inner))
    if len(found) != 1:
        raise refused(encoder, "its layers have different shapes", f"{where}.heads")
    return found.pop()


def layer_parts(encoder: Encoder, where: str, *, heads: bool, neurons: bool) -> Iterator[LayerParts]:
    """The products of each layer, found in the order in which one run went through them."""
    for index in range(encoder.layers):
        start = f"{encoder.path}.{index}."
        names = [name for name in encoder.survey.linears if name.startswith(start)]
        attention = [name for name in names if of_attention(name.removeprefix(start))]
        others = [name for name in names if name not in attention]
        if heads and (len(attention) != 4 or (index == 0 and _has_relative_heads(encoder))):
            raise refused(encoder, "its heads are not four products of the text alone", f"{where}.heads")
        if neurons and len(others) not in (2, 3):
            raise refused(encoder, "its feed-forward part is not known", f"{where}.feed_forward")
        yield LayerParts(
            tuple(attention[:-1]), attention[-1] if attention else "", tuple(others[:-1]), others[-1] if others else ""
        )


def _has_relative_heads(encoder: Encoder) -> bool:
    """Whether a table outside the layers has a column for every head (MPNet, T5): it would have to be cut for all."""
    heads = int(encoder.model.config.num_attention_heads)
    inside = f"{encoder.path}."
    return any(
        isinstance(module, nn.Embedding) and module.embedding_dim == heads and not name.startswith(inside)
        for name, module in encoder.model.named_modules()
    )


def _linear(encoder: Encoder, name: str) -> nn.Linear:
    found: nn.Linear = encoder.model.get_submodule(name)
    return found


class Importance(NamedTuple):
    """Of one layer: of each head [heads] and of each neuron [neurons]; no unit, to be compared within the layer."""

    heads: torch.Tensor
    neurons: torch.Tensor


def importance(
    encoder: Encoder, of: LayerShape, batches: Iterable[Any], loss: Callable[[Any], torch.Tensor], where: str
) -> list[Importance]:
    """The importance of every head and neuron of every layer over `batches`; `loss` runs the encoder on one and sums
    over its rows. A part that `of` has none of is not scored."""
    parts = list(layer_parts(encoder, where, heads=of.heads > 0, neurons=of.neurons > 0))
    sums = [Importance(torch.zeros(max(1, of.heads)), torch.zeros(max(1, of.neurons))) for _ in parts]
    for batch in batches:
        with _gates(encoder, parts, of) as gates:
            loss(batch).backward()  # type: ignore[no-untyped-call]
            for found, layer in zip(sums, gates, strict=True):
                for total, gate in zip(found, layer, strict=True):
                    if gate and gate[0].grad is not None:
                        total.add_(gate[0].grad.abs().sum(dim=0))
        encoder.model.zero_grad(set_to_none=True)
    return sums


@contextmanager
def _gates(
    encoder: Encoder, parts: Sequence[LayerParts], of: LayerShape
) -> Iterator[list[tuple[list[Any], list[Any]]]]:
    """Gates of 1 before the last product of each sublayer: by layer, those of heads [rows, heads] and of neurons
    [rows, neurons], each in a list that one forward pass fills."""
    made: list[tuple[list[Any], list[Any]]] = [([], []) for _ in parts]

    def gated(kept: list[Any], count: int) -> Any:
        def multiply(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            states = given[0]
            gate = torch.ones(len(states), count, requires_grad=True)
            kept.append(gate)
            wide = gate.repeat_interleave(states.shape[-1] // count, dim=1)[:, None, :]
            return (states * wide, *given[1:])

        return multiply

    with ExitStack() as hooks:
        for layer, (heads, neurons) in zip(parts, made, strict=True):
            for name, kept, count in (
                (layer.after_heads, heads, of.heads), (layer.after_neurons, neurons, of.neurons)
            ):  # fmt: skip
                if count:
                    hook = _linear(encoder, name).register_forward_pre_hook(gated(kept, count))
                    hooks.callback(hook.remove)
        yield made


def chosen(scores: Sequence[Importance], heads: int, neurons: int) -> list[Kept]:
    """The most important `heads` and `neurons` of every layer; of equal ones the first. 0: none is chosen."""
    return [Kept(_most(one.heads, heads), _most(one.neurons, neurons)) for one in scores]


def _most(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    return tuple(sorted(int(place) for place in order))


def keep(encoder: Encoder, of: LayerShape, kept: Sequence[Kept], where: str) -> None:
    """Cut the encoder down to `kept` in place; an empty part stays whole. Its configuration says so.

    Raises ConfigError where the cut encoder does not compute what the whole one does with zeros for what is cut.
    """
    parts = list(layer_parts(encoder, where, heads=bool(kept[0].heads), neurons=bool(kept[0].neurons)))
    ids = (torch.arange(21).reshape(3, -1) + 2) % encoder.vocabulary
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        for layer, one in zip(parts, kept, strict=True):
            _zero(encoder, layer.after_heads, _spans(one.heads, of.head_size))
            _zero(encoder, layer.after_neurons, one.neurons)
        wanted = encoder.features(ids, mask)
        for layer, one in zip(parts, kept, strict=True):
            _cut(encoder, layer.before_heads, layer.after_heads, _spans(one.heads, of.head_size))
            _cut(encoder, layer.before_neurons, layer.after_neurons, one.neurons)
        try:
            found = encoder.features(ids, mask)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise refused(encoder, "it cannot be run with fewer heads or neurons", where) from error
    if float((found - wanted).abs().max()) > _TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise refused(encoder, "with fewer heads or neurons it computes something else", where)
    config = encoder.model.config
    said = {KEPT_HEADS: len(kept[0].heads)} if kept[0].heads else {}
    if kept[0].neurons:
        said |= {key: len(kept[0].neurons) for key in _INNER_KEYS if getattr(config, key, None) == of.neurons}
    config.update(said)


def _spans(heads: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple(head * size + place for head in heads for place in range(size))


def _zero(encoder: Encoder, name: str, kept: Sequence[int]) -> None:
    if kept:
        linear = _linear(encoder, name)
        stays = torch.zeros(linear.in_features)
        stays[list(kept)] = 1.0
        linear.weight.mul_(stays)


def _cut(encoder: Encoder, before: Sequence[str], after: str, kept: Sequence[int]) -> None:
    if not kept:
        return
    rows = torch.tensor(kept)
    for name in before:
        old = _linear(encoder, name)
        replace_linear(encoder.model, name, old.weight[rows], None if old.bias is None else old.bias[rows])
    last = _linear(encoder, after)
    replace_linear(encoder.model, after, last.weight[:, rows], last.bias)
