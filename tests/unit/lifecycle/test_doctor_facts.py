"""Facts gathered from a tree of files."""

from __future__ import annotations

import os
from pathlib import Path

from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import ConfigError
from edge_agent.config.settings import DeviceSettings, MqttSettings, SensorSettings, Settings, StoreSettings
from edge_agent.lifecycle.doctor import examine
from edge_agent.lifecycle.doctor_facts import RuntimeProbe, runtime_probes, survey
from edge_agent.protocol.worker_messages import RuntimeAvailable, RuntimeUnavailable
from edge_agent.sensors.time_sync import ClockSync
from tests.support import sysfs


def settings(root: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "device": DeviceSettings(id="kitchen"),
        "sensors": SensorSettings(sysroot=root),
        "store": StoreSettings(state_dir=root / "state", trust_root=root / "root.json", reserve_bytes=0),
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]


def test_a_stock_raspberry_pi_4(tmp_path: Path) -> None:
    tree = sysfs.pi4(tmp_path)
    (tmp_path / "state").mkdir()
    tree.write("run/systemd/timesync/synchronized", "")
    tree.write("dev/vcio", "")
    facts = survey(settings(tree.root), (), "defaults", ManualClock())
    assert facts.board is not None
    assert (facts.board.key, facts.memory_controller, facts.pressure) == ("pi-4", False, False)
    assert facts.clock_sync is ClockSync.SYNCHRONISED
    assert facts.state is not None
    assert facts.state.exists and facts.state.writable and facts.state.free_bytes > 0
    assert [device.path for device in facts.device_files] == [tmp_path / "dev/vcio"]
    assert not facts.trust_root_exists
    warned = {check.name for check in examine(facts) if check.verdict == "warn"}
    assert warned == {"memory guard", "pressure"}


def test_the_programs_that_hold_most_are_those_of_this_machine(tmp_path: Path) -> None:
    assert survey(settings(tmp_path), (), "defaults", ManualClock()).largest == (), "a simulated board has no programs"
    here = settings(Path("/"), store=StoreSettings(state_dir=tmp_path, trust_root=tmp_path / "root.json"))
    largest = survey(here, (), "defaults", ManualClock()).largest
    sizes = [program.rss_bytes for program in largest]
    assert 0 < len(largest) <= 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2


def test_nothing_there_raises_nothing(tmp_path: Path) -> None:
    facts = survey(settings(tmp_path / "nowhere"), (ConfigError("bad"),), "x", ManualClock())
    assert facts.settings_problems == ("bad",)
    assert facts.state is not None and not facts.state.exists
    assert facts.clock_sync is ClockSync.UNKNOWN
    assert examine(facts)


def test_secrets_that_others_may_read_are_found(tmp_path: Path) -> None:
    tree = sysfs.pi4(tmp_path)
    secret = tree.write("pw", "x")
    mqtt = MqttSettings(username="u", password_file=secret)
    secret.chmod(0o604)
    assert survey(settings(tree.root, mqtt=mqtt), (), "x", ManualClock()).open_secrets == (secret,)
    secret.chmod(0o640)
    assert survey(settings(tree.root, mqtt=mqtt), (), "x", ManualClock()).open_secrets == ()


def test_timesyncd_that_has_not_reached_a_server(tmp_path: Path) -> None:
    tree = sysfs.pi4(tmp_path)
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    assert survey(settings(tree.root), (), "x", ManualClock()).clock_sync is ClockSync.UNSYNCHRONISED


def test_what_a_worker_says_of_backends() -> None:
    answers = {
        "onnx": RuntimeAvailable("onnxruntime", "1.31.1", ("cpu",), (), True, True, False),
        "tensorrt": RuntimeUnavailable("no module", "install it"),
        "litert": RuntimeUnavailable("it crashed", "install it", crashed=True),
        "llamacpp": RuntimeAvailable("llama.cpp", "0.3", (), (), True, False, True, "who knows"),
    }
    assert runtime_probes(answers) == (
        RuntimeProbe("onnx", "onnxruntime 1.31.1", ("cpu",)),
        RuntimeProbe("tensorrt", None, (), "no module", "install it"),
        RuntimeProbe("litert", None, (), "it crashed", "install it", crashed=True),
        RuntimeProbe("llamacpp", "llama.cpp 0.3", (), "who knows"),
    )
