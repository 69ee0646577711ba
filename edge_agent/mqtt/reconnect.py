"""Why there is no connection to the broker, and when to connect again. Pure: needs no broker and no clock.

Reasons are sorted by what to do about them:

transient   try again soon (full jitter)
permanent   only a person can change it: try again at the longest interval, and say the remedy
takeover    another client uses the same client id: wait long, so that the two do not alternate
protocol    the broker does not speak this version of MQTT: try the other one
"""

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
    """Why a connection ended or never began.

    `place` is the address of the broker, None where not needed. `code` is the MQTT 5 reason code where the broker
    gave one. `silent`: it closed the connection without a packet ('hung up'), or sent nothing at all ('mute').
    """

    kind: Kind
    text: str
    remedy: str | None = None
    code: int | None = None
    silent: Literal["", "hung up", "mute"] = ""
    place: str | None = None

    @property
    def detail(self) -> str:
        """Text and remedy, without the broker's address."""
        return self.text if self.remedy is None else f"{self.text} ({self.remedy})"

    def __str__(self) -> str:
        return self.detail if self.place is None else f"{self.place}: {self.detail}"


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


# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL.
_CLOCK_REMEDIES = {
    9: "this board's clock is behind, as after a start without a network and without a battery: see `timedatectl`",
    10: "renew it at the broker, or set this board's clock if that is ahead: see `timedatectl`",
}


def from_error(error: OSError | ValueError | LookupError | ImportError, where: str) -> Reason:
    """An error of the operating system or of TLS on the way to `where` (host:port)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", None) or error
        text = f"the broker's certificate is not trusted: {why}"
        clock = _CLOCK_REMEDIES.get(getattr(error, "verify_code", 0))
        if clock is not None:
            # A clock is set while the agent runs, so the pause is not that of an error which does not mend itself.
            return Reason("transient", text, clock, place=where)
        return Reason("permanent", text, "check mqtt.tls.ca and the host name in the certificate", place=where)
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "reason", None) or error
        return Reason("permanent", f"TLS failed: {why}", "check mqtt.port and mqtt.tls", place=where)
    if isinstance(error, socket.gaierror):
        return Reason("transient", "the name cannot be resolved", "check mqtt.host and the network", place=where)
    if isinstance(error, ConnectionRefusedError):
        return Reason("transient", "nothing listens there", "start the broker or check mqtt.port", place=where)
    if isinstance(error, TimeoutError):
        return Reason("transient", "no answer", "check the network and the firewall", place=where)
    if isinstance(error, OSError) and error.filename is not None:
        return Reason("permanent", f"cannot read {error.filename}: {error.strerror}", "check its path and its owner")
    return Reason("transient", str(getattr(error, "strerror", None) or error), place=where)


def from_silence(where: str, last_error: str | None, cause: OSError | None, in_tls: bool) -> Reason:
    """The connection broke without a DISCONNECT; `last_error` is what the socket reported, if anything, `cause` the
    exception in it.

    `in_tls`: during a TLS connection before CONNACK. With TLS 1.3 a broker verifies the client's certificate only after
    the handshake, so a refusal shows up here, with or without an alert.
    """
    detail = f": {last_error}" if last_error else ""
    # OpenSSL names the alert, such as TLSV13_ALERT_CERTIFICATE_REQUIRED.
    alert = str(cause.reason) if isinstance(cause, ssl.SSLError) else ""
    if "ALERT" in alert and "CERT" in alert:
        remedy: str | None = "check mqtt.tls.cert, and which authorities the broker trusts"
        return Reason("permanent", f"the broker refuses our certificate{detail}", remedy, place=where)
    remedy = "brokers that refuse a certificate hang up like this: check mqtt.tls.cert" if in_tls else None
    return Reason("transient", f"the connection broke{detail}", remedy, silent="hung up", place=where)


# A connection that lasted so long was good: the next failure starts the back-off anew. Shorter ones belong to the same
# fault (two devices with one client id disconnect each other every second).
STABLE_S = 10.0
# A broker that closes the connection on CONNECT without a packet may speak 3.1.1 only, or may be restarting: MQTT 5 is
# tried twice. One that accepts the connection and sends nothing waits for the rest of what it parses as 3.1.1 (amqtt
# does).
SILENT_ENDS = 2
# So many short connections in a row, each closed without a packet, suggest two clients with one id at an older broker.
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
        """CONNACK arrived. The next connection starts with MQTT 5 again, because brokers get upgraded."""
        self._silent_ends = 0
        self._try_old = False

    def explain(self, reason: Reason, lasted_s: float, on_its_way: str | None = None) -> Reason:
        """The reason, with a likely cause as its remedy: a large message that was `on_its_way` when the connection
        broke, or another client where connections repeatedly break soon after they began."""
        if lasted_s >= STABLE_S or not reason.silent:
            self._short_lives = 0
        elif lasted_s > 0:
            self._short_lives += 1
        if on_its_way is not None and reason.silent:
            return replace(reason, remedy=f"{on_its_way} was on its way: is it larger than the broker takes?")
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
