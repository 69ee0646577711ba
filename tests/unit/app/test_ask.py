"""What is shown of a stream: all of it, once, also when the device begins anew."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edge_agent.app import ask as ask_module
from edge_agent.app.ask import DeviceTarget, _answer
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.messages import ModelEntry, Models, StreamChunk
from edge_agent.protocol.topics import Topics

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


@pytest.mark.parametrize(
    ("status", "body", "task", "hint"),
    [
        (422, {"text": "x"}, "generate", "; on the command line: --prompt, --chat or --stream"),
        (422, {"texts": ["x", "y"]}, "generate", "; on the command line: --prompt, --chat or --stream"),
        (422, {"text": "x"}, "classify", ""),
        (422, {"text": "takes prompt or messages"}, None, ""),
        (422, {"prompt": "x"}, "generate", ""),
        (429, {"text": "x"}, "generate", ""),
    ],
)
def test_who_asks_a_generator_by_text_is_told_the_options(
    monkeypatch: pytest.MonkeyPatch, status: int, body: dict[str, object], task: str | None, hint: str
) -> None:
    async def read_models(_options: object, topics: Topics, _timeout_s: float) -> Models | None:
        assert topics.models == "edge/v1/dev/models"
        if task is None:
            return None
        entry = ModelEntry(
            name="m", version=1, base_id="b", task=task, labels=[], resident=True, variant="v", variants=[], adapters=[]
        )
        return Models(ts=0.0, boot_id="b", seq=1, models=[entry])

    monkeypatch.setattr(ask_module, "target", lambda _arguments: PLACE)
    monkeypatch.setattr(ask_module, "read_models", read_models)
    assert ask_module.generator_hint(argparse.Namespace(model="m"), body, {"status": status}) == hint
