"""What `doctor` says on a Jetson, from trees of files as JetPack leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.actuators.power_mode import read_modes
from edge_agent.base.clock import ManualClock
from edge_agent.config.settings import DeviceSettings, SensorSettings, Settings, StoreSettings, WorkerSettings
from edge_agent.lifecycle import jetson
from edge_agent.lifecycle.doctor import Check, examine
from edge_agent.lifecycle.doctor_facts import survey
from edge_agent.lifecycle.service import ServiceStatus
from tests.support import sysfs

R32, R36 = "R32 (release), REVISION: 7.1", "R36 (release), REVISION: 4.3"
WITH_TENSORRT = ("tensorrt", "onnx")


def nano(root: Path) -> sysfs.Tree:
    """A Nano under JetPack 4.6 with a newer Python for the agent."""
    tree = sysfs.nano(root)
    sysfs.jetpack(tree, R32, sysfs.NANO_MODES, "python3.6", "8.2.1.8")
    tree.write("usr/bin/python3.10", "")
    tree.write("dev/nvmap", "")
    tree.write("dev/nvhost-ctrl-gpu", "")
    return tree


def told(tree: sysfs.Tree, jtop: bool = False, service: ServiceStatus | None = None, **worker: Any) -> dict[str, Check]:
    """The findings about a Jetson by name; of two with one name, the worse one stands last."""
    settings = Settings(
        device=DeviceSettings(id="dock"),
        sensors=SensorSettings(sysroot=tree.root, jtop=jtop),
        store=StoreSettings(state_dir=tree.root / "state", trust_root=tree.root / "root.json", reserve_bytes=0),
        worker=WorkerSettings(**worker),
    )
    found = examine(survey(settings, (), "defaults", ManualClock(), service=service))
    return {
        check.name: check for check in found if check.name in ("jetson", "power mode", "tensorrt", "jtop", "devices")
    }


def test_a_board_without_the_backend_is_told_what_it_could_use(tmp_path: Path) -> None:
    found = told(nano(tmp_path))
    assert found["jetson"].text == "L4T 32.7.1 (JetPack 4.6)"
    assert found["power mode"].text == "MAXN (mode 0); others: 5W (mode 1)"
    assert found["tensorrt"].verdict == "skip"
    assert "/usr/bin/python3.6 has TensorRT 8.2.1.8" in found["tensorrt"].text
    assert 'worker.tensorrt_python = "/usr/bin/python3.6"' in str(found["tensorrt"].remedy)
    assert found["jtop"].verdict == "skip"
    assert "nvhost-ctrl-gpu" in found["devices"].text and found["devices"].verdict == "ok"


def test_the_interpreter_with_tensorrt_is_named_where_the_chosen_one_has_none(tmp_path: Path) -> None:
    found = told(nano(tmp_path), backends=WITH_TENSORRT, python=Path("/usr/bin/python3.10"))["tensorrt"]
    assert (found.verdict, found.text) == (
        "fail", "/usr/bin/python3.10 has no TensorRT; /usr/bin/python3.6 has TensorRT 8.2.1.8"
    )  # fmt: skip
    assert found.remedy == (
        'worker.tensorrt_python = "/usr/bin/python3.6"; '
        "sudo /usr/bin/python3.6 -m pip install -U 'pip<22' setuptools wheel; "
        "sudo env PATH=/usr/local/cuda/bin:$PATH /usr/bin/python3.6 -m pip install pycuda (compiled here)"
    )


def test_what_is_missing_is_installed_for_the_interpreter_that_runs_engines(tmp_path: Path) -> None:
    tree = nano(tmp_path)
    python3 = Path("/usr/bin/python3")
    found = told(tree, backends=WITH_TENSORRT, tensorrt_python=python3)["tensorrt"]
    assert (found.verdict, found.text) == ("fail", "/usr/bin/python3 has no pycuda")
    assert "/usr/bin/python3 -m pip install pycuda" in str(found.remedy)
    sysfs.package(tree, "usr/local/lib/python3.6/dist-packages", "pycuda", "2021.1")
    found = told(tree, backends=WITH_TENSORRT, tensorrt_python=python3)["tensorrt"]
    assert (found.verdict, found.remedy) == ("ok", None)
    assert found.text == "/usr/bin/python3 has numpy, pycuda 2021.1, TensorRT 8.2.1.8"


def test_a_python_that_takes_no_packages_of_pips_gets_an_environment(tmp_path: Path) -> None:
    """JetPack 7's: Ubuntu 24.04 says "externally-managed-environment"."""
    tree = sysfs.orin_nano(tmp_path)
    sysfs.jetpack(tree, "R39 (release), REVISION: 2.0", sysfs.ORIN_MODES, "python3.12", "10.16.2.10")
    tree.write("dev/nvmap", "")
    tree.write("usr/lib/python3.12/EXTERNALLY-MANAGED", "[externally-managed]\n")
    chosen = Path("/usr/bin/python3")
    found = told(tree, backends=WITH_TENSORRT, tensorrt_python=chosen)["tensorrt"]
    assert found.verdict == "fail" and str(found.remedy).endswith(
        "sudo /usr/bin/python3 -m venv --system-site-packages /opt/edge-tensorrt; "
        "sudo env PATH=/usr/local/cuda/bin:$PATH /opt/edge-tensorrt/bin/python -m pip install pycuda (compiled here); "
        'worker.tensorrt_python = "/opt/edge-tensorrt/bin/python"'
    )
    tree.write("opt/edge-tensorrt/pyvenv.cfg", "include-system-site-packages = true\nversion = 3.12.3\n")
    sysfs.package(tree, "opt/edge-tensorrt/lib/python3.12/site-packages", "pycuda", "2026.1")
    sysfs.package(tree, "usr/lib/python3/dist-packages", "numpy", "1.26.4")
    chosen = Path("/opt/edge-tensorrt/bin/python")
    assert told(tree, backends=WITH_TENSORRT, tensorrt_python=chosen)["tensorrt"].verdict == "ok"


def test_a_board_without_tensorrt_anywhere_is_told_its_package(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path)
    tree.write("usr/bin/python3.10", "")
    tree.write("etc/nv_tegra_release", f"# {R36}, GCID: 1\n")
    tree.write("dev/nvmap", "")
    found = told(tree, backends=WITH_TENSORRT, python=Path("/usr/bin/python3.10"))
    assert found["jetson"].text == "L4T 36.4.3 (JetPack 6.2)"
    assert found["tensorrt"].verdict == "fail"
    assert "sudo apt install python3-libnvinfer python3-numpy" in str(found["tensorrt"].remedy)
    assert found["power mode"].verdict == "skip"


@pytest.mark.parametrize(("system", "lacks"), [("true", ()), ("false", ("tensorrt", "pycuda"))])
def test_an_environment_has_the_systems_packages_only_where_it_was_made_with_them(
    tmp_path: Path, system: str, lacks: tuple[str, ...]
) -> None:
    tree = nano(tmp_path)
    sysfs.package(tree, "usr/local/lib/python3.6/dist-packages", "pycuda")
    tree.write("opt/rt/pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = {system}\nversion = 3.6.9\n")
    sysfs.package(tree, "opt/rt/lib/python3.6/site-packages", "numpy", "1.19.5")
    found = jetson.examined(tree.root, "/opt/rt/bin/python")
    assert found.lacks == lacks
    assert found.found["numpy"] == "1.19.5"


def test_a_board_that_throttles_in_its_power_mode_is_told_of_others(tmp_path: Path) -> None:
    """More is drawn than the supply gives, or may be drawn: the driver counts each time."""
    tree = sysfs.orin_nano(tmp_path)
    tree.write("etc/nvpmodel.conf", sysfs.ORIN_MODES)
    tree.write("etc/nv_tegra_release", f"# {R36}, GCID: 1\n")
    tree.write("var/lib/nvpmodel/status", "pmode:0002")
    settings = Settings(
        device=DeviceSettings(id="dock"),
        sensors=SensorSettings(sysroot=tree.root),
        store=StoreSettings(state_dir=tree.root / "state", trust_root=tree.root / "root.json", reserve_bytes=0),
    )

    def warnings() -> list[Check]:
        facts = survey(settings, (), "defaults", ManualClock())
        return [check for check in examine(facts) if check.name == "throttle" and check.verdict == "warn"]

    (found,) = warnings()
    assert found.text == "2 over-current or under-voltage events since boot in the power mode MAXN_SUPER (mode 2)"
    assert "a mode of fewer watts: sudo edge-agent power-mode MODE" in str(found.remedy)
    for counter in tree.root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        counter.write_text("0\n")
    assert warnings() == []


def test_links_between_interpreters_are_followed_inside_the_root(tmp_path: Path) -> None:
    tree = nano(tmp_path)
    (tmp_path / "usr/bin/python").symlink_to("python3")
    assert jetson.examined(tree.root, "/usr/bin/python").found["tensorrt"] == "8.2.1.8"
    (tmp_path / "usr/bin/a").symlink_to("b")
    (tmp_path / "usr/bin/b").symlink_to("a")
    assert jetson.examined(tree.root, "/usr/bin/a").found.keys() <= {"numpy"}


def test_a_service_without_the_drop_in_cannot_reach_the_gpu(tmp_path: Path) -> None:
    tree = nano(tmp_path)
    sysfs.package(tree, "usr/local/lib/python3.6/dist-packages", "pycuda")
    service = ServiceStatus(True, True, True, "active", "running")
    chosen: dict[str, Any] = {"backends": WITH_TENSORRT, "tensorrt_python": Path("/usr/bin/python3.6")}
    found = told(tree, service=service, **chosen)["tensorrt"]
    assert (found.verdict, found.remedy) == ("fail", "sudo edge-agent service install --drop-in jetson")
    tree.write("etc/systemd/system/edge-agent.service.d/jetson.conf", "")
    assert told(tree, service=service, **chosen)["tensorrt"].verdict == "ok"


def test_a_gpu_without_device_files_is_said(tmp_path: Path) -> None:
    tree = nano(tmp_path)
    for name in ("nvmap", "nvhost-ctrl-gpu"):
        (tmp_path / "dev" / name).unlink()
    assert "devices" not in told(tree)
    assert told(tree, backends=WITH_TENSORRT)["devices"].verdict == "fail"


def test_jtop_needs_its_service_and_its_group(tmp_path: Path) -> None:
    tree = nano(tmp_path)
    assert "jtop.sock is missing" in told(tree, jtop=True)["jtop"].text
    tree.write("run/jtop.sock", "")
    found = told(tree, jtop=True)["jtop"]
    assert (found.verdict, str(found.remedy)[:38]) == ("warn", "sudo usermod -aG jtop edge-agent, then")
    tree.write("etc/group", "jtop:x:1001:ada,edge-agent\n")
    assert told(tree, jtop=True)["jtop"].verdict == "ok"


@pytest.mark.parametrize(
    ("text", "l4t", "pack"),
    [
        (f"# {R32}, GCID: 29818004, BOARD: t210ref", "32.7.1", "4.6"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "36.4.0", "6.1"),
        (f"# {R36}, GCID: 38968081", "36.4.3", "6.2"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2"),
        ("# R40 (release), REVISION: 1.0, GCID: 1", "40.1.0", None),
        ("Debian 12", None, None),
        ("", None, None),
    ],
)
def test_releases_of_l4t(text: str, l4t: str | None, pack: str | None) -> None:
    assert (jetson.parse_release(text), jetson.jetpack(jetson.parse_release(text))) == (l4t, pack)


def test_power_modes_are_those_of_the_file_and_the_status_says_which(tmp_path: Path) -> None:
    tree = sysfs.orin_nano(tmp_path)
    assert read_modes(tmp_path) is None
    tree.write("etc/nvpmodel.conf", sysfs.ORIN_MODES)
    modes = read_modes(tmp_path)
    assert modes is not None
    assert [str(mode) for mode in modes.listed] == [
        "15W (mode 0)",
        "25W (mode 1)",
        "MAXN_SUPER (mode 2)",
        "7W (mode 3)",
    ]
    assert str(modes.current) == "25W (mode 1)", "before the first change the default counts"
    assert modes.find("maxn_super") == modes.find("2") == modes.listed[2]
    assert modes.find("9") is modes.find("OLD") is None
    for status, current in (("pmode:0003", "7W (mode 3)"), ("pmode:0008", "mode 8")):
        tree.write("var/lib/nvpmodel/status", status)
        found = read_modes(tmp_path)
        assert found is not None and str(found.current) == current
    tree.write("var/lib/nvpmodel/status", "\0\0")
    found = read_modes(tmp_path)
    assert found is not None and found.current is None and "no pmode" in found.reason
