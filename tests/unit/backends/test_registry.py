import pytest

from edge_agent.backends import registry
from edge_agent.backends.echo import EchoBackend
from edge_agent.base.errors import BackendMissing


def test_built_in_backends_are_known_without_being_imported():
    assert {"echo", "onnx"} <= set(registry.known())
    assert isinstance(registry.create("echo"), EchoBackend)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(BackendMissing, match=r"no backend 'tpu'.*echo, .*onnx"):
        registry.create("tpu")


def test_without_entry_points_the_built_in_table_counts(monkeypatch):
    import importlib.metadata

    monkeypatch.delattr(importlib.metadata, "entry_points")
    assert registry.known() == registry.BUILT_IN


@pytest.mark.parametrize("place", ["edge_agent.backends.absent:X", "edge_agent.backends.echo:Absent"])
def test_a_plug_in_that_cannot_be_imported_is_missing(monkeypatch, place):
    monkeypatch.setattr(registry, "known", lambda: {"plug": place})
    with pytest.raises(BackendMissing, match="'plug' cannot be imported"):
        registry.create("plug")


def test_a_plug_in_that_is_no_backend_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "known", lambda: {"plug": "collections:OrderedDict"})
    with pytest.raises(BackendMissing, match="is not a backend"):
        registry.create("plug")


def test_a_plug_in_cannot_take_the_name_of_a_built_in_one(monkeypatch):
    import importlib.metadata

    class Point:
        name, value = "onnx", "evil:Backend"

    class Points(list):
        def select(self, group):
            return self

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda: Points([Point()]))
    assert registry.known()["onnx"] == registry.BUILT_IN["onnx"]
