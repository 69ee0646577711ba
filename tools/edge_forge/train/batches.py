"""Batches of rows for the trainer: rows by number, collated batch-wise, in batches of near-equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from edge_forge.train.frozen_states import KeptStates, TokenizedRows, padded

_POOL_BATCHES = 50


class RowDataset(Dataset[int]):
    """Rows by number; `collate` looks up the numbers of a batch at once."""

    def __init__(self, rows: TokenizedRows, kept: KeptStates | None) -> None:
        self.rows = rows
        self.kept = kept

    def __len__(self) -> int:
        return len(self.rows.tokens)

    def __getitem__(self, row: int) -> tuple[RowDataset, int]:  # type: ignore[override]
        return self, int(row)


def collate(batch: Sequence[tuple[RowDataset, int]]) -> dict[str, torch.Tensor]:
    """attention_mask, labels, and input_ids [rows, tokens] or inputs_embeds [rows, tokens, hidden]."""
    source, rows = batch[0][0], [row for _, row in batch]
    labels = torch.from_numpy(source.rows.targets[rows])
    if labels.ndim == 2:  # of slots: as long as the batch's longest row; of answers two places, which stay
        labels = labels[:, : max(len(source.rows.tokens[row]) for row in rows)]
    if source.kept is not None:
        states, mask = source.kept.read(rows)
        return {"inputs_embeds": states, "attention_mask": mask, "labels": labels}
    ids, mask = padded([source.rows.tokens[row] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class LengthBatches(Sampler[int]):
    """Every row once per epoch; rows of a batch have near-equal length, batches come in random order.

    Rows are shuffled, sorted by length within pools of 50 batches, and the batches shuffled: little padding, while
    neither the rows of a batch nor the order of lengths repeats. Epoch n of a seed is always the same.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this one, counted from 0: Trainer says so, also to a run that is taken up."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = random.permutation(len(self.lengths))
        pool = self.batch_size * _POOL_BATCHES
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
        ragged = [batch for batch in batches if len(batch) < self.batch_size]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        random.shuffle(full)
        return iter([int(row) for batch in (*full, *ragged) for row in batch])


def split(batch: dict[str, torch.Tensor], tokens: int) -> Iterator[dict[str, torch.Tensor]]:
    """The rows of a batch in parts of at most `tokens` padded tokens (or one row), each cut to its own longest row.

    Rows are expected in order of length, as `LengthBatches` gives them; in any other order parts hold more padding.
    """
    sizes = batch["attention_mask"].sum(dim=1).tolist()
    start = 0
    while start < len(sizes):
        end, longest = start + 1, int(sizes[start])
        while end < len(sizes) and max(longest, int(sizes[end])) * (end + 1 - start) <= tokens:
            longest = max(longest, int(sizes[end]))
            end += 1
        yield {
            name: value[start:end] if value.ndim == 1 else value[start:end, :longest] for name, value in batch.items()
        }
        start = end
