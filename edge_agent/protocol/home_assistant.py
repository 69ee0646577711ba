"""Home Assistant's MQTT discovery: one retained message makes a device with sensors out of the telemetry topic.

Home Assistant reads what the agent publishes anyway; nothing here adds to the agent's own contract. Format: Home
Assistant, MQTT integration, "Device discovery payload" (`dev`, `o`, `cmps`). A template that yields None makes the
entity 'unknown', which is what a sensor that is null means. A file of its own because the format is not ours.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from edge_agent.base.shown_text import one_line
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.topics import Topics

DISCOVERY_PREFIX = "homeassistant"
ORIGIN = "edge-agent"
MANUFACTURERS = ("Raspberry Pi", "NVIDIA")
MISSED_INTERVALS = 3
"""A sensor whose telemetry stayed away for so many intervals is unavailable: telemetry itself expires then."""

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_AVAILABLE = "{{ 'online' if value_json.state in ('online', 'degraded') else 'offline' }}"
_REQUESTS = "{{ (value_json.models.values() | map(attribute='requests') | sum / value_json.interval_s) | round(2) }}"
_P95 = (
    "{{ value_json.models.values() | map(attribute='total_ms') | select('mapping') | map(attribute='p95') | max"
    " | default(none) }}"
)
_RAM = (
    "{% set held = value_json.sensors.ram_available.value %}"
    "{{ none if held is none else (held / 1000000) | round(0) | int }}"
)
_SENSORS: dict[str, dict[str, Any]] = {
    "temperature": {
        "name": "Temperature",
        "device_class": "temperature",
        "unit_of_measurement": "°C",
        "value_template": "{{ value_json.sensors.temperature.value }}",
    },
    "latency_p95": {
        "name": "Latency p95",
        "device_class": "duration",
        "unit_of_measurement": "ms",
        "value_template": _P95,
    },
    "requests": {"name": "Requests", "unit_of_measurement": "1/s", "value_template": _REQUESTS},
    "governor": {"name": "Governor", "value_template": "{{ value_json.governor.level }}"},
    "ram_available": {
        "name": "RAM available",
        "device_class": "data_size",
        "unit_of_measurement": "MB",
        "value_template": _RAM,
    },
    "power": {
        "name": "Power",
        "device_class": "power",
        "unit_of_measurement": "W",
        "value_template": "{{ value_json.sensors.power.value }}",
    },
}


def discovery(topics: Topics, board: str, version: str, interval_s: float) -> Outbound:
    """The retained message for one device: `board` and `version` as in `info`, telemetry comes every `interval_s`."""
    unique = object_id(topics.device)
    components = {}
    for key, fields in _SENSORS.items():
        component = {"p": "sensor", "unique_id": f"{unique}_{key}", **fields}
        if "unit_of_measurement" in fields:
            component["state_class"] = "measurement"
        components[key] = {**component, "expire_after": round(MISSED_INTERVALS * interval_s)}
    body = {
        "dev": {
            "ids": [f"{ORIGIN}_{unique}"],
            "name": topics.device,
            "mf": one_line(manufacturer(board)),
            "mdl": one_line(board),
            "sw": version,
        },
        "o": {"name": ORIGIN, "sw": version},
        "availability": [{"topic": topics.status, "value_template": _AVAILABLE}],
        "state_topic": topics.telemetry,
        "qos": 0,
        "cmps": components,
    }
    return Outbound(config_topic(topics), msgspec.json.encode(body), qos=1, retain=True, keep="latest")


def config_topic(topics: Topics) -> str:
    """Where a device announces itself."""
    return f"{DISCOVERY_PREFIX}/device/{object_id(topics.device)}/config"


def manufacturer(board: str) -> str:
    """Who made a board, by the beginning of its name; the maker of the software where that is not known."""
    return next((maker for maker in MANUFACTURERS if board.startswith(maker)), ORIGIN)


def object_id(device: str) -> str:
    """A device's name in the letters that a discovery topic may have; two names never become the same one."""
    plain = _UNFIT.sub("_", device)
    return plain if plain == device else f"{plain}-{hashlib.blake2b(device.encode(), digest_size=3).hexdigest()}"
