"""Graphs that keep a tensor outside their file are refused, wherever in the graph it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError
from edge_agent.bundle import weight_files

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


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_for_a_graph_end_the_walk(tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08\x3a" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph)
    try:
        weight_files.check_file(path, "model.onnx")
    except PackageError as error:
        if "a tensor of the graph lies in another file" in str(error):
            # The tags of external_data (13, bytes) and data_location (14, number), plain or as a varint that goes on.
            assert any(tag in graph for tag in (0x6A, 0xEA, 0x70, 0xF0))
        else:
            assert "the graph is too large or too deeply nested to be looked through" in str(error)
            assert len(graph) >= 2 * 60, "each level takes a tag and a length"
