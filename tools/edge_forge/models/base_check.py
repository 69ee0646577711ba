"""What is known of a base before anything is trained on it: that it can be opened, its identity, its limits.

The entry of the step `base`: everything that makes a base unusable is refused here, in seconds, by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_agent.base.errors import BackendError, ConfigError
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.models import base_identity, segments, sentence_pooling
from edge_forge.models.encoder import Encoder, open_encoder

_NAMED = 3


def examine(base_dir: Path) -> dict[str, Any]:
    """Facts of an encoder's folder: `base_id`, `positions` (tokens that a text may have), `bounded_by` (what says so,
    where it is not the model), `layers`, `width` of
    features, `vocabulary` (rows of the table), `pooling`, `prompt`, and `joins` (whether its tokenizer can join
    two texts).

    Raises ConfigError for a base that cannot be used.
    """
    plan = sentence_pooling.read(base_dir)
    encoder = open_encoder(base_dir)
    check_ids(base_dir, encoder)
    said = sentence_pooling.longest_text(base_dir)
    bounded = said is not None and said[0] < encoder.positions
    return {
        "base_id": base_identity.encoder_id(encoder, plan),
        "positions": said[0] if said is not None and bounded else encoder.positions,
        "bounded_by": said[1] if said is not None and bounded else "",
        "layers": encoder.layers,
        "width": encoder.width,
        "vocabulary": encoder.vocabulary,
        "pooling": plan.described(),
        "prompt": plan.prompt,
        "joins": segments.pair_form(base_dir).separator is not None,
        "separator_in_texts": segments.separator_in_texts(base_dir),
    }


UNUSUAL_TEXT = "\ue000 \U0001f680 \u10a0"
"""A private character, an emoji and a rare letter: unknown to vocabularies that know no bytes."""


def check_ids(base_dir: Path, encoder: Encoder) -> None:
    """Refuse a tokenizer that can give an id beyond the encoder's table, by the tokens that have one."""
    from tokenizers import Tokenizer

    path = base_dir / "tokenizer.json"
    try:
        # By the device's own code, which names what the library refuses: also a text of which no token is known.
        measure.token_counts(path, ["", UNUSUAL_TEXT])
    except BackendError as error:
        raise ConfigError(
            f"the tokenizer cannot be read: {error.what}", str(path), "give a base with its tokenizer"
        ) from error
    tokenizer = Tokenizer.from_file(str(path))
    beyond = {name: number for name, number in tokenizer.get_vocab().items() if number >= encoder.vocabulary}
    for number in tokenizer.encode("").ids:  # what the post-processor adds need not be in the vocabulary
        if number >= encoder.vocabulary:
            beyond.setdefault(f"id {number}", number)
    if beyond:
        first = sorted(beyond, key=lambda name: beyond[name])[:_NAMED]
        names = ", ".join(f"{name!r} ({beyond[name]})" for name in first)
        raise ConfigError(
            f"{len(beyond)} tokens have an id beyond the model's table of {encoder.vocabulary} rows: {names}",
            str(path), "resize the model's embeddings to the tokenizer, or remove the added tokens",
        )  # fmt: skip
