"""`edge-agent console`: serves the page, or writes it to a file for another web server.

A file of its own because it alone needs an HTTP server of the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import stat
from pathlib import Path
from types import FrameType
from urllib.parse import urlencode, urlsplit

from edge_agent.base.errors import UsageError
from edge_agent.config.load import default_readable, load
from edge_agent.console.page_server import PageServer, page

WEBSOCKETS_PORT = 9001
"""Where the examples of brokers listen for WebSockets; no port is registered for it."""


def console(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, or write the file. Raises UsageError."""
    if arguments.write is not None:
        _write(arguments.write)
        return 0
    where = address(arguments.config, arguments.broker)
    try:
        server = PageServer((arguments.listen, arguments.listen_port), page())
    except (OSError, OverflowError) as error:
        place = f"{arguments.listen}:{arguments.listen_port}"
        raise UsageError(f"cannot listen on {place}: {getattr(error, 'strerror', None) or error}", "console") from error

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with server, contextlib.suppress(KeyboardInterrupt):
        before = signal.signal(signal.SIGTERM, end)
        try:
            print(f"console on http://{arguments.listen}:{server.server_port}/#{where}; Ctrl-C ends it", flush=True)
            server.serve_forever()
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


def address(config: Path | None, broker: str | None) -> str:
    """What stands behind # in the page's address: broker and topic prefix of the settings. Raises UsageError."""
    hidden = config is None and not default_readable()
    settings = load(Path(os.devnull) if hidden else config)
    host = f"[{settings.mqtt.host}]" if ":" in settings.mqtt.host else settings.mqtt.host
    url = broker or f"ws://{host}:{WEBSOCKETS_PORT}"
    remedy = "such as ws://192.168.1.10:9001"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"{url!r} is no address of a broker for WebSockets", "--broker", remedy)
    if parts.username is not None or parts.password is not None:
        raise UsageError("a user name or password does not belong into the address", "--broker", "the page asks for it")
    return urlencode({"broker": url, "prefix": settings.mqtt.prefix}, safe="/:[]")


def _write(path: Path) -> None:
    try:
        # Without O_NONBLOCK the call itself waits for a pipe's reader.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is no plain file", os.fspath(path))
            file.truncate()
            file.write(page())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "--write") from error
    print(f"{path}: open it in a browser, or let a web server serve it")
