"""What the walk over an ONNX graph lets through, compared with what protobuf and ONNX Runtime read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.bundle import onnx_graph, weight_files

onnx = pytest.importorskip("onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT


def outside() -> object:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="0123")
    return tensor


def inside() -> object:
    return helper.make_tensor("w", FLOAT, [4], [1.0, 2.0, 3.0, 4.0])


def values(*names: str) -> list[object]:
    return [helper.make_tensor_value_info(name, FLOAT, [4]) for name in names]


def initializer(tensor: object) -> object:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", values("x"), values("y"), [tensor]))


def attribute(tensor: object) -> object:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    return helper.make_model(helper.make_graph([node], "g", [], values("y")))


def subgraph(tensor: object) -> object:
    inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=tensor)], "inner", [], values("z"))
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    condition = helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    return helper.make_model(helper.make_graph([node], "g", [condition], values("y")))


def sparse(tensor: object) -> object:
    model = initializer(inside())
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[4]))  # type: ignore[attr-defined]
    return model


def function(tensor: object) -> object:
    model = initializer(inside())
    node = helper.make_node("Constant", [], ["z"], value=tensor)
    made = helper.make_function("own", "F", [], ["z"], [node], [helper.make_opsetid("", 20)])
    model.functions.append(made)  # type: ignore[attr-defined]
    return model


PLACES = [initializer, attribute, subgraph, sparse, function]


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_outside_is_refused_wherever_it_stands(place: Callable[[object], object], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(place(inside()).SerializeToString())  # type: ignore[attr-defined]
    weight_files.check_file(path, "model.onnx")
    path.write_bytes(place(outside()).SerializeToString())  # type: ignore[attr-defined]
    with pytest.raises(PackageError, match="lies in another file"):
        weight_files.check_file(path, "model.onnx")


def varint(value: int, extra: int = 0) -> bytes:
    """A number in protobuf's form, `extra` bytes longer than needed."""
    parts = [value >> 7 * place & 0x7F for place in range(max(1, -(-value.bit_length() // 7)) + extra)]
    return bytes(part | 0x80 for part in parts[:-1]) + bytes(parts[-1:])


def field(number: int, body: bytes, wire: int = 2, extra: int = 0) -> bytes:
    key = varint(number << 3 | wire, extra)
    return key + (varint(len(body), extra) if wire == 2 else b"") + body


def group(number: int, body: bytes = b"") -> bytes:
    return field(number, body, wire=3) + field(number, b"", wire=4)


def passes(data: bytes, folder: Path) -> bool:
    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        weight_files.check_file(path, "model.onnx")
    except PackageError:
        return False
    return True


def tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto inside a message, found by the descriptors of the onnx library."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for described, value in message.ListFields():
        if described.message_type is not None:
            for one in value if isinstance(value, Sequence) or hasattr(value, "add") else [value]:
                yield from tensors(one)


def lies_outside(data: bytes) -> bool:
    """Whether protobuf reads a tensor with external data in it; False where it reads nothing."""
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # noqa: BLE001 - DecodeError's place differs between versions of protobuf
        return False
    return any(one.external_data or one.data_location == onnx.TensorProto.EXTERNAL for one in tensors(model))


NOISE = st.sampled_from(
    [
        b"",
        b"",
        group(100),
        group(5),
        group(100, field(13, b"x") + group(3)),
        field(100, b"noise"),
        field(14, b"", wire=5) + bytes(4),
        varint(100 << 3, 3) + b"\1",
        varint(1 << 32 | 5 << 3 | 2) + b"\0",
        varint(5 << 3 | 7),
    ]
)


@st.composite
def rewritten(draw: st.DrawFn, message: Any) -> bytes:
    """A message in another form of the same contents: long keys and lengths, parts to be merged, noise between."""
    out = draw(NOISE)
    for described, value in message.ListFields():
        repeated = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
        for one in value if repeated else [value]:
            if described.message_type is None:
                plain = type(message)(**{described.name: [one] if repeated else one}).SerializeToString()
                out += plain
                continue
            body, extra = draw(rewritten(one)), draw(st.sampled_from([0, 0, 0, 1, 3]))
            halves = [body] if repeated else [body, b""][: draw(st.integers(1, 2))]
            out += b"".join(field(described.number, half, extra=extra) for half in halves) + draw(NOISE)
    return out


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A graph, half of them with a tensor outside, rewritten and then damaged in a few bytes."""
    place, tensor = draw(st.sampled_from(PLACES)), draw(st.sampled_from([inside, outside]))
    data = bytearray(draw(rewritten(place(tensor()))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        if draw(st.booleans()):
            data[at] = draw(st.integers(0, 255))
        else:
            data[at:at] = draw(st.binary(max_size=3))
    return bytes(data)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=mutated())
def test_protobuf_sees_no_tensor_outside_in_what_the_walk_passes(data: bytes, tmp_path: Path) -> None:
    if passes(data, tmp_path):
        assert not lies_outside(data)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=rewritten(initializer(outside())))
def test_the_runtime_reads_no_other_file_for_what_the_walk_passes(data: bytes, tmp_path: Path) -> None:
    runtime, numpy = pytest.importorskip("onnxruntime"), pytest.importorskip("numpy")
    (tmp_path / "0123").write_bytes(struct.pack("<4f", 7, 7, 7, 7))
    if not passes(data, tmp_path):
        return
    try:
        session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        given_values = {"x": numpy.zeros(4, numpy.float32)}
        assert session.run(None, given_values)[0].tolist() != [7.0] * 4
    except runtime.capi.onnxruntime_pybind11_state.Fail:
        pass


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(PLACES), data=st.data())
def test_long_keys_and_merged_parts_pass_as_protobuf_reads_them(
    place: Callable[[object], object], data: st.DataObject, tmp_path: Path
) -> None:
    message = place(inside())
    written = field(7, message.graph.SerializeToString(), extra=data.draw(st.integers(0, 3)))  # type: ignore[attr-defined]
    message.ClearField("graph")  # type: ignore[attr-defined]
    assert passes(message.SerializeToString() + written + field(7, b""), tmp_path)  # type: ignore[attr-defined]


FORMS = {
    "a group that nobody knows": group(100),
    "a group with the number of a known field": group(5),
    "a field that nobody knows": field(100, b"x"),
    "a known field of another wire type": field(5, b"\1", wire=0),
}
"""What ONNX Runtime loads and the walk refuses; no exporter writes it."""


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_the_runtime_takes_and_the_walk_refuses(form: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    message = initializer(inside())
    graph = FORMS[form] + message.graph.SerializeToString()  # type: ignore[attr-defined]
    message.ClearField("graph")  # type: ignore[attr-defined]
    data = message.SerializeToString() + field(7, graph)  # type: ignore[attr-defined]
    runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(PackageError, match="is no field of an ONNX graph"):
        weight_files.check_file(path, "model.onnx")


@pytest.mark.parametrize("place", ["input", "node", "metadata", "domain", "bytes"])
def test_texts_are_utf_8_as_the_runtime_shows_them(place: str, tmp_path: Path) -> None:
    """ONNX Runtime loads other names, and raises UnicodeDecodeError for who asks for them."""
    message: Any = initializer(inside())
    message.metadata_props.add(key="edge.base_id", value="XX")
    message.opset_import.add(domain="XX", version=1)
    message.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value_string", type=3, s=b"XX")
    message.graph.node[0].name = "XX"
    message.graph.input[0].doc_string = "XX"
    data = message.SerializeToString()
    assert passes(data, tmp_path)
    parts = {
        "input": b"\x1a\x02",
        "node": b"\x1a\x02",
        "metadata": b"\x12\x02",
        "domain": b"\x0a\x02",
        "bytes": b"\x22\x02",
    }
    before = data.rindex(parts[place] + b"XX") if place == "input" else data.index(parts[place] + b"XX")
    changed = data[: before + 2] + b"\xff\xfe" + data[before + 4 :]
    assert passes(changed, tmp_path) == (place == "bytes")


@pytest.mark.parametrize(
    ("number", "packed", "sound"),
    [
        (7, b"\x01\x80\x01", True),
        (7, b"\x01\x80", False),
        (7, b"\xff" * 9 + b"\x01", True),
        (7, b"\x80" * 10 + b"\x01", False),
        (4, bytes(8), True),
        (4, bytes(7), False),
        (10, bytes(8), True),
        (10, bytes(12), False),
        (7, b"", True),
    ],
)
def test_packed_numbers_are_whole(number: int, packed: bytes, sound: bool, tmp_path: Path) -> None:
    """int64_data, float_data and double_data of a tensor."""
    message: Any = initializer(inside())
    graph = message.graph.SerializeToString() + field(5, field(number, packed))
    message.ClearField("graph")
    data = message.SerializeToString() + field(7, graph)
    assert passes(data, tmp_path) == sound
    assert lies_outside(data) is False
    try:
        onnx.load_model_from_string(data)
    except Exception:  # noqa: BLE001 - see `lies_outside`
        assert not sound
    else:
        assert sound


def test_a_text_of_a_graph_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, field(10, b"x" * (limits.GRAPH_TEXT_BYTES + 1))))
    with pytest.raises(PackageError, match=r"a text of its graph has 4,194,305 bytes"):
        weight_files.check_file(path, "model.onnx")


def test_a_key_of_more_than_32_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = initializer(inside()).graph.SerializeToString()  # type: ignore[attr-defined]
    hidden = varint(1 << 32 | 5 << 3 | 2) + varint(len(outside().SerializeToString()))  # type: ignore[attr-defined]
    path.write_bytes(b"\x08\x08" + field(7, graph + hidden + outside().SerializeToString()))  # type: ignore[attr-defined]
    with pytest.raises(PackageError, match="is no field of an ONNX graph"):
        weight_files.check_file(path, "model.onnx")


def test_a_graph_compiled_for_an_accelerator_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="0123")
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", values("x"), values("y"))).SerializeToString())
    with pytest.raises(PackageError, match="EPContext"):
        weight_files.check_file(path, "model.onnx")


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (field(1, b"") * (limits.GRAPH_NODES + 1), "more than 50,000 nodes"),
        (field(5, b"") * (limits.GRAPH_TENSORS + 1), "more than 50,000 tensors"),
        (field(11, field(2, field(1, field(2, field(1, b"") * limits.GRAPH_FIELDS)))), "more than 500,000 fields"),
        (field(1, field(5, b"\x40\x00" * limits.GRAPH_FIELDS)), "more than 500,000 fields"),
    ],
    ids=["nodes", "tensors", "dimensions", "numbers one by one"],
)
def test_small_parts_are_counted(graph: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph))
    with pytest.raises(PackageError, match=says):
        weight_files.check_file(path, "model.onnx")


def test_deep_graphs_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(30):
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph))
    with pytest.raises(PackageError, match="nests deeper than 64 levels"):
        weight_files.check_file(path, "model.onnx")


def test_the_table_is_that_of_the_onnx_library() -> None:
    """Every message that can hold a tensor, and every field of it, stands in the walk's table; only the fields of
    multi-device graphs, which the agent does not run, are left out."""
    names = {
        "graph": onnx.GraphProto,
        "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto,
        "tensor": onnx.TensorProto,
        "sparse_tensor": onnx.SparseTensorProto,
        "function": onnx.FunctionProto,
        "training": onnx.TrainingInfoProto,
        "model": onnx.ModelProto,
        "value": onnx.ValueInfoProto,
    }
    for name, kind in names.items():
        known = {one.number for one in kind.DESCRIPTOR.fields if "onfiguration" not in one.name}
        assert set(onnx_graph._MESSAGES[name]) == known, name


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_for_a_graph_end_the_walk(tmp_path: Path, graph: bytes) -> None:
    passes(b"\x08\x08" + field(7, graph), tmp_path)
