"""The session over real tiny models: what no prefix, turn, neighbour or interruption may change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource, Chunk, Done, Job, Limits, Session
from edge_agent.base.errors import AdapterRefused, BackendError
from tests.support import tiny_gguf
from tests.support.needs import need

LIMITS = Limits(8, 1)
PROMPT = [256, *b"The quick brown fox jumps over the lazy dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("llama_cpp", "gguf")
    found = tmp_path_factory.mktemp("models")
    tiny_gguf.write_model(found / "model.gguf")
    for seed in (1, 2):
        tiny_gguf.write_adapter(found / f"{seed}.gguf", seed)
    return found


@pytest.fixture
def session(folder: Path) -> Iterator[Session]:
    found = load(folder)
    yield found
    found.close()


def load(folder: Path, **options: Any) -> Session:
    session = registry.create("llamacpp").load({"model": str(folder / "model.gguf")}, {"max_tokens": 512, **options})
    for seed in (1, 2):
        session.attach(AdapterSource(str(seed), str(folder / f"{seed}.gguf"), ""))
    return session


def job(name: str, adapter: str | None = None, prompt: list[int] | None = None, **params: Any) -> Job:
    return Job(name, adapter, [prompt or PROMPT], {"max_tokens": 20, **params})


def run(session: Session, *jobs: Job, steps: int = 2000) -> dict[str, tuple[list[int], Any]]:
    """Tokens and the last event of each job."""
    for one in jobs:
        session.submit(one)
    tokens: dict[str, list[int]] = {one.job_id: [] for one in jobs}
    ends: dict[str, Any] = {}
    for _ in range(steps):
        for event in session.step(LIMITS):
            if isinstance(event, Chunk):
                assert event.job_id not in ends, "a chunk after the end"
                tokens[event.job_id] += event.tokens
            else:
                assert event.job_id not in ends, "ended twice"
                ends[event.job_id] = event
        if len(ends) == len(jobs):
            assert session.step(LIMITS) == []
            return {name: (tokens[name], ends[name]) for name in ends}
    raise AssertionError("jobs never ended")


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(session: Session) -> None:
    drawn = [run(session, job("a", temperature=1.0, seed=seed))["a"][0] for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_cached_prefix_changes_nothing_but_the_work(session: Session, folder: Path) -> None:
    run(session, job("warm"))
    again, end = run(session, job("again", prompt=[*PROMPT, *b" and runs"]))["again"]
    assert end.outputs["cached_tokens"] == len(PROMPT)
    fresh = load(folder)
    assert run(fresh, job("again", prompt=[*PROMPT, *b" and runs"]))["again"][0] == again
    fresh.close()


def test_a_prefix_of_another_adapter_is_never_used(session: Session, folder: Path) -> None:
    for adapter in ("1", "2", None, "1"):
        tokens, end = run(session, job("x", adapter))["x"]
        fresh = load(folder)
        assert run(fresh, job("x", adapter))["x"][0] == tokens
        fresh.close()
    assert end.outputs["cached_tokens"] == len(PROMPT) - 1, "its own prefix is still there"


def test_an_adapter_attached_anew_meets_no_old_cache(session: Session, folder: Path) -> None:
    run(session, job("x", "1"))
    session.detach("1")
    session.attach(AdapterSource("1", str(folder / "2.gguf"), ""))
    tokens, end = run(session, job("x", "1"))["x"]
    assert end.outputs["cached_tokens"] == 0
    assert tokens == run(session, job("y", "2"))["y"][0]


def test_neighbours_with_other_adapters_and_long_prompts_change_no_answer(session: Session, folder: Path) -> None:
    jobs = [
        job("base"),
        job("one", "1"),
        job("two", "2", [256, *b"x" * 300]),
        job("long", None, [256, *b"y" * 400]),
        job("waits", "1", [256, *b"z" * 30]),
        job("waits too", "2"),
    ]
    together = run(session, *jobs)
    fresh = load(folder)
    for one in jobs:
        assert run(fresh, one)[one.job_id][0] == together[one.job_id][0], one.job_id
    fresh.close()


def test_a_long_prompt_does_not_stall_those_who_decode(folder: Path) -> None:
    session = load(folder, batch=64, prompt_chunk=16)
    session.submit(job("first", max_tokens=100))
    while not any(isinstance(event, Chunk) for event in session.step(LIMITS)):
        pass
    session.submit(job("long", None, [256, *b"y" * 400], max_tokens=1))
    for _ in range(20):
        assert [event.job_id for event in session.step(LIMITS)] == ["first"], "a token of the first with every step"
    session.close()


def test_nobody_waits_longer_for_its_adapters_turn_than_the_others_turns(folder: Path) -> None:
    session = load(folder, turn_steps=3)
    for adapter in (None, "1", "2"):
        session.submit(job(str(adapter), adapter, max_tokens=60))
    waited = dict.fromkeys(("None", "1", "2"), 0)
    for _ in range(100):
        served = {event.job_id for event in session.step(LIMITS) if isinstance(event, Chunk)}
        waited = {name: 0 if name in served else count + 1 for name, count in waited.items()}
        assert max(waited.values()) <= 2 * 3
    session.close()


def test_a_cancel_within_a_step_ends_the_step_and_harms_no_other(folder: Path) -> None:
    """Asked from another thread while the prompt is read; whether it comes in time or not, the others' answers stay."""
    session, fresh = load(folder, batch=512), load(folder, batch=512)
    alone = run(fresh, job("other"))["other"][0]
    fresh.close()
    long = job("long", None, [256, *b"y" * 480])
    for attempt in range(5):
        session.submit(job("other"))
        session.submit(long)
        timer = threading.Timer(0.0005 * attempt, session.interrupt, ["long"])
        timer.start()
        session.step(LIMITS)
        timer.join()
        assert session.cancel("long")
        tokens: list[int] = []
        ended = False
        while not ended:
            for event in session.step(LIMITS):
                ended = isinstance(event, Done)
                tokens += event.tokens if isinstance(event, Chunk) else []
        assert tokens[-10:] == alone[-10:]
    session.close()


def test_an_interrupted_step_does_nothing_and_the_next_one_does_it(folder: Path) -> None:
    session = load(folder)
    fresh = run(session, job("x"))["x"][0]
    assert not session.interrupt("x"), "nothing to interrupt between two steps"
    session._context.stop()  # type: ignore[attr-defined]  # what `interrupt` does within a step: too late, so forgotten
    assert run(session, job("x"))["x"][0] == fresh
    session.close()


def test_finish_ends_an_answer_as_it_stands(session: Session) -> None:
    session.submit(job("x", max_tokens=100))
    for _ in range(5):
        session.step(LIMITS)
    done = session.finish("x")
    assert done is not None
    assert (done.outputs["finish"], done.outputs["completion_tokens"]) == ("stop", 5)
    assert session.finish("x") is None
    assert session.step(LIMITS) == []


def test_a_schema_and_a_grammar_are_followed(session: Session) -> None:
    vocabulary = session.vocabulary()
    assert vocabulary is not None

    def text(**params: Any) -> str:
        tokens, _ = run(session, job("x", max_tokens=80, temperature=1.5, seed=5, **params))["x"]
        return b"".join(vocabulary.piece(token) for token in tokens).decode()

    assert text(grammar='root ::= "yes" | "no"') in {"yes", "no"}
    assert text(json_schema={"enum": ["a", "b"]}) in {'"a"', '"b"'}


def test_a_penalty_on_what_was_said_changes_what_is_said(session: Session) -> None:
    plain, _ = run(session, job("x", max_tokens=40))["x"]
    other, _ = run(session, job("x", max_tokens=40, repeat_penalty=1.8))["x"]
    assert len(set(other)) > len(set(plain))


def test_logprobs_are_those_of_the_model(session: Session) -> None:
    session.submit(job("x", max_tokens=3, logprobs=True))
    found = [event for _ in range(5) for event in session.step(LIMITS) if isinstance(event, Chunk)]
    assert len(found) == 3
    assert all(-10.0 < logprob < 0.0 for chunk in found for logprob in chunk.logprobs)


@pytest.mark.parametrize(
    ("row", "params", "says"),
    [
        ([256] * 500, {"max_tokens": 20}, "500 tokens with 20 to come cannot run: a sequence holds 512"),
        ([9999], {"max_tokens": 1}, "token ids go to 319"),
        ([-1], {"max_tokens": 1}, "token ids"),
        ([256], {"max_tokens": 1, "grammar": "nonsense"}, "does not parse"),
        ([256], {"max_tokens": 1, "json_schema": {"$ref": "#/x"}}, "no schema"),
    ],
)
def test_what_can_never_run_is_refused_before_it_reaches_the_library(
    session: Session, row: list[int], params: dict[str, Any], says: str
) -> None:
    with pytest.raises(BackendError, match=says):
        session.submit(Job("x", None, [row], params))
    assert run(session, job("y"))["y"][0]


def test_adapters_that_do_not_fit_are_refused_in_words(session: Session, folder: Path, tmp_path: Path) -> None:
    wide = tiny_gguf.write_adapter(tmp_path / "wide.gguf", shape=tiny_gguf.Shape(width=256))
    other = tiny_gguf.write_adapter(tmp_path / "other.gguf", arch="qwen2")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((folder / "1.gguf").read_bytes()[:-4000])
    for path, says in (
        (wide, "does not fit this model"),
        (other, "of architecture qwen2, a LoRA adapter of llama is needed"),
        (folder / "model.gguf", "no adapter"),
        (cut, "cut short"),
        (tmp_path / "absent.gguf", "No such file"),
    ):
        with pytest.raises(AdapterRefused, match=says):
            session.attach(AdapterSource("x", str(path), ""))
    assert run(session, job("y", "1"))["y"][0], "the others are as before"


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_model_cut_short_is_refused_before_it_is_loaded(folder: Path, tmp_path: Path, keep: float) -> None:
    data = (folder / "model.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BackendError, match="cannot load the model: it is cut short"):
        registry.create("llamacpp").load({"model": str(path)}, {})


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_memory_is_as_predicted_within_a_tenth(tmp_path: Path, kv_type: str) -> None:
    from edge_agent.backends.gguf import PROCESS_BYTES, predict, read_header

    need("llama_cpp", "gguf")
    shape = tiny_gguf.Shape(width=512, layers=4, heads=8, kv_heads=4, feed_forward=1536, vocab=8192, context=4096)
    path = tiny_gguf.write_model(tmp_path / "model.gguf", shape)
    session = registry.create("llamacpp").load(
        {"model": str(path)}, {"max_tokens": 2048, "sequences": 2, "kv_type": kv_type}
    )
    told, predicted = session.footprint(), predict(read_header(path), 2048, 2, kv_type, 256)
    session.close()
    assert told.cache_bytes == pytest.approx(predicted.cache_bytes, rel=0.01)
    assert sum(told) == pytest.approx(sum(predicted) - PROCESS_BYTES, rel=0.1)


@pytest.mark.parametrize(
    ("option", "limits", "expected"),
    [
        (0, Limits(8, 4), (4, 4)),
        (2, Limits(8, 4), (2, 4)),
        (2, Limits(8, 4, decode_threads=3), (3, 4)),
        (0, Limits(8, 4, decode_threads=1), (1, 4)),
        (3, Limits(8, 2, decode_threads=3), (2, 2)),
    ],
)
def test_threads_of_prompt_and_decode_are_set_apart_and_the_grant_caps_both(
    folder: Path, option: int, limits: Limits, expected: tuple[int, int]
) -> None:
    session = load(folder, decode_threads=option)
    session.submit(job("a", prompt=PROMPT))
    session.step(limits)
    assert threads(session) == expected, "while the prompt is read"
    session.step(limits)
    assert threads(session) == (expected[0], expected[0]), "a call of several tokens that only decodes"
    session.step(Limits(8, 1, limits.decode_threads))
    assert threads(session) == (1, 1), "lowered in mid-answer, without a reload"
    session.close()


def threads(session: Session) -> tuple[int, int]:
    """(decode, prompt) as llama.cpp has them."""
    context = session._context  # type: ignore[attr-defined]
    return context._api.llama_n_threads(context.handle), context._api.llama_n_threads_batch(context.handle)
