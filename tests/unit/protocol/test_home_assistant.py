"""What Home Assistant is told, and what its templates make of real telemetry."""

from __future__ import annotations

import json
import re
from typing import Any

import jinja2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.protocol import encode, messages, telemetry_parts
from edge_agent.protocol import messages as forms
from edge_agent.protocol.home_assistant import discovery, manufacturer, object_id
from edge_agent.protocol.topics import CommandTarget, Topics

TOPICS = Topics("edge/v1", "greenhouse-pi")
# Home Assistant, homeassistant/components/mqtt/discovery.py: TOPIC_MATCHER, object id.
OBJECT_ID = re.compile(r"[a-zA-Z0-9_-]+")


def body(*models: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(discovery(TOPICS, "Raspberry Pi 5", "0.1.0", 10.0, models).payload)
    return found


def of_platform(name: str, *models: str) -> dict[str, dict[str, Any]]:
    """The entities of one platform by key."""
    return {key: component for key, component in body(*models)["cmps"].items() if component["p"] == name}


def telemetry(temperature: float | None, models: dict[str, telemetry_parts.ModelTelemetry]) -> dict[str, Any]:
    """Telemetry as the encoder puts it out."""

    def sensor(value: float | None, unit: str) -> forms.Measured:
        return forms.Measured(value=value, unit=unit, source="test", reason=None if value is not None else "none")

    message = forms.Telemetry(
        boot_id="b",
        seq=1,
        ts=1.0,
        interval_s=10.0,
        uptime_s=5.0,
        models=models,
        refusals={},
        queue_jobs=0,
        sensors={
            "temperature": sensor(temperature, "celsius"),
            "power": sensor(None, "watts"),
            "ram_available": sensor(1.5e9, "bytes"),
        },
        energy=messages.Energy(None, "none"),
        rss_bytes=1,
        governor={"level": "normal"},
        memory={"stage": "none"},
        events_waiting=0,
        events_lost=0,
    )
    found: dict[str, Any] = json.loads(encode.telemetry(message, TOPICS).payload)
    return found


def model(requests: int, p95: float | None) -> telemetry_parts.ModelTelemetry:
    quantiles = None if p95 is None else telemetry_parts.Quantiles(1.0, p95, p95)
    return telemetry_parts.ModelTelemetry(
        requests=requests, failed=0, total_ms=quantiles, compute_ms=quantiles, batch_mean=None, joules=None
    )


def rendered(values: dict[str, Any]) -> dict[str, str]:
    """What each entity shows."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    return {
        key: environment.from_string(component["value_template"]).render(value_json=values)
        for key, component in of_platform("sensor").items()
    }


def test_the_message_has_what_device_discovery_requires() -> None:
    message = discovery(TOPICS, "Raspberry Pi 5", "0.1.0", 10.0)
    assert (message.topic, message.retain) == ("homeassistant/device/greenhouse-pi/config", True)
    found = body()
    assert found["dev"]["ids"] == ["edge-agent_greenhouse-pi"]
    assert found["dev"]["mf"] == "Raspberry Pi"
    assert [manufacturer(board) for board in ("NVIDIA Jetson Orin", "unknown machine")] == ["NVIDIA", "edge-agent"]
    assert found["o"]["name"] == "edge-agent"
    assert found["state_topic"] == TOPICS.telemetry
    assert {component["p"] for component in found["cmps"].values()} == {"sensor", "event"}
    assert {component["expire_after"] for component in of_platform("sensor").values()} == {30}
    assert found["cmps"]["power"]["default_entity_id"] == "sensor.greenhouse_pi_power"
    for key in ("unique_id", "default_entity_id"):
        ids = [component[key] for component in body("a", "b.c", "b-c")["cmps"].values()]
        assert len(set(ids)) == len(ids) == 7 + 3 * 3


def test_an_event_shows_kind_severity_and_sentence_whatever_is_written_in_it() -> None:
    (entity,) = of_platform("event").values()
    assert entity["state_topic"] == TOPICS.event
    assert "worker-died" in entity["event_types"]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["to_json"] = json.dumps  # what Home Assistant's filter of that name does with plain values
    sentence = """model "a" ended {{ 1 + 1 }} \u2028 'x'"""
    values = {"kind": "worker-died", "severity": "error", "message": sentence}
    shown = environment.from_string(entity["value_template"]).render(value_json=values)
    assert json.loads(shown) == {"event_type": "worker-died", "severity": "error", "message": sentence}


def test_every_model_has_buttons_whose_orders_the_agent_takes() -> None:
    buttons = of_platform("button", "home", "b.c")
    assert len(buttons) == 4
    for button in buttons.values():
        target = TOPICS.parse(button["command_topic"])
        assert isinstance(target, CommandTarget)
        order = msgspec.json.decode(button["payload_press"], type=messages.ORDERS[target.name])
        assert isinstance(order, messages.ModelOrder)
        assert order.model in ("home", "b.c")
        assert button["name"].endswith(order.model)


def shown_update(entry: forms.ModelEntry, name: str = "b.c") -> str:
    """What the update entity of a model makes of the models topic."""
    (entity,) = of_platform("update", name).values()
    assert entity["state_topic"] == TOPICS.models
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["to_json"] = json.dumps
    message = forms.Models(ts=1.0, boot_id="b", seq=1, models=[an_entry("other", 7), entry])
    return environment.from_string(entity["value_template"]).render(value_json=json.loads(msgspec.json.encode(message)))


def an_entry(name: str, version: int, **more: Any) -> forms.ModelEntry:
    adapters = [
        forms.AdapterEntry(name=one, digest="d", version=at, rank=1, resident=False, labels=[])
        for one, at in (("home", 3), ("x" * 300, 1))
    ]
    variant = forms.VariantEntry(digest="sha256:1", runtime="onnx", dtype="int8", size_bytes=1)
    return forms.ModelEntry(
        name=name, version=version, base_id="b", task="classify", labels=[], resident=True,
        variant="sha256:1", variants=[variant], adapters=adapters, **more,
    )  # fmt: skip


def test_an_update_entity_shows_the_version_and_what_is_in_it() -> None:
    found = json.loads(shown_update(an_entry("b.c", 12)))
    summary = found.pop("release_summary")
    assert summary.startswith("classify by onnx/int8, home 3, xxx") and len(summary) == 255
    assert found == {
        "installed_version": "12",
        "latest_version": "12",
        "update_percentage": None,
        "in_progress": False,
    }


@pytest.mark.parametrize(
    ("stage", "share", "progress", "percentage"),
    [("building", 0.3, True, 30), ("parsing", None, True, None), ("put off", None, False, None)],
)
def test_an_engine_that_is_built_is_progress(
    stage: str, share: float | None, progress: bool, percentage: int | None
) -> None:
    build = forms.EngineBuild(stage=stage, share=share, elapsed_s=3.0, expected_s=None)
    found = json.loads(shown_update(an_entry("b.c", 12, building=build)))
    assert (found["in_progress"], found["update_percentage"]) == (progress, percentage)


def test_a_model_that_is_not_among_the_models_shows_nothing() -> None:
    assert shown_update(an_entry("b-c", 12)) == ""


def test_the_entities_show_what_telemetry_says() -> None:
    shown = rendered(telemetry(51.5, {"a": model(30, 12.5), "b": model(20, 40.25), "c": model(0, None)}))
    assert shown == {
        "temperature": "51.5",
        "latency_p95": "40.25",
        "requests": "5.0",
        "governor": "normal",
        "ram_available": "1500",
        "power": "None",
    }


def test_what_is_null_is_none_which_home_assistant_calls_unknown() -> None:
    shown = rendered(telemetry(None, {}))
    assert (shown["temperature"], shown["latency_p95"], shown["requests"]) == ("None", "None", "0.0")


@pytest.mark.parametrize(
    ("state", "shown"),
    [("online", "online"), ("degraded", "online"), ("starting", "offline"), ("offline", "offline")],
)
def test_availability_follows_the_status(state: str, shown: str) -> None:
    (availability,) = body()["availability"]
    assert availability["topic"] == TOPICS.status
    assert jinja2.Template(availability["value_template"]).render(value_json={"state": state}) == shown


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", fullmatch=True)


@given(NAMES, NAMES)
def test_every_name_becomes_a_fit_id_and_different_names_stay_different(one: str, other: str) -> None:
    assert OBJECT_ID.fullmatch(object_id(one))
    assert (object_id(one) == object_id(other)) == (one == other)
