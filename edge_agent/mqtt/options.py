"""Settings of the MQTT connection, as the transport takes them; `config` maps the operator's file to these.

A file of its own because it is shared by the transport, the client of requests and the verbs that only ask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["auto", 5, 311]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """TLS to the broker. Paths to PEM files; without `ca_file` the system's authorities are trusted.

    `cert_file` and `key_file` are this device's client certificate, both or none.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """How to reach the broker, and the identity used there. A file of its own, so that commands need no paho.

    `client_id` is the device's name. The password is given here or in `password_file`, which is read again for every
    attempt, so that a rotated secret needs no restart. After `keepalive_s` without a packet PINGREQ is sent; a dead
    broker is noticed after at most twice that. The broker keeps the session and its QoS 1 messages for
    `session_expiry_s` after a disconnect; 0 asks for a clean session (clients that only send requests).
    'auto' speaks MQTT 5 and falls back to 3.1.1 where the broker refuses it.
    """

    host: str
    client_id: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    tls: TlsOptions | None = None
    keepalive_s: int = 30
    session_expiry_s: int = 3600
    protocol: Protocol = "auto"
    connect_timeout_s: float = 10.0
    reconnect_base_s: float = 1.0
    reconnect_cap_s: float = 60.0
    takeover_pause_s: float = 300.0
