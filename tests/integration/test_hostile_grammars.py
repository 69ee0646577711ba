"""Hostile grammars, regular expressions and schemas beside good clients: a real generator over a real broker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from edge_agent.base.limits import MIB
from edge_agent.protocol.messages import Reply, StreamChunk
from edge_agent.sensors.memory import read_held
from tests.support import generators
from tests.support.agents import AgentProcess, running
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need
from tests.support.storms import StormClient

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
GOOD: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Hi", "stream": True, "params": {"max_tokens": 24, "temperature": 1.0}},
    "schema": {"prompt": "Hi", "params": {"max_tokens": 160, "json_schema": SCHEMA}},
}


def optional(count: int) -> str:
    return "qxqxqxqx" + "a?" * count + "b"


def doubling(count: int, last: str) -> str:
    rules = [f"r{number} ::= r{number + 1} r{number + 1}" for number in range(count)]
    return "\n".join(["root ::= r0", *rules, f'r{count} ::= "{last}"?'])


HOSTILE: dict[str, dict[str, Any]] = {
    "330 optional letters": {"grammar": 'root ::= "qxqxqxqx" ' + '"a"? ' * 330 + '"b"'},
    "3000 optional letters": {"grammar": 'root ::= "qxqxqxqx" ' + '"a"? ' * 3_000 + '"b"'},
    "330 in a schema": {"json_schema": {"type": "string", "pattern": f"^{optional(330)}$"}},
    "3000 in a schema": {"json_schema": {"type": "string", "pattern": f"^{optional(3000)}$"}},
    "1500 in schemas": {"json_schema": {"items": {"pattern": f"^{optional(1500)}$"}, "type": "array", "minItems": 1}},
    "rules that double 18 times": {"grammar": doubling(18, "b")},
    "Lark that doubles": {
        "grammar": "\n".join(["start: x0", *(f"x{n}: x{n + 1} x{n + 1}" for n in range(40)), 'x40: "a"?'])
    },
    "deep brackets": {"grammar": "root ::= " + "(" * 4000 + '"a"' + ")" * 4000},
    "deep brackets in a regex": {"regex": "(" * 8000 + "a" + ")" * 8000},
    "deep recursion": {"grammar": 'root ::= "(" root ")" | root root | ""'},
    "itself": {"grammar": "root ::= root"},
    "a deep schema": {"json_schema": json.loads('{"items":' * 60 + "{}" + "}" * 60)},
    "a huge enum": {"json_schema": {"enum": [f"word-{number:05d}-{'x' * (number % 7)}" for number in range(1000)]}},
    "alternatives of alternatives": {
        "json_schema": {"allOf": [{"anyOf": [{"pattern": f"a{n}"}, {"pattern": f"b{n}"}, {}]} for n in range(15)]}
    },
    "overlapping patterns": {
        "json_schema": {"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(10, 60)]}
    },
    "nested counts": {"regex": "((a{0,1000}){0,1000}){0,1000}b"},
    "nested repetitions": {"regex": "((((a*)*b)*c)*d)*" + "(x+x+)+y" * 20},
    "an import": {"grammar": "%import common.NOTHING\nstart: NOTHING"},
    "an import of a file": {"grammar": '%import "/etc/passwd"\nstart: "a"'},
    "settings": {"grammar": '%llguidance {"no_forcing": false}\nstart: "a"'},
    "tokens that are none": {"grammar": "start: <[0-4000000000]>"},
    "intersections": {"grammar": "start: A\nA: " + " & ".join(f"/(.*{chr(97 + n)}.{{20}})+/" for n in range(8))},
}  # fmt: skip


FLOODED = ("200", "422 the grammar ", "422 grammars of this", "422 another grammar of", "503 a grammar or schema of")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    need("llama_cpp", "gguf", "llguidance")
    folder = tmp_path_factory.mktemp("grammars")
    with Mosquitto(folder) as broker:
        found = AgentProcess(folder / "device", broker.port, backends=("llamacpp",))
        found.install(generators.base_package(folder, sequences=4))
        found.broker = broker  # type: ignore[attr-defined]
        with running(found):
            yield found


def last(client: StormClient, request_id: str) -> Reply | StreamChunk:
    (final,) = client.finals(request_id)
    return final


async def ask_on(client: StormClient, kind: str, ends: asyncio.Event) -> list[tuple[Reply | StreamChunk, float]]:
    """A good client, until the hostile ones are answered: its final messages, and the seconds that each took."""
    found = []
    while not ends.is_set() or len(found) < 3:
        began_s = time.monotonic()
        request_id = client.ask(GOOD[kind])
        await client.ended([request_id])
        found.append((last(client, request_id), time.monotonic() - began_s))
    return found


def test_hostile_grammars_are_answered_with_sentences_and_take_nothing_from_others(agent: AgentProcess) -> None:
    async def whole() -> dict[str, str]:
        async with AsyncExitStack() as stack:

            async def client(name: str) -> StormClient:
                return await stack.enter_async_context(StormClient(agent.broker.options(name), agent.device))  # type: ignore[attr-defined]

            good = {kind: await client(f"good-{kind}") for kind in GOOD}
            warm = [(one, one.ask(GOOD[kind])) for kind, one in good.items()]
            for one, request_id in warm:
                await one.ended([request_id])
            workers = agent.workers()
            ends = asyncio.Event()
            asking = {kind: asyncio.create_task(ask_on(one, kind, ends)) for kind, one in good.items()}
            hostile = {name: await client(f"hostile-{number}") for number, name in enumerate(HOSTILE)}
            asked = {
                name: one.ask({"prompt": "Hi", "params": {"max_tokens": 32, **HOSTILE[name]}})
                for name, one in hostile.items()
            }
            for name, one in hostile.items():
                await one.ended([asked[name]])
            flooded = await flood(await client("hostile-flood"))
            ends.set()
            for kind, task in asking.items():
                answers = await task
                assert {answer.status if isinstance(answer, Reply) else 200 for answer, _ in answers} == {200}, kind
                if kind == "schema":
                    texts = [answer.result["text"] for answer, _ in answers if isinstance(answer, Reply)]  # type: ignore[index]
                    assert {tuple(json.loads(text)) for text in texts} == {("on",)}
                print(f"{kind}: {len(answers)} answers, at most {max(took_s for _, took_s in answers):.1f} s")
            assert agent.workers() == workers, "the worker that served before serves now"
            alone, with_grammars = (
                read_held(Path("/"), workers[0], 0.0, children=also)["pss"].value or 0.0 for also in (False, True)
            )
            assert with_grammars > alone + 8 * MIB, "what is charged to the worker holds its grammar process"
            beside = await client("beside")
            request_id = beside.ask(GOOD["schema"])
            await beside.ended([request_id])
            assert getattr(last(beside, request_id), "status", 0) == 200, "nobody else is banned"
            costly = hostile["rules that double 18 times"]
            again = costly.ask(GOOD["schema"])
            await costly.ended([again])
            assert sentence(last(costly, again)).startswith("503 a grammar or schema of this client cost model 'tiny'")
            # How many are taken before all are held against the client depends on how fast this machine is.
            assert all(one.startswith(FLOODED) for one in flooded), flooded
            return {name: sentence(last(one, asked[name])) for name, one in hostile.items()}

    found = asyncio.run(whole())
    for name, said in found.items():
        print(f"{name}: {said}")
        assert said == "200" or said.startswith(("422 ", "400 the JSON nests deeper")), name
        assert not any(word in said for word in ("RecursionError", "ValueError", "Traceback", "recursion depth")), said
        assert len(said) < 300
    assert "nested parentheses" in found["deep brackets in a regex"]
    assert found["rules that double 18 times"].startswith("422 the grammar takes more than")
    for name in (
        "itself",
        "an import",
        "an import of a file",
        "settings",
        "3000 optional letters",
        "3000 in a schema",
        "deep brackets",
    ):
        assert found[name].startswith("422"), name


async def flood(client: StormClient) -> list[str]:
    """What a client gets for twenty grammars at once, of which each takes a tenth of a second to be refused."""
    asked = [
        client.ask({"prompt": "Hi", "params": {"max_tokens": 8, "grammar": doubling(12, chr(0x100 + at))}})
        for at in range(20)
    ]
    await client.ended(asked)
    return sorted(sentence(last(client, one)) for one in asked)


def sentence(final: Reply | StreamChunk) -> str:
    assert isinstance(final, Reply)
    return str(final.status) if final.status == 200 else f"{final.status} {final.reason}"
