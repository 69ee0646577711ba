"""Small sysfs and procfs trees of known boards, for tests: names and forms as the kernels print them, figures made up.

tree = pi5(tmp_path)
tree.temp("cpu-thermal", 71.5)
SensorSuite(tree.root, clock)
"""

from __future__ import annotations

from pathlib import Path

MEMINFO = """\
MemTotal:        {total} kB
MemFree:          400000 kB
MemAvailable:    {available} kB
Buffers:           50000 kB
Cached:           900000 kB
SwapTotal:        {swap} kB
SwapFree:         {swap} kB
HugePages_Total:       0
"""

PMIC_ADC = """\
     3V7_WL_SW_A current(0)=0.07515552A
       3V3_SYS_A current(1)=0.07514578A
       1V8_SYS_A current(2)=0.18543710A
      DDR_VDD2_A current(3)=0.02244992A
      DDR_VDDQ_A current(4)=0.00000000A
       1V1_SYS_A current(5)=0.19715910A
        0V8_SW_A current(6)=0.37085960A
      VDD_CORE_A current(7)=2.37250300A
       3V3_DAC_A current(17)=0.00018315A
       3V3_ADC_A current(18)=0.00048840A
       0V8_AON_A current(16)=0.00390720A
          HDMI_A current(22)=0.01245420A
     3V7_WL_SW_V volt(8)=3.68963100V
       3V3_SYS_V volt(9)=3.31226300V
       1V8_SYS_V volt(10)=1.80119000V
      DDR_VDD2_V volt(11)=1.10805700V
      DDR_VDDQ_V volt(12)=0.60769170V
       1V1_SYS_V volt(13)=1.10586000V
        0V8_SW_V volt(14)=0.80219700V
      VDD_CORE_V volt(15)=0.87673940V
       3V3_DAC_V volt(20)=3.30799500V
       3V3_ADC_V volt(21)=3.30738500V
       0V8_AON_V volt(19)=0.79853480V
          HDMI_V volt(23)=5.09256000V
         EXT5V_V volt(24)=5.09524000V
          BATT_V volt(25)=0.01953600V
"""
"""The form that the firmware of a Raspberry Pi 5 prints."""


class Tree:
    """A root folder with `sys` and `proc` that is edited like a board."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zones: dict[str, Path] = {}

    def write(self, path: str, text: str | bytes) -> Path:
        """Put a file at `path` below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    def device_tree(self, model: str, *compatible: str) -> None:
        """The board's name and its `compatible` list."""
        self.write("sys/firmware/devicetree/base/model", f"{model}\0")
        self.write("sys/firmware/devicetree/base/compatible", "".join(f"{text}\0" for text in compatible))

    def zone(self, kind: str, celsius: float) -> None:
        """Add a thermal zone."""
        folder = f"sys/class/thermal/thermal_zone{len(self._zones)}"
        self.write(f"{folder}/type", f"{kind}\n")
        self._zones[kind] = self.write(f"{folder}/temp", f"{round(celsius * 1000)}\n")

    def temp(self, kind: str, celsius: float) -> None:
        """Change a zone's temperature."""
        self._zones[kind].write_text(f"{round(celsius * 1000)}\n")

    def temp_path(self, kind: str) -> Path:
        """The file of a zone's temperature."""
        return self._zones[kind]

    def memory(self, total_kib: int, available_kib: int, swap_kib: int = 0) -> None:
        """The figures of /proc/meminfo."""
        self.write("proc/meminfo", MEMINFO.format(total=total_kib, available=available_kib, swap=swap_kib))

    def cpus(self, count: int, features: str, kilohertz: int) -> None:
        """The processors."""
        self.write("sys/devices/system/cpu/online", f"0-{count - 1}\n")
        self.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", f"{kilohertz}\n")
        cpu = f"BogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU architecture: 8\n\n"
        self.write("proc/cpuinfo", "".join(f"processor\t: {index}\n{cpu}" for index in range(count)))

    def hwmon(self, index: int, name: str, **files: str) -> None:
        """A hwmon device; its number differs from boot to boot."""
        self.write(f"sys/class/hwmon/hwmon{index}/name", f"{name}\n")
        for file, text in files.items():
            self.write(f"sys/class/hwmon/hwmon{index}/{file}", f"{text}\n")

    def orin_rail(self, number: int, label: str, millivolts: int, milliamperes: int) -> None:
        """A rail of the INA3221 under a current kernel."""
        folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
        self.write(f"{folder}/in{number}_label", f"{label}\n")
        self.write(f"{folder}/in{number}_input", f"{millivolts}\n")
        self.write(f"{folder}/curr{number}_input", f"{milliamperes}\n")

    def nano_rail(self, number: int, label: str, milliwatts: int, millivolts: int = 5000) -> None:
        """A rail of the INA3221 under kernel 4.9."""
        folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
        self.write(f"{folder}/rail_name_{number}", f"{label}\n")
        self.write(f"{folder}/in_power{number}_input", f"{milliwatts}\n")
        self.write(f"{folder}/in_voltage{number}_input", f"{millivolts}\n")
        self.write(f"{folder}/in_current{number}_input", f"{milliwatts * 1000 // millivolts}\n")


def pi4(root: Path) -> Tree:
    """A Raspberry Pi 4 with 4 GB under stock Raspberry Pi OS: no pressure figures, no memory cgroup, no power."""
    tree = Tree(root)
    tree.device_tree("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b", "brcm,bcm2711")
    tree.zone("cpu-thermal", 48.2)
    tree.memory(3_884_000, 3_100_000, 102_396)
    tree.cpus(4, "fp asimd evtstrm crc32 cpuid", 1_500_000)
    tree.write("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n")
    tree.hwmon(0, "cpu_thermal", temp1_input="48200")
    tree.hwmon(1, "rpi_volt", in0_lcrit_alarm="0")
    tree.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
    tree.write("proc/self/cgroup", "0::/system.slice/edge-agent.service\n")
    return tree


def pi5(root: Path) -> Tree:
    """A Raspberry Pi 5 with 8 GB, its fan, and the memory cgroup and pressure figures switched on."""
    tree = Tree(root)
    tree.device_tree("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
    tree.zone("cpu-thermal", 52.3)
    tree.memory(8_255_000, 7_000_000, 204_784)
    tree.cpus(4, "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp", 2_400_000)
    tree.write("sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "0\n")
    tree.hwmon(0, "cpu_thermal", temp1_input="52300")
    tree.hwmon(2, "rpi_volt", in0_lcrit_alarm="0")
    tree.hwmon(3, "pwmfan", pwm1="75", fan1_input="2900")
    tree.write("proc/pressure/memory", PRESSURE)
    cgroup(tree, 6_000_000_000, 900_000_000, 300_000_000)
    return tree


PRESSURE = "some avg10=1.25 avg60=0.40 avg300=0.10 total=1234567\nfull avg10=0.50 avg60=0.20 avg300=0.05 total=234567\n"


def cgroup(tree: Tree, limit_bytes: int, current_bytes: int, inactive_file_bytes: int) -> None:
    """A unified hierarchy with a limit on the service."""
    tree.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    tree.write("proc/self/cgroup", "0::/system.slice/edge-agent.service\n")
    tree.write("sys/fs/cgroup/system.slice/memory.max", "max\n")
    service = "sys/fs/cgroup/system.slice/edge-agent.service"
    tree.write(f"{service}/memory.max", f"{limit_bytes}\n")
    tree.write(f"{service}/memory.current", f"{current_bytes}\n")
    tree.write(f"{service}/memory.stat", f"anon 1\nfile 2\ninactive_file {inactive_file_bytes}\nactive_file 3\n")


NANO_MODES = """\
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_3 1
GPU MAX_FREQ 921600000
< POWER_MODEL ID=1 NAME=5W >
CPU_ONLINE CORE_3 0
GPU MAX_FREQ 640000000
< PM_CONFIG DEFAULT=0 >
"""
ORIN_MODES = """\
# mandatory section to configure the default mode
< PM_CONFIG DEFAULT=1 >
# < POWER_MODEL ID=9 NAME=OLD >
< POWER_MODEL ID=0 NAME=15W >
TPC_POWER_GATING TPC_PG_MASK 252
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
"""
"""The form of /etc/nvpmodel.conf; the order of modes differs by board and JetPack."""


def jetpack(tree: Tree, release: str, modes: str, python: str, tensorrt: str) -> None:
    """The system of a Jetson: L4T's release ('R36 (release), REVISION: 4.3'), power modes, the Python with TensorRT."""
    line = f"# {release}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    tree.write("etc/nv_tegra_release", line)
    tree.write("etc/nvpmodel.conf", modes)
    tree.write("var/lib/nvpmodel/status", "pmode:0000 fmode:quiet\n")
    tree.write(f"usr/bin/{python}", "")
    (tree.root / "usr/bin/python3").symlink_to(f"/usr/bin/{python}")
    package(tree, f"usr/lib/{python}/dist-packages", "tensorrt", tensorrt)
    package(tree, "usr/lib/python3/dist-packages", "numpy")
    tree.write("etc/group", "video:x:44:edge-agent\njtop:x:1001:ada\n")


def package(tree: Tree, folder: str, name: str, version: str = "") -> None:
    """A Python package, with its metadata where a version is given."""
    tree.write(f"{folder}/{name}/__init__.py", "")
    if version:
        tree.write(f"{folder}/{name}-{version}.dist-info/METADATA", "")


def nano(root: Path) -> Tree:
    """A Jetson Nano with 4 GB under L4T R32: the PMIC zone that always says 100 degrees, rails with their own power."""
    tree = Tree(root)
    tree.device_tree("NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210")
    for kind, celsius in (("AO-therm", 41.5), ("CPU-therm", 36.0), ("GPU-therm", 35.5), ("PLL-therm", 34.5)):
        tree.zone(kind, celsius)
    tree.zone("PMIC-Die", 100.0)
    tree.zone("thermal-fan-est", 35.8)
    tree.memory(4_059_000, 2_500_000, 2_029_000)
    meminfo = (root / "proc/meminfo").read_text()
    tree.write("proc/meminfo", meminfo + "NvMapMemUsed:     123456 kB\n")
    tree.cpus(4, "fp asimd evtstrm aes pmull sha1 sha2 crc32", 1_479_000)
    tree.nano_rail(0, "POM_5V_IN", 4210)
    tree.nano_rail(1, "POM_5V_GPU", 0)
    tree.nano_rail(2, "POM_5V_CPU", 1180)
    tree.write("sys/devices/pwm-fan/target_pwm", "120\n")
    return tree


def orin_nano(root: Path) -> Tree:
    """A Jetson Orin Nano under JetPack 6: rails as volts and amperes, a tachometer beside the fan."""
    tree = Tree(root)
    tree.device_tree(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "nvidia,p3768-0000+p3767-0005-super",
        "nvidia,p3767-0005",
        "nvidia,tegra234",
    )
    for kind, celsius in (("cpu-thermal", 47.0), ("gpu-thermal", 45.5), ("cv0-thermal", 44.0), ("soc0-thermal", 46.0),
                          ("tj-thermal", 47.5)):  # fmt: skip
        tree.zone(kind, celsius)
    tree.memory(7_620_000, 5_900_000, 3_810_000)
    tree.cpus(6, "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp", 1_728_000)
    tree.orin_rail(1, "VDD_IN", 5016, 1016)
    tree.orin_rail(2, "VDD_CPU_GPU_CV", 5016, 208)
    tree.orin_rail(3, "VDD_SOC", 5008, 280)
    tree.orin_rail(7, "sum of shunt voltages", 0, 1504)
    tree.hwmon(0, "pwmfan", pwm1="64")
    tree.hwmon(1, "pwm_tach", fan1_input="1840")
    tree.hwmon(2, "soctherm_oc", oc1_event_cnt="0", oc2_event_cnt="2", oc3_event_cnt="0")
    tree.write("proc/pressure/memory", PRESSURE)
    return tree
