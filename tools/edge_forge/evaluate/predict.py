"""Logits of a trained classifier in PyTorch: the reference that exported graphs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.base.texts import Text
from edge_forge.models.encoder import Encoder
from edge_forge.train.frozen_states import by_length, encode, padded
from edge_forge.train.trained_encoder import open_trained

_TOKENS_PER_BATCH = 1024


def predict(
    base_dir: Path, trained_dir: Path, rows: Sequence[Text], *, max_tokens: int = 128, merged: bool = False
) -> NDArray[np.float32]:
    """Logits [rows, labels] of `rows` (texts or pairs) by what `train` wrote into `trained_dir`, in float32.

    `merged` folds the adapter into the weights first; without it the branches are added. Raises ConfigError when the
    folder holds no result or one of another base.
    """
    return predict_with_features(base_dir, trained_dir, rows, max_tokens=max_tokens, merged=merged)[1]


def predict_with_features(
    base_dir: Path, trained_dir: Path, rows: Sequence[Text], *, max_tokens: int = 128, merged: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(features [rows, width], logits [rows, labels]); otherwise as `predict`."""
    encoder, weight, bias = open_trained(base_dir, trained_dir, merged=merged)
    return logits_of(encoder, base_dir, (weight, bias), rows, max_tokens)


def predict_tokens(
    base_dir: Path, trained_dir: Path, rows: Sequence[Text], *, max_tokens: int = 128
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """(features [rows, width], logits [its tokens, classes] of each row) of what has logits of tokens."""
    tokens, _ = encode(base_dir, rows, max_tokens)
    return _of_tokens(base_dir, trained_dir, tokens)


def predict_windows(base_dir: Path, trained_dir: Path, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Logits [its tokens, classes] of rows of token ids."""
    return _of_tokens(base_dir, trained_dir, [np.asarray(one, dtype=np.int32) for one in ids])[1]


def _of_tokens(
    base_dir: Path, trained_dir: Path, tokens: Sequence[NDArray[np.int32]]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    encoder, weight, bias = open_trained(base_dir, trained_dir, merged=False)
    features = np.zeros((len(tokens), encoder.width), dtype=np.float32)
    found: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(tokens)
    with torch.inference_mode():
        for batch in by_length(np.asarray([len(ids) for ids in tokens], dtype=np.int64), _TOKENS_PER_BATCH):
            ids, mask = padded([tokens[row] for row in batch])
            states = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
            features[batch] = encoder.pooling(states, mask).numpy()
            logits = (states @ weight + bias).numpy()
            for place, row in enumerate(batch):
                found[int(row)] = logits[place, : len(tokens[row])]
    return features, found


def logits_of(
    encoder: Encoder, base_dir: Path, head: tuple[torch.Tensor, torch.Tensor], rows: Sequence[Text], max_tokens: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(features, logits) of an opened encoder; `head` is weight [width, labels] and bias [labels]."""
    weight, bias = head
    tokens, _ = encode(base_dir, rows, max_tokens)
    features = np.zeros((len(rows), encoder.width), dtype=np.float32)
    with torch.inference_mode():
        for batch in by_length(np.asarray([len(ids) for ids in tokens], dtype=np.int64), _TOKENS_PER_BATCH):
            ids, mask = padded([tokens[row] for row in batch])
            features[batch] = encoder.features(ids, mask).numpy()
    logits = features @ weight.numpy() + bias.numpy()
    return features, logits.astype(np.float32)
