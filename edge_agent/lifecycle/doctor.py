"""`edge-agent doctor`: findings from gathered facts. Pure; each finding says what is wrong and what to do about it.

ok    as it should be        warn  works, but worse than it could or not for long
fail  does not work          skip  not there, or not looked at; nothing to do
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from edge_agent.base.units import bytes_text
from edge_agent.config.load import STOCK_NAMES
from edge_agent.core.memory_pressure import BELOW_RESERVE, PressureStage
from edge_agent.core.residency import default_reserve_bytes
from edge_agent.lifecycle import service_user
from edge_agent.lifecycle.doctor_facts import BrokerProbe, DoctorFacts, RuntimeProbe, StateFolder
from edge_agent.lifecycle.jetson import GpuPython, JetsonFacts
from edge_agent.sensors import throttle
from edge_agent.sensors.time_sync import ClockSync

Verdict = Literal["ok", "warn", "fail", "skip"]

OLDEST_PYTHON = (3, 10)
YEAR_2025_S = 1735689600.0
"""A clock before this was never set: boards without a battery start in 1970 or at the date of their image."""

NAGLE_MS = 25.0
"""A QoS 1 round trip that takes so much longer than a QoS 0 one waits for delayed acknowledgements: one end without
TCP_NODELAY adds 43 ms, both 87 ms (measured, mosquitto 2.0.11 on one machine)."""

CMDLINE = "the one line of /boot/firmware/cmdline.txt (older systems: /boot/cmdline.txt), then reboot"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `remedy` is None where there is nothing to do."""

    name: str
    verdict: Verdict
    text: str
    remedy: str | None = None

    def line(self) -> str:
        """The finding for a person, the remedy on a line of its own."""
        shown = f"{self.verdict:<5}{self.name:<13}{self.text}"
        return shown if self.remedy is None else f"{shown}\n{'':18}-> {self.remedy}"


def examine(facts: DoctorFacts) -> list[Check]:
    """All findings, first those that prevent the agent from running."""
    parts = (_settings, _python, _device, _board, _cpu, _state, _trust, _clock, _runtimes, _broker, _temperature,
             _throttle, _power, _memory, _memory_guard, _pressure, _files, _jetson, _service)  # fmt: skip
    return [check for part in parts for check in part(facts)]


def failed(checks: Iterable[Check]) -> bool:
    """True when something does not work: exit code 1."""
    return any(check.verdict == "fail" for check in checks)


def summary(checks: Iterable[Check]) -> str:
    """The last line: how many of which."""
    verdicts = [check.verdict for check in checks]
    counts = [f"{verdicts.count(word)} {word}" for word in ("fail", "warn", "ok", "skip") if word in verdicts]
    return ", ".join(counts)


def _settings(facts: DoctorFacts) -> Iterator[Check]:
    for problem in facts.settings_problems:
        yield Check("settings", "fail", problem)
    if not facts.settings_problems:
        yield Check("settings", "ok", facts.settings_source)
    for path, sentence in facts.hidden_from_service:
        yield Check("settings", "fail", sentence, service_user.remedy(path))
    for path in facts.open_secrets:
        yield Check("settings", "warn", f"every user of this system can read the secret {path}", f"chmod o-rwx {path}")


def _python(facts: DoctorFacts) -> Iterator[Check]:
    text = f"{'.'.join(map(str, facts.python))} on {facts.machine}"
    if facts.python[:2] < OLDEST_PYTHON:
        yield Check("python", "fail", f"{text}; 3.10 or later is needed", "install a later Python beside the system's")
    else:
        yield Check("python", "ok", text)


def _device(facts: DoctorFacts) -> Iterator[Check]:
    if facts.device_id is None:
        return
    if not facts.device_id_set and facts.device_id in STOCK_NAMES:
        text = f"{facts.device_id!r} is the name that every such image has; two of them throw each other off the broker"
        yield Check("device", "warn", text, "set device.id, or a host name: sudo hostnamectl set-hostname NAME")
    else:
        yield Check("device", "ok", facts.device_id)


def _board(facts: DoctorFacts) -> Iterator[Check]:
    board = facts.board
    if board is None:
        return
    if board.known:
        text = f"{board.name}, {board.cores} cores, held below {board.soft_limit_c:g} °C"
        yield Check("board", "ok", text)
    else:
        text = f"{board.name} is not in the table; taken for a board that slows down at {board.soft_limit_c:g} °C"
        yield Check("board", "warn", text, "set thermal.soft_limit_c to the temperature where yours slows down")


def _cpu(facts: DoctorFacts) -> Iterator[Check]:
    features = facts.cpu_features
    if not features:
        yield Check("cpu", "skip", "the processor does not tell its features")
        return
    fast = sorted(features & {"asimddp", "i8mm", "avx512_vnni", "avx_vnni"})
    if fast:
        yield Check("cpu", "ok", f"INT8 dot products in hardware ({', '.join(fast)})")
    else:
        yield Check("cpu", "ok", "no INT8 dot products in hardware: INT8 saves memory here, hardly time")


def _state(facts: DoctorFacts) -> Iterator[Check]:
    state = facts.state
    if state is None:
        return
    if not state.exists:
        yield Check(
            "state",
            "fail",
            f"{state.path} does not exist",
            f"sudo edge-agent service install, or: mkdir -p {state.path}",
        )
    elif not state.writable:
        remedy = "run as the service's user: sudo -u edge-agent edge-agent doctor; or correct the owner"
        yield Check("state", "warn", f"{state.path} cannot be written by this user", remedy)
    else:
        yield _space(state)


def _space(state: StateFolder) -> Check:
    text = f"{state.path}, {bytes_text(state.free_bytes)} free of which {bytes_text(state.reserve_bytes)} are kept back"
    if state.free_bytes <= state.reserve_bytes:
        return Check("state", "fail", f"{text}: nothing can be installed", "free space, or lower store.reserve_bytes")
    return Check("state", "ok", text)


def _trust(facts: DoctorFacts) -> Iterator[Check]:
    if facts.allow_unsigned:
        text = "packages WITHOUT A VALID SIGNATURE are accepted"
        yield Check("trust", "warn", text, "set store.allow_unsigned = false outside a bench")
    if facts.trust_root is None:
        return
    if facts.trust_root_exists:
        yield Check("trust", "ok", str(facts.trust_root))
    elif not facts.allow_unsigned:
        remedy = "put the trust root there that `edge-forge keygen` wrote beside your signing key"
        yield Check("trust", "fail", f"{facts.trust_root} is missing: no package can be installed", remedy)


def _clock(facts: DoctorFacts) -> Iterator[Check]:
    if facts.wall_s is None:
        return
    if facts.wall_s < YEAR_2025_S:
        text = "the clock was never set: certificates and packages look as if they were not valid yet"
        yield Check(
            "clock", "fail", text, "let it be set from the network (timedatectl set-ntp true) or add a battery clock"
        )
    elif facts.clock_sync is ClockSync.UNSYNCHRONISED:
        yield Check("clock", "warn", "plausible, but not set from the network", "timedatectl set-ntp true")
    else:
        yield Check("clock", "ok", "plausible" if facts.clock_sync is ClockSync.UNKNOWN else "set")


def _runtimes(facts: DoctorFacts) -> Iterator[Check]:
    if facts.runtimes is None:
        yield Check("runtimes", "skip", "not looked at")
        return
    usable = [probe for probe in facts.runtimes if probe.version is not None]
    for probe in facts.runtimes:
        yield _runtime(probe, needed=not usable)
    if not facts.runtimes:
        yield Check("runtimes", "fail", "worker.backends is empty: nothing can run", "name a backend there")


def _runtime(probe: RuntimeProbe, needed: bool) -> Check:
    if probe.version is not None:
        text = f"{probe.backend}: {probe.version} ({', '.join(probe.devices) or 'cpu'})"
        if probe.reason:
            return Check("runtimes", "warn", f"{text}; {probe.reason}", "build it on this board if its workers die")
        return Check("runtimes", "ok", text)
    verdict: Verdict = "fail" if needed else "warn" if probe.crashed else "skip"
    return Check("runtimes", verdict, f"{probe.backend}: {probe.reason}", probe.remedy or None)


def _broker(facts: DoctorFacts) -> Iterator[Check]:
    probe = facts.broker
    if probe is None:
        yield Check("broker", "skip", "not looked at")
    elif probe.protocol is None:
        yield Check("broker", "fail", f"{probe.address}: {probe.reason}", probe.remedy or None)
    else:
        yield _round_trip(probe)


def _round_trip(probe: BrokerProbe) -> Check:
    text = f"{probe.address}, MQTT {probe.protocol}"
    if probe.deaf is not None:
        remedy = "let this device read and write there in the broker's access list (docs/mqtt.md)"
        return Check("broker", "warn", f"{text}: {probe.deaf}", remedy)
    if probe.qos0_ms is None or probe.qos1_ms is None:
        return Check("broker", "ok", text)
    text = f"{text}, round trip {probe.qos0_ms:.1f} ms at QoS 0, {probe.qos1_ms:.1f} ms at QoS 1"
    if probe.qos1_ms - probe.qos0_ms > NAGLE_MS:
        remedy = "the broker delays small packets: in mosquitto.conf write `set_tcp_nodelay true` and restart it"
        return Check("broker", "warn", text, remedy)
    return Check("broker", "ok", text)


def _is_pi(facts: DoctorFacts) -> bool:
    return facts.board is not None and facts.board.family == "raspberry-pi"


def _temperature(facts: DoctorFacts) -> Iterator[Check]:
    reading = facts.readings.get("temperature")
    if reading is None or facts.board is None:
        return
    if reading.value is None:
        text = f"none: {reading.reason}; the agent cannot hold the board below its limit"
        if facts.board.known:
            yield Check(
                "temperature", "fail", text, "the kernel lacks the board's thermal driver: use the vendor's kernel"
            )
        else:
            yield Check("temperature", "warn", text, "watch this machine's temperature by other means")
        return
    text = f"{reading.value:.1f} °C ({reading.source})"
    if reading.value >= facts.board.soft_limit_c:
        yield Check("temperature", "fail", f"{text}: the board slows itself down", "cool it: heat sink, fan, more air")
    elif reading.value >= facts.board.set_point_c - 5:
        yield Check(
            "temperature", "warn", f"{text}: little is left below the limit", "cool it: heat sink, fan, more air"
        )
    else:
        yield Check("temperature", "ok", text)


def _throttle(facts: DoctorFacts) -> Iterator[Check]:
    reading = facts.readings.get("throttle")
    if reading is not None and reading.value is not None:
        flags = throttle.decode(int(reading.value))
        for name in flags.now:
            yield Check("throttle", "fail", f"{name} now", throttle.REMEDIES[name])
        for name in flags.since_boot:
            if name not in flags.now:
                yield Check("throttle", "warn", f"{name} has happened since boot", throttle.REMEDIES[name])
        if not flags.now and not flags.since_boot:
            yield Check("throttle", "ok", "nothing since boot")
    elif reading is not None and _is_pi(facts):
        yield Check("throttle", "warn", str(reading.reason), "use a kernel of Raspberry Pi, or add the user to video")
    over_current = facts.readings.get("over_current")
    if over_current is not None and over_current.value:
        text = f"{over_current.value:.0f} over-current or under-voltage events since boot"
        remedy = "mostly the supply or its cable: use the barrel jack or a stronger supply"
        modes = None if facts.jetson is None else facts.jetson.modes
        if modes is not None and modes.current is not None:
            text += f" in the power mode {modes.current}"
            remedy += ", or a mode of fewer watts: sudo edge-agent power-mode MODE (`edge-agent power-mode` lists them)"
        yield Check("throttle", "warn", text, remedy)


def _power(facts: DoctorFacts) -> Iterator[Check]:
    reading = facts.readings.get("power")
    if reading is None:
        return
    if reading.value is not None:
        yield Check("power", "ok", f"{reading.value:.1f} W ({reading.source})")
    elif facts.board is None or facts.board.power is None:
        yield Check("power", "skip", "this board has no power sensor; energy is reported as null")
    else:
        yield Check(
            "power", "warn", f"none: {reading.reason}", "sudo usermod -aG video USER; on a Jetson see docs/operating.md"
        )


def _memory(facts: DoctorFacts) -> Iterator[Check]:
    total, available = facts.readings.get("ram_total"), facts.readings.get("ram_available")
    if total is None or available is None:
        return
    if not total.value or available.value is None:
        yield Check("memory", "fail", f"unknown: {available.reason or total.reason}", "mount /proc")
        return
    text = f"{bytes_text(available.value)} of {bytes_text(total.value)} available"
    reserve = default_reserve_bytes(int(total.value)) if facts.reserve_bytes is None else facts.reserve_bytes
    remedy = "stop other programs, or keep fewer models resident"
    if facts.largest:
        held = ", ".join(f"{one.name} ({one.pid}) {bytes_text(one.rss_bytes)}" for one in facts.largest)
        remedy += f"; most is held by {held}"
    if available.value < BELOW_RESERVE[PressureStage.SHORT] * reserve:
        yield Check("memory", "fail", f"{text}: no request is admitted", remedy)
    elif available.value < reserve:
        text += f", less than the reserve of {bytes_text(reserve)}: no model is loaded"
        yield Check("memory", "warn", text, remedy)
    else:
        yield Check("memory", "ok", text)


def _memory_guard(facts: DoctorFacts) -> Iterator[Check]:
    if facts.memory_controller is None:
        return
    if facts.memory_controller:
        limit = facts.readings.get("cgroup_limit")
        text = "the kernel enforces memory limits"
        if limit is not None and limit.value is not None:
            text += f"; this process may use {bytes_text(limit.value)}"
        yield Check("memory guard", "ok", text)
    else:
        text = "the kernel runs without the memory cgroup: MemoryMax does nothing, only the agent's budget holds"
        where = CMDLINE if _is_pi(facts) else "the kernel's command line"
        yield Check("memory guard", "warn", text, f"append cgroup_enable=memory to {where}")


def _pressure(facts: DoctorFacts) -> Iterator[Check]:
    if facts.pressure is None:
        return
    if facts.pressure:
        yield Check("pressure", "ok", "the kernel reports memory pressure")
    else:
        text = "the kernel does not report memory pressure; available memory and dropped pages are polled instead"
        if _is_pi(facts):
            yield Check("pressure", "warn", text, f"append psi=1 to {CMDLINE}")
        else:
            yield Check("pressure", "skip", text, "a kernel of 4.20 or later that is built with CONFIG_PSI reports it")


def _files(facts: DoctorFacts) -> Iterator[Check]:
    usable = [str(device.path) for device in facts.device_files if device.usable]
    if usable:
        yield Check("devices", "ok", ", ".join(usable))
    for device in facts.device_files:
        if not device.usable:
            remedy = f"sudo usermod -aG {device.group} USER, then log in again; the service has the group already"
            yield Check("devices", "warn", f"{device.path} may not be used by this user", remedy)


def _jetson(facts: DoctorFacts) -> Iterator[Check]:
    found = facts.jetson
    if found is None:
        return
    if found.l4t is None:
        text = "/etc/nv_tegra_release is missing: this is no system of NVIDIA's, so TensorRT and CUDA may lack"
        yield Check("jetson", "warn", text, "flash the board with JetPack")
    else:
        pack = "a JetPack that is not in the table" if found.jetpack is None else f"JetPack {found.jetpack}"
        yield Check("jetson", "ok", f"L4T {found.l4t} ({pack})")
    yield from _power_mode(found)
    yield _tensorrt(found)
    if found.asked and facts.service is not None and facts.service.installed and not found.drop_in:
        text = "the service may not open the GPU's device files"
        yield Check("tensorrt", "fail", text, "sudo edge-agent service install --drop-in jetson")
    if found.asked and not any(device.group == "video" for device in facts.device_files):
        text = "the GPU has no device file here: its driver is not loaded, or this is a container without it"
        yield Check("devices", "fail", text, "sudo modprobe nvgpu (JetPack 7: nvidia), or give the container the GPU")
    yield _jtop(found)


def _power_mode(found: JetsonFacts) -> Iterator[Check]:
    modes = found.modes
    if modes is None:
        yield Check("power mode", "skip", "nvpmodel is not installed")
    elif modes.current is None:
        yield Check("power mode", "warn", f"not known: {modes.reason}", "sudo nvpmodel -q")
    else:
        others = ", ".join(str(mode) for mode in modes.listed if mode != modes.current)
        yield Check("power mode", "ok", f"{modes.current}" + (f"; others: {others}" if others else ""))


def _tensorrt(found: JetsonFacts) -> Check:
    """Whether the interpreter that would run engines can, and which other one does."""
    able = next((python for python in found.pythons if "tensorrt" in python.found), None)
    if not found.asked:
        told = "the settings do not name the backend 'tensorrt'"
        if able is None:
            return Check("tensorrt", "skip", f"{told}, and no Python here has TensorRT")
        return Check(
            "tensorrt", "skip", f"{told}; {able.path} has {able.shown('tensorrt')}",
            f'to use it: worker.backends = ["tensorrt", ...], worker.tensorrt_python = "{able.path}"',
        )  # fmt: skip
    chosen = found.chosen
    if not chosen.lacks:
        text = f"{chosen.path} has {', '.join(chosen.shown(name) for name in sorted(chosen.found))}"
        return Check("tensorrt", "ok", text)
    if "tensorrt" not in chosen.found and able is not None and able.path != chosen.path:
        text = f"{chosen.path} has no TensorRT; {able.path} has {able.shown('tensorrt')}"
        more = f"; {_install(able)}" if able.lacks else ""
        return Check("tensorrt", "fail", text, f'worker.tensorrt_python = "{able.path}"{more}')
    return Check("tensorrt", "fail", f"{chosen.path} has no {' and no '.join(chosen.lacks)}", _install(chosen))


_OWN_ENVIRONMENT = "/opt/edge-tensorrt"
"""Where pycuda is put for a Python of the system that takes no packages of pip's."""
_APT = {"tensorrt": "python3-libnvinfer", "numpy": "python3-numpy"}


def _install(python: GpuPython) -> str:
    """What puts the missing modules where the interpreter finds them."""
    packages = [_APT[name] for name in python.lacks if name in _APT]
    steps = [f"sudo apt install {' '.join(packages)}"] if packages else []
    path = python.path
    if "pycuda" in python.lacks and python.managed:
        path = f"{_OWN_ENVIRONMENT}/bin/python"
        steps.append(f"sudo {python.path} -m venv --system-site-packages {_OWN_ENVIRONMENT}")
    elif "pycuda" in python.lacks and python.old_pip:
        steps.append(f"sudo {path} -m pip install -U 'pip<22' setuptools wheel")
    if "pycuda" in python.lacks:
        steps.append(f"sudo env PATH=/usr/local/cuda/bin:$PATH {path} -m pip install pycuda (compiled here)")
    if path != python.path:
        steps.append(f'worker.tensorrt_python = "{path}"')
    return "; ".join(steps)


def _jtop(found: JetsonFacts) -> Check:
    if not found.jtop_wanted:
        return Check("jtop", "skip", "sensors.jtop is off: temperatures and power come from sysfs")
    if not found.jtop_socket:
        text = "sensors.jtop is on, and /run/jtop.sock is missing: its service does not run"
        return Check("jtop", "warn", text, "sudo pip3 install jetson-stats; sudo systemctl restart jtop")
    if found.jtop_members is not None and service_user.USER not in found.jtop_members:
        text = f"the service's user {service_user.USER} is not in the group jtop, whose socket it is"
        return Check("jtop", "warn", text, f"sudo usermod -aG jtop {service_user.USER}, then restart the service")
    return Check("jtop", "ok", "its service runs, and the service's user may ask it")


def _service(facts: DoctorFacts) -> Iterator[Check]:
    found = facts.service
    if found is None or not found.installed:
        yield Check("service", "skip", "not installed", "sudo edge-agent service install")
    elif not found.healthy:
        yield Check("service", "fail", f"{found.state or 'state unknown'}", "journalctl -u edge-agent -n 50")
    elif not found.current:
        yield Check("service", "warn", "the unit is of another version", "sudo edge-agent service install")
    elif found.stale:
        yield Check("service", "warn", found.stale_text, "sudo systemctl restart edge-agent")
    else:
        yield Check("service", "ok", found.state or "installed")
