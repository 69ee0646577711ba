import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_forge.models.sequence_classifier import class_weights
from edge_forge.train import frozen_states as features
from edge_forge.train.batches import LengthBatches, RowDataset, collate, split
from edge_forge.train.frozen_states import KeptStates, TokenizedRows

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=300)


@given(lengths, st.integers(1, 16), st.integers(0, 99))
def test_an_epoch_holds_every_row_once_and_repeats_by_seed(sizes, batch_size, seed):
    first, again = (LengthBatches(np.array(sizes), batch_size, seed) for _ in range(2))
    rows = list(first)
    assert sorted(rows) == list(range(len(sizes))) and len(first) == len(sizes)
    assert rows == list(again)


def test_epochs_differ_and_batches_hold_near_equal_lengths():
    random = np.random.default_rng(0)
    sizes = random.integers(5, 50, size=1600)
    sampler = LengthBatches(sizes, 32, seed=1)
    first, second = list(sampler), list(sampler)
    assert first != second
    batches = [sizes[first[at : at + 32]] for at in range(0, 1600, 32)]
    assert max(batch.max() - batch.min() for batch in batches) <= 3
    means = [batch.mean() for batch in batches]
    assert means != sorted(means) and means != sorted(means, reverse=True)


@given(lengths, st.integers(1, 200))
def test_batches_by_length_hold_every_row_within_the_tokens(sizes, most):
    found = features.by_length(np.array(sizes), most)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(len(sizes)))
    for batch in found:
        longest = max(sizes[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= most


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["in a file", "in memory"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_kept_states_come_back_padded_and_masked(tmp_path, monkeypatch, limit, dtype):
    monkeypatch.setattr(features, "KEEP_IN_MEMORY_BYTES", limit)
    states = [np.full((size, 4), row + 0.5) for row, size in enumerate((3, 1, 2))]
    kept = KeptStates(np.array([3, 1, 2]), 4, dtype, tmp_path)
    for row, values in enumerate(states):
        kept.write(row, values)
    assert kept.on_disk == (limit == 0)
    assert kept.size_bytes == 6 * 4 * np.dtype(dtype).itemsize
    found, mask = kept.read([2, 0])
    assert found.dtype == torch.float32 and mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert torch.equal(found[0, :2], torch.full((2, 4), 2.5)) and not found[0, 2].any()
    assert torch.equal(found[1], torch.full((3, 4), 0.5))
    kept.close()
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left behind"


def test_a_batch_is_collated_with_its_labels():
    rows = TokenizedRows((np.array([5, 6, 7]), np.array([8])), np.array([1, 0]), truncated=0)
    data = RowDataset(rows, None)
    found = collate([data[0], data[1]])
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert found["labels"].tolist() == [1, 0]


def test_class_weights_are_balanced_and_have_mean_one_over_the_rows():
    targets = np.array([0] * 8 + [1] * 2)
    weights = class_weights(targets, 3).numpy()
    assert weights.tolist() == [0.625, 2.5, 0.0]
    assert weights[targets].mean() == pytest.approx(1.0)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100))
def test_a_split_batch_holds_every_row_once_within_the_tokens(sizes, most):
    sizes = sorted(sizes)
    mask = (torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]).long()
    parts = list(split({"attention_mask": mask, "labels": torch.arange(len(sizes))}, most))
    assert torch.cat([part["labels"] for part in parts]).tolist() == list(range(len(sizes)))
    for part in parts:
        held = part["attention_mask"]
        assert held.shape[1] == held.sum(dim=1).max(), "cut to its own longest row"
        assert held.numel() <= most or len(held) == 1
    assert sum(int(part["attention_mask"].sum()) for part in parts) == sum(sizes)
