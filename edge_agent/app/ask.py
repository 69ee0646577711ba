"""`edge-agent infer`, `chat`, `load` and `unload`: requests to a running agent over MQTT, and their output."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app import wiring
from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError, UsageError, brief
from edge_agent.base.limits import DEADLINE_MAX_S, TEXT_BYTES
from edge_agent.base.named_file import open_named
from edge_agent.base.units import bytes_text
from edge_agent.client.request_client import RequestClient
from edge_agent.config.fields import Unfit, specs
from edge_agent.config.load import DEFAULT_PATH, default_readable, device_id, load
from edge_agent.config.secrets import service_secrets_hidden
from edge_agent.config.settings import MqttSettings, Settings
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import Reply
from edge_agent.protocol.topics import NAME

CONNECT_S = 4.0
ORDER_S = 120.0
"""A large model takes its time to load."""
INTERRUPTED = 130
OK = 200
UNPROCESSABLE = 422
Show = Callable[[str], None]
Read = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class DeviceTarget:
    """Which broker, which device."""

    options: MqttOptions
    prefix: str
    device: str


def target(arguments: argparse.Namespace) -> DeviceTarget:
    """The settings' broker and device, unless the command line names others. Raises UsageError for impossible names.

    Who may not read the settings of the service asks without them.
    """
    wiring.quiet_rooms()
    _check_broker(arguments)
    config: Path | None = arguments.config
    hidden = config is None and not default_readable()
    settings = load(Path(os.devnull) if hidden else config)
    # A broker that only the command line names never gets the service's password.
    own = arguments.host in (None, settings.mqtt.host)
    options = wiring.mqtt_options(settings, "", wiring.operator_environment(config) if own else None)
    _note_what_is_hidden(arguments, settings, hidden)
    if arguments.host is not None:
        options = replace(options, host=arguments.host)
    if arguments.port is not None:
        options = replace(options, port=arguments.port)
    if arguments.protocol is not None:
        options = replace(options, protocol=wiring.PROTOCOLS[arguments.protocol])
    device = arguments.device or device_id(settings)
    for what, name in (("the model's", arguments.model), ("the device's", device)):
        if name is not None and not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be {what} name: letters, digits and . _ : @ - are taken, at most 64")
    return DeviceTarget(options, settings.mqtt.prefix, device)


def _check_broker(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a broker that the settings would not take either."""
    for spec in specs(MqttSettings):
        given = getattr(arguments, spec.name) if spec.name in ("host", "port") else None
        if given is None:
            continue
        try:
            spec.checked(given, Path())
        except Unfit as unfit:
            remedy = "the port is named by --port" if spec.name == "host" else None
            raise UsageError(f"--{spec.name} is {brief(given)}; needed is {unfit}", None, remedy) from None


def _note_what_is_hidden(arguments: argparse.Namespace, settings: Settings, hidden: bool) -> None:
    """Say what this user may not read of the service, where the command line does not replace it."""
    if hidden and (arguments.host is None or arguments.device is None):
        missing = " and ".join(name for name in ("--host", "--device") if getattr(arguments, name[2:]) is None)
        note = (
            f"{DEFAULT_PATH} may not be read by this user; without {missing}, {settings.mqtt.host} and this host's name"
        )
        print(f"edge-agent: {note} are taken (or use sudo, or join the group edge-agent)", file=sys.stderr)
    elif settings.mqtt.username is not None and settings.mqtt.password_file is None and service_secrets_hidden():
        print("edge-agent: the service's password may be read by root alone; use sudo to ask with it", file=sys.stderr)


@contextlib.asynccontextmanager
async def connected(place: DeviceTarget) -> AsyncIterator[RequestClient]:
    """A connected client. Raises BrokerError after a few seconds, because a person waits at the terminal."""
    client = RequestClient(place.options, place.prefix, [place.device])
    await client.connect(CONNECT_S)
    try:
        yield client
    finally:
        await client.close()


def check_deadline(deadline_s: float) -> None:
    """Raise UsageError for a deadline outside the range that agents accept."""
    if not 0 < deadline_s <= DEADLINE_MAX_S:
        raise UsageError(f"--deadline is {deadline_s:g}; seconds from 0 to {DEADLINE_MAX_S:g} are needed")


def ask(arguments: argparse.Namespace, model: str, body: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
    """One request; the reply as plain values. No answer becomes a reply of status 408 or 503 with the reason."""
    check_deadline(deadline_s)
    place = target(arguments)

    async def run() -> dict[str, Any]:
        async with connected(place) as client:
            reply = await client.infer(place.device, model, body, deadline_s)
            fields: dict[str, Any] = msgspec.to_builtins(reply)
            return fields

    try:
        return asyncio.run(run())
    except RequestError as error:
        return {"status": error.status, "reason": error.reason}


def order(arguments: argparse.Namespace, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One command to the device (`cmd/{name}`); its reply as plain values, also where none came."""
    place = target(arguments)

    async def run() -> dict[str, Any]:
        async with connected(place) as client:
            return await client.command(place.device, name, body, ORDER_S)

    try:
        return asyncio.run(run())
    except RequestError as error:
        return {"status": error.status, "reason": error.reason}


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
    """A conversation: lines from `read` until it gives None, answers to `show`, errors to `told`.

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
        """The conversation with the answer, or without the question where no answer came."""
        body: dict[str, Any] = {"messages": list(messages), "stream": True, "params": generation_params(arguments)}
        if arguments.adapter is not None:
            body["adapter"] = arguments.adapter
        final = await _answer(client, place, arguments.model, body, arguments.deadline, show)
        show("\n")
        if final["status"] != OK:
            too_long = final["status"] == UNPROCESSABLE and len(messages) > 1
            too_long = final["status"] == UNPROCESSABLE and len(messages) > 1
            full = "; /new begins another conversation" if too_long else ""
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
    """A line from `read`, which blocks a thread. Ctrl-C ends the process, because that thread cannot be interrupted."""
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
                if part.status == OK:  # the stream had ended while nobody listened: its whole text comes at once
                    fields.update(seq=0, text=fields["result"]["text"])  # as a stream of one part
                    show(fields["text"].removeprefix(text))
                return fields
            if part.seq == 0 and text:
                show("\n[the device began anew]\n")
                text = ""
            show(part.text)
            text += part.text
            if part.done:
                return {**msgspec.to_builtins(part), "status": OK, "text": text}
    except RequestError as error:
        return {"status": error.status, "reason": error.reason}
    return {"status": 408, "reason": "the stream ended without a final message"}


def context_of(path: Path) -> str:
    """The text of a file that is asked about. Raises UsageError for one that cannot be read, or is too long."""
    try:
        with open_named(path) as file:
            data = file.read(TEXT_BYTES + 1)
        if len(data) > TEXT_BYTES:
            raise UsageError(f"it is longer than {bytes_text(TEXT_BYTES)}, which a request takes", str(path))
        return data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        raise UsageError("it is no UTF-8 text", str(path)) from error


def form_hint(reply: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """For a refusal because a generator was asked by `text`, or a classifier of pairs by one text: the options that ask
    it; empty for every other reply."""
    if reply.get("cause") == Cause.TEXT_PAIR.value:
        given = "text_pair" in body or "text_pairs" in body
        return "" if given else "; on the command line: --pair TEXT, of answers --context TEXT"
    refused = reply.get("cause") == Cause.WRONG_FORM.value and ("text" in body or "texts" in body)
    return "; on the command line: --prompt, --chat or --stream" if refused else ""


def answer_text(reply: dict[str, Any], hint: str = "") -> str:
    """A reply in words: results and where the time went, or the status, its reason and a hint."""
    if reply["status"] != OK:
        reason = reply.get("reason", "no reason given")
        retry = f" (try again in {reply['retry_after_s']} s)" if reply.get("retry_after_s") else ""
        return f"{reply['status']}: {reason}{hint}{retry}"
    timing = reply["timing"]
    if "first_token_ms" in timing:
        return _generated_text(reply)
    results = reply["result"] if isinstance(reply["result"], list) else [reply["result"]]
    lines = [_result_text(result) for result in results]
    lines.append(
        f"  {timing['total_ms']:.1f} ms on the device (queue {timing['queue_ms']:.1f}, tokenise "
        f"{timing['tokenize_ms']:.1f}, compute {timing['compute_ms']:.1f}), batch of {reply['batch']}, "
        f"{reply['variant']}"
    )
    return "\n".join(lines)


def _generated_text(reply: dict[str, Any]) -> str:
    """A generated answer (a streamed one was shown already), how it ended, and its pace."""
    timing, result = reply["timing"], reply.get("result") or reply
    speed = f", {timing['tokens_per_s']:.1f} tokens/s" if "tokens_per_s" in timing else ""
    shown = [] if "seq" in reply else [result["text"]]
    usage = result["usage"]
    figures = (
        f"  {result['finish_reason']} after {usage['completion_tokens']} tokens; prompt of {usage['prompt_tokens']}, "
        f"first token after {timing['first_token_ms']:.0f} ms{speed}"
    )
    return "\n".join([*shown, figures] if shown else ["", figures])


def _result_text(result: dict[str, Any]) -> str:
    if "embedding" in result:
        start = ", ".join(f"{value:.3f}" for value in result["embedding"][:4])
        return f"embedding of {len(result['embedding'])}: [{start}, ...]"
    if "spans" in result:
        found = [f"{one['label']}={one['text']!r} ({one['start']}-{one['end']}, {one['score']:.2f})"
                 for one in result["spans"]]  # fmt: skip
        return ", ".join(found or ["no spans"]) + (" (text was cut)" if result["truncated"] else "")
    if "answer" in result:
        sure = f"no answer {result['no_answer_score']:.2f}"
        if result["answer"] is None:
            return f"no answer in the context ({sure}; the best span {result['score']:.2f})"
        return f"{result['answer']}  ({result['start']}-{result['end']}, {result['score']:.2f}; {sure})"
    others = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["labels"][1:])
    best = result["labels"][0]["label"]
    # Below the threshold the label is the out-of-scope one, where the task names one; the best class is said as well.
    unsure = f" (unsure: best is {best})" if result["label"] != best else ""
    out = " (out of scope)" if result["out_of_scope"] and not unsure else ""
    cut = " (text was cut)" if result["truncated"] else ""
    # Rounded up, a score just below the threshold would look as if it reached it.
    score = f"{result['score']:.6f}"[:-4] if result["out_of_scope"] else f"{result['score']:.2f}"
    return f"{result['label']}  {score}{unsure}{out}{cut}" + (f"   then {others}" if others else "")
