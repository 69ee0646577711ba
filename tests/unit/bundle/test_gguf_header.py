from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError
from edge_agent.bundle import gguf_header, weight_files
from edge_agent.bundle.manifest import AdapterConfig, TaskDoc
from edge_agent.bundle.weight_files import check_adapter
from tests.support import packages as tiny
from tests.support.gguf_bytes import LLAMA, WEIGHTS, adapter_bytes, gguf_bytes

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
