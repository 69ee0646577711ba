"""When and how to dial again: pure decisions, so that they can be tested without a broker or a clock."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, replace
from typing import Literal

from edge_agent.core.backoff import delay_s
from edge_agent.mqtt.options import MqttOptions

Kind = Literal["transient", "permanent", "takeover", "protocol"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a connection ended or never began. `code` is the MQTT 5 reason code where the broker gave one;
    `silent` tells whether it hung up without a word, or said nothing at all (mute)."""

    kind: Kind
    text: str
    remedy: str | None = None
    code: int | None = None
    silent: Literal["", "hung up", "mute"] = ""

    def __str__(self) -> str:
        return self.text if self.remedy is None else f"{self.text} ({self.remedy})"


TAKEN_OVER = 0x8E
_REMEDIES: dict[int, tuple[Kind, str]] = {
    0x84: ("protocol", "set mqtt.protocol"),
    0x85: ("permanent", "the broker refuses this client id: check device.id"),
    0x86: ("permanent", "check mqtt.username and the password"),
    0x87: ("permanent", "check mqtt.username and the password, then the broker's access list"),
    0x8A: ("permanent", "the broker has banned this device"),
    0x8C: ("permanent", "the broker wants another way to authenticate"),
    TAKEN_OVER: ("takeover", "another client uses the same client id; give each device its own name"),
    0x90: ("permanent", "the broker refuses a topic: check mqtt.prefix and its access list"),
    0x95: ("transient", "a message was larger than the broker takes"),
    0x9A: ("permanent", "the broker must allow retained messages"),
    0x9B: ("permanent", "the broker must allow QoS 1"),
    0x9D: ("permanent", "the broker sends us to another server: set mqtt.host"),
}


def from_code(code: int, name: str) -> Reason:
    """A reason code of MQTT 5 (or its equivalent of a 3.1.1 return code); `name` is the standard's text for it."""
    known = _REMEDIES.get(code)
    text = f"the broker says: {name} (0x{code:02X})"
    return Reason("transient", text, None, code) if known is None else Reason(known[0], text, known[1], code)


def from_error(error: OSError | ValueError, where: str) -> Reason:
    """An error of the operating system or of TLS on the way to `where` (host:port)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", None) or error
        text = f"{where}: the broker's certificate is not trusted: {why}"
        return Reason("permanent", text, "check mqtt.tls.ca and the host name in the certificate")
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "reason", None) or error
        return Reason("permanent", f"{where}: TLS failed: {why}", "check mqtt.port and mqtt.tls")
    if isinstance(error, socket.gaierror):
        return Reason("transient", f"{where}: the name cannot be resolved", "check mqtt.host and the network")
    if isinstance(error, ConnectionRefusedError):
        return Reason("transient", f"{where}: nothing listens there", "start the broker or check mqtt.port")
    if isinstance(error, TimeoutError):
        return Reason("transient", f"{where}: no answer", "check the network and the firewall")
    if isinstance(error, OSError) and error.filename is not None:
        return Reason("permanent", f"cannot read {error.filename}: {error.strerror}", "check its path and its owner")
    return Reason("transient", f"{where}: {getattr(error, 'strerror', None) or error}")


def from_silence(where: str, last_error: str | None, in_tls: bool) -> Reason:
    """The connection broke without a word of MQTT; `last_error` is what the socket said, if anything.

    `in_tls`: during a TLS connection that the broker had not welcomed yet. With TLS 1.3 a broker judges our
    certificate only after the handshake, so a refusal shows up here, with or without an alert.
    """
    said = f": {last_error}" if last_error else ""
    if last_error and "ALERT" in last_error and "CERT" in last_error:
        text = f"{where}: the broker refuses our certificate{said}"
        return Reason("permanent", text, "check mqtt.tls.cert, and which authorities the broker trusts")
    remedy = "brokers that refuse a certificate hang up like this: check mqtt.tls.cert" if in_tls else None
    return Reason("transient", f"{where}: the connection broke{said}", remedy, silent="hung up")


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
