"""Inputs of a training run that are computed once: tokens, and the hidden states below the lowest adapted layer.

The frozen layers compute the same in every epoch, so they run once for each text and their output is kept: in memory
while it is small, else in a file that is read row by row (`pread`), so that the process does not hold it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.base.errors import ConfigError
from edge_agent.base.texts import Text
from edge_forge.data.classifier_rows import Row
from edge_forge.models import bases
from edge_forge.models.encoder import Encoder, run_below
from edge_forge.models.sentence_pooling import after_prompt, prompt_of
from edge_forge.models.sequence_classifier import IGNORED
from edge_forge.train.window_rows import WindowForm, each_question, targets_of
from edge_forge.train.word_rows import WordRows, labels_of

# Beyond this the kept states go to a file: memory is what LoRA is chosen for.
KEEP_IN_MEMORY_BYTES = 32 << 20
_PREFIX_TOKENS = 1024
_TEXTS_AT_ONCE = 512
# float16 holds 11 bits; beyond this magnitude its steps exceed 1/16 and float32 is kept instead.
_HALF_LIMIT = 128.0


@dataclass(frozen=True)
class TokenizedRows:
    """Tokenised rows: `tokens[i]` ids of row i (special tokens included), `targets[i]` index of its label; of slots the
    class of every token, `IGNORED` for one that begins no word, as long as the longest row; of answers a row is a
    window and has the places of start and end."""

    tokens: tuple[NDArray[np.int32], ...]
    targets: NDArray[np.int64]
    truncated: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.asarray([len(ids) for ids in self.tokens], dtype=np.int64)


def encode(base_dir: Path, texts: Sequence[Text], max_tokens: int) -> tuple[tuple[NDArray[np.int32], ...], int]:
    """(token ids per text or pair, how many were cut) by the base's `tokenizer.json` and prompt, as the device does it.

    Raises ConfigError when the base has no tokenizer.
    """
    path = base_dir / "tokenizer.json"
    if not path.is_file():
        raise ConfigError("tokenizer.json is missing", str(base_dir), "give a base that carries its tokenizer")
    tokenizer = bases.plain_tokenizer(path.read_text(encoding="utf-8"))
    tokenizer.enable_truncation(max_length=max_tokens, strategy="longest_first")
    prompt = prompt_of(base_dir)
    found: list[NDArray[np.int32]] = []
    truncated = 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        # An encoding holds far more than its ids; only so many are alive at once.
        part = [after_prompt(prompt, text) for text in texts[start : start + _TEXTS_AT_ONCE]]
        for item in tokenizer.encode_batch_fast(part):
            found.append(np.asarray(item.ids, dtype=np.int32))
            truncated += bool(item.overflowing)
    return tuple(found), truncated


def tokenize(base_dir: Path, rows: Sequence[tuple[Text, str]], labels: Sequence[str], max_tokens: int) -> TokenizedRows:
    """Tokenise (text or pair, label) rows. Raises ConfigError for an unknown label or a missing tokenizer."""
    place = {label: index for index, label in enumerate(labels)}
    for number, (_, label) in enumerate(rows, 1):
        if label not in place:
            raise ConfigError(f"row {number} has the unknown label {label!r}", "data", "add it to the task's labels")
    tokens, truncated = encode(base_dir, [text for text, _ in rows], max_tokens)
    return TokenizedRows(tokens, np.asarray([place[label] for _, label in rows], dtype=np.int64), truncated)


def tokenize_words(base_dir: Path, rows: Sequence[Row], classes: Sequence[str], max_tokens: int) -> TokenizedRows:
    """Tokenise rows of slots; `classes` are those of words (`span_scores.class_names`)."""
    tokens, truncated = encode(base_dir, [row.text for row in rows], max_tokens)
    targets = np.full((len(rows), max(map(len, tokens))), IGNORED, dtype=np.int64)
    found = WordRows.read(base_dir / "tokenizer.json", rows, labels_of(classes), (max_tokens, prompt_of(base_dir)))
    for place, (words, path) in enumerate(zip(found.words, found.paths, strict=True)):
        targets[place, [word.token for word in words]] = path
    return TokenizedRows(tokens, targets, truncated)


def tokenize_windows(base_dir: Path, rows: Sequence[Row], max_tokens: int, overlap: int) -> TokenizedRows:
    """Tokenise questions with their contexts: a row for each window. `truncated` counts contexts of several windows."""
    tokens: list[NDArray[np.int32]] = []
    targets: list[tuple[int, int]] = []
    several = 0
    form = WindowForm(max_tokens, overlap, prompt_of(base_dir))
    for row, windows in each_question(base_dir / "tokenizer.json", rows, form):
        tokens += [np.asarray(window.ids, dtype=np.int32) for window in windows]
        targets += targets_of(row, windows)
        several += len(windows) > 1
    return TokenizedRows(tuple(tokens), np.asarray(targets, dtype=np.int64), several)


def padded(tokens: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask), both int64 [rows, longest]; padding is id 0 and mask 0."""
    longest = max(len(ids) for ids in tokens)
    ids = np.zeros((len(tokens), longest), dtype=np.int64)
    mask = np.zeros((len(tokens), longest), dtype=np.int64)
    for row, values in enumerate(tokens):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def by_length(lengths: NDArray[np.int64], tokens_per_batch: int) -> list[NDArray[np.int64]]:
    """Row indices in batches of near-equal length, each at most `tokens_per_batch` padded tokens (or one row)."""
    order = np.argsort(lengths, kind="stable")[::-1]
    batches, start = [], 0
    while start < len(order):
        rows = max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


class KeptStates:
    """Hidden states of every row at one depth, ragged: row i is [tokens_i, hidden].

    Held as float16 (or float32 where values are large) in memory or in an unnamed file; `close` frees it.
    """

    def __init__(self, lengths: NDArray[np.int64], hidden: int, dtype: type[np.floating], folder: Path) -> None:
        self.hidden = hidden
        self.dtype = np.dtype(dtype)
        self._ends = np.concatenate([[0], np.cumsum(lengths)])
        self.size_bytes = int(self._ends[-1]) * hidden * self.dtype.itemsize
        self.on_disk = self.size_bytes > KEEP_IN_MEMORY_BYTES
        self._memory: NDArray[np.floating] | None = None
        self._file = None
        if self.on_disk:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
            os.truncate(self._file.fileno(), self.size_bytes)
        else:
            self._memory = np.empty((int(self._ends[-1]), hidden), dtype=self.dtype)

    def write(self, row: int, states: NDArray[np.floating]) -> None:
        """Keep the states [tokens, hidden] of `row`."""
        values = np.ascontiguousarray(states, dtype=self.dtype)
        start, end = int(self._ends[row]), int(self._ends[row + 1])
        if self._memory is not None:
            self._memory[start:end] = values
        elif self._file is not None:
            os.pwrite(self._file.fileno(), values.tobytes(), start * self.hidden * self.dtype.itemsize)

    def read(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(states float32 [rows, longest, hidden] padded with 0, attention_mask int64 [rows, longest])."""
        spans = [(int(self._ends[row]), int(self._ends[row + 1])) for row in rows]
        longest = max(end - start for start, end in spans)
        states = np.zeros((len(rows), longest, self.hidden), dtype=np.float32)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for place, (start, end) in enumerate(spans):
            states[place, : end - start] = self._span(start, end)
            mask[place, : end - start] = 1
        return torch.from_numpy(states), torch.from_numpy(mask)

    def _span(self, start: int, end: int) -> NDArray[np.floating]:
        if self._memory is not None:
            return self._memory[start:end]
        if self._file is None:
            raise ValueError("the kept states are closed")
        width = self.hidden * self.dtype.itemsize
        raw = os.pread(self._file.fileno(), (end - start) * width, start * width)
        return np.frombuffer(raw, dtype=self.dtype).reshape(end - start, self.hidden)

    def close(self) -> None:
        """Free memory and file."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            self._file = None


def keep_features(encoder: Encoder, rows: TokenizedRows, folder: Path) -> KeptStates:
    """Run the whole encoder once for every row and keep its features, as the states of one token, in float32."""
    kept = KeptStates(np.ones(len(rows.tokens), dtype=np.int64), encoder.width, np.float32, folder)
    for batch in by_length(rows.lengths, _PREFIX_TOKENS):
        ids, mask = padded([rows.tokens[row] for row in batch])
        with torch.inference_mode():
            features = encoder.features(ids, mask).numpy()
        for place, row in enumerate(batch):
            kept.write(int(row), features[place][None])
    return kept


def keep_last_states(encoder: Encoder, rows: TokenizedRows, folder: Path) -> KeptStates:
    """Run the whole encoder once for every row and keep its states of every token, in float32."""
    kept = KeptStates(rows.lengths, encoder.hidden, np.float32, folder)
    for batch in by_length(rows.lengths, _PREFIX_TOKENS):
        ids, mask = padded([rows.tokens[row] for row in batch])
        with torch.inference_mode():
            states = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        for place, row in enumerate(batch):
            kept.write(int(row), states[place, : len(rows.tokens[row])])
    return kept


def keep_states(encoder: Encoder, first_layer: int, rows: TokenizedRows, folder: Path) -> KeptStates:
    """Run everything below `first_layer` once for every row and keep what comes out."""
    kept: KeptStates | None = None
    lengths = rows.lengths
    for batch in by_length(lengths, _PREFIX_TOKENS):
        ids, mask = padded([rows.tokens[row] for row in batch])
        states = run_below(encoder, first_layer, ids, mask).numpy()
        if kept is None:
            half = float(np.abs(states).max()) < _HALF_LIMIT
            kept = KeptStates(lengths, encoder.hidden, np.float16 if half else np.float32, folder)
        for place, row in enumerate(batch):
            kept.write(int(row), states[place, : lengths[row]])
    if kept is None:
        raise ConfigError("there are no rows to train on", "data", "give the split at least one row")
    return kept
