from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.bundle import gguf_header, weight_files
from edge_agent.bundle.gguf_memory import Demand, need
from edge_agent.bundle.manifest import AdapterConfig, TaskDoc
from edge_agent.bundle.weight_files import check_adapter
from tests.support import packages as tiny
from tests.support.gguf_bytes import LLAMA, WEIGHTS, adapter_bytes, gguf_bytes
from tests.support.gguf_bytes import text as gguf_text

MODEL = gguf_bytes(LLAMA, WEIGHTS)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "file.gguf"
    path.write_bytes(data)
    return path


def table(folder: Path, data: bytes) -> gguf_header.GgufTable:
    with written(folder, data).open("rb") as file:
        return gguf_header.read_table(file, "m.gguf")


def test_keys_and_tensors_are_read(tmp_path: Path) -> None:
    found = table(tmp_path, MODEL)
    assert found.text("general.architecture") == "llama"
    assert found.number("llama.block_count") == 2
    assert found.keys["tokenizer.ggml.tokens"] == gguf_header.Array(3)
    assert found.tensors["token_embd.weight"] == gguf_header.TensorEntry((64, 3), "f16", 384)
    assert found.tensor_bytes == 640


@pytest.mark.parametrize("keep", [20, 30, 200, len(MODEL) - 300, len(MODEL) - 33])
def test_a_file_cut_short_is_named_as_such(tmp_path: Path, keep: int) -> None:
    with pytest.raises(PackageError, match=r"cut short|header is damaged"):
        weight_files.check_file(written(tmp_path, MODEL[:keep]), "m.gguf")


@given(place=st.integers(0, len(MODEL) - 1), byte=st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_is_refused_or_read_never_worse(tmp_path: Path, place: int, byte: int) -> None:
    data = MODEL[:place] + bytes([byte]) + MODEL[place + 1 :]
    try:
        table(tmp_path, data)
    except PackageError as error:
        assert "m.gguf" in str(error)


ALIGNED = gguf_bytes({"general.alignment": 32, **LLAMA}, WEIGHTS)
NAME, KEY = gguf_text("token_embd.weight"), gguf_text("general.file_type")
SECOND = gguf_text("output_norm.weight") + struct.pack("<IQIQ", 1, 64, 0, 384)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (MODEL.replace(KEY, gguf_text("")), "a name that is empty or holds NUL"),
        (MODEL.replace(NAME, gguf_text("token_embd\0weight")), "a name that is empty or holds NUL"),
        (MODEL.replace(NAME, gguf_text("x" * 64)), "a text of 64 B"),
        (MODEL.replace(SECOND, SECOND[:-8] + struct.pack("<Q", 416)) + bytes(32), "leave a gap"),
        (MODEL.replace(SECOND, SECOND[:-8] + struct.pack("<Q", 0)), "overlap"),
        (gguf_bytes(LLAMA, {"a": ((3, 64), 8, 204)}), "with 192 values"),
        (gguf_bytes(LLAMA, {"a": ((0, 2**63), 0, 0)}), "with 0 values"),
        (ALIGNED.replace(struct.pack("<II", 4, 32), struct.pack("<Ii", 5, 32), 1), "an alignment of type 5"),
        (gguf_bytes({"general.alignment": 24, **LLAMA}, WEIGHTS), "its alignment is 24"),
    ],
    ids=["empty key", "NUL in a name", "long name", "gap", "overlap", "block over two rows", "huge extent beside zero",
         "signed alignment", "alignment no power of two"],
)  # fmt: skip
def test_what_llama_cpp_does_not_take_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """An empty key even ends its process. tests/fuzz/differential_targets.py holds the two readers side by side."""
    assert data not in (MODEL, ALIGNED)
    with pytest.raises(PackageError, match=says):
        table(tmp_path, data)


def test_lengths_that_claim_the_world_cost_nothing(tmp_path: Path) -> None:
    huge = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    for claim in (b"\xff" * 8, (1 << 40).to_bytes(8, "little")):
        with pytest.raises(PackageError, match="header is damaged"):
            table(tmp_path, huge + claim + bytes(64))
    array = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"\xff" * 8
    with pytest.raises(PackageError, match="array of"):
        table(tmp_path, huge + array)


def test_the_sizes_of_the_tensor_types_are_those_of_the_gguf_library() -> None:
    library = pytest.importorskip("gguf")
    for number, (name, values, size) in gguf_header.TENSOR_TYPES.items():
        kind = library.GGMLQuantizationType(number)
        assert kind.name.lower() == name
        assert library.GGML_QUANT_SIZES[kind] == (values, size)


def config(**changes: object) -> AdapterConfig:
    fields: dict[str, object] = {"name": "a", "base_id": tiny.BASE_ID, "rank": 4, "alpha": 8.0, "dtype": "f32"}
    fields.update(changes)
    task = TaskDoc(kind="generate", max_tokens=32_768)
    return AdapterConfig(schema=1, targets=("blk.0.attn_q",), task=task, **fields)  # type: ignore[arg-type]


def test_an_adapter_in_gguf_that_is_what_its_manifest_says_passes(tmp_path: Path) -> None:
    check_adapter(written(tmp_path, adapter_bytes()), config())
    check_adapter(written(tmp_path, adapter_bytes(base_id=tiny.BASE_ID, kind=1)), config(dtype="float16"))


@pytest.mark.parametrize(
    ("data", "changes", "says"),
    [
        (MODEL, {}, "no LoRA adapter"),
        (adapter_bytes(base_id=tiny.OTHER_BASE_ID), {}, "is for base"),
        (adapter_bytes(rank=8), {}, "rank above"),
        (adapter_bytes(), {"dtype": "f16"}, "the manifest says f16"),
        (adapter_bytes()[:-64], {}, "cut short"),
    ],
)
def test_another_adapter_is_refused(tmp_path: Path, data: bytes, changes: dict[str, object], says: str) -> None:
    with pytest.raises(PackageError, match=says):
        check_adapter(written(tmp_path, data), config(**changes))


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    data = gguf_bytes(keys, {"blk.0.attn_q.weight.lora_a": ((64, 4), 0, 1024)})
    with pytest.raises(PackageError, match="pair"):
        check_adapter(written(tmp_path, data), config())


NONSENSE = [float("nan"), float("inf"), float("-inf"), -1.0, 0.5, 2.0**31]


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize(
    "key",
    [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
    ],
)
def test_a_count_that_is_none_is_named(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(PackageError, match=f"{key} says"):
        gguf_header.read_header(written(tmp_path, gguf_bytes({**LLAMA, key: value}, WEIGHTS)))
    if "head_count" in key or "feed" in key:
        with pytest.raises(PackageError, match=f"{key} says"):
            gguf_header.read_header(written(tmp_path, gguf_bytes({**LLAMA, key: [4.0, value]}, WEIGHTS)))


@pytest.mark.parametrize("value", NONSENSE)
def test_other_figures_that_are_none_count_as_missing_or_are_named(tmp_path: Path, value: float) -> None:
    keys = {"general.file_type": value, "tokenizer.ggml.bos_token_id": value, "tokenizer.ggml.eos_token_id": 1}
    found = gguf_header.read_header(written(tmp_path, gguf_bytes({**LLAMA, **keys}, WEIGHTS)))
    assert found.special_token_ids == {"eos": 1}
    with pytest.raises(PackageError, match=r"edge\.tokenizer\.lstrip says"):
        gguf_header.read_header(written(tmp_path, gguf_bytes({**LLAMA, "edge.tokenizer.lstrip": [value]}, WEIGHTS)))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -8.0, 0.0])
def test_an_adapter_with_an_alpha_that_is_none_is_refused(tmp_path: Path, alpha: float) -> None:
    data = adapter_bytes().replace(struct.pack("<f", 8.0), struct.pack("<f", alpha), 1)
    with pytest.raises(PackageError, match="a number above 0 is needed"):
        check_adapter(written(tmp_path, data), config())


def test_memory_is_never_predicted_below_nothing(tmp_path: Path) -> None:
    found = gguf_header.read_header(written(tmp_path, gguf_bytes({**LLAMA, "llama.attention.head_count": 80}, WEIGHTS)))
    assert min(need(found, Demand(512))) > 0 and found.head_dim >= 1


def filled(items: dict[str, object], tensors: int = 0) -> bytes:
    shapes = {f"t{place}": ((1,), 0, 4) for place in range(tensors)}
    return gguf_bytes(items, shapes)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: filled({f"k{place}": "x" * limits.MIB for place in range(9)}), "of texts"),
        (lambda: filled({f"k{place}": [1] * 1024 for place in range(65)}), "more items of arrays"),
        (lambda: filled({f"k{place}": 1 for place in range(limits.GGUF_KEYS + 1)}), "header is damaged"),
        (lambda: filled({}, limits.WEIGHT_TENSORS + 1), "header is damaged"),
    ],
    ids=["texts", "kept numbers", "keys", "tensors"],
)
def test_what_a_head_makes_is_bounded_in_sum(tmp_path: Path, data: Callable[[], bytes], says: str) -> None:
    with pytest.raises(PackageError, match=says):
        table(tmp_path, data())


def test_empty_texts_of_many_arrays_are_bounded_in_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GGUF_ITEMS", 2000)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 3)
    for place in range(3):
        head += gguf_text(f"k{place}") + struct.pack("<IIQ", 9, 8, 700) + bytes(8 * 700)
    with pytest.raises(PackageError, match="more items of arrays"):
        table(tmp_path, head)
