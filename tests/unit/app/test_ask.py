"""What is shown of a stream: all of it, once, also when the device begins anew."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.app.ask import DeviceTarget, _answer, answer_text, form_hint, target
from edge_agent.base.errors import UsageError
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import StreamChunk

PLACE = DeviceTarget(MqttOptions(host="nowhere", client_id="me"), "edge/v1", "dev")


class Client:
    """Gives these parts."""

    def __init__(self, *parts: StreamChunk) -> None:
        self._parts = parts

    async def stream(self, *_: Any) -> AsyncIterator[StreamChunk]:
        for part in self._parts:
            yield part


def test_an_answer_that_begins_anew_is_not_glued_to_what_there_was() -> None:
    parts = [(0, "Once upon"), (1, " a ti"), (0, "Once "), (1, "more")]
    client = Client(*(StreamChunk(id="1", seq=seq, text=text, done=text == "more") for seq, text in parts))
    shown: list[str] = []
    final = asyncio.run(_answer(client, PLACE, "m", {}, 5.0, shown.append))  # type: ignore[arg-type]
    assert final["text"] == "Once more"
    assert "".join(shown) == "Once upon a ti\n[the device began anew]\nOnce more"


HINT = "; on the command line: --prompt, --chat or --stream"


@pytest.mark.parametrize(
    ("cause", "body", "hint"),
    [
        ("wrong-form", {"text": "x"}, HINT),
        ("wrong-form", {"texts": ["x"]}, HINT),
        ("wrong-form", {"prompt": "x"}, ""),
        ("text-pair", {"text": "x"}, "; on the command line: --pair TEXT, of answers --context TEXT"),
        ("text-pair", {"texts": ["x"]}, "; on the command line: --pair TEXT, of answers --context TEXT"),
        ("text-pair", {"text": "x", "text_pair": "y"}, ""),
        ("invalid", {"text": "x"}, ""),
        (None, {"text": "x"}, ""),
    ],
)
def test_who_asks_a_generator_by_text_is_told_the_options(cause: str | None, body: dict[str, Any], hint: str) -> None:
    reply = {"status": 422, "reason": "whatever the device says: takes prompt or messages", "cause": cause}
    assert form_hint(reply, body) == hint
    assert answer_text(reply, hint) == f"422: {reply['reason']}{hint}"


def test_an_answer_gets_no_hint() -> None:
    assert form_hint({"status": 200, "result": {"text": "it takes prompt or messages"}}, {"text": "x"}) == ""


@pytest.mark.parametrize(
    ("label", "out", "shown"),
    [
        ("on", False, "on  0.60"),
        ("unsure", True, "unsure  0.60 (unsure: best is on)"),
        ("on", True, "on  0.60 (out of scope)"),
    ],
)
def test_an_answer_below_the_threshold_says_so(label, out, shown):
    assert _first_line(label, out, 0.6) == shown


@pytest.mark.parametrize(
    ("label", "out", "shown"),
    [("unsure", True, "unsure  0.49 (unsure: best is on)"), ("on", True, "on  0.49 (out of scope)"),
     ("on", False, "on  0.50")],
)  # fmt: skip
def test_a_score_below_the_threshold_is_not_rounded_up_to_it(label, out, shown):
    assert _first_line(label, out, 0.4983) == shown


def _first_line(label, out, score):
    result = {"label": label, "score": score, "labels": [{"label": "on", "score": score}], "out_of_scope": out,
              "tokens": 3, "truncated": False}  # fmt: skip
    timing = {"total_ms": 1.0, "queue_ms": 0.0, "tokenize_ms": 0.1, "compute_ms": 0.9}
    reply = {"status": 200, "result": result, "timing": timing, "batch": 1, "variant": "onnx/fp32"}
    return answer_text(reply).splitlines()[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "localhost:70000"}, r"--host is 'localhost:70000'.*without port.*--port"),
        ({"host": "mqtt://localhost"}, "--host is"),
        ({"host": ""}, "--host is ''"),
        ({"port": 70000}, "--port is 70000.*1 to 65535"),
        ({"port": 0}, "--port is 0"),
    ],
)
def test_a_broker_that_the_settings_would_not_take_is_a_sentence(given: dict[str, Any], said: str) -> None:
    arguments = {"config": None, "host": None, "port": None, "protocol": None, "device": "pi", "model": "m", **given}
    with pytest.raises(UsageError, match=said):
        target(argparse.Namespace(**arguments))


def test_an_address_of_ipv6_is_a_broker(tmp_path: Path) -> None:
    (tmp_path / "edge-agent.toml").write_text("")
    arguments = {"config": tmp_path / "edge-agent.toml", "port": 1, "protocol": None, "device": "pi", "model": "m"}
    assert target(argparse.Namespace(host="::1", **arguments)).options.host == "::1"
