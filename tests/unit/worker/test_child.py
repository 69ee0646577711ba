"""The child's own part between a session's events and what is sent, with a session that says what the test wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from edge_agent.backends.api import Capabilities, Chunk, Done, Event, Footprint, Generated, Limits, Session, SessionJob
from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, MemoryRefused
from edge_agent.base.limits import MIB
from edge_agent.protocol.worker_messages import (
    Accepted,
    AnyRequest,
    AttachAdapter,
    CallRefused,
    CancelJob,
    CloseWorker,
    DetachAdapter,
    Heartbeat,
    JobCancelled,
    JobDone,
    JobFailed,
    JobWork,
    LoadModel,
    MeasureTexts,
    ProbeBackends,
    ReadFootprint,
    RuntimeAvailable,
    RuntimeUnavailable,
    SetStepLimits,
    ShrinkMemory,
    StepLimits,
    SubmitJobs,
    TaskFields,
    TextChunk,
)
from edge_agent.tasks import registry as kinds
from edge_agent.tasks.generate import Generate
from edge_agent.worker import child
from edge_agent.worker.wire import UnknownRequest

LIMITS = StepLimits(4, 1)
TASK = TaskFields("generate", (), 64, 0.0, None)


class Letters:
    """A vocabulary of single characters."""

    context, chat_template, special_tokens = 64, None, {}

    def encode(self, text: str, _begin: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def piece(self, token: int) -> bytes:
        return bytes([token])


class Script(Session):
    """Each step gives the next of `steps`; a step that is an error is raised. `inside` are the jobs not ended yet."""

    sequences = 4

    def __init__(self, steps: Sequence[list[Event] | Exception]) -> None:
        self._steps = steps
        self.inside: list[str] = []

    def vocabulary(self) -> Any:
        return Letters()

    def submit(self, job: SessionJob) -> None:
        self.inside.append(job.job_id)

    def step(self, limits: Limits) -> list[Event]:
        found = self._steps.pop(0)
        if isinstance(found, Exception):
            raise found
        for event in found:
            if isinstance(event, Done):
                self.inside.remove(event.job_id)
        return found

    def cancel(self, job_id: str) -> bool:
        known = job_id in self.inside
        if known:
            self.inside.remove(job_id)
        return known

    def finish(self, job_id: str) -> Done | None:
        return done(job_id) if self.cancel(job_id) else None

    def footprint(self) -> Footprint:
        return Footprint(0, 0, 0, 0)

    def attach(self, adapter: Any) -> int:
        raise NotImplementedError

    def detach(self, name: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Backend:
    """Loads the script."""

    def __init__(self, session: Script) -> None:
        self._session = session

    def probe(self) -> Capabilities:
        return Capabilities("script", "0", ("cpu",), ("f32",), False, False, streams=False)

    def watch(self, tell: object) -> None:
        pass

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        self.options = options
        return self._session


class Wire:
    """A channel that gives the child `frames`; then, with work inside, nothing, and without, the word to end."""

    def __init__(self, frames: list[AnyRequest | UnknownRequest]) -> None:
        self._frames = frames
        self.sent: list[Any] = []

    def receive(self, timeout_s: float | None) -> AnyRequest | UnknownRequest | None:
        if self._frames:
            return self._frames.pop(0)
        return CloseWorker() if timeout_s is None else None

    def send(self, message: Any) -> None:
        self.sent.append(message)


def done(job_id: str, finish: str = "stop", tokens: int = 2) -> Done:
    return Done(job_id, Generated(finish, 1, 0, tokens, 0.0, 0.0, 0.0)._asdict(), 0.0, 1)


def said(monkeypatch: pytest.MonkeyPatch, session: Script, *jobs: JobWork) -> list[Any]:
    """What a child says of these jobs."""
    monkeypatch.setattr(child.registry, "create", lambda _name: Backend(session))
    monkeypatch.setattr(kinds, "build", lambda _spec, _tokenizer, vocabulary: Generate(vocabulary))
    wire = Wire([loading(LIMITS), SubmitJobs(jobs=jobs)])
    child.Child(wire).run()  # type: ignore[arg-type]
    return wire.sent[1:]


def loading(limits: StepLimits) -> LoadModel:
    return LoadModel(call=1, backend="script", files={}, options={}, limits=limits, task=TASK)


def job(job_id: str, **params: Any) -> JobWork:
    return JobWork(job_id, None, params, ["p"], stream=True)


def test_a_stop_string_in_the_very_last_token_loses_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """'x' is held back, since 'xy' would end the answer; 'd' ends it, in the step in which its length ends it too."""
    last: list[Event] = [Chunk("a", [ord("d")], []), done("a", "length")]
    session = Script([[Chunk("a", [ord("x")], [])], last])
    sent = said(monkeypatch, session, job("a", max_tokens=2, stop=["xy", "d"]))
    chunks = [event.text for event in sent if isinstance(event, TextChunk)]
    assert "".join([*chunks, sent[-1].generated.text]) == "x"
    assert isinstance(sent[-1], JobDone)
    result = sent[-1].results[0]
    assert (result["text"], result["finish_reason"]) == ("x", "stop")


def test_a_job_that_has_no_sequence_at_its_deadline_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Script([[Chunk("a", [ord("x")], [])], [], [done("a")]])
    begun = session.finish
    session.finish = lambda name: None if name == "late" else begun(name)  # type: ignore[method-assign]
    late = JobWork("late", None, {"max_tokens": 4}, ["p"], stream=True, left_s=0.0)
    sent = said(monkeypatch, session, job("a", max_tokens=4), late)
    (failed,) = [event for event in sent if isinstance(event, JobFailed)]
    assert (failed.id, failed.status, failed.cause) == ("late", 408, Cause.EXPIRED)
    assert [event.id for event in sent if isinstance(event, JobDone)] == ["a"], "the other one goes on"
    assert session.inside == []


def test_an_encoder_is_heard_between_the_steps_of_a_long_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 long texts take a slow board longer than a worker may be silent for: it was ended for it, and quarantined."""
    now_s = [0.0]
    monkeypatch.setattr(child.time, "monotonic", lambda: now_s.__setitem__(0, now_s[0] + 0.25) or now_s[0])
    session = Script([*([] for _ in range(8)), [done("1")]])
    session.sequences = 0
    beats = [one for one in said(monkeypatch, session, job("1")) if isinstance(one, Heartbeat)]
    assert 4 <= len(beats) <= 9


def test_after_a_step_that_fails_for_all_nobody_is_left_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Script([BackendError("no adapter today", "script")])
    sent = said(monkeypatch, session, job("a"), job("b"))
    assert sent == [JobFailed(one, 500, Cause.WORKER_FAILED, "no adapter today") for one in "ab"]
    assert session.inside == []


@pytest.mark.parametrize("short", [MemoryRefused("the runtime got less memory than it asked for"), MemoryError()])
def test_a_step_that_gets_no_memory_fails_its_jobs_for_that_reason_and_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch, short: Exception
) -> None:
    sent = said(monkeypatch, Script([short]), job("a"))
    (failed,) = sent
    assert (failed.status, failed.cause) == (503, Cause.MEMORY)
    assert failed.reason.endswith("got less memory than it asked for")


def test_a_load_that_gets_no_memory_is_refused_with_the_bound_that_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Backend):
        def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
            raise MemoryError

    monkeypatch.setattr(child.registry, "create", lambda _name: Greedy(Script([])))
    monkeypatch.setattr(child.MemoryBound, "_apply", lambda _self: None)
    for by_board, says in ((False, "7 MiB by what its package states"), (True, "7 MiB: the device has no more for it")):
        wire = Wire([msgspec.structs.replace(loading(LIMITS), allowed_bytes=7 * MIB, by_board=by_board)])
        child.Child(wire).run()  # type: ignore[arg-type]
        (refused,) = wire.sent
        assert refused.error == "MemoryRefused"
        assert refused.reason == f"the worker got less memory than it asked for; the model may take {says}"
        assert refused.where is None and refused.remedy is not None


def test_a_model_loaded_while_it_is_hot_makes_room_for_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes memory for at the load holds for its life; the rows of a step are limited step by step."""
    backend = Backend(Script([]))
    monkeypatch.setattr(child.registry, "create", lambda _name: backend)
    monkeypatch.setattr(kinds, "build", lambda *_spec: None)
    child.Child(Wire([loading(StepLimits(2, 1, most_rows=16))])).run()  # type: ignore[arg-type]
    assert backend.options["max_rows"] == 16


def test_the_options_of_a_package_change_no_limit_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(Script([]))
    monkeypatch.setattr(child.registry, "create", lambda _name: backend)
    monkeypatch.setattr(kinds, "build", lambda *_spec: None)
    limits = {"max_rows": 64, "max_tokens": 4096, "threads": 99, "decode_threads": 9, "spinning": True}
    greedy = {**limits, "memory_bytes": 1 << 40, "shrink": True, "batch": 64}
    request = LoadModel(call=1, backend="script", files={}, options=greedy, limits=StepLimits(2, 3), task=TASK)
    child.Child(Wire([request])).run()  # type: ignore[arg-type]
    assert backend.options == {"max_rows": 2, "threads": 3, "max_tokens": TASK.max_tokens, "batch": 64}


def test_a_request_without_a_number_is_not_answered_and_an_unknown_one_is_refused() -> None:
    wire = Wire([SetStepLimits(limits=LIMITS), UnknownRequest(None, "x"), UnknownRequest(3, "unknown operation 'x'")])
    child.Child(wire).run()  # type: ignore[arg-type]
    assert wire.sent == [
        CallRefused(call=3, error="WorkerError", reason="unknown operation 'x'", where="worker channel")
    ]


def test_every_request_is_handled() -> None:
    """Without a model most are refused, each with a reason of its own."""
    requests: list[AnyRequest | UnknownRequest] = [
        ProbeBackends(call=1, backends=["echo", "abacus"]), SetStepLimits(call=2, limits=LIMITS),
        ReadFootprint(call=3), ShrinkMemory(call=4), CancelJob(call=5, id="x"), DetachAdapter(call=6, name="x"),
        AttachAdapter(call=7, name="x", path="", base_id="", task=TASK),
        MeasureTexts(call=8, adapter=None, texts=["x"]),
        SubmitJobs(call=9, jobs=[]), msgspec.structs.replace(loading(LIMITS), call=10, backend="abacus"),
    ]  # fmt: skip
    wire = Wire(requests)
    child.Child(wire).run()  # type: ignore[arg-type]
    assert [answer.call for answer in wire.sent] == list(range(1, 11))
    probed, *others = wire.sent
    assert [type(report) for report in probed.backends.values()] == [RuntimeAvailable, RuntimeUnavailable]
    assert [type(answer) for answer in others] == [
        Accepted, CallRefused, CallRefused, JobCancelled, CallRefused, CallRefused, CallRefused, Accepted, CallRefused,
    ]  # fmt: skip
    assert others[-1].error == "BackendMissing"
