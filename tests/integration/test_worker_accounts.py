"""What the daemon learns of a worker from the kernel: that a load goes on, hangs, or was ended for lack of memory."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.base.causes import DeathCause, WorkerDeath
from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import GIB, LOAD_LONGEST_S
from edge_agent.bundle.catalog import TaskSpec, TrialFigures, Variant
from edge_agent.protocol.worker_messages import AnyEvent, NoListener, RuntimeAvailable, RuntimeUnavailable, StepLimits
from edge_agent.sensors.memory import parse_cgroup
from edge_agent.worker import supervisor
from edge_agent.worker.kernel_accounts import KillCount, oom_kills, work_done
from edge_agent.worker.one_shot import available_backends
from edge_agent.worker.supervisor import SpawnOptions, killed_from_outside, load_limit_s, spawn

TASK = TaskSpec("classify", labels=("on", "off"), max_tokens=8)
LIMITS = StepLimits(1, 1)
ECHO = Variant("sha256:0", "echo", "fp32", {}, 0, 0)


class Deaths:
    """Remembers how the child ended."""

    def __init__(self) -> None:
        self.heard: list[WorkerDeath] = []
        self.some = asyncio.Event()

    def on_event(self, event: AnyEvent) -> None:
        """Nothing is asked that has events."""

    def on_death(self, death: WorkerDeath) -> None:
        self.heard.append(death)
        self.some.set()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 60.0)

    asyncio.run(bounded())


def program(folder: Path, text: str) -> str:
    """A program in the place of the interpreter: a child that never answers."""
    path = folder / "child"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WORK_LOOK_S", 0.05)
    monkeypatch.setattr(supervisor, "LOAD_STALL_S", 0.5)


async def refused_load(options: SpawnOptions) -> str:
    worker = await spawn(options, NoListener())
    try:
        with pytest.raises(WorkerError) as refused:
            await worker.load(ECHO, TASK, LIMITS)
        return str(refused.value)
    finally:
        await worker.close()


@pytest.mark.usefixtures("_often")
def test_a_load_without_any_work_is_given_up(tmp_path: Path) -> None:
    async def body() -> None:
        said = await refused_load(SpawnOptions(python=program(tmp_path, "exec sleep 60")))
        assert "'load' made no progress for" in said

    run(body)


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize(
    "busy",
    # The fourth word of the command is the channel, which a child's child must not keep open. The kernel ends what is
    # still at work after 3 s of CPU time, whoever was killed before.
    ["ulimit -t 3; while :; do :; done", """ulimit -t 3; eval "sh -c 'while :; do :; done' $3>&-"; :"""],
    ids=["itself", "its child"],
)
def test_a_load_at_work_is_waited_for_up_to_the_setting(tmp_path: Path, busy: str) -> None:
    """The work of a process that the worker started counts, as of the host of an engine."""

    async def body() -> None:
        said = await refused_load(SpawnOptions(python=program(tmp_path, busy), load_limit_s=1.5))
        assert "'load' was still at work after" in said
        assert "raise worker.load_limit_s" in said

    run(body)


def test_a_load_longer_than_the_time_without_work_succeeds_and_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a warm-up at the largest shape on a slow board: a child that computes for longer than one may do nothing."""
    monkeypatch.setattr(supervisor, "WORK_LOOK_S", 0.05)
    monkeypatch.setattr(supervisor, "LOAD_STALL_S", 2.0)
    monkeypatch.setattr(supervisor, "LOAD_SAID_S", 1.0)
    work = "import time\nwhile time.process_time() < 2.5: pass"
    python = program(tmp_path, f"'{sys.executable}' -c '{work}'\nexec '{sys.executable}' \"$@\"")

    async def body() -> None:
        worker = await spawn(SpawnOptions(python=python), NoListener())
        try:
            await worker.load(ECHO, TASK, LIMITS)
        finally:
            await worker.close()

    with caplog.at_level("INFO", logger="edge_agent"):
        run(body)
    assert [line for line in caplog.messages if "'load' goes on after" in line and "is at work" in line]


def test_the_limit_of_a_load_follows_what_its_trial_took_on_this_board() -> None:
    tried = TrialFigures(1.0, 1, 90.0, 8)
    assert load_limit_s(ECHO, 0) == LOAD_LONGEST_S, "not tried here: only a load without work is given up sooner"
    measured = Variant("sha256:0", "echo", "fp32", {}, 0, 0, measured=tried)
    assert load_limit_s(measured, 0) == 900.0
    quick = Variant("sha256:0", "echo", "fp32", {}, 0, 0, measured=TrialFigures(1.0, 1, 0.5, 8))
    assert load_limit_s(quick, 2 * GIB) == 100.0
    endless = Variant("sha256:0", "echo", "fp32", {}, 0, 0, measured=TrialFigures(1.0, 1, 5000.0, 8))
    assert load_limit_s(endless, 0) == LOAD_LONGEST_S


def test_work_of_this_process_grows() -> None:
    before = work_done(Path("/"), os.getpid())
    Path("/proc/self/maps").read_bytes()
    after = work_done(Path("/"), os.getpid())
    assert before is not None
    assert after is not None
    assert after.read_bytes > before.read_bytes
    assert work_done(Path("/"), 2**22 + 1) is None


def board(root: Path, group: int | None, machine: int | None) -> Path:
    """A /proc and a control group with these counts; None: the kernel has no such counter."""
    for folder in ("proc/self", "sys/fs/cgroup/service"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("0::/service\n")
    (root / "proc/vmstat").write_text("pgfault 7\n" + ("" if machine is None else f"oom_kill {machine}\n"))
    if group is not None:
        (root / "sys/fs/cgroup/service/memory.events").write_text(f"low 0\nhigh 3\noom 1\noom_kill {group}\n")
    return root


def test_the_control_group_counts_before_the_machine(tmp_path: Path) -> None:
    assert oom_kills(board(tmp_path, 2, 9)) == KillCount(2, "oom_kill in memory.events of /service")
    assert oom_kills(board(tmp_path / "stock", None, 9)) == KillCount(9, "oom_kill in /proc/vmstat")
    assert oom_kills(board(tmp_path / "old", None, None)).kills is None


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        ((0, 5), (1, 6), DeathCause.OUT_OF_MEMORY),
        ((None, 5), (None, 6), DeathCause.OUT_OF_MEMORY),
        ((0, 5), (0, 6), DeathCause.SIGNALLED_FROM_OUTSIDE),
        ((0, 5), (0, 5), DeathCause.SIGNALLED_FROM_OUTSIDE),
    ],
    ids=["of the service", "of the machine", "of another service", "none"],
)
def test_a_kill_for_lack_of_memory_is_called_that(
    tmp_path: Path, before: tuple[int | None, int], after: tuple[int | None, int], cause: DeathCause
) -> None:
    async def body() -> None:
        deaths = Deaths()
        worker = await spawn(SpawnOptions(root=board(tmp_path, *before)), deaths)
        try:
            await worker.load(ECHO, TASK, LIMITS)
            board(tmp_path, *after)
            os.kill(worker.pid, signal.SIGKILL)
            await deaths.some.wait()
        finally:
            await worker.close()
        assert deaths.heard[0].cause is cause
        assert ("for lack of memory" in deaths.heard[0].reason) is (cause is DeathCause.OUT_OF_MEMORY)

    run(body)


HOST = """
import asyncio, sys
from pathlib import Path
from edge_agent.base.errors import WorkerError
from edge_agent.bundle.catalog import TaskSpec, Variant
from edge_agent.protocol.worker_messages import StepLimits
from edge_agent.worker.supervisor import SpawnOptions, spawn

class Deaths:
    def on_event(self, event): pass
    def on_death(self, death): print(death.cause.value, "|", death.reason)

async def body():
    Path(sys.argv[1], "cgroup.procs").write_text("0")
    worker = await spawn(SpawnOptions(), Deaths())
    try:
        await worker.load(Variant("sha256:0", "echo", "fp32", {}, 0, 0, options={"hold_mib": 240}),
                          TaskSpec("classify", labels=("on", "off"), max_tokens=8), StepLimits(1, 1))
    except WorkerError as error:
        print("refused:", error)
    await worker.close()

asyncio.run(body())
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory control group of 128 MiB below the one of this process."""
    unified, version1 = parse_cgroup(Path("/proc/self/cgroup").read_text())
    for top, own, limit in (
        ("/sys/fs/cgroup/memory", version1, "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", unified, "memory.max"),
    ):
        group = Path(f"{top}/{(own or '').lstrip('/')}/edge-agent-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(128 << 20))
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("NO MEMORY CONTROL GROUP CAN BE MADE HERE: a real kill for lack of memory was NOT tried")


def test_a_real_kill_for_lack_of_memory_is_called_that_and_takes_the_worker(small_group: Path) -> None:
    """The kernel's own kill in a control group of daemon and worker: the daemon's process lives and names it."""
    command = [sys.executable, "-c", HOST, str(small_group)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    cause, _, reason = done.stdout.partition(" | ")
    assert cause == DeathCause.OUT_OF_MEMORY.value, done.stdout
    assert "killed by the kernel for lack of memory (SIGKILL; oom_kill in memory." in reason
    assert "refused: " in reason


def test_a_kernel_that_does_not_count_is_said_to_be_one() -> None:
    nothing = KillCount(None, "oom_kill in /proc/vmstat")
    death = killed_from_outside(nothing, nothing)
    assert death.cause is DeathCause.SIGNALLED_FROM_OUTSIDE
    assert "perhaps for lack of memory" in death.reason


def test_a_worker_that_we_kill_ourselves_is_not_out_of_memory(tmp_path: Path) -> None:
    async def body() -> None:
        deaths = Deaths()
        worker = await spawn(SpawnOptions(root=board(tmp_path, 0, 0)), deaths)
        await worker.load(ECHO, TASK, LIMITS)
        board(tmp_path, 1, 1)
        worker.kill()
        await deaths.some.wait()
        await worker.close()
        assert deaths.heard == [WorkerDeath(DeathCause.SIGNALLED_FROM_OUTSIDE, "killed by SIGKILL")]

    run(body)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGILL)", "sys.exit(9)", "raise ValueError('broken')"])
def test_a_runtime_that_ends_its_process_at_import_says_nothing_about_the_others(tmp_path: Path, ending: str) -> None:
    """A package `onnxruntime` that is found before the installed one ends the process that imports it."""
    (tmp_path / "onnxruntime.py").write_text(f"import os, signal, sys\n{ending}\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    (tmp_path / "sitecustomize.py").write_text(script)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        found = available_backends(SpawnOptions(python=sys.executable), ["onnx", "echo"])
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    assert isinstance(found["echo"], RuntimeAvailable)
    assert isinstance(found["onnx"], RuntimeUnavailable)
    assert found["onnx"].crashed
    assert "crashed" in found["onnx"].reason
    assert "install it again" in found["onnx"].remedy
