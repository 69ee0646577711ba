import json
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.backends.adapter_bank import (
    HEADER_BYTES,
    TENSORS_MAX,
    VERSIONS,
    PositionalCache,
    parse_spec,
    parse_tensors,
    read_tensors,
)
from edge_agent.base.errors import AdapterRefused, BackendError
from tests.support.small_graph import safetensors

NAMES = st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g", "h", "i"])


@st.composite
def histories(draw):
    """Positions, and batches that fit them, with adapters forgotten in between."""
    positions = draw(st.integers(1, 12))
    batch = st.lists(NAMES, min_size=1, max_size=positions)
    return positions, draw(st.lists(st.one_of(batch, NAMES), max_size=25))


@given(histories())
def test_after_a_plan_every_row_lies_where_its_adapter_is(history):
    positions, steps = history
    cache = PositionalCache(positions)
    bank = [None] * positions  # what a device's memory would hold
    for step in steps:
        if isinstance(step, str):
            cache.forget(step)
            bank = [None if held == step else held for held in bank]
            continue
        plan = cache.place(step)
        for position, adapter in plan.writes:
            bank[position] = adapter
        assert sorted(plan.order) == list(range(len(step)))
        assert 0 <= plan.start <= positions - len(step)
        for place, row in enumerate(plan.order):
            assert bank[plan.start + place] == step[row]
        assert tuple(bank) == cache.holds


@given(histories())
def test_no_window_would_have_needed_fewer_writes(history):
    positions, steps = history
    cache = PositionalCache(positions)
    for step in steps:
        if isinstance(step, str):
            continue
        held, needed = cache.holds, Counter(step)
        hits = [
            sum(min(number, held[start : start + len(step)].count(name)) for name, number in needed.items())
            for start in range(positions - len(step) + 1)
        ]
        assert len(cache.place(step).writes) == len(step) - max(hits)


def test_the_same_batch_again_writes_nothing_in_any_order():
    cache = PositionalCache(8)
    assert len(cache.place(["a", "b", "a", ""]).writes) == 4
    assert cache.place(["", "a", "b", "a"]).writes == ()


def test_a_popular_adapter_comes_to_hold_several_positions():
    cache = PositionalCache(8)
    cache.place(["a", "a", "a", "b"])
    assert Counter(cache.holds)["a"] == 3


def test_what_was_unused_for_longest_is_overwritten_first():
    cache = PositionalCache(4)
    cache.place(["a", "b"])
    cache.place(["c", "d"])
    cache.place(["a", "b"])
    cache.place(["e", "f"])
    assert cache.holds == ("a", "b", "e", "f")


def test_more_rows_than_positions_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="3 rows do not fit 2"):
        PositionalCache(2).place(["a", "b", "c"])
    with pytest.raises(ValueError, match="0 rows"):
        PositionalCache(2).place([])


GOOD = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.asarray([1.5], np.float16),
    "z": np.zeros((4, 0), np.float32),
}


def header(fields, data=b""):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_was_written_as_float32(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(GOOD, {"format": "edge-adapter/1"}))
    found = read_tensors(str(path), 10_000)
    assert found.metadata == {"format": "edge-adapter/1"}
    assert set(found.tensors) == set(GOOD)
    for name, value in GOOD.items():
        assert found.tensors[name].dtype == np.float32
        assert np.array_equal(found.tensors[name], value.astype(np.float32))


def test_an_empty_tensor_may_share_its_place_with_the_next():
    data = header({"a": entry(), "z": entry((0,), (0, 0))}, b"\0" * 4)
    assert parse_tensors(data, "here").tensors["z"].shape == (0,)


def test_reads_what_the_library_writes():
    save = pytest.importorskip("safetensors.numpy").save
    assert np.array_equal(parse_tensors(save(GOOD), "x").tensors["b"], GOOD["b"])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "header claims"),
        (b"\0" * 7, "header claims"),
        (struct.pack("<Q", 2**63) + b"{}", "header claims"),
        (struct.pack("<Q", 50) + b"{}", "header claims"),
        (struct.pack("<Q", 0) + b"{}", "no JSON object"),
        (struct.pack("<Q", 2) + b"\xff\xff", "no JSON object"),
        (struct.pack("<Q", 4000) + b'{"a":' + b"[" * 3995, "nests deeper"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (header({"__metadata__": {"a": 1}}), "metadata"),
        (header({"a": 5}), "'a' is damaged"),
        (header({"a": entry(dtype="BF16", offsets=(0, 2))}, b"\0\0"), "'a' is not"),
        (header({"a": entry(dtype="I64", offsets=(0, 8))}, b"\0" * 8), "'a' is not"),
        (header({"a": entry(dtype=["F32"])}, b"\0" * 4), "'a' is damaged"),
        (header({"a": entry(shape=(1, 1, 1))}, b"\0" * 4), "'a' is not"),
        (header({"a": entry(shape=(-1,))}, b"\0" * 4), "'a' is damaged"),
        (header({"a": entry(shape=(True,))}, b"\0" * 4), "'a' is damaged"),
        (header({"a": entry(shape=(1.0,))}, b"\0" * 4), "'a' is damaged"),
        (header({"a": entry(shape=(2**30, 2**30))}, b"\0" * 4), "does not fit its bytes"),
        (header({"a": entry(shape=(2**39, 2**39))}, b"\0" * 4), "'a' is damaged"),
        (header({"a": entry(offsets=(0, 8))}, b"\0" * 8), "does not fit its bytes"),
        (header({"a": entry(offsets=(4, 0))}, b"\0" * 4), "does not fit its bytes"),
        (header({"a": entry(offsets=(4, 8))}, b"\0" * 8), "gap"),
        (header({"a": entry()}, b"\0" * 3), "cover 4 bytes of 3"),
        (header({"a": entry(), "b": entry()}, b"\0" * 4), "overlap"),
        (header({"a": entry()}, b"\0" * 9), "cover 4 bytes of 9"),
        (header({str(place): entry((0,), (0, 0)) for place in range(TENSORS_MAX + 1)}), "4097 tensors are more than"),
        (header({"__metadata__": {"x" * HEADER_BYTES: "1"}}), "header claims"),
    ],
)  # fmt: skip
def test_every_way_a_file_can_be_wrong_is_refused(data, why):
    with pytest.raises(AdapterRefused, match=why):
        parse_tensors(data, "here")


def test_a_file_over_the_limit_or_absent_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(GOOD))
    with pytest.raises(AdapterRefused, match="at most 10 are taken"):
        read_tensors(str(path), 10)
    with pytest.raises(AdapterRefused, match="cannot be read"):
        read_tensors(str(tmp_path / "absent"), 10)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data):
    raw = bytearray(safetensors(GOOD, {"format": "x"}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            found = parse_tensors(damaged, "here")
        except AdapterRefused:
            continue
        assert all(value.dtype == np.float32 for value in found.tensors.values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": ["x" * 5000] * 100}, "has version a list"),
        ({"rank": 1e999}, "inf is no size"),
        ({"rank": 0}, "0 is no size"),
        ({"rank": True}, "True is no size"),
        ({"hidden": 2**40}, "1099511627776 is no size"),
        ({"max_labels": -1}, "-1 is no size"),
        ({"sites": [{"a": "a", "b": "b", "module": "m", "first": 0, "d_in": 10**400, "d_out": 1}]}, "1{1}0{60}"),
        ({"sites": [1]}, "TypeError"),
        ({"tokens": {"hidden": 4, "max_classes": 2**40}}, "1099511627776 is no size"),
        ({"tokens": {"hidden": 4}}, "KeyError.*max_classes"),
        ({"tokens": [4]}, "TypeError"),
    ],
)
def test_a_description_of_a_bank_with_impossible_sizes_is_refused_in_few_words(change, says):
    site = {"a": "a", "b": "b", "module": "m", "first": 0, "d_in": 4, "d_out": 4}
    fields = {"version": VERSIONS[-1], "rank": 4, "max_labels": 2, "hidden": 4, "sites": [site]}
    fields |= {"tokens": {"hidden": 4, "max_classes": 9}}
    assert parse_spec(json.dumps(fields)).tokens == (4, 9)
    with pytest.raises(BackendError, match=says) as caught:
        parse_spec(json.dumps({**fields, **change}))
    assert len(str(caught.value)) < 300


def test_a_bank_of_an_earlier_base_has_no_heads_for_tokens():
    fields = {"version": VERSIONS[0], "rank": 4, "max_labels": 2, "hidden": 4, "sites": []}
    assert parse_spec(json.dumps(fields)).tokens is None
    with pytest.raises(BackendError, match="version 5, 3 to 4 are known"):
        parse_spec(json.dumps({**fields, "version": VERSIONS[-1] + 1}))


def test_a_description_of_a_bank_that_nests_deep_is_refused():
    with pytest.raises(BackendError, match="RecursionError"):
        parse_spec("[" * 100_000)
