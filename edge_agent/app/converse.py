"""`edge-agent infer --stream` and `chat`: ask a generator over MQTT and show its answer as it comes."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.app.ask import DeviceTarget, check_deadline, connected, target
from edge_agent.base.errors import RequestError
from edge_agent.mqtt.client import RequestClient
from edge_agent.protocol.messages import Reply

INTERRUPTED = 130
Show = Callable[[str], None]
Read = Callable[[], str | None]


def stream(
    arguments: argparse.Namespace, model: str, body: Mapping[str, Any], deadline_s: float, show: Show
) -> dict[str, Any]:
    """One request, its text given to `show` part by part; the final message as plain values, its `text` the whole.

    A refusal, or no answer, becomes a reply with a status other than 200 and its reason.
    """
    check_deadline(deadline_s)
    place = target(arguments)

    async def run() -> dict[str, Any]:
        async with connected(place) as client:
            return await _answer(client, place, model, {**body, "stream": True}, deadline_s, show)

    return asyncio.run(run())


def chat(arguments: argparse.Namespace, read: Read, show: Show, told: Show) -> int:
    """A conversation: lines from `read` until it gives None, answers to `show`, what went wrong to `told`.

    Returns the exit code: 1 when the last question got no answer.
    """
    check_deadline(arguments.deadline)
    place = target(arguments)
    start: list[dict[str, str]] = []
    if arguments.system:
        start.append({"role": "system", "content": arguments.system})

    async def run() -> int:
        messages, failed = list(start), False
        async with connected(place) as client:
            while (line := await _line(read)) is not None:
                if line.strip() == "/new":
                    messages = list(start)
                elif line.strip():
                    asked = len(messages) + 1
                    messages = await _turn(client, [*messages, {"role": "user", "content": line}])
                    failed = len(messages) < asked
        return 1 if failed else 0

    async def _turn(client: RequestClient, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The conversation with the answer, or without the question where there was none."""
        body: dict[str, Any] = {"messages": list(messages), "stream": True, "params": generation_params(arguments)}
        if arguments.adapter is not None:
            body["adapter"] = arguments.adapter
        final = await _answer(client, place, arguments.model, body, arguments.deadline, show)
        show("\n")
        if final["status"] != 200:
            full = "; /new begins another conversation" if final["status"] == 422 and len(messages) > 1 else ""
            told(f"{final['status']}: {final.get('reason', 'no reason given')}{full}")
            return list(messages[:-1])
        return [*messages, {"role": "assistant", "content": final["text"]}]

    return asyncio.run(run())


def generation_params(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parameters of generation that were given on the command line."""
    names = ("max_tokens", "temperature", "top_p", "seed", "stop")
    found = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in found.items() if value not in (None, [])}


async def _line(read: Read) -> str | None:
    """A line of whoever sits there. Ctrl-C ends the program, though a thread still waits for one and cannot be told."""
    try:
        return await asyncio.to_thread(read)
    except asyncio.CancelledError:
        print(flush=True)
        os._exit(INTERRUPTED)


async def _answer(
    client: RequestClient, place: DeviceTarget, model: str, body: Mapping[str, Any], deadline_s: float, show: Show
) -> dict[str, Any]:
    text = ""
    try:
        async for part in client.stream(place.device, model, body, deadline_s):
            if isinstance(part, Reply):
                fields: dict[str, Any] = msgspec.to_builtins(part)
                return fields
            if part.seq == 0 and text:
                show("\n[the device began anew]\n")
                text = ""
            show(part.text)
            text += part.text
            if part.done:
                return {**msgspec.to_builtins(part), "status": 200, "text": text}
    except RequestError as error:
        return {"status": error.status, "reason": error.reason}
    return {"status": 408, "reason": "the stream ended without a final message"}
