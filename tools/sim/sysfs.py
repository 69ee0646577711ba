"""A simulated board as files: the /sys and /proc of a Raspberry Pi or a Jetson, updated from a thermal model.

`BoardTree(root, model)` builds the tree; `update` writes what the sensors show now. Set an agent's `sensors.sysroot`
(or `edge-agent run --sysroot`) to `root`. File names and formats are those of the kernels of these boards (Raspberry Pi
OS, L4T 32 and 36). Two things cannot be plain files: the firmware of a Raspberry Pi answers by ioctl on `/dev/vcio`, so
a folder with one answer per command is in its place (`sensors.files`); and a switched-off thermal zone of a Jetson is a
FIFO that is held open, so that a non-blocking read gives EAGAIN, as on the device. `sim.procfs` writes /proc.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from sim.boards import BoardModel
from sim.procfs import ProcFiles, Used

_POLICY = "sys/devices/system/cpu/cpufreq/policy0"
_VCIO = "dev/vcio"
_ARM_CLOCK = {"pi-5": 0}
_PI_SOC = {"pi-5": "soc@107c000000/soc@107c000000:firmware"}
_ORIN_RAILS = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
_NANO_RAILS = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
PMIC_SLOPE, PMIC_OFFSET_W = 1.1451, 0.5879
"""Board watts = slope * sum of rails + offset (see `sensors.power`), which the simulation inverts."""


class Shown(NamedTuple):
    """What the sensors show at one moment. `fan`: share of full PWM duty; `flags`: the Raspberry Pi's throttle word."""

    temperature_c: float
    power_w: float
    clock: float
    requested: float
    fan: float = 0.0
    flags: int = 0


class BoardIdentity(NamedTuple):
    """The contents of the device tree and of /proc."""

    model: str
    compatible: tuple[str, ...]
    zones: tuple[str, ...]
    total_kib: int
    features: str


_A53 = "fp asimd evtstrm crc32 cpuid"
_A57 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
IDENTITIES: Mapping[str, BoardIdentity] = {
    "pi-zero-2": BoardIdentity("Raspberry Pi Zero 2 W Rev 1.0", ("raspberrypi,model-zero-2-w", "brcm,bcm2837"),
                          ("cpu-thermal",), 427_000, _A53),
    "pi-4": BoardIdentity("Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b", "brcm,bcm2711"),
                     ("cpu-thermal",), 3_884_000, _A53),
    "pi-5": BoardIdentity("Raspberry Pi 5 Model B Rev 1.0", ("raspberrypi,5-model-b", "brcm,bcm2712"),
                     ("cpu-thermal",), 8_255_000, _A76),
    "jetson-nano": BoardIdentity("NVIDIA Jetson Nano Developer Kit",
                            ("nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"),
                            ("AO-therm", "CPU-therm", "GPU-therm", "PLL-therm", "PMIC-Die", "thermal-fan-est"),
                            4_059_000, _A57),
    "orin-nano": BoardIdentity("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
                          ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
                          ("cpu-thermal", "gpu-thermal", "cv0-thermal", "soc0-thermal", "tj-thermal"), 7_620_000, _A76),
}  # fmt: skip
_OFFSETS_C = {"AO-therm": 6.0, "GPU-therm": -0.5, "PLL-therm": -1.5, "thermal-fan-est": -0.2, "gpu-thermal": -1.5,
              "soc0-thermal": -1.0, "cpu-thermal": 0.0}  # fmt: skip
SWITCHED_OFF = ("cv0-thermal",)
CONSTANT_C = {"PMIC-Die": 100.0}
WITH_PRESSURE = ("orin-nano",)
"""Boards whose stock kernel has PSI: a Raspberry Pi needs `psi=1` to boot with, the kernel 4.9 of a Nano has none."""
PMIC_COOLER_C = 4.0
"""By how much the power management chip is cooler than the processor. Estimated."""


class BoardTree:
    """The files of one board under `root`. A context manager, because it holds FIFOs open."""

    def __init__(self, root: Path, model: BoardModel) -> None:
        self.root, self.model = root, model
        self._identity = IDENTITIES[model.board]
        self._held: list[int] = []
        self.proc = ProcFiles(root, self._write, self._identity.total_kib, model.board in WITH_PRESSURE)
        self._build()

    def __enter__(self) -> BoardTree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the FIFOs; the files stay."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def update(self, shown: Shown) -> None:
        """Write what the sensors show now."""
        for number, kind in enumerate(self._identity.zones):
            if kind in SWITCHED_OFF:
                continue
            celsius = CONSTANT_C.get(kind, shown.temperature_c + _OFFSETS_C.get(kind, 0.0))
            self._write(f"sys/class/thermal/thermal_zone{number}/temp", f"{round(celsius * 1000)}\n")
        highest_khz = self.model.clocks_mhz[-1] * 1000
        self._write(f"{_POLICY}/scaling_cur_freq", f"{round(highest_khz * shown.requested)}\n")
        real = shown.requested if self.model.board.startswith("pi") else shown.clock
        self._write(f"{_POLICY}/cpuinfo_cur_freq", f"{round(highest_khz * real)}\n")
        self._write_power(shown)
        self._write_fan(shown.fan)
        if self.model.board.startswith("pi"):
            soc = _PI_SOC.get(self.model.board, "soc/soc:firmware")
            self._write(f"sys/devices/platform/{soc}/get_throttled", f"{shown.flags:x}\n")
            self._write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", f"{shown.flags & 1}\n")
            self._answer(shown)

    def cap(self) -> float:
        """The clock cap in `scaling_max_freq`, as a share of the highest clock."""
        try:
            khz = int((self.root / _POLICY / "scaling_max_freq").read_text())
        except (OSError, ValueError):
            return 1.0
        return max(self.model.clock_shares[0], min(khz / (self.model.clocks_mhz[-1] * 1000), 1.0))

    def _answer(self, shown: Shown) -> None:
        """Write the firmware's answers; those of a Pi 5 include power rails, of which one carries all of the power."""
        hertz = round(self.model.clocks_mhz[-1] * 1e6 * shown.clock)
        answers = {
            "measure_temp": f"temp={shown.temperature_c:.1f}'C",
            "measure_clock arm": f"frequency({_ARM_CLOCK.get(self.model.board, 48)})={hertz}",
            "get_throttled": f"throttled=0x{shown.flags:x}",
        }
        if self.model.board in ("pi-4", "pi-5"):
            answers["measure_temp pmic"] = f"temp={shown.temperature_c - PMIC_COOLER_C:.1f}'C"
        if self.model.board == "pi-5":
            watts = max(0.0, (shown.power_w - PMIC_OFFSET_W) / PMIC_SLOPE)
            volts = 0.897
            answers["pmic_read_adc"] = (
                f"        VDD_CORE_A current(7)={watts / volts:.8f}A\n        VDD_CORE_V volt(15)={volts:.8f}V"
            )
        for command, text in answers.items():
            self._write(f"{_VCIO}/{command}", f"{text}\n")

    def _build(self) -> None:
        base = "sys/firmware/devicetree/base"
        self._write(f"{base}/model", self._identity.model + "\0")
        self._write(f"{base}/compatible", "".join(f"{text}\0" for text in self._identity.compatible))
        for number, kind in enumerate(self._identity.zones):
            self._write(f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
            if kind in SWITCHED_OFF:
                self._hold(f"sys/class/thermal/thermal_zone{number}/temp")
        self._policy()
        self.proc.pass_time(Used(), 0.0)
        enforced = "" if self.model.board.startswith("pi") else "memory "  # stock Raspberry Pi OS switches it off
        self._write("sys/fs/cgroup/cgroup.controllers", f"cpuset cpu io {enforced}pids\n")
        self._write("proc/self/cgroup", "0::/system.slice/edge-agent.service\n")
        self._write("sys/devices/system/cpu/online", f"0-{self.model.cores - 1}\n")
        cpu = f"Features\t: {self._identity.features}\nCPU architecture: 8\n\n"
        self._write("proc/cpuinfo", "".join(f"processor\t: {index}\n{cpu}" for index in range(self.model.cores)))
        if self.model.board.startswith("pi"):
            self._write("sys/class/hwmon/hwmon1/name", "rpi_volt\n")
        self.update(Shown(40.0, self.model.idle_w, 1.0, 1.0))

    def _policy(self) -> None:
        """Write the clock policy of all cores, and the link to it from core 0."""
        clocks_khz = [clock * 1000 for clock in self.model.clocks_mhz]
        self._write(f"{_POLICY}/scaling_available_frequencies", " ".join(map(str, clocks_khz)) + " \n")
        self._write(f"{_POLICY}/cpuinfo_min_freq", f"{clocks_khz[0]}\n")
        self._write(f"{_POLICY}/cpuinfo_max_freq", f"{clocks_khz[-1]}\n")
        cap = self.root / _POLICY / "scaling_max_freq"
        if not cap.exists():
            cap.write_text(f"{clocks_khz[-1]}\n")
        link = self.root / "sys/devices/system/cpu/cpu0/cpufreq"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(Path("../cpufreq/policy0"))

    def _write_power(self, shown: Shown) -> None:
        milliwatts = round(shown.power_w * 1000)
        compute = max(0, milliwatts - round(self.model.idle_w * 1000))
        if self.model.board == "jetson-nano":
            rails = (("POM_5V_IN", milliwatts), ("POM_5V_GPU", compute * 2 // 3), ("POM_5V_CPU", compute // 3))
            for number, (name, watts) in enumerate(rails):
                self._write(f"{_NANO_RAILS}/rail_name_{number}", f"{name}\n")
                self._write(f"{_NANO_RAILS}/in_power{number}_input", f"{watts}\n")
                self._write(f"{_NANO_RAILS}/in_voltage{number}_input", "5000\n")
                self._write(f"{_NANO_RAILS}/in_current{number}_input", f"{watts // 5}\n")
        elif self.model.board == "orin-nano":
            rails = (("VDD_IN", milliwatts), ("VDD_CPU_GPU_CV", compute * 3 // 4), ("VDD_SOC", compute // 4))
            for number, (name, watts) in enumerate(rails, start=1):
                self._write(f"{_ORIN_RAILS}/in{number}_label", f"{name}\n")
                self._write(f"{_ORIN_RAILS}/in{number}_input", "5000\n")
                self._write(f"{_ORIN_RAILS}/curr{number}_input", f"{watts // 5}\n")

    def _write_fan(self, duty: float) -> None:
        if self.model.fan.trips_c:
            self._write("sys/class/hwmon/hwmon2/name", "pwmfan\n")
            self._write("sys/class/hwmon/hwmon2/pwm1", f"{round(255 * duty)}\n")

    def _write(self, path: str, text: str) -> None:
        """Replace a file atomically: a reader gets the old text or the new one."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.new")
        draft.write_text(text)
        draft.replace(target)

    def _hold(self, path: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.mkfifo(target)
        self._held.append(os.open(target, os.O_RDWR | os.O_NONBLOCK))
