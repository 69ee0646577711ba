"""What the kernel counts of a worker: the work that it does, and processes killed for lack of memory.

A load is one long call into a runtime, so the child cannot report on it. Its processor time, page faults and bytes
read are counted by the kernel and show from outside that it goes on. SIGKILL says nothing about who sent it; the
counters of the kernel's out-of-memory killer do.

A file of its own because the supervisor knows messages and processes, and nothing of the kernel's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_agent.sensors.files import read_text
from edge_agent.sensors.memory import parse_cgroup

GENERATIONS = 3
"""A worker, the process that hosts its engine, and what that one starts."""
_READ = re.compile(r"^rchar: (\d{1,20})$", re.MULTILINE)
_KILLS = re.compile(r"^oom_kill (\d{1,19})$", re.MULTILINE)


class WorkDone(NamedTuple):
    """Work of a process and its descendants so far: clock ticks of the processor, page faults, bytes read."""

    ticks: int
    faults: int
    read_bytes: int


def work_done(root: Path, pid: int) -> WorkDone | None:
    """The work of a process and what it started; None where the kernel does not tell (the process has ended)."""
    counted = [one for one in (_work_of(root, each) for each in _family(root, pid)) if one is not None]
    return WorkDone(*(sum(column) for column in zip(*counted, strict=True))) if counted else None


def _family(root: Path, pid: int) -> Iterator[int]:
    generation = [pid]
    for _ in range(GENERATIONS):
        yield from generation
        texts = [read_text(str(root / f"proc/{one}/task/{one}/children")).text for one in generation]
        generation = [int(word) for text in texts for word in (text or "").split() if word.isdecimal()]


def _work_of(root: Path, pid: int) -> WorkDone | None:
    text = read_text(str(root / f"proc/{pid}/stat")).text
    # proc(5): the name in parentheses may hold spaces; minflt, majflt, utime and stime are fields 10, 12, 14 and 15.
    fields = (text or "").rpartition(")")[2].split()
    try:
        faults, ticks = int(fields[7]) + int(fields[9]), int(fields[11]) + int(fields[12])
    except (IndexError, ValueError):
        return None
    found = _READ.search(read_text(str(root / f"proc/{pid}/io")).text or "")
    return WorkDone(ticks, faults, int(found[1]) if found else 0)


class KillCount(NamedTuple):
    """Processes that the kernel has killed for lack of memory, and where it counts them; None: it does not count."""

    kills: int | None
    where: str


def oom_kills(root: Path) -> KillCount:
    """The count of this process's control group, which workers share; without the memory controller (stock Raspberry
    Pi OS) that of the whole machine, which kernels before 4.13 (JetPack 4) do not have."""
    unified, version1 = parse_cgroup(read_text(str(root / "proc/self/cgroup")).text or "")
    places = (
        (root / "sys/fs/cgroup", unified, "memory.events"),
        (root / "sys/fs/cgroup/memory", version1, "memory.oom_control"),
    )
    for top, group, name in places:
        if group is None or ".." in group.split("/"):
            continue
        kills = _count(top / group.lstrip("/") / name)
        if kills is not None:
            return KillCount(kills, f"oom_kill in {name} of {group}")
    return KillCount(_count(root / "proc/vmstat"), "oom_kill in /proc/vmstat")


def _count(path: Path) -> int | None:
    found = _KILLS.search(read_text(str(path)).text or "")
    return int(found[1]) if found else None
