"""Home Assistant's MQTT discovery: one retained message makes a device with sensors out of the telemetry topic, an
event entity out of the event topic, and for each model an update entity out of the models topic, and buttons that order
its load or its return to the version before.

Home Assistant reads what the agent publishes anyway, and orders as anybody may whom the broker lets; nothing here adds
to the agent's own contract. Format: Home Assistant, MQTT integration, "Device discovery payload" (`dev`, `o`, `cmps`).
A template that yields None makes the entity 'unknown', which is what a sensor that is null means. A file of its own
because the format is not ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from edge_agent.base.shown_text import one_line
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import EVENT_KINDS
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
        "entity_category": "diagnostic",
    },
    "requests": {"name": "Requests", "unit_of_measurement": "1/s", "value_template": _REQUESTS},
    "governor": {
        "name": "Governor",
        "value_template": "{{ value_json.governor.level }}",
        "entity_category": "diagnostic",
    },
    "ram_available": {
        "name": "RAM available",
        "device_class": "data_size",
        "unit_of_measurement": "MB",
        "value_template": _RAM,
        "entity_category": "diagnostic",
    },
    "power": {
        "name": "Power",
        "device_class": "power",
        "unit_of_measurement": "W",
        "value_template": "{{ value_json.sensors.power.value }}",
    },
}


_EVENT = (
    "{{ {'event_type': value_json.kind, 'severity': value_json.severity, 'message': value_json.message} | to_json }}"
)
_BUTTONS = {"load": "Load", "rollback": "Roll back"}
"""Orders about one model, and what their buttons are called. `load` also lifts a quarantine."""
SUMMARY_CHARS = 255
"""Home Assistant shows no more of a release summary."""
_UPDATE = (
    "{% for one in value_json.models if one.name == '__MODEL__' %}"
    "{% set form = one.variants | selectattr('digest', 'eq', one.variant) | first | default(none) %}"
    "{% set parts = namespace(found=[one.task ~ (' by ' ~ form.runtime ~ '/' ~ form.dtype if form else '')]) %}"
    "{% for part in one.adapters %}{% set parts.found = parts.found + [part.name ~ ' ' ~ part.version] %}{% endfor %}"
    "{% set build = one.building %}"
    "{{ {'installed_version': one.version | string, 'latest_version': one.version | string, "
    "'release_summary': (parts.found | join(', '))[:__CHARS__], "
    "'update_percentage': (build.share * 100) | round(0) | int if build and build.share is not none else none, "
    "'in_progress': build is mapping and build.stage != 'put off'} | to_json }}"
    "{% endfor %}"
)
"""What an update entity shows of a model: its version, which is the newest that the device knows; as release note what
it is run by, and its adapters with their versions; as progress that of an engine that is built for it. Nothing where
the model is not among the models: Home Assistant ignores that."""


def discovery(
    topics: Topics,
    board: str,
    version: str,
    interval_s: float,
    models: Iterable[str] = (),
    gone: Iterable[str] = (),
) -> Outbound:
    """The retained message for one device: `board` and `version` as in `info`, telemetry comes every `interval_s`;
    `models` get an update entity and buttons, those of the models in `gone` are taken away: Home Assistant keeps a
    component that is left out, and removes one of which the platform alone is there."""
    unique = object_id(topics.device)
    components = {
        key: {"unique_id": f"{unique}_{key}", "default_entity_id": _entity_id(fields["p"], f"{unique}_{key}"), **fields}
        for key, fields in (*_sensors(interval_s), ("event", _event(topics)), *_of_models(topics, models))
    }
    taken_away = {key: {"p": fields["p"]} for key, fields in _of_models(topics, gone)}
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
        "qos": 0,
        "state_topic": topics.telemetry,
        "cmps": {**taken_away, **components},
    }
    return Outbound(config_topic(topics), msgspec.json.encode(body), qos=1, retain=True, keep="latest")


def _sensors(interval_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, fields in _SENSORS.items():
        measured = {"state_class": "measurement"} if "unit_of_measurement" in fields else {}
        yield key, {"p": "sensor", **fields, **measured, "expire_after": round(MISSED_INTERVALS * interval_s)}


def _event(topics: Topics) -> dict[str, Any]:
    """All events of the device as one entity; its last event has the kind, the severity and the sentence."""
    return {
        "p": "event",
        "name": "Event",
        "state_topic": topics.event,
        "event_types": list(EVENT_KINDS),
        "value_template": _EVENT,
        "entity_category": "diagnostic",
    }


def _of_models(topics: Topics, models: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for model in models:
        yield (
            f"model_{object_id(model)}",
            {
                "p": "update",
                "name": f"Model {model}",
                "state_topic": topics.models,
                "value_template": _UPDATE.replace("__MODEL__", model).replace("__CHARS__", str(SUMMARY_CHARS)),
                "entity_category": "diagnostic",
            },
        )
        for order, title in _BUTTONS.items():
            yield (
                f"{order}_{object_id(model)}",
                {
                    "p": "button",
                    "name": f"{title} {model}",
                    "command_topic": topics.command(order),
                    "payload_press": msgspec.json.encode({"model": model}).decode(),
                    "entity_category": "config",
                },
            )


def _entity_id(platform: str, name: str) -> str:
    """What Home Assistant is asked to call an entity; its ids know lower-case letters, digits and '_' alone."""
    return f"{platform}.{name.lower().replace('-', '_')}"


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
