"""Real worker children behind the supervisor: they load, answer, refuse, die, end as they should, and leave nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edge_agent.base.causes import Cause, DeathCause, WorkerDeath
from edge_agent.base.errors import AdapterRefused, BackendError, BackendMissing, EdgeError, WorkerError
from edge_agent.base.limits import FRAME_BYTES, TEXT_BYTES, TEXTS_PER_REQUEST
from edge_agent.bundle.catalog import Adapter, TaskSpec, Variant
from edge_agent.protocol.worker_messages import (
    Accepted,
    AnyEvent,
    FootprintRead,
    Heartbeat,
    JobDone,
    JobFailed,
    JobWork,
    NoListener,
    ReadFootprint,
    StepLimits,
    WorkerRequest,
)
from edge_agent.worker.supervisor import CLOSE_TIMEOUT_S, SpawnOptions, WorkerProcess, death_of, spawn

PATIENCE_S = 10.0
KILLED = WorkerDeath(DeathCause.SIGNALLED_FROM_OUTSIDE, "killed by SIGKILL")
TASK = TaskSpec("classify", labels=("on", "off", "other"), max_tokens=64)
LIMITS = StepLimits(8, 1)


def variant(runtime: str = "echo", files: Mapping[str, str] | None = None, **options: object) -> Variant:
    return Variant("sha256:0", runtime, "fp32", files or {}, 0, 0, options=options)


def adapter(name: str, base_id: str = "sha256:base") -> Adapter:
    task = TaskSpec("classify", labels=("low", "high"), max_tokens=64)
    return Adapter(name, f"sha256:{name}", f"/no/{name}.safetensors", base_id, task, rank=8, size_bytes=0)


def job(name: str, *texts: str, adapter: str | None = None, **params: object) -> JobWork:
    return JobWork(name, adapter, params, list(texts) or ["turn it on"])


class ServedModel:
    """One child and all that was heard of it."""

    def __init__(self) -> None:
        self.events: dict[str, list[Any]] = {}
        self.deaths: list[WorkerDeath] = []
        self._changed = asyncio.Event()
        self.worker: WorkerProcess

    def on_event(self, event: AnyEvent) -> None:
        if isinstance(event, Heartbeat):  # of a job of many steps
            return
        assert isinstance(event, (JobDone, JobFailed)), event
        self.events.setdefault(event.id, []).append(event)
        self._changed.set()

    def on_death(self, death: WorkerDeath) -> None:
        self.deaths.append(death)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), PATIENCE_S)

    async def death(self) -> WorkerDeath:
        await self.until(lambda: bool(self.deaths))
        return self.deaths[0]

    async def answers(self, *names: str) -> list[Any]:
        await self.until(lambda: all(name in self.events for name in names))
        assert all(len(self.events[name]) == 1 for name in names)
        return [self.events[name][0] for name in names]

    async def ask(self, *jobs: JobWork) -> list[Any]:
        """JobDone or JobFailed for each."""
        self.worker.submit(jobs)
        return await self.answers(*(one.id for one in jobs))


@asynccontextmanager
async def child(options: SpawnOptions | None = None, load: Variant | None = None) -> AsyncIterator[ServedModel]:
    served = ServedModel()
    served.worker = await spawn(options or SpawnOptions(), served)
    try:
        if load is not None:
            await served.worker.load(load, TASK, LIMITS)
        yield served
    finally:
        await served.worker.close()
        assert not exists(served.worker.pid)


def exists(pid: int) -> bool:
    """Also true for a zombie: nothing at all may be left of our own children."""
    return pathlib.Path(f"/proc/{pid}").exists()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 120.0)

    asyncio.run(bounded())


# Answers


def test_load_submit_done() -> None:
    async def body() -> None:
        async with child() as served:
            loaded = await served.worker.load(variant(hold_mib=1, delay_s=0.02), TASK, LIMITS)
            assert (loaded.runtime.runtime, loaded.runtime.mixed_adapters) == ("echo", True)
            assert loaded.pid == served.worker.pid
            assert await served.worker.footprint() == loaded.footprint
            assert loaded.footprint.total_bytes == 1 << 20, "hold_mib"
            assert loaded.load_ms > 0
            (done,) = await served.ask(job("1", "turn it on", "x" * 100, top_k=3))
            assert isinstance(done, JobDone)
            assert (done.id, done.batch, len(done.wording), done.generated) == ("1", 2, 2, None)
            first, second = done.results
            assert {entry["label"] for entry in first["labels"]} == {"on", "off", "other"}
            assert (first["truncated"], second["truncated"], second["tokens"]) == (False, True, 100)
            assert done.compute_ms >= 20, "delay_s"
            assert 0 < done.tokenize_ms < done.compute_ms
        assert served.deaths == [], "an end that was asked for is no death"

    run(body)


def test_each_bad_job_is_refused_by_itself() -> None:
    async def body() -> None:
        async with child(load=variant(fail_token=ord("!"))) as served:
            jobs = [
                job("good", "turn it on"),
                job("empty", "  "),
                job("parameter", "x", colour="red"),
                job("adapter", "x", adapter="nobody"),
                job("fails", "boom!"),
                job("also good", "turn it off"),
            ]
            found = {event.id: event for event in await served.ask(*jobs)}
            assert isinstance(found["good"], JobDone)
            assert isinstance(found["also good"], JobDone)
            refused = {
                name: (event.status, event.cause) for name, event in found.items() if isinstance(event, JobFailed)
            }
            assert refused == {
                "empty": (422, Cause.INVALID),
                "parameter": (422, Cause.INVALID),
                "adapter": (404, Cause.UNKNOWN_ADAPTER),
                "fails": (500, Cause.WORKER_FAILED),
            }
            assert found["empty"].reason == "the text is empty"
            assert "colour" in found["parameter"].reason
            assert "nobody" in found["adapter"].reason
            assert isinstance((await served.ask(job("after")))[0], JobDone)
            assert served.worker.alive

    run(body)


def test_a_text_that_the_tokenizer_cannot_split_fails_its_job_and_no_other(tmp_path: pathlib.Path) -> None:
    """The unknown token that the vocabulary lacks: probes of known words pass, and `tokenizers` raises Exception."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"on": 0, "off": 1}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))

    async def body() -> None:
        async with child(load=variant(files={"tokenizer": str(tmp_path / "tokenizer.json")})) as served:
            jobs = [job("1", "on off"), job("2", "on fire"), job("3", "off")]
            found = {event.id: event for event in await served.ask(*jobs)}
            assert isinstance(found["1"], JobDone)
            assert isinstance(found["3"], JobDone)
            assert (found["2"].status, found["2"].cause) == (422, Cause.INVALID)
            assert found["2"].reason.startswith("the tokenizer cannot split the text: WordLevel error: Missing [UNK]")
            assert isinstance((await served.ask(job("4", "on")))[0], JobDone)
        assert served.deaths == []

    run(body)


def test_an_answer_that_cannot_be_made_fails_its_job_and_no_other() -> None:
    """The model gives fewer logits than the task has labels: a package's mistake, not a reason to end the worker."""

    async def body() -> None:
        async with child(load=variant(labels=1)) as served:
            await served.worker.attach(adapter("fits-not"))
            (failed,) = await served.ask(job("1"))
            assert failed.status == 500
            assert "no logits for 3 labels" in failed.reason
            assert served.worker.alive

    run(body)


def test_an_answer_too_large_for_a_frame_fails_its_job_and_no_other() -> None:
    async def body() -> None:
        labels = tuple(f"{'label' * 2000} {number}" for number in range(8))
        async with child() as served:
            await served.worker.load(variant(labels=len(labels)), TaskSpec("classify", labels, max_tokens=64), LIMITS)
            failed, done = await served.ask(job("all", *["x"] * TEXTS_PER_REQUEST, top_k=8), job("one", top_k=1))
            assert (failed.status, failed.cause, type(done)) == (413, Cause.TOO_LARGE, JobDone)
            assert "fewer" in failed.reason
            assert served.deaths == []

    run(body)


class Dance(WorkerRequest, tag="dance"):
    """No worker knows it."""


def test_an_unknown_operation_is_refused_and_the_child_goes_on() -> None:
    async def body() -> None:
        async with child(load=variant()) as served:
            with pytest.raises(WorkerError, match="unknown operation 'dance'"):
                await served.worker.call(Dance(), Accepted)
            assert isinstance((await served.ask(job("1")))[0], JobDone)

    run(body)


def test_loading_refuses_what_it_must_with_the_right_error() -> None:
    async def body() -> None:
        async with child() as served:
            with pytest.raises(WorkerError, match="no model is loaded"):
                await served.worker.footprint()
            with pytest.raises(BackendMissing, match="there is no backend 'abacus'"):
                await served.worker.load(variant("abacus"), TASK, LIMITS)
            with pytest.raises(BackendError, match="unknown option 'speed'"):
                await served.worker.load(variant(speed=9), TASK, LIMITS)
            await served.worker.load(variant(), TASK, LIMITS)
            with pytest.raises(WorkerError, match="already loaded"):
                await served.worker.load(variant(), TASK, LIMITS)

    run(body)


def test_a_model_file_that_is_gone_is_an_error_of_ours(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with child() as served:
            with pytest.raises(EdgeError, match=r"model\.onnx"):
                await served.worker.load(variant(files={"model": str(tmp_path / "model.onnx")}), TASK, LIMITS)

    run(body)


def test_adapters_come_and_go_without_a_reload() -> None:
    async def body() -> None:
        async with child(load=variant(base_id="sha256:base")) as served:
            attached = await served.worker.attach(adapter("urgency"))
            assert attached.size_bytes == 0, "the echo backend keeps no tensors"
            assert attached.attach_ms > 0
            base, adapted = await served.ask(job("base"), job("adapted", adapter="urgency"))
            assert base.batch == adapted.batch == 2, "mixed in one batch"
            assert base.results[0]["label"] in TASK.labels
            assert adapted.results[0]["label"] in {"low", "high"}
            with pytest.raises(AdapterRefused, match="is for base sha256:other"):
                await served.worker.attach(adapter("stranger", base_id="sha256:other"))
            await served.worker.detach("urgency")
            (refused,) = await served.ask(job("late", adapter="urgency"))
            assert refused.status == 404

    run(body)


def test_limits_bound_the_next_batch() -> None:
    async def body() -> None:
        async with child(load=variant()) as served:
            served.worker.set_limits(StepLimits(2, 1))
            events = await served.ask(*(job(str(index)) for index in range(5)))
            assert [event.batch for event in events] == [2, 2, 2, 2, 1]

    run(body)


def test_a_job_behind_another_is_cancelled_and_a_finished_one_is_not() -> None:
    async def body() -> None:
        async with child(load=variant(delay_s=0.3)) as served:
            served.worker.set_limits(StepLimits(1, 1))
            served.worker.submit([job("first"), job("second"), job("third")])
            assert await served.worker.cancel("second") is True
            await served.answers("first", "third")
            assert "second" not in served.events
            assert await served.worker.cancel("first") is False

    run(body)


def test_a_full_batch_of_the_longest_texts_crosses() -> None:
    async def body() -> None:
        async with child(load=variant()) as served:
            (done,) = await served.ask(job("big", *["x" * TEXT_BYTES] * TEXTS_PER_REQUEST))
            assert len(done.results) == TEXTS_PER_REQUEST

    run(body)


# Deaths and ends


def test_kill_9_is_one_death_and_ends_what_waits() -> None:
    async def body() -> None:
        async with child(load=variant(delay_s=30.0)) as served:
            os.kill(served.worker.pid, signal.SIGSTOP)
            served.worker.submit([job("1")])
            waiting = asyncio.create_task(served.worker.footprint())
            await asyncio.sleep(0)
            os.kill(served.worker.pid, signal.SIGKILL)
            with pytest.raises(WorkerError, match="the worker ended: killed by SIGKILL"):
                await waiting
            await served.death()
            assert not served.worker.alive
            started_s = time.monotonic()
            with pytest.raises(WorkerError, match="ended"):
                await served.worker.footprint()
            assert time.monotonic() - started_s < 1.0, "the dead are not waited for"
            served.worker.kill()
            served.worker.submit([job("2")])
        assert served.deaths == [KILLED]
        assert served.events == {}

    run(body)


def test_a_native_abort_ends_the_child_only() -> None:
    async def body() -> None:
        async with child(load=variant(die_token=ord("!"))) as served:
            served.worker.submit([job("fatal", "boom!")])
            await served.death()
        assert served.deaths == [WorkerDeath(DeathCause.CRASHED, "killed by SIGABRT")]

    run(body)


@pytest.mark.parametrize("busy", [False, True])
def test_close_is_bounded_and_no_death(busy: bool) -> None:
    async def body() -> None:
        async with child(load=variant(delay_s=60.0)) as served:
            if busy:
                served.worker.submit([job("1")])
                await asyncio.sleep(0.1)
            started_s = time.monotonic()
            await served.worker.close()
            assert time.monotonic() - started_s < (CLOSE_TIMEOUT_S if busy else 0.0) + 1.5
            assert not exists(served.worker.pid)
        assert served.deaths == []

    run(body)


def test_a_close_that_is_cancelled_leaves_no_child() -> None:
    """Seed 4224: the daemon stopped while a model's removal waited for its worker to end."""

    async def body() -> None:
        async with child(load=variant(delay_s=60.0)) as served:
            served.worker.submit([job("1")])
            await asyncio.sleep(0.1)
            closing = asyncio.create_task(served.worker.close())
            await asyncio.sleep(0.1)
            closing.cancel()
            started_s = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await closing
            while exists(served.worker.pid) and time.monotonic() - started_s < CLOSE_TIMEOUT_S:
                await asyncio.sleep(0.01)
            assert time.monotonic() - started_s < CLOSE_TIMEOUT_S, "it was still waited for in order"
        assert served.deaths == []

    run(body)


def test_a_frame_over_the_limit_is_refused_here_and_the_child_goes_on() -> None:
    async def body() -> None:
        async with child(load=variant()) as served:
            with pytest.raises(WorkerError, match=f"over the limit of {FRAME_BYTES}"):
                served.worker.submit([job("big", "x" * FRAME_BYTES)])
            assert isinstance((await served.ask(job("small")))[0], JobDone)

    run(body)


def impostor(folder: pathlib.Path, code: str) -> SpawnOptions:
    """An interpreter that is no worker: it has the channel as `sock` and does what `code` says."""
    script = folder / "impostor"
    head = f"#!{sys.executable}\nimport os, socket, struct, sys, time\nsock = socket.socket(fileno=int(sys.argv[3]))\n"
    script.write_text(head + textwrap.dedent(code))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return SpawnOptions(python=str(script))


FRAME = "send = lambda body: sock.sendall(struct.pack('>I', len(body)) + body)\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sock.sendall(b'\\xff' * 4); time.sleep(60)", "over the limit"),
        (FRAME + "send(b'\\xc1'); time.sleep(60)", "is not msgpack"),
        (FRAME + "send(b'\\x90'); time.sleep(60)", "holds a list, a map is needed"),
        (FRAME + "send(b'\\x91' * 100000); time.sleep(60)", "is not msgpack"),
        (FRAME + "send(b'\\x80'); time.sleep(60)", "is no event"),
        (FRAME + "send(b'\\x82\\xa2ev\\xa2ok\\xa1n\\x90'); time.sleep(60)", "is no event"),
        (FRAME + "send(b'\\x81\\xa2ev\\xa5dance'); time.sleep(60)", "is no event"),
    ],
    ids=["size", "garbage", "list", "depth", "empty map", "number", "kind"],
)
def test_a_child_that_breaks_the_protocol_is_ended_once_with_the_reason(
    tmp_path: pathlib.Path, code: str, reason: str
) -> None:
    async def body() -> None:
        async with child(impostor(tmp_path, code)) as served:
            await served.death()
            assert not exists(served.worker.pid)
        (death,) = served.deaths
        assert death.cause is DeathCause.CHANNEL_BROKEN
        assert reason in death.reason

    run(body)


def test_a_child_that_exits_by_itself_says_its_code(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with child(impostor(tmp_path, "sys.exit(3)")) as served:
            await served.death()
        assert served.deaths == [WorkerDeath(DeathCause.CRASHED, "exit code 3 (its channel closed)")]

    run(body)


def test_a_silent_child_is_ended_by_the_call_that_waits_for_it(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with child(impostor(tmp_path, "time.sleep(60)")) as served:
            with pytest.raises(WorkerError, match="no answer to 'footprint' within 0 s, worker ended"):
                await served.worker.call(ReadFootprint(), FootprintRead, 0.3)
            await served.death()
        assert served.deaths == [KILLED]

    run(body)


def test_a_bug_in_the_daemons_handler_does_not_leave_a_child_unheard() -> None:
    async def body() -> None:
        class Broken(ServedModel):
            def on_event(self, event: AnyEvent) -> None:
                raise LookupError("a bug of ours")

        served = Broken()
        served.worker = await spawn(SpawnOptions(), served)
        await served.worker.load(variant(), TASK, LIMITS)
        served.worker.submit([job("1")])
        await served.death()
        assert not exists(served.worker.pid)
        await served.worker.close()

    run(body)


def test_an_interpreter_that_is_not_there_is_named() -> None:
    async def body() -> None:
        with pytest.raises(WorkerError, match="cannot start /no/python: No such file"):
            await spawn(SpawnOptions(python="/no/python"), NoListener())

    run(body)


@pytest.mark.parametrize(
    ("returncode", "complaint", "cause", "reason"),
    [
        (-9, None, DeathCause.SIGNALLED_FROM_OUTSIDE, "killed by SIGKILL"),
        (-15, None, DeathCause.SIGNALLED_FROM_OUTSIDE, "killed by SIGTERM"),
        (-11, None, DeathCause.CRASHED, "killed by SIGSEGV"),
        (1, None, DeathCause.CRASHED, "exit code 1 (its channel closed)"),
        (0, None, DeathCause.CHANNEL_BROKEN, "exit code 0 (its channel closed)"),
        (-50, None, DeathCause.CRASHED, "killed by signal 50"),
        (-9, "no message", DeathCause.CHANNEL_BROKEN, "killed by SIGKILL (no message)"),
    ],
)
def test_a_death_has_a_cause_and_a_sentence(
    returncode: int, complaint: str | None, cause: DeathCause, reason: str
) -> None:
    """Real-time signals have no names."""
    assert death_of(returncode, complaint) == WorkerDeath(cause, reason)


def test_a_child_that_the_daemon_ends_for_its_silence_is_reported_as_hung() -> None:
    async def body() -> None:
        async with child(load=variant()) as served:
            served.worker.kill(DeathCause.HUNG)
            await served.death()
        assert served.deaths == [WorkerDeath(DeathCause.HUNG, "killed by SIGKILL")]

    run(body)


def test_an_answer_of_another_kind_than_the_asked_one_ends_the_child(tmp_path: pathlib.Path) -> None:
    code = FRAME + "send(b'\\x82\\xa2ev\\xa2ok\\xa1n\\x01'); time.sleep(60)"

    async def body() -> None:
        async with child(impostor(tmp_path, code)) as served:
            with pytest.raises(WorkerError, match="'footprint' was answered with Accepted, worker ended"):
                await served.worker.footprint()
            await served.death()

    run(body)


DAEMON = """
import asyncio, os, signal, sys
from edge_agent.bundle.catalog import TaskSpec, Variant
from edge_agent.protocol.worker_messages import JobWork, NoListener, StepLimits
from edge_agent.worker.supervisor import SpawnOptions, spawn

async def main():
    worker = await spawn(SpawnOptions(), NoListener())
    slow = Variant("", "echo", "fp32", {}, 0, 0, options={"delay_s": 0.5})
    await worker.load(slow, TaskSpec("embed"), StepLimits(1, 1))
    if sys.argv[1] == "busy":
        worker.submit([JobWork(str(i), None, {}, ["x"]) for i in range(100)])
    if sys.argv[1] == "stopped":  # as one whose native call never returns: it reads nothing any more
        os.kill(worker.pid, signal.SIGSTOP)
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
def test_no_orphan_survives_the_daemon(state: str) -> None:
    daemon = subprocess.run([sys.executable, "-c", DAEMON, state], stdout=subprocess.PIPE, timeout=60, check=False)
    assert daemon.returncode == -signal.SIGKILL
    pid = int(daemon.stdout)
    deadline_s = time.monotonic() + 10.0
    while running(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not running(pid)


def running(pid: int) -> bool:
    """A zombie that its new parent has not reaped yet has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_child_steps_back_for_the_daemon() -> None:
    async def body() -> None:
        own_nice = os.getpriority(os.PRIO_PROCESS, 0)
        async with child(SpawnOptions(oom_score_adj=700, nice=3, environment={"EDGE_TEST": "1"})) as served:
            await served.worker.load(variant(), TASK, LIMITS)
            process = pathlib.Path(f"/proc/{served.worker.pid}")
            assert (process / "oom_score_adj").read_text().strip() == "700"
            assert os.getpriority(os.PRIO_PROCESS, served.worker.pid) == min(19, own_nice + 3)
            environment = (process / "environ").read_bytes().split(b"\0")
            assert b"EDGE_TEST=1" in environment
            assert b"ORT_DISABLE_TELEMETRY=1" in environment
            assert len(list((process / "fd").iterdir())) <= 5, "it inherits its channel and the standard three only"

    run(body)


def descriptors() -> int:
    gc.collect()
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def children() -> list[str]:
    return pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.slow
def test_fifty_lives_and_deaths_leak_nothing() -> None:
    async def body() -> None:
        counts = []
        before_children = children()
        for cycle in range(50):
            served = ServedModel()
            served.worker = await spawn(SpawnOptions(), served)
            if cycle % 5 == 0:
                await served.worker.load(variant(), TASK, LIMITS)
                await served.ask(job("1"))
            if cycle % 2:
                served.worker.kill()
                await served.death()
            await served.worker.close()
            counts.append(descriptors())
        assert counts[0] == counts[-1] == max(counts), counts
        assert children() == before_children, "a zombie is left"

    run(body)
