from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.bundle import weight_files
from edge_agent.bundle.manifest import AdapterConfig, TaskDoc
from edge_agent.bundle.weight_files import check_adapter
from tests.support import gguf_bytes
from tests.support import packages as tiny

SHAPES = {"l.0.q.A": (8, 4), "l.0.q.B": (4, 8), "head.weight": (8, 2), "head.bias": (2,)}
METADATA = {"format": "edge-adapter/1", "base_id": tiny.BASE_ID, "rank": "4"}


def check(data: bytes, name: str, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(data)
    weight_files.check_file(path, name)


def test_real_ones_pass(tmp_path: Path) -> None:
    check(tiny.onnx_bytes(b"graph" * 50), "model.onnx", tmp_path)
    check(tiny.safetensors_bytes(SHAPES, METADATA), "adapter.safetensors", tmp_path)
    check(gguf_bytes.gguf_bytes(gguf_bytes.LLAMA, gguf_bytes.WEIGHTS), "model.gguf", tmp_path)
    check(b' {"version": "1.0"}', "tokenizer.json", tmp_path)


def test_a_model_of_the_onnx_library_passes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.helper.set_model_props(model, {"edge.bank": "{}"})
    check(model.SerializeToString(), "model.onnx", tmp_path)


def test_a_file_of_the_safetensors_library_passes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    import numpy as np

    path = tmp_path / "a.safetensors"
    library.save_file({"b": np.zeros((2, 3), np.float16), "a": np.ones(5, np.float32)}, path, {"format": "x"})
    weight_files.check_file(path, "a.safetensors")


@pytest.mark.parametrize(
    "table",
    [
        {f"block.{place:05d}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for place in range(5000)},
        {"__metadata__": {"vocabulary": "x" * 5 * limits.MIB}},
        {"__metadata__": None},
    ],
    ids=["many tensors", "long header", "no metadata"],
)
def test_the_bounds_of_an_adapter_do_not_hold_for_the_weights_of_a_package(
    table: dict[str, object], tmp_path: Path
) -> None:
    head = json.dumps(table).encode()
    check(len(head).to_bytes(8, "little") + head, "weights.safetensors", tmp_path)


def test_a_safetensors_header_above_16_mib_is_refused(tmp_path: Path) -> None:
    head = json.dumps({"__metadata__": {"vocabulary": "x" * 16 * limits.MIB}}).encode()
    with pytest.raises(PackageError, match="header claims"):
        check(len(head).to_bytes(8, "little") + head, "weights.safetensors", tmp_path)


def headed(head: bytes) -> bytes:
    return len(head).to_bytes(8, "little") + head


MANY = b",".join(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(limits.WEIGHT_TENSORS + 1))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (
            b'{"a":{"dtype":"F32","shape":[%b1],"data_offsets":[0,4]}}' % (b"68719476736," * 200_000),
            "has 200001 dimens",
        ),
        (b"{%b}" % MANY, "more than 60,016 objects|has 20001 tensors"),
        (b'{"__metadata__":{"a":[%b[]]}}' % (b"[]," * 100_000), "more than 60,016 objects"),
        (b"{" + b'"a":{' * 20 + b"}" * 21, "nests deeper than 12"),
        (b'{"a":{"dtype":[],"shape":[0],"data_offsets":[0,0]}}', "entry of tensor 'a' is damaged"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,0]}}', "header is damaged"),
        (b'{"__metadata__":{"layers":12}}', "metadata is not a map of texts"),
        (b'{"__metadata__":"none"}', "metadata is not a map of texts"),
        (b'{"__metadata__":{"a":"\\ud800"}}', "header is damaged"),
        (b'{"\\udc00":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "header is damaged"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}', "entry of tensor 'a' is damaged"),
        (b'{"a":{"dtype":"F32","shape":[1e99],"data_offsets":[0,0]}}', "entry of tensor 'a' is damaged"),
        (b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "entry of tensor 'a' is damaged"),
        (b'{"a":' + b"9" * 5000 + b"}", "header is damaged"),
        (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}', "stands twice"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[:40].decode(),
)
def test_heads_of_safetensors_are_bounded_and_exact(head: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=says):
        check(headed(head), "weights.safetensors", tmp_path)


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"GGUF\x09\x00\x00\x00" + bytes(60), "m.gguf", "version 9"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 8, "m.gguf", "header is damaged"),
        (b"GGUF", "m.gguf", "does not begin with GGUF"),
        (b"", "m.onnx", "holds no ONNX graph"),
        (b"", "m.safetensors", "header claims"),
        (b"\x02" + bytes(7) + b"[]", "m.safetensors", "no JSON object"),
        (b"\x02" + bytes(7) + b"{x", "m.safetensors", "header is damaged"),
        (b"[]", "tokenizer.json", "does not begin as a JSON object"),
        (b"\x80\x04pickle", "m.engine", "a Python pickle"),
    ],
)
def test_false_ones_are_named(data: bytes, name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=says):
        check(data, name, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=80), name=st.sampled_from(["m.onnx", "m.gguf", "m.safetensors", "t.json"]))
def test_noise_only_ever_gets_a_package_error(data: bytes, name: str, tmp_path: Path) -> None:
    try:
        check(data, name, tmp_path)
    except PackageError as error:
        assert error.where == name


def config(**fields: object) -> AdapterConfig:
    known: dict[str, object] = {
        "schema": 1,
        "name": "a",
        "base_id": tiny.BASE_ID,
        "rank": 4,
        "alpha": 8.0,
        "targets": ("l.0.q",),
        "dtype": "float32",
        "task": TaskDoc(kind="classify", labels=("x", "y")),
    }
    return AdapterConfig(**{**known, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"base_id": tiny.OTHER_BASE_ID}, "the manifest says otherwise"),
        ({"rank": 3}, "rank above the manifest's 3"),
        ({"dtype": "float16"}, "is F32, the manifest says float16"),
        ({"task": TaskDoc(kind="classify", labels=("x", "y", "z"))}, "not for the 3 labels"),
        ({"task": TaskDoc(kind="slots", labels=("x", "y"))}, "not for the 2 labels"),
    ],
)
def test_an_adapter_file_must_be_what_its_manifest_says(fields: dict[str, object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(tiny.safetensors_bytes(SHAPES, METADATA))
    check_adapter(path, config())
    with pytest.raises(PackageError, match=says):
        check_adapter(path, config(**fields))


def test_a_head_of_tokens_belongs_to_slots_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    shapes = {**SHAPES, "head.weight": (8, 5), "head.bias": (5,)}
    slots = config(task=TaskDoc(kind="slots", labels=("x", "y")))
    path.write_bytes(tiny.safetensors_bytes(shapes, {**METADATA, "head": "tokens"}))
    check_adapter(path, slots)
    with pytest.raises(PackageError, match="its head reads tokens, which is not what its task 'classify' needs"):
        check_adapter(path, config(task=TaskDoc(kind="classify", labels=tuple("abcde"))))
    path.write_bytes(tiny.safetensors_bytes(SHAPES, {**METADATA, "head": "tokens"}))
    check_adapter(path, config(task=TaskDoc(kind="answers", pairs=True)))
    path.write_bytes(tiny.safetensors_bytes(shapes, METADATA))
    with pytest.raises(PackageError, match="its head reads texts, which is not what its task 'slots' needs"):
        check_adapter(path, slots)


def test_an_adapter_file_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(tiny.safetensors_bytes(SHAPES, {"format": "pt"}))
    with pytest.raises(PackageError, match="does not say that it is edge-adapter/1"):
        check_adapter(path, config())
