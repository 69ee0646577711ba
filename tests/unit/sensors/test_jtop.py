"""What jtop says, without its service: units, zones off line, totals that are none, and samples that are not new."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.sensors.jtop import STALE_S, JtopSource, parse_nvmap, parse_power, parse_temperatures, short_name

ROOT = Path(__file__).resolve().parents[3]


def a_client(uptime: float, celsius: float = 50.0) -> SimpleNamespace:
    return SimpleNamespace(
        uptime=uptime,
        temperature={"tj": {"temp": celsius, "online": True}, "cv0": {"temp": -256, "online": False}},
        power={"tot": {"power": 7000, "name": "VDD_IN"}},
        memory={"RAM": {"shared": 2048}},
        close=lambda: None,
    )


def test_values_have_units_and_a_source() -> None:
    source = JtopSource(Path("/none"), ("tj-thermal",))
    source._client = a_client(1.0)
    found = source.read(100.0)
    assert (found["temperature_jtop"].value, found["temperature_jtop"].source) == (50.0, "jtop tj")
    assert (found["power_jtop"].value, found["power_jtop"].source) == (7.0, "jtop VDD_IN")
    assert found["nvmap_jtop"].value == 2048 * 1024
    assert not source.lost


def test_a_sample_that_is_handed_out_again_ages_and_is_no_value_in_the_end() -> None:
    source = JtopSource(Path("/none"))
    source._client = a_client(1.0)
    assert source.read(100.0)["temperature_jtop"].taken_s == 100.0
    assert source.read(103.0)["temperature_jtop"].taken_s == 100.0, "the same sample is as old as it was"
    late = source.read(100.0 + STALE_S + 1.0)["temperature_jtop"]
    assert (late.value, late.reason) == (None, "the service gave nothing new for 6 s")
    assert source.lost, "worth a new connection"
    source._client = a_client(2.0)
    assert source.read(110.0)["temperature_jtop"].taken_s == 110.0
    assert not source.lost


def test_the_hottest_zone_that_counts_governs() -> None:
    zones = {"CPU": {"temp": 40.0}, "GPU": {"temp": 45.0}, "nvme Composite": {"temp": 80.0}, "cv0": {"temp": -256}}
    wanted = frozenset(map(short_name, ("CPU-therm", "GPU-therm")))
    assert parse_temperatures(zones, wanted, 0.0).value == 45.0
    assert parse_temperatures({"odd": {"temp": 33.0}}, wanted, 0.0).value == 33.0, "none that counts: all do"
    assert parse_temperatures({"cv0": {"temp": -256, "online": False}, "x": 3}, wanted, 0.0).value is None


@pytest.mark.parametrize("total", [{}, {"tot": {}}, {"tot": {"power": 0}}, {"tot": {"power": 1e9}}, {"tot": 7}])
def test_a_total_that_cannot_be_is_no_power(total: dict[str, object]) -> None:
    assert parse_power(total, 0.0).value is None


class Broken:
    """A client whose properties raise or return whatever a test sets."""

    def __init__(self, **held: object) -> None:
        self._held = {"uptime": 1.0, "temperature": {"tj": {"temp": 50.0}}, "power": {"tot": {"power": 7000}},
                      "memory": {"RAM": {"shared": 2048}}} | held  # fmt: skip

    def __getattr__(self, name: str) -> object:
        value = self._held[name]
        if isinstance(value, BaseException):
            raise value
        return value


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


ERRORS = (KeyError("uptime"), AttributeError("x"), TypeError("bytes"), Unprintable(), SystemExit(3), RecursionError())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_client_that_raises_is_a_reason_and_is_asked_again(error: BaseException) -> None:
    source = JtopSource(Path("/none"))
    source._client = Broken(uptime=error)
    found = source.read(100.0)
    assert all(one.value is None and type(error).__name__ in str(one.reason) for one in found.values())
    assert source.lost, "worth a new connection"
    source._client = Broken(temperature=error)
    found = source.read(101.0)
    assert found["temperature_jtop"].value is None
    assert type(error).__name__ in str(found["temperature_jtop"].reason)
    assert found["power_jtop"].value == 7.0, "what the client does tell counts"
    source._client = Broken(uptime=2.0)
    assert source.read(102.0)["temperature_jtop"].value == 50.0


HELD = (None, [1, 2], "text", 7, {"tj": 3}, {"tj": {"temp": float("nan")}}, {"RAM": {"shared": float("inf")}},
        {"tot": {"power": True}}, {"tot": {"power": float("nan")}}, {"RAM": {"shared": 10**400}})  # fmt: skip


@pytest.mark.parametrize("held", HELD, ids=lambda held: repr(held)[:30])
def test_a_client_that_holds_another_type_is_a_reason(held: object) -> None:
    source = JtopSource(Path("/none"))
    source._client = Broken(temperature=held, power=held, memory=held)
    for key, reading in source.read(100.0).items():
        assert reading.value is None, key
        assert reading.reason
    source._client = Broken(uptime=held)
    assert source.read(100.0)["power_jtop"].value == (7.0 if held == 7 else None)


@pytest.mark.parametrize("uptime", [float("nan"), None, "1"])
def test_an_uptime_that_cannot_grow_does_not_keep_a_sample_fresh(uptime: object) -> None:
    source = JtopSource(Path("/none"))
    source._client = Broken(uptime=uptime)
    assert "its uptime is" in str(source.read(100.0)["power_jtop"].reason)


RAISED = ("KeyError('memory')", "SystemExit(1)", "__import__('queue').Empty()", "SyntaxError('x')")


@pytest.mark.parametrize("error", RAISED)
@pytest.mark.parametrize("place", ["module", "start", "close"])
def test_connecting_never_raises_and_is_tried_again(
    error: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package `jtop` is replaced by one that fails on its import, at its start, or when the old client ends."""
    package = tmp_path / "jtop"
    package.mkdir()
    (package / "service.py").write_text("JTOP_PIPE = ''\n")
    fails = {name: f"raise {error}" if name == place else "pass" for name in ("module", "start", "close")}
    (package / "__init__.py").write_text(
        f"import os\nclass jtop:\n    uptime = 1.0\n    temperature = power = memory = {{}}\n"
        f"    def __init__(self, interval): pass\n    def start(self): {fails['start']}\n"
        f"    def close(self): {fails['close']}\n{fails['module']}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "jtop"]:
        monkeypatch.delitem(sys.modules, name)
    source = JtopSource(Path("/none"))
    source.open()
    assert source.lost is (place != "close")
    if place != "close":
        assert "jetson-stats failed: " in str(source.read(1.0)["power_jtop"].reason)
    source.open()
    for name in [name for name in sys.modules if name.split(".")[0] == "jtop"]:
        monkeypatch.delitem(sys.modules, name)


def test_memory_without_a_shared_part() -> None:
    assert parse_nvmap({}, 0.0).value is None
    assert parse_nvmap({"RAM": {"shared": -1}}, 0.0).value is None


def test_one_module_imports_jetson_stats_and_not_before_it_is_asked() -> None:
    importing = []
    for path in sorted((ROOT / "edge_agent").rglob("*.py")):
        tree = ast.parse(path.read_text())
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "jtop" for name in names):
                importing.append((path.name, id(node) in top))
    assert importing == [("jtop.py", False)] * 2
