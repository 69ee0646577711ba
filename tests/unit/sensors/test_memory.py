"""Memory figures, and the limits of cgroups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sensors.memory import (
    memory_controller,
    parse_buddyinfo,
    parse_cgroup,
    parse_limit,
    parse_meminfo,
    parse_pressure,
    parse_reclaimable,
    read_cgroup,
    read_faults,
    read_free_blocks,
    read_held,
    read_meminfo,
    read_pressure,
    read_pss,
)
from tests.support import sysfs


def test_meminfo_is_in_bytes(tmp_path: Path) -> None:
    found = read_meminfo(sysfs.pi4(tmp_path).root, 3.0)
    assert found["ram_available"].value == 3_100_000 * 1024
    assert found["ram_total"].value == 3_884_000 * 1024
    assert found["swap_total"].value == 102_396 * 1024
    assert "nvmap_used" not in found
    assert "HugePages_Total" not in parse_meminfo("HugePages_Total:       0\n")


def test_a_jetson_reports_the_memory_of_its_gpu(tmp_path: Path) -> None:
    assert read_meminfo(sysfs.nano(tmp_path).root, 1.0)["nvmap_used"].value == 123456 * 1024


def test_without_meminfo_every_figure_has_a_reason(tmp_path: Path) -> None:
    found = read_meminfo(tmp_path, 1.0)
    assert {reading.value for reading in found.values()} == {None}
    sysfs.Tree(tmp_path).write("proc/meminfo", "MemTotal: 12 kB\n")
    found = read_meminfo(tmp_path, 1.0)
    assert found["ram_total"].value == 12 * 1024
    assert "has no MemAvailable" in str(found["ram_available"].reason)


BUDDYINFO = """\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3
Node 0, zone    DMA32     67     62     65     61     51     48     41     39     34     23    724
Node 0, zone   Normal  22385  11022   3989   1832   2055    990    663    205     54     57      0
"""


def test_the_largest_free_block_and_how_many_there_are(tmp_path: Path) -> None:
    assert parse_buddyinfo(BUDDYINFO) == (1024, 727)
    assert parse_buddyinfo("Node 0, zone Normal 5 0 2 0 \n") == (4, 2)
    assert parse_buddyinfo("Node 0, zone Normal 0 0 0\n") == (0, 0)
    assert parse_buddyinfo("no such list") is None
    sysfs.Tree(tmp_path).write("proc/buddyinfo", BUDDYINFO)
    found, page = read_free_blocks(tmp_path, 1.0), os.sysconf("SC_PAGE_SIZE")
    assert found["largest_free_block"].value == 1024 * page
    assert found["largest_free_blocks"].value == 727 * 1024 * page
    lost = read_free_blocks(tmp_path / "nowhere", 1.0)["largest_free_block"]
    assert lost.value is None and "does not" in str(lost.reason)


@given(st.text(max_size=300))
def test_any_list_of_free_blocks_is_read_or_is_none(text: str) -> None:
    found = parse_buddyinfo(text)
    assert found is None or all(one >= 0 for one in found)


def test_pressure(tmp_path: Path) -> None:
    found = read_pressure(sysfs.pi5(tmp_path).root, 1.0)
    assert (found["memory_pressure_some"].value, found["memory_pressure_full"].value) == (1.25, 0.5)
    lost = read_pressure(tmp_path / "nowhere", 1.0)
    assert "does not have it" in str(lost["memory_pressure_some"].reason)


def test_a_process_knows_its_own_share() -> None:
    reading = read_pss(Path("/"), os.getpid(), 1.0)
    assert reading.value is not None
    assert reading.value > 1_000_000
    assert "does not have it" in str(read_pss(Path("/"), 2**22 + 1, 1.0).reason)


def test_the_tightest_limit_above_the_process_counts(tmp_path: Path) -> None:
    tree = sysfs.pi5(tmp_path)
    found = read_cgroup(tree.root, 1.0)
    assert found["cgroup_limit"].value == 6_000_000_000
    assert found["cgroup_used"].value == 600_000_000, "file cache that the kernel drops at need is not in use"
    tree.write("sys/fs/cgroup/system.slice/memory.max", "2000000000\n")
    tree.write("sys/fs/cgroup/system.slice/memory.current", "1500000000\n")
    found = read_cgroup(tree.root, 1.0)
    assert (found["cgroup_limit"].value, found["cgroup_used"].value) == (2_000_000_000, 1_500_000_000)


def test_no_limit_and_no_controller_are_told_apart(tmp_path: Path) -> None:
    tree = sysfs.pi4(tmp_path)
    assert read_cgroup(tree.root, 1.0)["cgroup_limit"].reason == "the kernel runs without the memory cgroup"
    assert not memory_controller(tree.root)
    tree.write("sys/fs/cgroup/system.slice/memory.max", "max\n")
    tree.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    assert read_cgroup(tree.root, 1.0)["cgroup_limit"].reason == "no memory limit is set"
    assert memory_controller(tree.root)


def test_version_1_of_old_jetpacks(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.write("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/system.slice/edge-agent.service\n0::/other\n")
    folder = "sys/fs/cgroup/memory/system.slice/edge-agent.service"
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    tree.write(f"{folder}/memory.limit_in_bytes", "1000000000\n")
    tree.write(f"{folder}/memory.usage_in_bytes", "700000000\n")
    tree.write(f"{folder}/memory.stat", "cache 1\ntotal_inactive_file 200000000\n")
    found = read_cgroup(tree.root, 1.0)
    assert (found["cgroup_limit"].value, found["cgroup_used"].value) == (1_000_000_000, 500_000_000)
    assert memory_controller(tree.root)


def test_a_path_from_another_namespace_does_not_lead_outside(tmp_path: Path) -> None:
    tree = sysfs.Tree(tmp_path)
    tree.write("proc/self/cgroup", "0::/../../secret\n")
    tree.write("sys/fs/cgroup/memory.max", "5000000\n")
    tree.write("sys/secret/memory.max", "1\n")
    found = read_cgroup(tree.root, 1.0)
    assert found["cgroup_limit"].value == 5_000_000
    assert "does not have it" in str(found["cgroup_used"].reason)


@given(st.text(max_size=300))
def test_no_text_breaks_a_parser(text: str) -> None:
    assert all(value >= 0 for value in parse_meminfo(text).values())
    assert all(value >= 0 for value in parse_pressure(text).values())
    assert parse_reclaimable(text) >= 0
    parse_cgroup(text)
    limit = parse_limit(text)
    assert limit is None or limit < 1 << 60


@given(st.dictionaries(st.sampled_from(["MemTotal", "MemAvailable", "Active(anon)"]), st.integers(0, 10**12)))
def test_meminfo_round_trip(table: dict[str, int]) -> None:
    text = "".join(f"{name + ':':<16}{kib:>8} kB\n" for name, kib in table.items())
    assert parse_meminfo(text) == {name: kib * 1024 for name, kib in table.items()}


def test_major_faults_are_counted(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert read_faults(tmp_path, 1.0)["major_faults"].value is None
    (tmp_path / "proc/vmstat").write_text("pgfault 99\npgmajfault 17\npswpin 3\nworkingset_refault 4\n")
    found = read_faults(tmp_path, 1.0)
    assert [found[key].value for key in ("major_faults", "swapped_in", "refaults")] == [17.0, 3.0, 4.0]
    (tmp_path / "proc/vmstat").write_text("workingset_refault_anon 1\nworkingset_refault_file 5\npswpin_x 8\n")
    found = read_faults(tmp_path, 1.0)
    assert (found["refaults"].value, found["swapped_in"].value) == (5.0, None)
    here = read_faults(Path("/"), 1.0)
    assert here["major_faults"].value is not None


def test_what_is_mapped_is_a_part_of_what_is_held() -> None:
    held = read_held(Path("/"), os.getpid(), 1.0)
    assert 0 < (held["mapped"].value or 0.0) < (held["pss"].value or 0.0)
    assert read_held(Path("/"), 2**22 + 1, 1.0)["mapped"].value is None


def test_a_worker_is_measured_with_the_processes_that_it_started(tmp_path: Path) -> None:
    for pid, kib in ((7, 100), (8, 30), (9, 5)):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/smaps_rollup").write_text(f"Pss: {kib} kB\nPss_File: {kib // 5} kB\n")
    (tmp_path / "proc/7/task/7").mkdir(parents=True)
    (tmp_path / "proc/7/task/7/children").write_text("8 9 4711 ")
    held = read_held(tmp_path, 7, 1.0, children=True)
    assert (held["pss"].value, held["mapped"].value) == (135 * 1024.0, 27 * 1024.0)
    assert read_held(tmp_path, 7, 1.0)["pss"].value == 100 * 1024.0
