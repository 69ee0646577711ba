"""`edge-agent bench`: load a running agent over MQTT and measure what its clients see."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from msgspec import UnsetType

from edge_agent.app.ask import DeviceTarget, check_deadline, connected, generation_params, target
from edge_agent.base.errors import RequestError, UsageError
from edge_agent.client.request_client import RequestClient
from edge_agent.core.latency import QuantileWindow
from edge_agent.protocol.messages import StreamChunk

QUANTILES = ("p50", "p95", "p99")
_WINDOW = 1_000_000
_TEXT_DEADLINE_S = 30.0
_STREAM_DEADLINE_S = 60.0
_WRONG = (400, 404, 413, 422)
"""Statuses of a request that would get the same answer the next time."""
_WRONG_AT_MOST = 20
"""The test ends after so many without one answer, because all of its requests are alike."""


def _samples() -> QuantileWindow:
    return QuantileWindow(_WINDOW)


@dataclass
class Streams:
    """Figures of streamed answers. First tokens and their latency are measured by the client, rates by the device."""

    first_token_ms: QuantileWindow = field(default_factory=_samples)
    tokens_per_s: QuantileWindow = field(default_factory=_samples)
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, first_s: float | None, last: StreamChunk) -> None:
        """An answer whose first text came after `first_s` (None: it had none), by its last part."""
        if first_s is not None:
            self.first_token_ms.add(first_s * 1000.0)
        if not isinstance(last.timing, UnsetType) and not isinstance(last.timing.tokens_per_s, UnsetType):
            self.tokens_per_s.add(last.timing.tokens_per_s)
        if not isinstance(last.usage, UnsetType):
            self.prompt_tokens += last.usage.prompt_tokens
            self.cached_tokens += last.usage.cached_tokens
            self.completion_tokens += last.usage.completion_tokens
        self.finished[str(last.finish_reason)] += 1

    def figures(self, elapsed_s: float) -> dict[str, Any]:
        """Means of tokens per answer; `tokens_per_s` of all clients together, `decode_tokens_per_s` of one answer."""
        count = max(1, sum(self.finished.values()))
        return {
            "tokens_per_s": round(self.completion_tokens / elapsed_s, 1),
            "first_token_ms": _rounded(self.first_token_ms.summary()),
            "decode_tokens_per_s": _rounded(
                {"p50": self.tokens_per_s.quantile(0.5), "p5": self.tokens_per_s.quantile(0.05)}
            ),
            "prompt_tokens": round(self.prompt_tokens / count, 1),
            "cached_tokens": round(self.cached_tokens / count, 1),
            "completion_tokens": round(self.completion_tokens / count, 1),
            "finished": dict(sorted(self.finished.items())),
        }


@dataclass
class Tally:
    """Results of requests: counts by status, the first reason of every status but 200, latency of those served."""

    streams: Streams | None = None
    latency_ms: QuantileWindow = field(default_factory=_samples)
    statuses: Counter[int] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def hopeless(self) -> bool:
        """True when nothing was served and, from what was refused, nothing will be."""
        return not self.statuses[200] and sum(self.statuses[status] for status in _WRONG) >= _WRONG_AT_MOST

    def served(self, total_s: float) -> None:
        """An answer that was whole after `total_s`, as the client sees it."""
        self.statuses[200] += 1
        self.latency_ms.add(total_s * 1000.0)

    def refused(self, status: int, reason: str) -> None:
        """No answer, and why."""
        self.statuses[status] += 1
        self.reasons.setdefault(str(status), reason)

    def figures(self, elapsed_s: float) -> dict[str, Any]:
        """What is printed."""
        return {
            "requests": sum(self.statuses.values()),
            "per_second": round(self.statuses[200] / elapsed_s, 1),
            **{f"{name}_ms": value for name, value in _rounded(self.latency_ms.summary()).items()},
            **({} if self.streams is None else self.streams.figures(elapsed_s)),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "reasons": self.reasons,
        }


def load_test(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keep `clients` requests open for `seconds`; see `Tally.figures` and `Streams.figures`.

    With `prompt` or `chat` the model is a generator, and answers are streamed. Every request then begins with another
    number, or all but the first would find their prompt computed already.
    """
    if arguments.prompt and arguments.chat:
        raise UsageError("a generator is asked by --prompt or by --chat, not by both")
    streams = arguments.prompt or arguments.chat
    if not streams and generation_params(arguments):
        raise UsageError("how an answer is generated is asked of generators only: add --prompt or --chat")
    usual_s = _STREAM_DEADLINE_S if streams else _TEXT_DEADLINE_S
    deadline_s = usual_s if arguments.deadline is None else float(arguments.deadline)
    check_deadline(deadline_s)
    place = target(arguments)
    tally = Tally(Streams() if streams else None)
    ask = _ask_stream if streams else _ask_text
    adapters = itertools.cycle(arguments.adapter or [None])
    numbers = itertools.count(1)

    async def client_loop(client: RequestClient, until_s: float) -> None:
        while time.monotonic() < until_s and not tally.hopeless:
            body = {**_question(arguments, next(numbers)), "adapter": next(adapters)}
            try:
                await ask(client, place, arguments.model, body, deadline_s, tally)
            except RequestError as error:
                tally.refused(error.status, error.reason)

    async def run() -> float:
        async with connected(place) as client:
            started_s = time.monotonic()
            until_s = started_s + arguments.seconds
            await asyncio.gather(*(client_loop(client, until_s) for _ in range(arguments.clients)))
            return time.monotonic() - started_s

    return tally.figures(asyncio.run(run()))


def _question(arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    if not (arguments.prompt or arguments.chat):
        return {"text": arguments.text, **({"text_pair": arguments.pair} if arguments.pair else {})}
    text = f"{number}: {arguments.text}"
    asked = {"messages": [{"role": "user", "content": text}]} if arguments.chat else {"prompt": text}
    return {**asked, "stream": True, "params": generation_params(arguments)}


async def _ask_text(
    client: RequestClient, place: DeviceTarget, model: str, body: dict[str, Any], deadline_s: float, tally: Tally
) -> None:
    started_s = time.monotonic()
    reply = await client.infer(place.device, model, body, deadline_s)
    if reply.status == 200:
        tally.served(time.monotonic() - started_s)
    else:
        tally.refused(reply.status, str(reply.reason))


async def _ask_stream(
    client: RequestClient, place: DeviceTarget, model: str, body: dict[str, Any], deadline_s: float, tally: Tally
) -> None:
    started_s = time.monotonic()
    first_s: float | None = None
    async for part in client.stream(place.device, model, body, deadline_s):
        if not isinstance(part, StreamChunk):
            tally.refused(part.status, str(part.reason))
            return
        now_s = time.monotonic() - started_s
        if part.text and first_s is None:
            first_s = now_s
        if part.done and tally.streams is not None:
            tally.served(now_s)
            tally.streams.add(first_s, part)


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 2) for name, value in values.items()}


def bench_text(figures: dict[str, Any]) -> str:
    """The figures of a load test in words."""
    lines = [f"{figures['per_second']} answers per second, {figures['requests']} requests"]
    if "200" in figures["statuses"]:
        lines.append("latency at the client: " + ", ".join(f"{at} {figures[f'{at}_ms']} ms" for at in QUANTILES))
        if "tokens_per_s" in figures:
            lines += _streams_text(figures)
    for status, count in figures["statuses"].items():
        reason = figures["reasons"].get(status)
        lines.append(f"{status}: {count}" + (f", such as: {reason}" if reason else ""))
    return "\n".join(lines)


def _streams_text(figures: dict[str, Any]) -> list[str]:
    """First tokens, pace and lengths of generated answers; '–' where no answer had any."""

    def shown(values: dict[str, float | None], unit: str = "") -> str:
        return ", ".join(f"{at} {'–' if value is None else f'{value}{unit}'}" for at, value in values.items())

    ends = ", ".join(f"{reason} {count}" for reason, count in figures["finished"].items())
    return [
        f"first token at the client: {shown(figures['first_token_ms'], ' ms')}",
        f"tokens/s: {figures['tokens_per_s']} by all clients together; of one answer, after its first token on the "
        f"device: {shown(figures['decode_tokens_per_s'])}",
        f"prompts of {figures['prompt_tokens']} tokens ({figures['cached_tokens']} of them known already), answers of "
        f"{figures['completion_tokens']}, ended by: {ends}",
    ]
