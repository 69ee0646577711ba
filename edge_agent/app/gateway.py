"""`edge-agent gateway`: settings and options become an HTTP service that asks over MQTT.

A file of its own because it alone needs Starlette and uvicorn.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import stat
import sys
from pathlib import Path

from edge_agent.app.ask import CONNECT_S, check_deadline, target
from edge_agent.base.errors import UsageError
from edge_agent.base.limits import KIB
from edge_agent.base.named_file import open_named
from edge_agent.client import AsyncClient, DeviceUnavailable

TOKENS_BYTES = 64 * KIB
TOKEN_CHARACTERS = 16
"""A token may be tried again and again from the network; a shorter one could be guessed."""


def gateway(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Raises UsageError, BrokerError."""
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        raise UsageError(
            "starlette and uvicorn are not installed",
            "gateway",
            "pip install starlette uvicorn (the extra `gateway` names them)",
        )
    from edge_agent.gateway.http_service import GatewayOptions, serve

    check_deadline(arguments.deadline)
    place = target(arguments)
    device = None if arguments.all else place.device
    options = GatewayOptions(
        arguments.listen, arguments.listen_port, read_tokens(arguments.token_file), device, arguments.deadline
    )
    shown = f"[{options.host}]" if ":" in options.host else options.host

    def ready(port: int) -> None:
        whom = "all devices" if device is None else device
        print(f"gateway for {whom} on http://{shown}:{port}/v1; Ctrl-C ends it", flush=True)

    async def run() -> None:
        watched = ("+",) if device is None else (device,)
        client = AsyncClient(
            place.options, device, prefix=place.prefix, deadline_s=options.deadline_s, retries=0, devices=watched
        )
        await client.connect(CONNECT_S)
        noting = asyncio.create_task(_note_unknown(client, device))
        try:
            await serve(client, options, ready)
        finally:
            noting.cancel()
            await client.close()

    asyncio.run(run())
    return 0


async def _note_unknown(client: AsyncClient, device: str | None) -> None:
    """Say that the device has never said anything here: most likely its name is wrong."""
    if device is None:
        return
    try:
        await client.status()
    except DeviceUnavailable as error:
        note = f"{error.reason} It is served once it is there; --device names another one, --all serves all"
        print(f"edge-agent: {note}", file=sys.stderr, flush=True)


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """The tokens of a file, one a line; blank lines and lines that begin with # are passed over. Raises UsageError,
    also for a file that every user of this machine can read or change."""
    if path is None:
        return ()
    try:
        with open_named(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o007:
                text = f"{path}: every user of this machine can read or change it"
                raise UsageError(text, "--token-file", f"chmod o= {path}")
            data = file.read(TOKENS_BYTES + 1)
        lines = [line.strip() for line in data.decode("ascii").splitlines()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "--token-file") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} holds more than ASCII", "--token-file", "such as: openssl rand -hex 24") from None
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    short = [number for number, line in enumerate(lines, start=1) if line in tokens and len(line) < TOKEN_CHARACTERS]
    if short or not tokens or len(data) > TOKENS_BYTES:
        what = f"line {short[0]} is a token of less than {TOKEN_CHARACTERS} characters" if short else "it has no token"
        what = f"it is larger than {TOKENS_BYTES:,} bytes" if len(data) > TOKENS_BYTES else what
        raise UsageError(f"{path}: {what}", "--token-file", "such as: openssl rand -hex 24")
    return tokens
