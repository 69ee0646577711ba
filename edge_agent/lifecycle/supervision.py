"""The daemon's side of systemd: sd_notify(3) over its datagram socket, without a library, and signals.

`SystemdNotifier` implements `agent.ports.Notifier`.

READY means (docs/decisions/0062): the settings hold, the store is open and recovered, the connection to the
broker is being attempted, and every resident model was tried. A broker that is away delays nothing and is no failure.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, MutableMapping

log = logging.getLogger(__name__)

STATUS_CHARS = 200
Health = Callable[[], str | None]
"""Returns what is wrong with the process, or None when it works."""


class SystemdNotifier:
    """Messages to the service manager. Without one every call does nothing; a lost message never hurts the caller."""

    def __init__(self, address: str | None, watchdog_s: float | None = None, health: Health | None = None) -> None:
        """`address`: $NOTIFY_SOCKET (a path, or '@' and an abstract name) or None. `watchdog_s`: WatchdogSec.

        `health` is called before every `watchdog()`; while it names a fault the watchdog is not fed, so that systemd
        restarts a process that runs but no longer works.
        """
        self._address = _socket_address(address)
        self._health = health
        self._fault: str | None = None
        self._failing = False
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(
        cls, env: MutableMapping[str, str] | None = None, health: Health | None = None
    ) -> SystemdNotifier:
        """Take the address and the watchdog's period out of the environment, so that children do not inherit them."""
        env = os.environ if env is None else env
        address = env.pop("NOTIFY_SOCKET", None)
        usec, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        mine = pid in ("", str(os.getpid()))
        watchdog_s = int(usec) / 1e6 if mine and usec.isdigit() and int(usec) > 0 else None
        return cls(address, watchdog_s, health)

    def ready(self) -> None:
        """Start-up is over; `systemctl start` returns."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())[:STATUS_CHARS]}")

    def watchdog(self) -> None:
        """Feed the watchdog, unless `health` names a fault."""
        fault = self._health() if self._health is not None else None
        if fault != self._fault:
            self._fault = fault
            if fault is None:
                log.info("healthy again; systemd's watchdog is fed")
            else:
                log.error("%s; systemd's watchdog is not fed until this is over", fault)
                self.status(fault)
        if fault is None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Shutdown has begun; the unit's stop timeout runs."""
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """Start-up or shutdown goes on for up to `seconds` from now; to be repeated before they are over."""
        self._send(f"EXTEND_TIMEOUT_USEC={max(0, round(seconds * 1e6))}")

    def reloading(self, monotonic_s: float) -> None:
        """The settings are being read again; `ready()` ends it. `monotonic_s` is CLOCK_MONOTONIC now."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={round(monotonic_s * 1e6)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)  # a service manager that does not read must not stop the agent
                channel.sendto(message.encode(), self._address)
        except OSError as problem:
            if not self._failing:
                log.warning("systemd cannot be notified: %s", problem.strerror)
            self._failing = True
        else:
            self._failing = False


def _socket_address(address: str | None) -> str | None:
    """The address as `socket` takes it; '@name' is the abstract name '\\0name'. Others are not served."""
    if not address:
        return None
    if address[0] == "@" and len(address) > 1:
        return f"\0{address[1:]}"
    if address[0] == "/" and len(address) > 1:
        return address
    log.warning(
        "NOTIFY_SOCKET is %r; only a path or an abstract name is understood, so systemd is not notified", address
    )
    return None


STOPPING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Signal handlers for as long as the context lasts.

        with Signals(stop=agent.stop, reload=agent.reload):
            await agent.run()

    The first stop signal calls `stop(name)` and restores the default handlers, so that a second Ctrl-C ends a shutdown
    that hangs. The handlers run in the event loop, never inside other code.
    """

    def __init__(self, stop: Callable[[str], None], reload: Callable[[], None] | None = None) -> None:
        self._stop = stop
        self._reload = reload
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Signals:
        """Install the handlers; needs a running event loop in the main thread."""
        self._loop = asyncio.get_running_loop()
        for number in STOPPING:
            self._loop.add_signal_handler(number, self._stopped_by, number)
        if self._reload is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        return self

    def __exit__(self, *exc: object) -> None:
        """Restore the default handlers."""
        self._release(*STOPPING, signal.SIGHUP)

    def _stopped_by(self, number: signal.Signals) -> None:
        self._release(*STOPPING)
        self._stop(number.name)

    def _release(self, *numbers: signal.Signals) -> None:
        if self._loop is not None and not self._loop.is_closed():
            for number in numbers:
                self._loop.remove_signal_handler(number)
