"""A generated answer's whole way: a real broker, the real daemon, llama.cpp in a real worker, a real client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from edge_agent.base.errors import RequestError
from edge_agent.base.shown_text import many_lines
from edge_agent.client import Client, RawPrompt
from edge_agent.client.request_client import RequestClient
from edge_agent.protocol.messages import Reply, StreamChunk, Timing, Usage
from tests.support import asyncapi, generators, tiny_gguf
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need

DOCUMENT = asyncapi.load()
LONG = {"max_tokens": 400, "temperature": 1.5, "seed": 7, "grammar": "root ::= [a-z ] root"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    need("llama_cpp", "gguf")
    folder = tmp_path_factory.mktemp("generator")
    with Mosquitto(folder) as broker:
        found = generators.installed(folder, broker)
        found.broker = broker  # type: ignore[attr-defined]
        with running(found):
            yield found


@asynccontextmanager
async def client(agent: AgentProcess, name: str = "tester") -> AsyncIterator[RequestClient]:
    async with RequestClient(agent.broker.options(name), devices=[agent.device]) as asker:  # type: ignore[attr-defined]
        yield asker


def run(agent: AgentProcess, body: Callable[[RequestClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with client(agent) as asker:
            await body(asker)

    asyncio.run(whole())


async def collect(
    asker: RequestClient, agent: AgentProcess, body: dict[str, Any], deadline_s: float = 20.0
) -> list[StreamChunk | Reply]:
    found = [part async for part in asker.stream(agent.device, "tiny", {"stream": True, **body}, deadline_s)]
    for part in found:
        asyncapi.check(DOCUMENT, "reply" if isinstance(part, Reply) else "streamChunk", msgspec.json.encode(part))
    seqs = [part.seq for part in found if isinstance(part, StreamChunk)]
    assert seqs == list(range(len(seqs)))
    assert sum(isinstance(part, Reply) or part.done for part in found) == 1, "exactly one final message"
    return found


def text_of(parts: list[StreamChunk | Reply]) -> str:
    return "".join(part.text for part in parts if isinstance(part, StreamChunk))


def prompt(**params: Any) -> dict[str, Any]:
    return {"prompt": "Once upon a time", "params": {"max_tokens": 24, "seed": 1, **params}}


def test_a_prompt_is_answered_whole_with_what_it_took(agent: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        reply = await asker.infer(agent.device, "tiny", prompt(), 20)
        assert (reply.status, reply.variant) == (200, "f16")
        assert reply.result["finish_reason"] in {"length", "stop"}
        assert reply.result["usage"]["prompt_tokens"] == len("Once upon a time") + 1
        assert reply.result["usage"]["completion_tokens"] <= 24
        assert reply.timing is not None
        assert isinstance(reply.timing.first_token_ms, float)
        assert reply.timing.total_ms >= reply.timing.first_token_ms >= (reply.timing.prompt_ms or 0.0)  # type: ignore[operator]

    run(agent, body)


def test_the_parts_of_a_stream_are_the_whole_answer(agent: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        whole = await asker.infer(agent.device, "tiny", {"prompt": "Hi", "params": LONG}, 20)
        parts = await collect(asker, agent, {"prompt": "Hi", "params": LONG})
        assert text_of(parts) == whole.result["text"]
        assert len(parts) > 2
        last = parts[-1]
        assert isinstance(last, StreamChunk)
        assert (last.finish_reason, last.seed) == ("length", 7)
        assert last.usage.completion_tokens == 400  # type: ignore[union-attr]
        assert last.energy.joules is None  # type: ignore[union-attr]

    run(agent, body)


def test_the_last_part_says_what_the_answer_took(agent: AgentProcess) -> None:
    asked = "The last part of a stream"

    async def body(asker: RequestClient) -> None:
        # Every text begins with the same token, so one of a new prompt's may be known.
        for cached, count in (({0, 1}, 400), ({len(asked)}, 400), ({len(asked)}, 1)):
            started_s = time.monotonic()
            parts = await collect(asker, agent, {"prompt": asked, "params": {**LONG, "max_tokens": count}})
            elapsed_ms = (time.monotonic() - started_s) * 1000.0
            last = parts[-1]
            assert isinstance(last, StreamChunk)
            assert isinstance(last.usage, Usage)
            assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(asked) + 1, count)
            assert last.usage.cached_tokens in cached
            for part in parts[:-1]:
                assert isinstance(part, StreamChunk)
                assert (part.usage, part.timing, part.finish_reason) == (UNSET, UNSET, UNSET)
            timing = last.timing
            assert isinstance(timing, Timing)
            assert 0.0 <= timing.queue_ms < timing.first_token_ms <= timing.total_ms < elapsed_ms  # type: ignore[operator]
            assert 0.0 < timing.prompt_ms < timing.first_token_ms  # type: ignore[operator]
            whole_ms = timing.queue_ms + timing.tokenize_ms + timing.prompt_ms  # type: ignore[operator]
            assert timing.first_token_ms == pytest.approx(whole_ms, abs=0.01)
            if count == 1:
                assert timing.tokens_per_s is UNSET, "one token has no speed"
                continue
            assert isinstance(timing.tokens_per_s, float)
            decode_ms = (count - 1) / timing.tokens_per_s * 1000.0
            assert 0.0 < timing.compute_ms < timing.total_ms
            assert timing.first_token_ms + decode_ms <= timing.total_ms + 1.0  # type: ignore[operator]

    run(agent, body)


def test_an_answered_stream_that_is_asked_for_again_comes_in_one_reply(agent: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        first = await collect(asker, agent, {**prompt(), "id": "again"}, 60)
        again = await collect(asker, agent, {**prompt(), "id": "again"}, 60)
        assert isinstance(again[0], Reply)
        assert again[0].result["text"] == text_of(first)

    run(agent, body)


def test_messages_go_through_the_models_template_and_an_adapter_answers_otherwise(agent: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "params": {"max_tokens": 16}}
        texts = []
        for adapter in (None, "one", "two"):
            reply = await asker.infer(agent.device, "tiny", {**asked, "adapter": adapter}, 20)
            assert reply.status == 200, reply
            assert reply.result["usage"]["prompt_tokens"] == len("\x01user\nHello\x01\n\x01assistant\n") + 1
            texts.append(reply.result["text"])
        assert len(set(texts)) == 3
        # Of a client of its own, since what is in the cache already is rounded otherwise.
        async with client(agent, "fresh") as fresh:
            reply = await fresh.infer(agent.device, "tiny", asked, 20)
        assert reply.result["text"] == texts[0], "the adapters left nothing behind"

    run(agent, body)


def test_many_streams_at_once_each_get_their_own_answer(agent: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        def wanted(number: int) -> dict[str, Any]:
            params = {"max_tokens": 60, "grammar": f'root ::= "{number}" [a-z] [a-z]+'}
            return {"prompt": f"Number {number}", "adapter": (None, "one", "two")[number % 3], "params": params}

        streams = await asyncio.gather(*(collect(asker, agent, wanted(number), 60) for number in range(12)))
        for number, parts in enumerate(streams):
            assert text_of(parts).startswith(str(number))
        assert max(getattr(parts[-1], "batch", 1) for parts in streams) > 1, "sequences share a batch"

    run(agent, body)


def test_json_is_what_the_schema_says_and_a_stop_string_never_shows(agent: AgentProcess) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}

    async def body(asker: RequestClient) -> None:
        reply = await asker.infer(agent.device, "tiny", prompt(json_schema=schema, max_tokens=200), 20)
        assert isinstance(json.loads(reply.result["text"])["on"], bool)
        abc = prompt(grammar='root ::= "abcdefgh" [x]*', stop=["ef", "zz"])
        for parts in [await collect(asker, agent, abc)]:
            assert text_of(parts) == "abcd"
            assert getattr(parts[-1], "finish_reason", "") == "stop"

    run(agent, body)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": "x"}, 422, "takes prompt or messages"),
        ({"prompt": "x", "adapter": "nobody"}, 404, "no adapter 'nobody'"),
        ({"prompt": "x" * 600}, 422, "601 tokens and 1 are to come, 602 in all; the context holds 512"),
        ({"prompt": "x" * 400, "params": {"max_tokens": 200}}, 422, "601 in all; the context holds 512"),
        ({"prompt": "x", "params": {"temperature": 9}}, 422, "temperature is 9; 0 to 2"),
        ({"prompt": "x", "params": {"beams": 2}}, 422, "unknown parameter 'beams'"),
        ({"prompt": "x", "params": {"grammar": "root ::= ((("}}, 422, "does not parse"),
        (
            {"prompt": "x", "params": {"json_schema": {"type": "robot"}}},
            422,
            "json_schema at /type: `type` is not followed",
        ),
        ({"prompt": "x", "params": {"json_schema": "{}"}}, 422, "json_schema"),
        ({"messages": []}, 422, "messages: the list is empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 422, "robot"),
    ],
)
def test_bad_questions_get_a_status_and_a_sentence(
    agent: AgentProcess, body: dict[str, Any], status: int, words: str
) -> None:
    async def ask(asker: RequestClient) -> None:
        for question in (body, {**body, "stream": True}) if "text" not in body else (body,):
            reply = await asker.infer(agent.device, "tiny", question, 10)
            assert (reply.status, words in str(reply.reason)) == (status, True), reply
        assert (await asker.infer(agent.device, "tiny", prompt(), 20)).status == 200

    run(agent, ask)


def test_logprobs_join_to_the_text_whole_and_streamed(agent: AgentProcess) -> None:
    """Bytes are tokens here: the character is two of them, and the stop text four, which no entry shows."""
    asked = prompt(grammar='root ::= "é" [a-b]{3} "STOP"', logprobs=True, stop="STOP")

    async def ask(asker: RequestClient) -> None:
        reply = await asker.infer(agent.device, "tiny", asked, 20)
        parts = await collect(asker, agent, asked)
        last = msgspec.to_builtins(parts[-1])
        for text, tokens in ((reply.result["text"], reply.result["logprobs"]), (text_of(parts), last["logprobs"])):
            assert b"".join(bytes(one["bytes"]) for one in tokens) == text.encode()
            assert re.fullmatch("é[ab]{3}", text)
            assert [one["bytes"] for one in tokens[:2]] == [[0xC3], [0xA9]]
            assert len(tokens) == 5
            assert all(one["id"] >= 0 and one["logprob"] < 0.0 for one in tokens)

    run(agent, ask)


TALK = {"messages": [{"role": "user", "content": "x"}]}
LOGPROBS: list[tuple[dict[str, Any], dict[str, Any], str | None, int | None]] = [
    ({}, {"max_tokens": 1, "grammar": 'root ::= "é"'}, "", 1),  # half a character is no text
    ({}, {"max_tokens": 2, "grammar": 'root ::= "é"'}, "é", 2),
    ({}, {"max_tokens": 3, "grammar": 'root ::= "é🚪"'}, "é", 3),
    ({}, {"max_tokens": 1, "grammar": 'root ::= "a"'}, "a", 1),
    ({}, {"stop": "a", "grammar": 'root ::= "a"'}, "", 0),
    ({}, {"stop": ["éa", "b"], "grammar": 'root ::= "xéb"'}, "xé", 3),
    ({}, {"stop": ["abc"], "grammar": 'root ::= "xabab"'}, "xabab", 5),  # what may begin a stop text is given out
    (TALK, {"stop": "é", "grammar": 'root ::= "ab" "é"'}, "ab", 2),
    (TALK, {"json_schema": {"const": "é🚪"}}, '"é🚪"', 8),
    *(
        (body, {"temperature": 1.9, "seed": seed, "max_tokens": 1 + seed}, None, None)
        for seed in range(4)
        for body in ({}, TALK)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "params", "text", "count"), LOGPROBS)
def test_logprobs_join_to_the_text_wherever_it_ends(
    agent: AgentProcess, body: dict[str, Any], params: dict[str, Any], text: str | None, count: int | None
) -> None:
    asked = {**(body or {"prompt": "x"}), "params": {**params, "logprobs": True}}

    async def ask(asker: RequestClient) -> None:
        reply = await asker.infer(agent.device, "tiny", asked, 20)
        assert reply.status == 200, reply
        parts = await collect(asker, agent, asked)
        last = msgspec.to_builtins(parts[-1])
        for found, tokens in (
            (reply.result["text"], reply.result["logprobs"]),
            (text_of(parts), last.get("logprobs")),
        ):
            joined = b"".join(bytes(one["bytes"]) for one in tokens)
            assert joined.decode("utf-8", "replace") == found  # a random model writes bytes that are no characters
            assert text is None or (found, len(tokens)) == (text, count)
            assert all(one["logprob"] <= 0.0 for one in tokens)

    run(agent, ask)


def test_a_control_token_in_a_message_is_plain_text(agent: AgentProcess) -> None:
    """Bytes are tokens here: as plain text it costs as many as it has bytes, as a token it would cost one."""

    async def ask(asker: RequestClient) -> None:
        used = []
        for content in ("x", f"x{tiny_gguf.END}"):
            body = {"messages": [{"role": "user", "content": content}], "params": {"max_tokens": 1}}
            reply = await asker.infer(agent.device, "tiny", body, 20)
            assert reply.status == 200, reply
            used.append(reply.result["usage"]["prompt_tokens"])
        assert used[1] - used[0] == len(tiny_gguf.END)

    run(agent, ask)


def edge_agent(agent: AgentProcess, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent", arguments[0], "--config", str(agent.config), *arguments[1:]]
    return subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_line_shows_an_answer_as_it_comes(agent: AgentProcess) -> None:
    streamed = edge_agent(agent, "infer", "tiny", "--stream", "--seed", "1", "--max-tokens", "9", "Once")
    whole = edge_agent(agent, "infer", "tiny", "--prompt", "--seed", "1", "--max-tokens", "9", "Once", "--json")
    assert (streamed.returncode, whole.returncode) == (0, 0), streamed.stderr + whole.stderr
    text = json.loads(whole.stdout)["result"]["text"]  # as it was generated: the terminal is shown no control character
    assert streamed.stdout.startswith(many_lines(text))
    assert "tokens; prompt of 5, first token after" in streamed.stdout
    wrong = edge_agent(agent, "infer", "tiny", "--stream", "--temperature", "7", "Once")
    assert (wrong.returncode, "temperature is 7.0; 0 to 2" in wrong.stderr) == (1, True), wrong.stderr
    assert edge_agent(agent, "infer", "tiny", "--stream", "one", "two").returncode == 2


def test_a_load_of_streams_says_how_fast_tokens_come(agent: AgentProcess) -> None:
    asked = ("--seconds", "1.5", "--clients", "3", "--max-tokens", "24", "--seed", "3", "--json")
    done = edge_agent(agent, "bench", "tiny", "--prompt", "--text", "Once upon", *asked)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures["statuses"]) == {"200"}
    assert figures["requests"] == sum(figures["finished"].values()) >= 3
    assert 0 < figures["first_token_ms"]["p50"] <= figures["p50_ms"] <= figures["p99_ms"]
    assert figures["decode_tokens_per_s"]["p50"] >= figures["decode_tokens_per_s"]["p5"] > 0
    assert 1 <= figures["completion_tokens"] <= 24
    assert len("1: Once upon") < figures["prompt_tokens"] < len("1000000: Once upon")
    assert figures["cached_tokens"] < 6, "no request finds the prompt of another one"
    seconds = figures["requests"] / figures["per_second"]
    assert figures["tokens_per_s"] * seconds == pytest.approx(
        figures["completion_tokens"] * figures["requests"], rel=0.1
    )
    mixed = edge_agent(agent, "bench", "tiny", "--chat", *asked, "--adapter", "one", "--adapter", "nobody")
    counted = json.loads(mixed.stdout)
    assert set(counted["statuses"]) == {"200", "404"}, "what was refused is counted, what was served is timed"
    assert "no adapter 'nobody'" in counted["reasons"]["404"]
    assert counted["prompt_tokens"] > figures["prompt_tokens"], "messages go through the template"
    shown = edge_agent(agent, "bench", "tiny", "--prompt", "--seconds", "0.5", "--max-tokens", "9", "--deadline", "20")
    assert "first token at the client: p50 " in shown.stdout
    assert "ended by: " in shown.stdout
    wrong = edge_agent(agent, "bench", "tiny", "--seconds", "50", "--clients", "1")
    assert (wrong.returncode, "422: " in wrong.stdout) == (1, True), "a text is nothing for a generator, whatever time"


def test_a_conversation_remembers_what_was_said(agent: AgentProcess) -> None:
    once = edge_agent(agent, "chat", "tiny", "--max-tokens", "6", "--system", "Be brief.", said="Hello\n")
    assert once.returncode == 0, once.stderr
    said = "Hello\nAnd now?\n/new\nHello\n"
    talk = edge_agent(agent, "chat", "tiny", "--max-tokens", "6", "--system", "Be brief.", said=said)
    assert talk.stdout.startswith(once.stdout)
    assert talk.stdout.endswith(once.stdout)
    assert len(talk.stdout) > 2 * len(once.stdout)
    wrong = edge_agent(agent, "chat", "nobody", said="Hello\n")
    assert (wrong.returncode, wrong.stderr[:22]) == (1, "404: no model 'nobody'")


ENDLESS = {"max_tokens": 4000, "grammar": "root ::= [a-z ] root"}
COUNTED = 100


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """A model with one sequence, in which an answer of `ENDLESS` takes seconds: whoever comes next waits for it."""
    need("llama_cpp", "gguf")
    folder = tmp_path_factory.mktemp("lone")
    shape = tiny_gguf.Shape(width=512, layers=8, heads=8, kv_heads=4, feed_forward=1536, context=4096)
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "device", broker.port, backends=("llamacpp",))
        agent.config.write_text(agent.config.read_text().replace("[worker]\n", "[worker]\nthreads = 1\n"))
        agent.install(generators.base_package(folder, shape=shape, context=4096, sequences=1))
        agent.broker = broker  # type: ignore[attr-defined]
        with running(agent):
            run(agent, lambda asker: _answered(asker, agent))
            while len(agent.workers()) > 1:  # the child that is asked for the runtimes at the start
                time.sleep(0.05)
            yield agent


def compute_s(agent: AgentProcess) -> float:
    """Processor time of the worker so far: what it computes shows here, however busy the machine is."""
    (worker,) = agent.workers()
    fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def endless_s(asker: RequestClient, agent: AgentProcess) -> float:
    """Processor time that an answer of `ENDLESS` would take, by a part of one."""
    before_s = compute_s(agent)
    counted = {**ENDLESS, "max_tokens": COUNTED}
    assert (await asker.infer(agent.device, "tiny", {"prompt": "Hi", "params": counted}, 60)).status == 200
    return (compute_s(agent) - before_s) * ENDLESS["max_tokens"] / COUNTED  # type: ignore[operator]


def test_a_cancelled_stream_ends_at_once_and_its_sequence_is_the_next_ones(lone: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        whole_s = await endless_s(asker, lone)
        asked = {"prompt": "Hi", "params": ENDLESS, "stream": True, "id": "to-cancel"}
        parts: list[StreamChunk | Reply] = []
        waits: list[asyncio.Task[Reply]] = []
        async for part in asker.stream(lone.device, "tiny", asked, 60):
            parts.append(part)
            if len(parts) == 1:
                waits = [asyncio.create_task(asker.infer(lone.device, "tiny", prompt(), 60)) for _ in range(3)]
                await asyncio.sleep(0.1)
                assert not any(task.done() for task in waits), "the only sequence is taken"
                before_s = compute_s(lone)
                assert asker.cancel(lone.device, "to-cancel")
        assert isinstance(parts[-1], Reply)
        assert parts[-1].status == 499
        assert {reply.status for reply in await asyncio.gather(*waits)} == {200}
        assert compute_s(lone) - before_s < whole_s / 4, "the worker went on with what nobody waits for"

    run(lone, body)


def test_a_deadline_in_mid_stream_ends_it_with_what_there_is(lone: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        whole_s = await endless_s(asker, lone)
        before_s = compute_s(lone)
        stopped = lone.log.count("stream-stopped")
        parts = await collect(asker, lone, {"prompt": "Hi", "params": ENDLESS}, 1.5)
        assert getattr(parts[-1], "finish_reason", None) == "deadline", parts[-1]
        assert getattr(parts[-1], "usage", None).completion_tokens > 0  # type: ignore[union-attr]
        assert lone.log.count("stream-stopped") == stopped + 1
        assert (await asker.infer(lone.device, "tiny", prompt(), 60)).status == 200
        assert compute_s(lone) - before_s < 1.5 + whole_s / 4, "the worker went on after the deadline"

    run(lone, body)


def test_a_client_that_leaves_frees_its_sequence_for_who_waits(lone: AgentProcess) -> None:
    """The broker says that nobody listens, and the sequence stops."""

    async def body(asker: RequestClient) -> None:
        whole_s = await endless_s(asker, lone)
        before = lone.log.count("nobody listens there")
        async with client(lone, "leaver") as leaver:
            leaver.cancel = lambda _device, _id: False  # type: ignore[method-assign]  # it is gone, not polite
            asked = {"prompt": "Hi", "params": ENDLESS, "stream": True}
            async for _ in leaver.stream(lone.device, "tiny", asked, 60):
                break
            waits = asyncio.create_task(asker.infer(lone.device, "tiny", prompt(), 60))
            await asyncio.sleep(0.1)
            before_s = compute_s(lone)
        assert (await waits).status == 200
        assert compute_s(lone) - before_s < whole_s / 4, "the worker went on with what nobody hears"
        assert lone.log.count("nobody listens there") > before

    run(lone, body)


def test_clients_with_endless_answers_under_many_names_do_not_keep_another_out(lone: AgentProcess) -> None:
    """Four of them on one sequence: it is answered after turns of theirs, long before one of their answers ends."""

    async def body(asker: RequestClient) -> None:
        async with contextlib.AsyncExitStack() as stack:
            ended: list[str] = []

            async def endless(name: str, begun: asyncio.Event) -> None:
                hog = await stack.enter_async_context(client(lone, name))
                asked = {"prompt": f"{name} asks", "params": ENDLESS, "stream": True, "id": name}
                try:
                    async for part in hog.stream(lone.device, "tiny", asked, 300):
                        begun.set()
                        if isinstance(part, Reply):
                            ended.append(f"{name}: {part.status} {part.reason}")
                finally:
                    hog.cancel(lone.device, name)

            begun = [asyncio.Event() for _ in range(4)]
            tasks = [asyncio.create_task(endless(f"hog-{number}", one)) for number, one in enumerate(begun)]
            await asyncio.gather(*(one.wait() for one in begun))
            assert not ended, "each of them has begun its answer on the one sequence, and none has ended it"
            for _ in range(3):
                assert (await asker.infer(lone.device, "tiny", prompt(), 120)).status == 200
            assert not ended
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(lone, body)


def test_a_broker_that_goes_away_frees_the_sequence_and_is_served_on_its_return(lone: AgentProcess) -> None:
    broker: Mosquitto = lone.broker  # type: ignore[attr-defined]

    async def listen() -> tuple[float, float]:
        """Processor times: of a whole answer, and of the worker when the broker was killed."""
        before = lone.log.count("the broker went away")
        async with client(lone, "listener") as asker:
            whole_s = await endless_s(asker, lone)
            asked = {"prompt": "Hi", "params": ENDLESS, "stream": True}
            async for _ in asker.stream(lone.device, "tiny", asked, 60):
                broker.kill()
                break
            killed_s = compute_s(lone)
            until_s = time.monotonic() + 20
            while lone.log.count("the broker went away") == before and time.monotonic() < until_s:
                await asyncio.sleep(0.05)
        assert lone.log.count("the broker went away") > before
        return whole_s, killed_s

    whole_s, killed_s = asyncio.run(listen())
    broker.start()
    run(lone, lambda asker: _answered(asker, lone))
    assert compute_s(lone) - killed_s < whole_s / 4, "the worker went on with what nobody hears"


async def _answered(asker: RequestClient, agent: AgentProcess) -> None:
    for _ in range(40):
        try:
            assert (await asker.infer(agent.device, "tiny", prompt(), 5)).status == 200
        except RequestError:  # the agent is not back at the broker yet
            await asyncio.sleep(0.25)
        else:
            return
    raise AssertionError("no answer after the broker's return")


def test_a_worker_killed_in_mid_stream_ends_the_stream_once_and_serves_the_others(agent: AgentProcess) -> None:
    async def body(asker: RequestClient) -> None:
        killed = 0
        for _ in range(5):
            parts = []
            asked = {"prompt": "Hi", "params": LONG, "stream": True}
            other = asyncio.create_task(asker.infer(agent.device, "tiny", prompt(), 30))
            async for part in asker.stream(agent.device, "tiny", asked, 30):
                parts.append(part)
                if len(parts) == 1:
                    for pid in agent.workers():
                        os.kill(pid, signal.SIGKILL)
            last = parts[-1]
            if isinstance(last, Reply):
                killed += 1
                assert last.status == 500
                assert "died" in str(last.reason)
            assert (await other).status in {200, 500}
        assert killed > 0
        assert (await asker.infer(agent.device, "tiny", prompt(), 30)).status == 200

    run(agent, body)


def test_a_client_that_reads_no_further_withdraws_its_request(lone: AgentProcess) -> None:
    """Also where somebody else listens to everything, so that the broker has no reason to say that nobody does."""

    async def body(asker: RequestClient) -> None:
        whole_s = await endless_s(asker, lone)
        before_s = compute_s(lone)
        async for _ in asker.stream(lone.device, "tiny", {"prompt": "Hi", "params": ENDLESS, "stream": True}, 60):
            break
        assert (await asker.infer(lone.device, "tiny", prompt(), 60)).status == 200
        assert compute_s(lone) - before_s < whole_s / 4, "the worker went on with what nobody reads"

    run(lone, body)


def test_the_client_librarys_stream_ends_with_the_whole_answer(agent: AgentProcess) -> None:
    with Client(agent.broker.options(""), agent.device) as edge:  # type: ignore[attr-defined]
        parts = list(edge.stream("tiny", "Once upon a time", max_tokens=12, seed=3))
        answer = parts[-1].answer
        assert answer is not None
        assert answer.text == "".join(part.text for part in parts)
        assert answer.generation.usage.completion_tokens <= 12
        whole = edge.ask("tiny", RawPrompt("Once upon a time"), max_tokens=12, seed=3)
        assert whole.text == answer.text
        for _part in edge.stream("tiny", "Once upon a time", **LONG):
            break  # whoever leaves the loop withdraws the request: the sequence is free for the next one
        assert edge.ask("tiny", RawPrompt("Once"), max_tokens=2).generation.finish_reason in {"length", "stop"}
