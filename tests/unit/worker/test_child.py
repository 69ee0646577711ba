"""The child's own part between a session's events and what is sent, with a session that says what the test wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from edge_agent.backends.api import Capabilities, Chunk, Done, Event, Footprint, Generated, Job, Limits, Session
from edge_agent.base.errors import BackendError
from edge_agent.tasks import registry as kinds
from edge_agent.tasks.generate import Generate
from edge_agent.worker import child

LIMITS = {"max_rows": 4, "threads": 1}


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

    def __init__(self, steps: list[list[Event] | BackendError]) -> None:
        self._steps = steps
        self.inside: list[str] = []

    def vocabulary(self) -> Any:
        return Letters()

    def submit(self, job: Job) -> None:
        self.inside.append(job.job_id)

    def step(self, limits: Limits) -> list[Event]:
        found = self._steps.pop(0)
        if isinstance(found, BackendError):
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

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        self.options = options
        return self._session


class Wire:
    """A channel that gives the child `frames`; then, with work inside, nothing, and without, the word to end."""

    def __init__(self, frames: list[dict[str, Any]]) -> None:
        self._frames = frames
        self.sent: list[dict[str, Any]] = []

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        if self._frames:
            return self._frames.pop(0)
        return {"op": "close"} if timeout_s is None else None

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def done(job_id: str, finish: str = "stop", tokens: int = 2) -> Done:
    return Done(job_id, Generated(finish, 1, 0, tokens, 0.0, 0.0, 0.0)._asdict(), 0.0, 1)


def said(monkeypatch: pytest.MonkeyPatch, session: Script, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What a child says of these jobs."""
    monkeypatch.setattr(child.registry, "create", lambda _name: Backend(session))
    monkeypatch.setattr(kinds, "build", lambda _spec, _tokenizer, vocabulary: Generate(vocabulary))
    task = {"kind": "generate", "max_tokens": 64}
    load = {"op": "load", "n": 1, "backend": "script", "files": {}, "options": {}, "limits": LIMITS, "task": task}
    wire = Wire([load, {"op": "submit", "jobs": list(jobs)}])
    child.Child(wire).run()  # type: ignore[arg-type]
    return wire.sent[1:]


def job(job_id: str, **params: Any) -> dict[str, Any]:
    return {"id": job_id, "texts": ["p"], "params": params, "stream": True, "flush_ms": 0.0}


def test_a_stop_string_in_the_very_last_token_loses_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """'x' is held back, since 'xy' would end the answer; 'd' ends it, in the step in which its length ends it too."""
    last: list[Event] = [Chunk("a", [ord("d")], []), done("a", "length")]
    session = Script([[Chunk("a", [ord("x")], [])], last])
    sent = said(monkeypatch, session, job("a", max_tokens=2, stop=["xy", "d"]))
    assert "".join(str(event.get("text", "")) for event in sent) == "x"
    assert [event["ev"] for event in sent][-1] == "done"
    result = sent[-1]["results"][0]
    assert (result["text"], result["finish_reason"]) == ("x", "stop")


def test_after_a_step_that_fails_for_all_nobody_is_left_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Script([BackendError("no adapter today", "script")])
    sent = said(monkeypatch, session, job("a"), job("b"))
    assert [(event["ev"], event["id"], event["status"]) for event in sent] == [("failed", one, 500) for one in "ab"]
    assert session.inside == []


def test_a_model_loaded_while_it_is_hot_makes_room_for_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes memory for at the load holds for its life; the rows of a step are limited step by step."""
    backend = Backend(Script([]))
    monkeypatch.setattr(child.registry, "create", lambda _name: backend)
    monkeypatch.setattr(kinds, "build", lambda *_spec: None)
    task = {"kind": "generate", "max_tokens": 64}
    limits = {"max_rows": 2, "threads": 1, "most_rows": 16}
    load = {"op": "load", "n": 1, "backend": "script", "files": {}, "options": {}, "limits": limits, "task": task}
    child.Child(Wire([load])).run()  # type: ignore[arg-type]
    assert backend.options["max_rows"] == 16
