"""Signals of an asyncio daemon: SIGTERM and SIGINT stop it in order, SIGHUP makes it read its settings again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Signal handlers for as long as the context lasts.

        with Signals(stop=agent.stop, reload=agent.reload):
            await agent.run()

    The first stop signal calls `stop(name)` and gives the signals back their usual meaning, so that a second Ctrl-C
    ends a shutdown that hangs. The handlers run in the event loop, never inside other code.
    """

    def __init__(self, stop: Callable[[str], None], reload: Callable[[], None] | None = None) -> None:
        self._stop = stop
        self._reload = reload
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Signals:
        """Take the signals; needs a running event loop in the main thread."""
        self._loop = asyncio.get_running_loop()
        for number in STOPPING:
            self._loop.add_signal_handler(number, self._stopped_by, number)
        if self._reload is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the signals back."""
        self._release(*STOPPING, signal.SIGHUP)

    def _stopped_by(self, number: signal.Signals) -> None:
        self._release(*STOPPING)
        self._stop(number.name)

    def _release(self, *numbers: signal.Signals) -> None:
        if self._loop is not None and not self._loop.is_closed():
            for number in numbers:
                self._loop.remove_signal_handler(number)
