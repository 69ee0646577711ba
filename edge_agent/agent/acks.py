"""When a QoS 1 request is acknowledged: after its answer, within a small window, in the order of arrival.

An unacknowledged request is redelivered by the broker when this daemon is killed, so the answer is not lost. Brokers
stop delivering at their in-flight limit (mosquitto: 20), and then overload would pile up unseen in the broker instead
of being answered with 429; so at most `HELD` requests stay unacknowledged, and the oldest is acknowledged early when
more arrive. MQTT wants acknowledgements in order (MQTT 5, 4.6.0-2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from edge_agent.protocol.envelope import Inbound

HELD = 12


class AckWindow:
    """The requests taken but not acknowledged yet."""

    def __init__(self, ack: Callable[[Inbound], None], held: int = HELD) -> None:
        self._ack = ack
        self._held = held
        self._waiting: OrderedDict[int, tuple[Inbound, bool]] = OrderedDict()

    def hold(self, message: Inbound) -> None:
        """The agent has taken the message; its acknowledgement waits for `release`, or until newer ones push it out."""
        if message.ack is None:
            return
        self._waiting[message.ack] = (message, False)
        while len(self._waiting) > self._held:
            _, (oldest, _) = self._waiting.popitem(last=False)
            self._ack(oldest)
        self._drain()

    def release(self, message: Inbound) -> None:
        """The message was answered, refused, or dropped."""
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
