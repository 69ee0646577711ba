"""Memory: available bytes, pressure, the bytes of a process, and the limit of a control group.

Admission uses MemAvailable: `MemFree` does not count the page cache that the kernel would drop, and RSS counts shared
pages once per process. Page sizes differ between boards (16 KiB on a Pi 5), so nothing is returned in pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from edge_agent.base.limits import KIB
from edge_agent.base.reading import Reading, unavailable
from edge_agent.sensors.files import parse_number, read_text

MEMINFO_KEYS = {
    "ram_total": "MemTotal",
    "ram_available": "MemAvailable",
    "swap_total": "SwapTotal",
    "swap_free": "SwapFree",
}
CHILDREN = 16
"""Processes of one worker that are counted; it starts one, for grammars."""
NO_LIMIT_BYTES = float(1 << 60)
"""cgroup v1 writes 'no limit' as the largest multiple of the page size below 2^63."""


def daemon_bytes() -> int | None:
    """Resident bytes of this process, shared pages included; None where the kernel does not tell."""
    text = read_text("/proc/self/statm").text
    pages = None if text is None else parse_number(" ".join(text.split()[1:2]))
    return None if pages is None else int(pages) * os.sysconf("SC_PAGE_SIZE")


def parse_meminfo(text: str) -> dict[str, float]:
    """Bytes by name in /proc/meminfo, or in smaps_rollup, which has the same format; other lines are ignored."""
    return {name: float(kib) * KIB for name, kib in re.findall(r"^([\w()]+):[ \t]*(\d{1,16}) kB$", text, re.MULTILINE)}


def read_meminfo(root: Path, taken_s: float) -> dict[str, Reading]:
    """`ram_total`, `ram_available`, `swap_total`, `swap_free`; on a Jetson also `nvmap_used` (memory of the GPU)."""
    path = str(root / "proc/meminfo")
    text, reason = read_text(path)
    table = parse_meminfo(text or "")
    found: dict[str, Reading] = {}
    for key, name in MEMINFO_KEYS.items():
        if name in table:
            found[key] = Reading(table[name], "bytes", name, taken_s)
        else:
            found[key] = unavailable("bytes", name, taken_s, reason or f"{path}: has no {name}")
    if "NvMapMemUsed" in table:
        found["nvmap_used"] = Reading(table["NvMapMemUsed"], "bytes", "NvMapMemUsed", taken_s)
    return found


_ZONE = re.compile(r"^Node\s+\d+, zone\s+\w+((?:\s+\d{1,19}){1,32})\s*$", re.MULTILINE)


def parse_buddyinfo(text: str) -> tuple[int, int] | None:
    """(pages of the largest free block, number of blocks of that size) in /proc/buddyinfo, whose columns count the free
    blocks of 1, 2, 4 ... pages; (0, 0) where all memory is in use, None where the text is something else."""
    zones = [[int(count) for count in zone.split()] for zone in _ZONE.findall(text)]
    if not zones:
        return None
    largest = max((order for zone in zones for order, count in enumerate(zone) if count), default=None)
    return (0, 0) if largest is None else (1 << largest, sum(zone[largest] for zone in zones if len(zone) > largest))


def read_free_blocks(root: Path, taken_s: float) -> dict[str, Reading]:
    """`largest_free_block`: bytes of the largest piece of memory without gaps that the kernel lists (its lists end at
    4 MiB as a rule), and `largest_free_blocks`, what all pieces of that size have. tegrastats calls both `lfb`. A GPU
    that shares the board's memory may find too little in large pieces although enough is free."""
    path = str(root / "proc/buddyinfo")
    text, reason = read_text(path)
    parsed = parse_buddyinfo(text or "")
    keys = ("largest_free_block", "largest_free_blocks")
    if parsed is None:
        why = reason or f"{path}: lists no free blocks"
        return {key: unavailable("bytes", "buddyinfo", taken_s, why) for key in keys}
    size_bytes, count = parsed[0] * os.sysconf("SC_PAGE_SIZE"), parsed[1]
    values = (float(size_bytes), float(size_bytes * count))
    return {key: Reading(value, "bytes", "buddyinfo", taken_s) for key, value in zip(keys, values, strict=True)}


VMSTAT_KEYS = {
    "major_faults": ("pgmajfault",),
    "swapped_in": ("pswpin",),
    "refaults": ("workingset_refault_file", "workingset_refault"),
}
"""Kernels before 5.9 count refaults of files and of anonymous memory together."""
_VMSTAT = re.compile(
    rf"^({'|'.join(name for names in VMSTAT_KEYS.values() for name in names)}) (\d{{1,19}})$", re.MULTILINE
)


def parse_vmstat(text: str) -> dict[str, float]:
    """Counts since boot by name in /proc/vmstat, only those of `VMSTAT_KEYS`."""
    return {name: float(count) for name, count in _VMSTAT.findall(text)}


def read_faults(root: Path, taken_s: float) -> dict[str, Reading]:
    """Counts since boot whose growth shows thrashing, also on kernels without PSI.

    `major_faults`: page faults that waited for the disk, including the first read of a file. `swapped_in`: pages read
    from swap. `refaults`: pages of files that were dropped recently and read again.
    """
    path = str(root / "proc/vmstat")
    text, reason = read_text(path)
    table = parse_vmstat(text or "")
    found: dict[str, Reading] = {}
    for key, names in VMSTAT_KEYS.items():
        value = next((table[name] for name in names if name in table), None)
        if value is None:
            found[key] = unavailable("count", "vmstat", taken_s, reason or f"{path}: has no {names[0]}")
        else:
            found[key] = Reading(value, "count", "vmstat", taken_s)
    return found


def parse_pressure(text: str) -> dict[str, float]:
    """Percent of the last 10 s in which some ('some') or all ('full') tasks waited for memory."""
    found = re.findall(r"^(some|full) avg10=(\d{1,3}(?:\.\d{1,4})?) ", text, re.MULTILINE)
    return {kind: float(value) for kind, value in found}


def read_pressure(root: Path, taken_s: float) -> dict[str, Reading]:
    """`memory_pressure_some` and `memory_pressure_full` in percent over 10 s; Raspberry Pi OS needs `psi=1` to boot
    with.
    """
    path = str(root / "proc/pressure/memory")
    text, reason = read_text(path)
    table = parse_pressure(text or "")
    found: dict[str, Reading] = {}
    for kind in ("some", "full"):
        key = f"memory_pressure_{kind}"
        if kind in table:
            found[key] = Reading(table[kind], "percent", "psi", taken_s)
        else:
            found[key] = unavailable("percent", "psi", taken_s, reason or f"{path}: has no '{kind}' line")
    return found


def read_pss(root: Path, pid: int, taken_s: float) -> Reading:
    """Bytes of a process, with shared pages divided among the processes that share them (PSS)."""
    return read_held(root, pid, taken_s)["pss"]


def read_held(root: Path, pid: int, taken_s: float, children: bool = False) -> Mapping[str, Reading]:
    """Bytes of a process: `pss`, and `mapped`, its part that is mapped from files (kernel 5.4 and later). `children`:
    with those of the processes that it started."""
    source = f"pss of {pid}"
    path = str(root / f"proc/{pid}/smaps_rollup")
    text, reason = read_text(path)
    table = dict(parse_meminfo(text or ""))
    for child in _children(root, pid) if children and table else []:
        held = parse_meminfo(read_text(str(root / f"proc/{child}/smaps_rollup"))[0] or "")
        table = {key: value + held.get(key, 0.0) for key, value in table.items()}
    found: dict[str, Reading] = {}
    for key, name in (("pss", "Pss"), ("mapped", "Pss_File")):
        if name in table:
            found[key] = Reading(table[name], "bytes", source, taken_s)
        else:
            found[key] = unavailable("bytes", source, taken_s, reason or f"{path}: has no {name}")
    return found


def _children(root: Path, pid: int) -> list[int]:
    """The processes that a process started, which the kernel lists where it has CONFIG_PROC_CHILDREN."""
    text, _ = read_text(str(root / f"proc/{pid}/task/{pid}/children"))
    return [int(word) for word in (text or "").split() if word.isdigit()][:CHILDREN]


def parse_cgroup(text: str) -> tuple[str | None, str | None]:
    """The paths in /proc/<pid>/cgroup: (unified hierarchy, version 1 memory controller); None where there is none."""
    unified = re.search(r"^0::(/.*)$", text, re.MULTILINE)
    memory = re.search(r"^\d+:(?:\w+,)*memory(?:,\w+)*:(/.*)$", text, re.MULTILINE)
    return (unified[1] if unified else None, memory[1] if memory else None)


def parse_limit(text: str) -> float | None:
    """Bytes in memory.max or memory.limit_in_bytes; None without a limit."""
    value = parse_number(text.strip())
    return None if value is None or value >= NO_LIMIT_BYTES else value


def parse_reclaimable(text: str) -> float:
    """Bytes in memory.stat that the kernel can drop: file pages that were not used recently."""
    found = re.search(r"^(?:total_)?inactive_file (\d{1,19})$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def read_cgroup(root: Path, taken_s: float) -> Mapping[str, Reading]:
    """`cgroup_limit`: lowest limit of the process's groups; `cgroup_used`: bytes there without reclaimable cache."""
    text, reason = read_text(str(root / "proc/self/cgroup"))
    unified, version1 = parse_cgroup(text or "")
    tops = (
        (root / "sys/fs/cgroup", unified, "memory.max", "memory.current"),
        (root / "sys/fs/cgroup/memory", version1, "memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    tightest: tuple[float, str, str] | None = None
    controlled = False
    for top, path, limit_name, used_name in tops:
        for folder in _upwards(top, path):
            limit_text = read_text(f"{folder}/{limit_name}").text
            controlled = controlled or limit_text is not None
            limit = parse_limit(limit_text) if limit_text is not None else None
            if limit is not None and (tightest is None or limit < tightest[0]):
                tightest = (limit, folder, used_name)
    if tightest is None:
        why = "no memory limit is set" if controlled else reason or "the kernel runs without the memory cgroup"
        return {key: unavailable("bytes", "cgroup", taken_s, why) for key in ("cgroup_limit", "cgroup_used")}
    limit, folder, used_name = tightest
    return {
        "cgroup_limit": Reading(limit, "bytes", "cgroup", taken_s),
        "cgroup_used": _used(folder, used_name, taken_s),
    }


def _upwards(top: Path, path: str | None) -> list[str]:
    """The group's folder and its parents; only the top for a path that leaves it (seen from another namespace)."""
    if path is None:
        return []
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    return [str(top.joinpath(*parts[:depth])) for depth in range(len(parts), -1, -1)]


def _used(folder: str, name: str, taken_s: float) -> Reading:
    text, reason = read_text(f"{folder}/{name}")
    current = parse_number(text) if text is not None else None
    if current is None:
        return unavailable("bytes", "cgroup", taken_s, reason or f"{folder}/{name}: not a number")
    reclaimable = parse_reclaimable(read_text(f"{folder}/memory.stat").text or "")
    return Reading(max(0.0, current - reclaimable), "bytes", "cgroup", taken_s)


def memory_controller(root: Path) -> bool:
    """Whether the kernel enforces memory limits.

    Stock Raspberry Pi OS boots with `cgroup_disable=memory`, and systemd's MemoryMax then has no effect. From kernel
    6.12 on only `cgroup.controllers` shows it, and /proc/cgroups no longer does.
    """
    controllers = read_text(str(root / "sys/fs/cgroup/cgroup.controllers")).text
    if controllers is not None:
        return "memory" in controllers.split()
    return read_text(str(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")).text is not None
