"""Every verdict of `doctor`, from facts: what is wrong is named, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.base.reading import Reading, unavailable
from edge_agent.lifecycle.doctor import Check, examine, failed, summary
from edge_agent.lifecycle.doctor_facts import BrokerProbe, DeviceFile, DoctorFacts, Program, RuntimeProbe, StateFolder
from edge_agent.lifecycle.service import ServiceStatus
from edge_agent.sensors.boards import match
from edge_agent.sensors.time_sync import ClockSync

GIB = 1024**3
PI5 = match(("raspberrypi,5-model-b",))
PI4 = match(("raspberrypi,4-model-b",))


def reading(value: float, unit: str = "celsius", source: str = "cpu-thermal") -> Reading:
    return Reading(value, unit, source, 0.0)


GOOD = DoctorFacts(
    python=(3, 11, 2),
    machine="aarch64",
    settings_source="/etc/edge-agent/edge-agent.toml",
    device_id="greenhouse",
    device_id_set=True,
    board=PI5,
    cpu_features=frozenset({"fp", "asimd", "asimddp"}),
    readings={
        "temperature": reading(52.0),
        "throttle": reading(0, "flags", "get_throttled"),
        "over_current": unavailable("count", "oc", 0.0, "not counted"),
        "power": reading(4.2, "watts", "pmic (fitted, +-10 %)"),
        "ram_total": reading(8 * GIB, "bytes"),
        "ram_available": reading(6 * GIB, "bytes"),
        "cgroup_limit": reading(6 * GIB, "bytes"),
    },
    memory_controller=True,
    pressure=True,
    device_files=(DeviceFile(Path("/dev/vcio"), True, "video"),),
    state=StateFolder(Path("/var/lib/edge-agent"), True, True, 20 * GIB, 256 * 1024**2),
    trust_root=Path("/etc/edge-agent/trust-root.json"),
    trust_root_exists=True,
    wall_s=1_763_780_000.0,
    clock_sync=ClockSync.SYNCHRONISED,
    runtimes=(RuntimeProbe("onnx", "1.23.0", ("cpu",)),),
    broker=BrokerProbe("localhost:1883", "5", 0.4, 0.6),
    service=ServiceStatus(True, True, True, "active", "running"),
)


def but(**changes: Any) -> DoctorFacts:
    return replace(GOOD, **changes)


def sensed(key: str, value: Reading, facts: DoctorFacts = GOOD) -> DoctorFacts:
    return replace(facts, readings={**facts.readings, key: value})


def found(facts: DoctorFacts, name: str) -> list[Check]:
    return [check for check in examine(facts) if check.name == name]


def the(facts: DoctorFacts, name: str) -> Check:
    (check,) = found(facts, name)
    return check


def test_a_healthy_board_has_nothing_but_ok() -> None:
    checks = examine(GOOD)
    assert {check.verdict for check in checks} == {"ok"}
    assert {check.name for check in checks} == {
        "settings", "python", "device", "board", "cpu", "state", "trust", "clock", "runtimes", "broker", "temperature",
        "throttle", "power", "memory", "memory guard", "pressure", "devices", "service",
    }  # fmt: skip
    assert not failed(checks)
    assert summary(checks) == "18 ok"
    assert all(check.remedy is None for check in checks)


def test_with_nothing_looked_at_nothing_is_claimed() -> None:
    checks = examine(DoctorFacts((3, 11, 2), "x86_64", "defaults"))
    assert {check.verdict for check in checks if check.name not in ("settings", "python")} == {"skip"}


HOT = unavailable("celsius", "cpu-thermal", 0.0, "the device has gone")
LOST_POWER = unavailable("watts", "pmic", 0.0, "/dev/vcio: permission denied for this user")


@pytest.mark.parametrize(
    ("facts", "name", "verdict", "text", "remedy"),
    [
        (but(settings_problems=("a.toml: unknown key 'x'",)), "settings", "fail", "unknown key 'x'", None),
        (but(python=(3, 9, 1)), "python", "fail", "3.10 or later is needed", "later Python"),
        (but(device_id="raspberrypi", device_id_set=False), "device", "warn", "throw each other off", "hostname"),
        (but(board=match((), "Some PC")), "board", "warn", "Some PC is not in the table", "thermal.soft_limit_c"),
        (but(cpu_features=frozenset({"fp"})), "cpu", "ok", "saves memory here, hardly time", None),
        (but(cpu_features=frozenset()), "cpu", "skip", "does not tell", None),
        (but(state=StateFolder(Path("/s"), False, False, 0, 1)), "state", "fail", "does not exist", "mkdir -p /s"),
        (but(state=StateFolder(Path("/s"), True, False, 0, 1)), "state", "warn", "cannot be written", "sudo -u"),
        (but(state=StateFolder(Path("/s"), True, True, GIB, GIB)), "state", "fail", "nothing can be", "free space"),
        (but(trust_root_exists=False), "trust", "fail", "no package can be installed", "edge-forge keygen"),
        (but(trust_root=None, allow_unsigned=True), "trust", "warn", "WITHOUT A VALID SIGNATURE", "outside a bench"),
        (but(wall_s=12.0), "clock", "fail", "never set", "timedatectl"),
        (but(clock_sync=ClockSync.UNSYNCHRONISED), "clock", "warn", "not set from the network", "timedatectl"),
        (but(runtimes=()), "runtimes", "fail", "worker.backends is empty", "name a backend"),
        (but(runtimes=(RuntimeProbe("onnx", None, (), "no module", "pip install"),)), "runtimes", "fail",
         "onnx: no module", "pip install"),
        (but(broker=BrokerProbe("b:1883", None, reason="refused", remedy="start it")), "broker", "fail",
         "b:1883: refused", "start it"),
        (but(broker=BrokerProbe("b:1883", "5", 0.4, 87.8)), "broker", "warn", "87.8 ms at QoS 1",
         "set_tcp_nodelay true"),
        (but(broker=BrokerProbe("b:1883", "5", 90.0, 95.0)), "broker", "ok", "95.0 ms at QoS 1", None),
        (but(broker=BrokerProbe("b:1883", "3.1.1")), "broker", "ok", "MQTT 3.1.1", None),
        (but(broker=BrokerProbe("b:1883", "5", deaf="nothing comes back")), "broker", "warn", "nothing comes back",
         "access list"),
        (sensed("temperature", reading(80.0)), "temperature", "fail", "slows itself down", "cool it"),
        (sensed("temperature", reading(73.0)), "temperature", "warn", "little is left", "cool it"),
        (sensed("temperature", HOT), "temperature", "fail", "the device has gone", "thermal driver"),
        (sensed("temperature", HOT, but(board=match(()))), "temperature", "warn", "gone", "by other means"),
        (sensed("throttle", reading(0x80008, "flags")), "throttle", "fail", "soft-temperature-limit now", "heat sink"),
        (sensed("throttle", reading(0x10000, "flags")), "throttle", "warn", "under-voltage has happened", "supply"),
        (sensed("throttle", unavailable("flags", "t", 0.0, "no word")), "throttle", "warn", "no word", "kernel"),
        (sensed("power", LOST_POWER), "power", "warn", "permission denied", "usermod -aG video"),
        (sensed("power", LOST_POWER, but(board=PI4)), "power", "skip", "no power sensor", None),
        (sensed("ram_available", reading(GIB, "bytes")), "memory", "warn", "1.0 GiB of 8.0 GiB", "fewer models"),
        (sensed("ram_available", reading(GIB / 4, "bytes")), "memory", "fail", "no request is admitted", "stop other"),
        (sensed("ram_available", reading(GIB, "bytes"), but(largest=(Program("chromium", 812, 2 * GIB),))),
         "memory", "warn", "1.0 GiB of 8.0 GiB", "most is held by chromium (812) 2.0 GiB"),
        (sensed("ram_total", unavailable("bytes", "m", 0.0, "gone")), "memory", "fail", "gone", "/proc"),
        (but(memory_controller=False), "memory guard", "warn", "MemoryMax does nothing", "cgroup_enable=memory"),
        (but(pressure=False), "pressure", "warn", "polled instead", "psi=1"),
        (but(device_files=(DeviceFile(Path("/dev/vcio"), False, "video"),)), "devices", "warn", "/dev/vcio",
         "usermod -aG video"),
        (but(service=None), "service", "skip", "not installed", "service install"),
        (but(service=ServiceStatus(True, True, True, "failed", "failed")), "service", "fail", "failed", "journalctl"),
        (but(service=ServiceStatus(True, True, False, "active", "running")), "service", "warn", "another version",
         "service install"),
        (but(service=ServiceStatus(True, True, True, "active", "running", runs="0.0.9+old", on_disk="0.1.0+new")),
         "service", "warn", "the daemon runs 0.0.9+old, on the disk is 0.1.0+new", "systemctl restart"),
    ],
)  # fmt: skip
def test_a_finding(facts: DoctorFacts, name: str, verdict: str, text: str, remedy: str | None) -> None:
    check = the(facts, name)
    assert check.verdict == verdict
    assert text in check.text
    assert check.remedy is None if remedy is None else remedy in str(check.remedy)
    others = [item for item in examine(facts) if item.name not in (name, "board")]
    assert {item.verdict for item in others} <= {"ok"}, "one fault leads to one finding"
    assert failed(examine(facts)) is (verdict == "fail")


def test_flags_of_the_past_are_told_from_those_of_now() -> None:
    checks = found(sensed("throttle", reading(0x50004, "flags")), "throttle")
    assert [(check.verdict, check.text) for check in checks] == [
        ("fail", "throttled now"),
        ("warn", "under-voltage has happened since boot"),
    ]


def test_over_current_on_a_jetson() -> None:
    facts = replace(sensed("over_current", reading(2, "count")), board=match(("nvidia,tegra234",)))
    facts = sensed("throttle", unavailable("flags", "t", 0.0, "this board does not report throttling"), facts)
    assert "2 over-current or under-voltage events" in the(facts, "throttle").text


def test_a_jetson_is_not_told_to_edit_a_raspberry_pis_boot_file() -> None:
    facts = but(pressure=False, memory_controller=False, board=match(("nvidia,p3450-0000",)))
    assert the(facts, "pressure").verdict == "skip"
    assert "cmdline.txt" not in f"{the(facts, 'pressure').remedy} {the(facts, 'memory guard').remedy}"


def test_one_usable_runtime_is_enough() -> None:
    missing = RuntimeProbe("llamacpp", None, (), "not installed", "install edge-agent with its extra llamacpp")
    checks = found(but(runtimes=(*(GOOD.runtimes or ()), missing)), "runtimes")
    assert [check.verdict for check in checks] == ["ok", "skip"]


def test_a_runtime_that_crashes_is_no_runtime_that_is_not_there() -> None:
    crash = RuntimeProbe("onnx", None, (), "it crashed when it was asked: killed by SIGILL", "install it", crashed=True)
    checks = found(but(runtimes=(RuntimeProbe("echo", "echo 1"), crash)), "runtimes")
    assert [check.verdict for check in checks] == ["ok", "warn"]
    assert ("crashed" in checks[1].text, checks[1].remedy) == (True, "install it")
    assert the(but(runtimes=(crash,)), "runtimes").verdict == "fail", "nothing else can run"


def test_secrets_that_everybody_can_read() -> None:
    checks = found(but(open_secrets=(Path("/etc/pw"),)), "settings")
    assert checks[1].line() == (
        "warn settings     every user of this system can read the secret /etc/pw\n"
        "                  -> chmod o-rwx /etc/pw"
    )


def test_what_could_not_be_found_out_about_a_runtime_is_said() -> None:
    probe = RuntimeProbe("llamacpp", "llama.cpp 0.3", ("cpu",), "its CPU part cannot be asked")
    (check,) = found(but(runtimes=(probe,)), "runtimes")
    assert (check.verdict, check.text) == ("warn", "llamacpp: llama.cpp 0.3 (cpu); its CPU part cannot be asked")
