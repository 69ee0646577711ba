"""What structured answers cost: masks of a vocabulary of 150,000 tokens, memory, and decode speed with a schema.

    python -m bench.grammar [--words N] [--shape NAME] [--rounds N] [--threads N] [--json FILE]

Masks are timed twice: in the grammar process's own code by CPU time, and as the worker sees them, from taking a token
to the mask, by wall time. Decode speed is a ratio within one run: answers with and without a schema take turns; by wall
time, by the worker's CPU time, and by that of the worker and the grammar process together.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import random_gguf
from edge_agent.backends import registry
from edge_agent.backends.api import Chunk, Done, GrammarReady, Limits, Session, SessionJob
from edge_agent.backends.llamacpp.grammar_client import FollowedGrammar, GrammarClient, Phase
from edge_agent.backends.llamacpp.grammar_process import SPECIAL, GrammarRefused, Grammars, State

SYLLABLES = ["th", "er", "on", "an", "re", "he", "in", "ed", "nd", "ha", "at", "en", "es", "of", "or", "nt", "ea", "ti"]
SYLLABLES += [
    "to",
    "it",
    "st",
    "io",
    "le",
    "is",
    "ou",
    "ar",
    "as",
    "de",
    "rt",
    "ve",
    "ing",
    "tion",
    "é",
    "ö",
    "я",
    "中",
]
SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {
            "room": {"enum": ["hall", "kitchen", "attic"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "note": {"type": "string", "maxLength": 120},
            "when": {"type": "string", "format": "date-time"},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,12}$"}},
        },
        "required": ["room", "note", "tags"],
        "additionalProperties": {"type": "number"},
    },
    {"type": "array", "items": {"type": "string"}, "minItems": 3},
    {"type": "string", "minLength": 60, "maxLength": 400},
    {},
)
TOKENS = 120
ANSWERS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "room": {"enum": ["hall", "kitchen", "attic"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "notes": {"type": "array", "items": {"type": "string"}, "minItems": 200},
        },
        "required": ["room", "level", "notes"],
        "additionalProperties": False,
    },
    "least_length": {"type": "array", "items": {"type": "string", "minLength": 20}, "minItems": 50},
}
"""Schemas of which no answer ends within `TOKENS`. A least length keeps llguidance from the masks that it has ready for
texts in quotes: until it is reached every mask is computed over the whole vocabulary."""


def words(count: int) -> list[bytes]:
    """A vocabulary like those of language models: bytes, syllables with and without a blank, quotes, numbers."""
    rng = random.Random(1)
    found = {bytes([number]): None for number in range(256)}
    while len(found) < count - 1:
        word = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) + rng.choice(
            ["", "", *"abcdefghijklmnopqrstuvwxyz"]
        )
        shape = rng.choice(["{}", " {}", " {}", '"{}', '{}"', '{}":', '"{}":', "{}.", str(rng.randrange(10_000))])
        found[shape.format(word).encode()] = None
    return [*found, SPECIAL + b"<end>"]


class BareVocabulary:
    """What `GrammarClient` needs of a model."""

    def __init__(self, tokens: list[bytes]) -> None:
        self._tokens = tokens

    def words(self) -> tuple[list[bytes], list[int]]:
        """As `LlamaModel.words`."""
        return self._tokens, [len(self._tokens) - 1]


def _choices(mask: bytes, tokens: Sequence[bytes], rng: random.Random) -> int | None:
    """An allowed token; of many, one at random."""
    number = int.from_bytes(mask, "little")
    for _ in range(40):
        token = rng.randrange(len(tokens) - 1)
        if number >> token & 1:
            return token
    allowed = [token for token in range(len(tokens) - 1) if mask[token >> 3] >> (token & 7) & 1]
    return rng.choice(allowed) if allowed else None


def masks(tokens: list[bytes]) -> dict[str, float]:
    """CPU milliseconds of a mask (taking the token before it counts), and of compiling."""
    grammars, rng = Grammars(tokens, [len(tokens) - 1]), random.Random(2)
    took_ms, compile_ms = list[float](), list[float]()
    for number, schema in enumerate(SCHEMAS * 3):
        began_s = time.process_time()
        grammars.open(number, "json_schema", json.dumps(schema), [])
        compile_ms.append(1000.0 * (time.process_time() - began_s))
        mask, state = grammars.mask(number)
        for _ in range(TOKENS):
            token = _choices(mask, tokens, rng) if state == State.GOES else None
            if token is None:
                break
            began_s = time.process_time()
            try:
                grammars.take(number, token)
                mask, state = grammars.mask(number)
            except GrammarRefused:
                break
            took_ms.append(1000.0 * (time.process_time() - began_s))
    return {"tokens": len(took_ms), **_spread("mask_ms", took_ms), "compile_ms_p50": statistics.median(compile_ms)}


def as_the_worker_sees(tokens: list[bytes]) -> dict[str, float]:
    """Wall milliseconds of the start and from a token to its mask; MiB (PSS) that the process holds."""
    client, rng = GrammarClient(BareVocabulary(tokens)), random.Random(2)  # type: ignore[arg-type]
    took_ms = list[float]()
    began_s = time.perf_counter()
    start_ms = 0.0
    for schema in SCHEMAS:
        grammar = client.begin("json_schema", json.dumps(schema))
        _wait(client, grammar)
        start_ms = start_ms or 1000.0 * (time.perf_counter() - began_s)
        client.open(grammar)
        for _ in range(TOKENS):
            _wait(client, grammar)
            token = _choices(grammar.mask, tokens, rng) if grammar.phase is Phase.GOES else None
            if token is None:
                break
            asked_s = time.perf_counter()
            client.take(grammar, token)
            _wait(client, grammar)
            took_ms.append(1000.0 * (time.perf_counter() - asked_s))
    held = Path(f"/proc/{client.process}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]
    client.end()
    return {"start_ms": start_ms, "held_mib": int(held) / 1024.0, **_spread("wait_ms", took_ms)}


def _wait(client: GrammarClient, grammar: FollowedGrammar) -> None:
    while grammar.phase in (Phase.CHECKED, Phase.AWAITED):
        client.pump(1.0)


def _spread(name: str, values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    places = (("p50", 0.5), ("p99", 0.99))
    return {f"{name}_{place}": ordered[int(len(ordered) * share)] for place, share in places} | {
        f"{name}_max": ordered[-1]
    }


def decoding(shape: str, rounds: int, threads: int) -> dict[str, float]:
    """Tokens per second with a schema, as a share of those without: by wall time, by the worker's own CPU time, and by
    that of both processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        random_gguf.write_model(path, shape=random_gguf.SHAPES[shape], dtype="q8_0")
        session = registry.create("llamacpp").load({"model": str(path)}, {"max_tokens": 512, "decode_threads": threads})
        plain, found = list[tuple[float, ...]](), dict[str, float]()
        followed = {name: list[tuple[float, ...]]() for name in ANSWERS}
        asked = [(plain, {}), *((followed[name], {"json_schema": schema}) for name, schema in ANSWERS.items())]
        for number in range(rounds + 1):
            for times, params in asked:
                took = _answer(session, threads, {**params, "temperature": 0.0, "seed": number})
                if number:
                    times.append(took)
        session.close()
    found["decode_ms_per_token"] = 1000.0 * statistics.median(one[0] for one in plain) / (TOKENS - 2)
    for name, taken in followed.items():
        for place, clock in enumerate(("wall", "cpu", "cpu_both")):
            shares = sorted(one[place] / other[place] for one, other in zip(plain, taken, strict=True))
            found |= {f"{name}_share_{clock}": statistics.median(shares), f"{name}_share_{clock}_least": shares[0]}
    return found


def _now_s() -> tuple[float, float, float]:
    """Seconds of wall time, of this process's CPU time, and of that with its children's."""
    cpu_s = children_s = time.process_time()
    for child in Path("/proc/self/task").glob("*/children"):
        for pid in child.read_text().split():
            children_s += time.clock_gettime((~int(pid) << 3) | 2)  # clock_getcpuclockid(3), which Python does not have
    return time.perf_counter(), cpu_s, children_s


def _answer(session: Session, threads: int, params: dict[str, Any]) -> tuple[float, ...]:
    """Seconds as `_now_s` has them from the second token to the last."""
    session.submit(SessionJob("x", None, [[1, *range(40, 60)]], {"max_tokens": TOKENS, **params}))
    count, began = 0, _now_s()
    while True:
        for event in session.step(Limits(4, threads)):
            if isinstance(event, Chunk):
                count += 1
                began = _now_s() if count == 2 else began
            elif isinstance(event, GrammarReady):
                continue
            elif not isinstance(event, Done) or count != TOKENS:
                raise AssertionError(f"{event} after {count} tokens")
            else:
                return tuple(end - start for start, end in zip(began, _now_s(), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="bench.grammar", description=__doc__)
    parser.add_argument("--words", type=int, default=150_000)
    parser.add_argument("--shape", choices=tuple(random_gguf.SHAPES), default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    tokens = words(options.words)
    found = {
        **as_the_worker_sees(tokens),
        **masks(tokens),
        **decoding(options.shape, options.rounds, options.threads),
    }
    for name, value in found.items():
        print(f"{name:<20}{value:>10.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
