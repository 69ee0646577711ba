"""A smaller encoder cut out of another one: fewer layers, heads or neurons, in a folder that is a base like any other.

What is cut is said by the configuration of the model's own class, so that transformers, the exports and `base_id` see
an encoder of that class and no further code. Whether a family can say it is found by doing it: the folder is opened
again and its features are compared with those of the encoder that was cut in memory (`write_proven`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from edge_agent.base.errors import ConfigError
from edge_forge.models import bases, pruned
from edge_forge.models.encoder import Encoder, open_encoder

# Opened again it must compute the same up to the order of sums.
_TOLERANCE = 1e-5
_SOME_TOKENS = 7


def spread(layers: int, kept: int) -> tuple[int, ...]:
    """The `kept` of `layers` that stay, at even distances from the first one: every other one for half of them."""
    return tuple(place * layers // kept for place in range(kept))


def stood_for(layers: int, kept: int) -> tuple[int, ...]:
    """For each layer that stays, the last of the layers that it stands for: what its output is compared with."""
    return tuple(end - 1 for end in (*spread(layers, kept)[1:], layers))


def check_layers(encoder: Encoder, kept: int, where: str) -> None:
    """Refuse a number of layers that the encoder cannot be cut to. Raises ConfigError at `where`."""
    _check_shared(encoder, where)
    depths = encoder.layers
    if not 1 <= kept < depths:
        raise ConfigError(
            f"layers = {kept} is not less than the base's {depths}", where, f"set 1 to {depths - 1}, or 0 for all"
        )


def _check_shared(encoder: Encoder, where: str) -> None:
    depths = int(encoder.model.config.num_hidden_layers)
    if depths != encoder.layers:
        raise ConfigError(
            f"the {depths} layers of {encoder.model.config.model_type} share their weights, so none can be cut",
            where, "take a base whose layers have weights of their own",
        )  # fmt: skip


def keep_layers(encoder: Encoder, kept: tuple[int, ...]) -> Encoder:
    """The encoder with only these layers, in place; its configuration says so."""
    config = encoder.model.config
    holder, _, name = encoder.path.rpartition(".")
    layers = [encoder.layer(index) for index in kept]
    encoder.model.get_submodule(holder).add_module(name, nn.ModuleList(layers))
    for key, value in config.to_dict().items():  # what a configuration says layer by layer
        if isinstance(value, list) and len(value) == encoder.layers and key.startswith("layer"):
            config.update({key: [value[index] for index in kept]})
    config.update({"num_hidden_layers": len(kept)})
    survey = encoder.survey
    able = tuple(_renamed(encoder.path, kept, survey.linears))
    return Encoder(
        encoder.model, encoder.path, len(kept), encoder.hidden, type(survey)(able, *_rest(survey)), encoder.pooling,
        encoder.width,
    )  # fmt: skip


def _rest(survey: Any) -> tuple[int, int, bool]:
    return survey.positions, survey.returns, survey.causal


def _renamed(path: str, kept: tuple[int, ...], names: tuple[str, ...]) -> Iterator[str]:
    """The names of linear layers as they are with only the layers `kept`."""
    for index, old in enumerate(kept):
        start = f"{path}.{old}."
        yield from (f"{path}.{index}.{name.removeprefix(start)}" for name in names if name.startswith(start))


def write_proven(encoder: Encoder, base_dir: Path, out_dir: Path, before: Mapping[str, Any], where: str) -> Encoder:
    """Write a cut encoder as a folder that is a base, and open that; `before` is its configuration before the cut.

    Raises ConfigError where the folder computes something else: the family's configuration cannot say the cut.
    """
    write_folder(encoder, base_dir, out_dir, before)
    kind = encoder.model.config.model_type
    refused = ConfigError(
        f"the configuration of {kind} cannot say what is cut, so it is not known how to cut it", where,
        "take a base of another family, such as BERT or MiniLM",
    )  # fmt: skip
    try:
        opened = open_encoder(out_dir)
    except ConfigError as error:
        raise refused from error
    ids = torch.arange(2, 2 + 3 * _SOME_TOKENS).reshape(3, -1) % encoder.vocabulary
    mask = torch.ones_like(ids)
    mask[1, _SOME_TOKENS // 2 :] = 0
    with torch.inference_mode():
        wanted, found = encoder.features(ids, mask), opened.features(ids, mask)
    if wanted.shape != found.shape or not bool(
        (wanted - found).abs().max() <= _TOLERANCE * max(1.0, float(wanted.abs().max()))
    ):
        raise refused
    return opened


def write_folder(encoder: Encoder, base_dir: Path, out_dir: Path, before: Mapping[str, Any]) -> None:
    """Write the files of `base_dir` with the encoder's weights, and with what its configuration says otherwise than
    `before`."""
    weights = set(bases.weight_files(base_dir))
    for path in bases.listed(base_dir):
        if path not in weights and path.name != "model.safetensors.index.json":
            place = out_dir / path.relative_to(base_dir)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    now = encoder.model.config.to_dict()
    changed = {key: value for key, value in now.items() if key not in before or before[key] != value}
    config = {**bases.read_json(base_dir / "config.json"), **changed}
    (out_dir / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.model.state_dict().items()}
    save_file(tensors, out_dir / "model.safetensors", metadata={"format": "pt"})


class Cut(NamedTuple):
    """So many layers, and in each so many heads and feed-forward neurons, stay; 0: all."""

    layers: int
    heads: int
    neurons: int


def shape_of(encoder: Encoder, cut: Cut, where: str) -> pruned.LayerShape:
    """The shape of the encoder's layers, with 0 for what `cut` leaves whole. Raises ConfigError at `where` for a cut
    that the encoder does not take."""
    if cut.layers:
        check_layers(encoder, cut.layers, f"{where}.layers")
    if not cut.heads and not cut.neurons:
        return pruned.LayerShape(0, 1, 0)
    _check_shared(encoder, f"{where}.heads" if cut.heads else f"{where}.feed_forward")
    found = pruned.shape(encoder, where, heads=cut.heads > 0, neurons=cut.neurons > 0)
    for key, wanted, has in (("heads", cut.heads, found.heads), ("feed_forward", cut.neurons, found.neurons)):
        if wanted >= has > 0 and wanted:
            raise ConfigError(
                f"{key} = {wanted} is not less than the {has} of a layer", f"{where}.{key}",
                f"set 1 to {has - 1}, or 0 for all",
            )  # fmt: skip
    return found._replace(heads=found.heads if cut.heads else 0)


def cut_down(
    encoder: Encoder, cut: Cut, of: pruned.LayerShape, scores: Sequence[pruned.Importance] | None, where: str
) -> Encoder:
    """The encoder cut down in place. Of heads and neurons the most important by `scores` stay (None: the first ones).

    Raises ConfigError where what is left computes something else than the whole with zeros in the place of the rest.
    """
    if cut.heads or cut.neurons:
        alike = pruned.Importance(torch.zeros(max(1, of.heads)), torch.zeros(max(1, of.neurons)))
        kept = pruned.chosen(scores or [alike] * encoder.layers, cut.heads, cut.neurons)
        pruned.keep(encoder, of, kept, f"{where}.heads" if cut.heads else f"{where}.feed_forward")
    return keep_layers(encoder, spread(encoder.layers, cut.layers)) if cut.layers else encoder


def foretell(base_dir: Path, cut: Cut, where: str) -> dict[str, int]:
    """Cut the base itself, to see whether and by how much it can be: {layers, heads, neurons, parameters, smaller}.

    `parameters` before, `smaller` after; heads and neurons of a layer, 0 where they are not cut. Raises ConfigError at
    `where` for a base that cannot be cut so.
    """
    encoder = open_encoder(base_dir)
    of = shape_of(encoder, cut, where)
    found = {"layers": encoder.layers, "heads": of.heads, "neurons": of.neurons, "parameters": parameters(encoder)}
    before = encoder.model.config.to_dict()
    small = cut_down(encoder, cut, of, None, where)
    with tempfile.TemporaryDirectory(prefix="edge-forge-smaller-") as folder:
        write_proven(small, base_dir, Path(folder), before, where)
    return {**found, "smaller": parameters(small)}


def parameters(encoder: Encoder) -> int:
    """Numbers in the encoder's weights, without a pooler, which features never read."""
    return sum(value.numel() for name, value in encoder.model.named_parameters() if not name.startswith("pooler."))
