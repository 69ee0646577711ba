"""Devices that are messages alone: what a device would say, published on a real broker, for views of many devices."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.protocol import messages

GIB = 1 << 30
RETAINED = ("info", "models", "reported", "status")  # the status last: without one a device is forgotten


class Teller:
    """`with Teller(port) as teller:` publishes bodies under `edge/v1/{device}/{kind}`."""

    def __init__(self, port: int) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.connect("127.0.0.1", port)

    def __enter__(self) -> Teller:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def say(self, device: str, kind: str, body: object, retain: bool | None = None) -> None:
        """Publish one message, as a device does: what is in RETAINED is retained. Returns when the broker
        has it."""
        kept = kind in RETAINED if retain is None else retain
        payload = body if isinstance(body, bytes) else msgspec.json.encode(body)
        self._client.publish(f"edge/v1/{device}/{kind}", payload, qos=1, retain=kept).wait_for_publish(10)

    def forget(self, device: str) -> None:
        """Remove what the broker retains of a device."""
        for kind in RETAINED:
            self.say(device, kind, b"")


def status(state: str = "online", reason: str = "", ts: float | None = None) -> messages.Status:
    """A status as of now."""
    told = time.time() if ts is None else ts
    return messages.Status(state=state, boot_id="b", seq=1, ts=told, heartbeat_s=30.0, reason=reason)  # type: ignore[arg-type]


def telemetry(celsius: float = 50.0, level: str = "normal", **more: Any) -> messages.Telemetry:
    """A report of an idle device with a thermometer; `more` replaces fields."""
    governor = {
        "level": level,
        "max_rows": 16,
        "threads": 4,
        "busy_share": 1.0,
        "clock": 1.0,
        "forecast_c": celsius + 1,
    }
    governor |= {"headroom_c": 79.0 - celsius, "derated": None, "disagree": None, "why": f"heat is {level}"}
    memory = {"stage": "calm", "available_bytes": 6 * GIB, "reserve_bytes": GIB, "budget_bytes": None}
    fields: dict[str, Any] = {
        "boot_id": "b",
        "seq": 2,
        "ts": time.time(),
        "interval_s": 10.0,
        "uptime_s": 4000.0,
        "models": {},
        "refusals": {},
        "queue_jobs": 0,
        "sensors": {"temperature": messages.Measured(value=celsius, unit="celsius", source="thermal")},
        "energy": messages.Energy(None, "no power sensor was found"),
        "rss_bytes": 30_000_000,
        "governor": governor,
        "memory": {**memory, "outstanding_bytes": 0, "models": {}},
        "events_waiting": 0,
        "events_lost": 0,
    }
    return messages.Telemetry(**(fields | more))


def event(kind: str, message: str, severity: str = "info", seq: int = 1) -> messages.Event:
    """An event as of now."""
    return messages.Event(kind=kind, ts=time.time(), boot_id="b", seq=seq, severity=severity, message=message)  # type: ignore[arg-type]
