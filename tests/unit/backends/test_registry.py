import importlib
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from edge_agent.backends import registry
from edge_agent.backends.echo import EchoBackend
from edge_agent.base.errors import BackendMissing
from edge_agent.base.runtimes import DEVICE_OPTIONS, RUNTIMES

ROOT = pathlib.Path(__file__).resolve().parents[3]


class Points:
    """Entry points as an installed plug-in declares them."""

    def __init__(self, **places):
        self._points = [SimpleNamespace(name=name, value=value) for name, value in places.items()]

    def __call__(self, group):
        assert group == "edge_agent.backends"
        return self._points


def test_built_in_backends_are_known_without_being_imported():
    assert {"echo", "onnx", "llamacpp", "tensorrt"} <= set(registry.known())
    code = (
        "import sys; from edge_agent.backends import registry\nregistry.known()\n"
        "loaded = [name for name in sys.modules if name.startswith('edge_agent.backends.')]\n"
        "assert sorted(loaded) == ['edge_agent.backends.api', 'edge_agent.backends.registry'], loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert isinstance(registry.create("echo"), EchoBackend)


def test_the_built_in_backends_are_the_entry_points_of_this_distribution():
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["entry-points"]["edge_agent.backends"]
    assert declared == registry.BUILT_IN


def test_every_built_in_backend_has_a_row_in_the_table_of_runtimes():
    assert set(registry.BUILT_IN) <= set(RUNTIMES)


@pytest.mark.parametrize("module", ["echo", "onnx", "llamacpp.backend", "tensorrt.engine_backend"])
def test_every_option_of_a_backend_is_the_packages_or_the_devices(module):
    """One list says what a package may set, so an option that a backend gains is nobody's by accident."""
    options = set(importlib.import_module(f"edge_agent.backends.{module}").DEFAULTS)
    allowed = RUNTIMES[module.split(".")[0]].package_options
    assert allowed is not None and not allowed & DEVICE_OPTIONS
    assert options - allowed <= DEVICE_OPTIONS
    assert allowed <= options


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(BackendMissing, match=r"no backend 'tpu'.*echo, .*onnx"):
        registry.create("tpu")


def test_where_the_distribution_is_not_installed_the_built_in_table_counts(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", Points())
    assert registry.known() == registry.BUILT_IN


def test_an_installed_plug_in_is_known_by_its_entry_point(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", Points(copy="edge_agent.backends.echo:EchoBackend"))
    assert isinstance(registry.create("copy"), EchoBackend)


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
    monkeypatch.setattr(registry, "entry_points", Points(onnx="evil:Backend", plug="evil:Backend"))
    assert registry.known() == {**registry.BUILT_IN, "plug": "evil:Backend"}
