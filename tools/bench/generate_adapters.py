"""The cost of a generator's adapters inside one process: round robin, a single switch, and against merged weights."""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench import random_gguf
from edge_agent.backends.api import AdapterSource, Chunk, Done, Limits, Session, SessionJob
from edge_agent.backends.llamacpp.backend import LlamaBackend
from edge_agent.backends.llamacpp.session import LlamaSession

ADAPTERS, RANK = 8, 8
TARGETS = ("attn_q", "attn_v")
ANSWER_TOKENS = 16
SWITCHED_TOKENS, MERGED_TOKENS = 48, 32
WARM_STEPS = 4

Row = tuple[str, object]


def by_turns(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """Eight adapters whose popularity follows Zipf's law, against one adapter and against none, in rounds."""
    names = _names(ADAPTERS)
    session = _session(model, folder, options, names)
    # Zipf's law: the k-th most popular adapter is used 1/k as often as the first.
    mixed: list[str | None] = [name for rank, name in enumerate(names, 1) for _ in range(round(12 / rank))]
    random.Random(1).shuffle(mixed)
    lines: dict[str, list[str | None]] = {"many": mixed, "one": ["a0"] * len(mixed), "base": [None] * len(mixed)}
    served: dict[str, list[float]] = {name: [] for name in lines}
    switches, steps, gaps_s = 0, 0, list[float]()
    for _ in range(options.rounds):
        for name, wanted in lines.items():
            before = session.switches
            elapsed_s, taken, found_s = _serve(session, wanted, options.threads)
            served[name].append(elapsed_s)
            if name == "many":
                switches, steps = switches + session.switches - before, steps + taken
                gaps_s += found_s
    session.close()
    tokens, count = len(mixed) * ANSWER_TOKENS, len(gaps_s)
    many, one, base = (tokens / statistics.median(times) for times in served.values())
    pairs = [zip(served[name], served["many"], strict=True) for name in ("one", "base")]
    shares = [statistics.median(other_s / many_s for other_s, many_s in pair) for pair in pairs]
    gaps_s.sort()
    gaps = ", ".join(f"{gaps_s[place]:.3f}" for place in (count // 2, math.ceil(0.99 * count) - 1, count - 1))
    return [
        (f"{ADAPTERS} adapters by Zipf's law, {len(mixed)} requests at once, tokens/s", round(many, 1)),
        ("the same requests on one adapter; on the base (as a merged model)", f"{one:.1f}; {base:.1f}"),
        ("throughput of the adapters against one; against the base", "; ".join(f"{share:.3f}" for share in shares)),
        (
            "switches of the adapter per second; steps per switch",
            f"{switches / sum(served['many']):.1f}; {steps / switches:.1f}",
        ),
        ("from one token of a request to its next: p50, p99, longest, s", gaps),
    ]


def switching(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """A decode step after a switch against one without, alternately: one sequence each on 2 and on 8 adapters."""
    rows: list[Row] = []
    for count in (2, ADAPTERS):
        names = _names(count)
        place = folder / str(count)
        place.mkdir()
        session = _session(model, place, options, names, turn_steps=2)
        for name in names:
            prompt = [256, *f"switch {name}".encode()]
            params = {"max_tokens": SWITCHED_TOKENS, "temperature": 0.0}
            session.submit(SessionJob(name, name, [prompt], params))
        kept_s, switched_s = _timed_steps(session, count, options.threads)
        session.close()
        kept_ms, switched_ms = (1e3 * statistics.median(times) for times in (kept_s, switched_s))
        took_ms = switched_ms - kept_ms
        text = f"{kept_ms:.2f}, {switched_ms:.2f} ms ({len(kept_s)}, {len(switched_s)} steps)"
        rows.append((f"{count} adapters, rank {RANK}: decode step without a switch, with one", text))
        rows.append((f"{count} adapters: a switch takes", f"{took_ms:+.2f} ms, {took_ms / kept_ms:+.3f} of a step"))
    return rows


def _timed_steps(session: LlamaSession, jobs: int, threads: int) -> tuple[list[float], list[float]]:
    """(seconds of steps without a switch, with a switch), of the steps that decode one token."""
    kept_s: list[float] = []
    switched_s: list[float] = []
    done, seen = 0, dict[str, int]()
    while done < jobs:
        before, started_s = session.switches, time.perf_counter()
        events = session.step(Limits(jobs, threads))
        elapsed_s = time.perf_counter() - started_s
        done += sum(isinstance(event, Done) for event in events)
        tokens = [event.job_id for event in events if isinstance(event, Chunk)]
        for name in tokens:
            seen[name] = seen.get(name, 0) + 1
        # The first steps read prompts and warm up threads and caches; the last ones have fewer adapters.
        if len(tokens) == 1 and seen[tokens[0]] > WARM_STEPS and not done:
            (kept_s if session.switches == before else switched_s).append(elapsed_s)
    return kept_s, switched_s


def merged(folder: Path, model: Path, options: argparse.Namespace) -> list[Row]:
    """An adapter applied at run time against the same one merged into the weights, alternately: 1 and 4 sequences."""
    lora = random_gguf.Lora(0, RANK, TARGETS)
    whole = random_gguf.write_model(folder / "merged.gguf", options.shape, dtype=options.dtype, merged=lora)
    apart = _session(model, folder, options, ["a0"])
    inside = _session(whole, folder, options, [])
    rows: list[Row] = []
    for sequences in (1, 4):
        speeds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            pair = [
                sequences * MERGED_TOKENS / _decode_s(session, adapter, sequences, options.threads)
                for session, adapter in ((apart, "a0"), (inside, None))
            ]
            speeds.append((pair[0], pair[1]))
        unmerged, within = (statistics.median(column) for column in zip(*speeds, strict=True))
        ratio = statistics.median(one / other for one, other in speeds)
        title = f"{sequences} at once, rank {RANK} on q and v: decode unmerged, merged, tokens/s"
        rows.append((title, f"{unmerged:.1f}, {within:.1f}: {ratio:.3f}"))
    apart.close()
    inside.close()
    return rows


def _decode_s(session: Session, adapter: str | None, sequences: int, threads: int) -> float:
    """Seconds for `MERGED_TOKENS` tokens of each sequence after its first one."""
    for number in range(sequences):
        prompt = [256, *f"{number} {time.perf_counter()}".encode()]
        session.submit(
            SessionJob(str(number), adapter, [prompt], {"max_tokens": MERGED_TOKENS + 1, "temperature": 0.0})
        )
    begun: set[str] = set()
    while len(begun) < sequences:
        begun |= {event.job_id for event in session.step(Limits(sequences, threads)) if isinstance(event, Chunk)}
    started_s, done = time.perf_counter(), 0
    while done < sequences:
        done += sum(isinstance(event, Done) for event in session.step(Limits(sequences, threads)))
    return time.perf_counter() - started_s


def _serve(session: Session, wanted: Sequence[str | None], threads: int) -> tuple[float, int, list[float]]:
    """(seconds, steps, seconds between consecutive tokens of a request)."""
    started_s, steps, done = time.perf_counter(), 0, 0
    gaps_s: list[float] = []
    seen: dict[str, float] = {}
    for number, adapter in enumerate(wanted):
        prompt = [256, *f"request {number} {time.perf_counter()}".encode()]
        params = {"max_tokens": ANSWER_TOKENS, "seed": number, "temperature": 0.0}
        session.submit(SessionJob(str(number), adapter, [prompt], params))
    while done < len(wanted):
        events = session.step(Limits(8, threads))
        steps += 1
        now_s = time.perf_counter()
        for event in events:
            done += isinstance(event, Done)
            if isinstance(event, Chunk):
                if event.job_id in seen:
                    gaps_s.append(now_s - seen[event.job_id])
                seen[event.job_id] = now_s
    return time.perf_counter() - started_s, steps, gaps_s


def _session(
    model: Path, folder: Path, options: argparse.Namespace, names: Sequence[str], turn_steps: int = 4
) -> LlamaSession:
    """A session with random adapters of `RANK` on q and v."""
    settings = {"max_tokens": 256, "sequences": ADAPTERS, "turn_steps": turn_steps}
    session = LlamaBackend().load({"model": str(model)}, settings)
    if not isinstance(session, LlamaSession):
        raise SystemExit("bench: this is not the session that counts its switches")
    for number, name in enumerate(names):
        path = random_gguf.write_adapter(folder / f"{name}.gguf", number, RANK, TARGETS, options.shape)
        session.attach(AdapterSource(name, str(path), ""))
    return session


def _names(count: int) -> list[str]:
    return [f"a{number}" for number in range(count)]
