"""Which of the two texts of a pair a token belongs to: the segments (`token_type_ids`) that BERT and its kin were
trained with, found from the token ids alone.

A file of its own because it is about tokenizer and model together, and `encoder` knows no tokenizer.

A pair is `[CLS] text [SEP] text_pair [SEP]`: what follows the first separator is the second text. A text cannot write a
separator (`tasks.tokens`; a base where it can is refused for pairs), so nothing else moves that place. The rule is a
part of the model's forward pass and goes into the graph with it, so that every runtime, batch and adapter bank keeps
the two inputs that it has, and a pair may share a batch with single texts (docs/decisions/0250). Of a single text, only
its padding follows the separator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edge_forge.models.bases import plain_tokenizer

_LONG = 2**30


class PairForm(NamedTuple):
    """How a tokenizer joins two texts. `separator` is the id of the token after the first text, None where nothing
    stands between them; `segments`: it numbers the tokens of the second text 1."""

    separator: int | None
    segments: bool


def pair_form(base_dir: Path) -> PairForm:
    """Of the base's tokenizer.json, as `tokenizers` writes it. Without one, or with a template that the rule does not
    hold for, a base has no segments. What is wrong with the file itself, the step `base` says."""
    try:
        found = json.loads((base_dir / "tokenizer.json").read_text(encoding="utf-8"))
        return _form_of(found.get("post_processor") or {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return PairForm(None, False)


def separator_in_texts(base_dir: Path) -> str | None:
    """A text that writes the separator, None where none can. Devices take nothing in a text for a special token, but a
    vocabulary may have the separator's spelling as an ordinary piece (Unigram, whole words)."""
    separator = pair_form(base_dir).separator
    if separator is None:
        return None
    tokenizer = plain_tokenizer((base_dir / "tokenizer.json").read_text(encoding="utf-8"))
    spelled = tokenizer.id_to_token(separator) or ""
    for text in (f"a {spelled} b", f"a{spelled}b", spelled):
        if separator in tokenizer.encode(text, add_special_tokens=False).ids:
            return text
    return None


def _form_of(processor: Mapping[str, Any]) -> PairForm:
    kind = processor.get("type")
    if kind == "Sequence":
        forms = [_form_of(one) for one in processor["processors"]]
        return next((form for form in forms if form.separator is not None), PairForm(None, False))
    if kind in ("BertProcessing", "RobertaProcessing"):
        return PairForm(int(processor["sep"][1]), kind == "BertProcessing")
    if kind != "TemplateProcessing":
        return PairForm(None, False)
    ids = {name: one["ids"][0] for name, one in processor["special_tokens"].items()}
    single, pair = (_template(processor[form], ids) for form in ("single", "pair"))
    texts = [place for place, (text, _, _) in enumerate(pair) if text]
    if len(texts) != 2 or texts[1] == texts[0] + 1:
        return PairForm(None, False)
    separator = pair[texts[0] + 1][1]
    first = next(place for place, (_, token, _) in enumerate(pair) if token == separator)
    ruled = all(segment == (place > first) for place, (_, _, segment) in enumerate(pair))
    alone = all(token != separator for _, token, _ in single[:-1]) and not any(segment for _, _, segment in single)
    return PairForm(separator, ruled and alone)


def _template(pieces: Sequence[Mapping[str, Any]], ids: Mapping[str, int]) -> list[tuple[bool, int | None, int]]:
    """(whether it is a text, the id of a special token, its segment) of every piece of a template."""
    found: list[tuple[bool, int | None, int]] = []
    for piece in pieces:
        ((kind, said),) = piece.items()
        found.append((kind == "Sequence", None if kind == "Sequence" else ids[said["id"]], int(said["type_id"])))
    return found


class Segments:
    """Gives a model's forward pass its `token_type_ids`; a hook before it (`register_forward_pre_hook`)."""

    def __init__(self, separator: int) -> None:
        self.separator = separator

    def __call__(self, _: object, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The arguments with the segments of `input_ids`; as they are for kept states and where segments are given."""
        ids = named.get("input_ids")
        if ids is None or named.get("token_type_ids") is not None:
            return None
        return given, {**named, "token_type_ids": self.of(ids)}

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """1 for every token after the first separator of its row, else 0; int64 [rows, tokens]."""
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        # The smallest place among the separators: TensorRT has no running sum, and its ArgMax breaks ties as it likes.
        first = torch.where(ids == self.separator, places, _LONG).amin(dim=1, keepdim=True)
        return (places > first).to(torch.int64)


def attach(model: Any, base_dir: Path) -> bool:
    """Let the model find segments by itself, where it has a table of them and the tokenizer numbers them."""
    if int(getattr(model.config, "type_vocab_size", 0) or 0) < 2:
        return False
    form = pair_form(base_dir)
    if form.separator is None or not form.segments:
        return False
    model.register_forward_pre_hook(Segments(form.separator), with_kwargs=True)
    return True
