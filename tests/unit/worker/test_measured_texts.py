"""Texts that a worker measures: alone the same numbers under every limit of rows, in company never alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from edge_agent.backends.api import Capabilities, Event, Limits, Session, SessionJob
from edge_agent.backends.echo import DEFAULTS, EchoBackend, EchoSession
from edge_agent.base.errors import BackendError, WorkerError
from edge_agent.bundle import probes
from edge_agent.bundle.probes import COMPANY, Expected, ProbeFile, ProbeOutputs, judge
from edge_agent.protocol.worker_messages import (
    AttachAdapter,
    CompanyTexts,
    LoadModel,
    MeasureTexts,
    StepLimits,
    TaskFields,
    TextsMeasured,
)
from edge_agent.worker import child
from edge_agent.worker.child import Child, in_turns

TEXTS = ("turn on the light", "yes", "it is far too cold in here", "???", "off", "a b c", "d", "e f g h i j")
TASK = TaskFields("classify", ("on", "off", "other"), 64, 0.0, None)


class Counting(EchoSession):
    """Remembers the jobs of each step; `leak` of the longest row's share of the batch's tokens goes into every row, as
    one scale of a whole batch does."""

    leak = 0.0

    def __init__(self) -> None:
        super().__init__({**DEFAULTS, "labels": 3})
        self.batches: list[list[str]] = []
        self._longest = 0

    def step(self, limits: Limits) -> list[Event]:
        inside = list(self._queue._jobs)[: limits.max_rows]
        self._longest = max((len(job.rows[0]) for job in inside), default=0)
        self.batches.append([job.job_id for job in inside])
        return super().step(limits)

    def _outputs(self, job: SessionJob, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        found = super()._outputs(job, rows)
        return {
            name: [[value * (1 + self.leak * self._longest) for value in row] for row in values]
            for name, values in found.items()
        }


class Backend(EchoBackend):
    """Loads a session that the test made."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def probe(self) -> Capabilities:
        return EchoBackend().probe()  # type: ignore[return-value]

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        return self._session


class Wire:
    """A channel that nobody reads."""

    def send(self, message: Any) -> None: ...


def worker(monkeypatch: pytest.MonkeyPatch, session: Session, max_rows: int) -> Child:
    monkeypatch.setattr(child.registry, "create", lambda _name: Backend(session))
    found = Child(Wire())  # type: ignore[arg-type]
    found._answer(LoadModel(backend="x", files={}, options={}, task=TASK, limits=StepLimits(max_rows, 1)))
    for name in ("a", "b"):
        found._answer(AttachAdapter(name=name, path="", base_id="", task=TASK))
    return found


def measured(found: Child, adapter: str | None, *company: CompanyTexts) -> TextsMeasured:
    answer = found._answer(MeasureTexts(adapter=adapter, texts=TEXTS, company=company))
    assert isinstance(answer, TextsMeasured)
    return answer


def in_company(found: Child, adapter: str | None) -> ProbeOutputs:
    """As a trial and a canary do it."""
    alone = measured(found, adapter)
    beside = measured(found, adapter, *(CompanyTexts(*one) for one in probes.company(adapter, (None, "a", "b"))))
    return ProbeOutputs(alone.features, alone.logits, ProbeOutputs(beside.features, beside.logits))


def of_host(monkeypatch: pytest.MonkeyPatch, session: Session, adapter: str | None) -> ProbeFile:
    """The probe file of a host that runs 16 rows; with a tolerance that forgives nothing."""
    alone = measured(worker(monkeypatch, session, 16), adapter)
    rows = {name: tuple(map(tuple, getattr(alone, name))) for name in ("features", "logits")}
    expected = Expected(**rows, features_tolerance=1e-9, logits_tolerance=1e-9)
    return ProbeFile(schema=1, texts=TEXTS, expected={"onnx/int8": expected})


@pytest.mark.parametrize("adapter", [None, "a"])
@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 5, 8, 16])
def test_the_same_numbers_under_every_limit_of_rows(
    monkeypatch: pytest.MonkeyPatch, max_rows: int, adapter: str | None
) -> None:
    file = of_host(monkeypatch, Counting(), adapter)
    verdict = judge(file, "onnx/int8", in_company(worker(monkeypatch, Counting(), max_rows), adapter))
    assert (verdict.code, verdict.reason) == (None, "8 golden probes hold, alone and in company")


@pytest.mark.parametrize("max_rows", [2, 3, 4, 5, 8, 16])
def test_a_row_that_depends_on_its_batch_holds_alone_and_fails_in_company(
    monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    """Whatever the limit of rows: the host's figures are those of a text alone, and so are the device's."""

    class Leaky(Counting):
        leak = 0.001

    file = of_host(monkeypatch, Leaky(), None)
    verdict = judge(file, "onnx/int8", in_company(worker(monkeypatch, Leaky(), max_rows), None))
    assert verdict.code == COMPANY


@pytest.mark.parametrize("max_rows", [2, 3, 4, 5, 8, 16])
def test_in_company_no_text_has_a_batch_of_probes_alone(monkeypatch: pytest.MonkeyPatch, max_rows: int) -> None:
    session = Counting()
    in_company(worker(monkeypatch, session, max_rows), "a")
    alone, shared = session.batches[: len(TEXTS)], session.batches[len(TEXTS) :]
    assert alone == [[f"measure-{place}"] for place in range(len(TEXTS))]
    for batch in shared:
        assert any(job.startswith("company") for job in batch)
    assert len([job for batch in shared for job in batch if job.startswith("measure")]) == len(TEXTS)


def test_where_one_adapter_runs_at_a_time_others_do_not_end_the_batch() -> None:
    def jobs(name: str, *adapters: str | None) -> list[SessionJob]:
        return [SessionJob(f"{name}{place}", adapter, [[1]], {}) for place, adapter in enumerate(adapters)]

    asked, others = jobs("m", "a", "a"), jobs("c", "a", None, "b", "a", "a")
    assert [job.job_id for job in in_turns(asked, others, True)] == ["c1", "c2", "c0", "m0", "c3", "m1", "c4"]
    assert [job.job_id for job in in_turns(asked, others, False)] == ["c0", "m0", "c1", "m1", "c2", "c3", "c4"]
    again = [job.job_id for job in in_turns(asked, others[:1], False)]
    assert again == ["c0", "m0", "company-again-0", "m1", "company-again-1"]
    assert [job.job_id for job in in_turns(asked, others[1:3], True)] == ["c1", "c2", "m0", "m1"]


def test_a_failing_text_leaves_no_job_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Counting()
    found = worker(monkeypatch, session, 2)
    token = child.kinds.build(TASK, None, None).probe(["poison"]).rows[0][0]
    session._options = {**session._options, "fail_token": token}
    with pytest.raises(BackendError):
        found._answer(MeasureTexts(adapter=None, texts=("poison", *TEXTS), company=(CompanyTexts(None, TEXTS),)))
    assert len(session._queue) == 0
    with pytest.raises(WorkerError, match="not attached"):
        found._answer(MeasureTexts(adapter=None, texts=TEXTS, company=(CompanyTexts("c", TEXTS),)))


def test_a_session_may_end_the_jobs_of_one_run_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(Counting):
        def step(self, limits: Limits) -> list[Event]:
            return list(reversed(super().step(limits)))

    found, due = worker(monkeypatch, Backwards(), 16), worker(monkeypatch, Counting(), 16)
    others = CompanyTexts("b", TEXTS[:2])
    assert measured(found, "a", others).features == measured(due, "a", others).features
