"""Acknowledge QoS 1 requests after their answers, within a small window, in the order of arrival.

The broker redelivers an unacknowledged request when this daemon is killed, so that its answer is not lost. Brokers stop
delivering at their in-flight limit (mosquitto: 20); overload would then wait in the broker instead of being answered
with 429. Therefore at most `HELD` requests stay unacknowledged: when more arrive, the oldest is acknowledged before its
answer. Acknowledgements must be in order (MQTT 5, 4.6.0-2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from edge_agent.protocol.envelope import Inbound

HELD = 12


class AckWindow:
    """The messages that were taken in and are not acknowledged yet."""

    def __init__(self, ack: Callable[[Inbound], None], held: int = HELD) -> None:
        self._ack = ack
        self._held = held
        self._waiting: OrderedDict[int, tuple[Inbound, bool]] = OrderedDict()

    def hold(self, message: Inbound) -> None:
        """Take a message in; it is acknowledged after `release`, or when `held` newer ones have arrived."""
        if message.ack is None:
            return
        self._waiting[message.ack] = (message, False)
        while len(self._waiting) > self._held:
            _, (oldest, _) = self._waiting.popitem(last=False)
            self._ack(oldest)
        self._drain()

    def release(self, message: Inbound) -> None:
        """Acknowledge a message that was answered, refused or dropped, as soon as all before it are."""
        if message.ack is not None and message.ack in self._waiting:
            self._waiting[message.ack] = (message, True)
            self._drain()

    def _drain(self) -> None:
        while self._waiting:
            message, released = next(iter(self._waiting.values()))
            if not released:
                return
            self._waiting.popitem(last=False)
            self._ack(message)
