"""When and how to dial again: pure decisions, so that they can be tested without a broker or a clock."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.core.backoff import delay_s
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.reasons import Reason

# A connection that held for so long was a good one: the next failure starts the back-off anew. Shorter ones are part
# of the same trouble (two devices of one name throw each other out every second).
STABLE_S = 10.0
# A broker that hangs up on CONNECT without a word may be one of 3.1.1 only, or one that is just restarting: it is asked
# twice. One that takes the connection and stays mute waits for the rest of what it reads as 3.1.1 (amqtt does).
SILENT_ENDS = 2
# So many short connections in a row, each broken without a word, look like two clients of one name at an older broker.
SHORT_LIVES = 3


class Retry:
    """The waiting time before the next attempt, and the protocol version to try: 5 or 4 (3.1.1)."""

    def __init__(self, options: MqttOptions) -> None:
        self._options = options
        self._attempt = 0
        self._silent_ends = 0
        self._short_lives = 0
        self._try_old = False

    @property
    def version(self) -> int:
        """The protocol version of the next attempt."""
        if self._options.protocol != "auto":
            return 5 if self._options.protocol == 5 else 4
        return 4 if self._try_old else 5

    def connected(self) -> None:
        """The broker said welcome. The next connection starts with MQTT 5 again: brokers get upgraded."""
        self._silent_ends = 0
        self._try_old = False

    def explain(self, reason: Reason, lasted_s: float) -> Reason:
        """The reason, with a guess at the cause where connections break again and again soon after they began."""
        if lasted_s >= STABLE_S or not reason.silent:
            self._short_lives = 0
        elif lasted_s > 0:
            self._short_lives += 1
        if self._short_lives < SHORT_LIVES:
            return reason
        return replace(reason, remedy="again and again, soon after connecting: does another client use this client id?")

    def pause_s(self, reason: Reason, lasted_s: float, random01: float) -> float:
        """How long to wait after `reason` ended a connection that was up for `lasted_s` (0: it never was)."""
        if self._options.protocol == "auto" and lasted_s == 0 and self._other_version(reason):
            return 0.0
        options = self._options
        if reason.kind == "takeover":
            return options.takeover_pause_s * (0.5 + 0.5 * random01)
        if reason.kind in ("permanent", "protocol"):
            return options.reconnect_cap_s * (0.5 + 0.5 * random01)
        if lasted_s >= STABLE_S:
            self._attempt = 0
        pause_s = delay_s(self._attempt, options.reconnect_base_s, options.reconnect_cap_s, random01)
        self._attempt += 1
        return pause_s

    def _other_version(self, reason: Reason) -> bool:
        """Decide on the version after a failed attempt; True when the other one should be tried at once."""
        if self._try_old:
            self._try_old = False
            return False
        self._silent_ends = {"": 0, "hung up": self._silent_ends + 1, "mute": SILENT_ENDS}[reason.silent]
        self._try_old = reason.kind == "protocol" or self._silent_ends >= SILENT_ENDS
        return self._try_old
