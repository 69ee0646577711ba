"""The terms of a trial: what is taken, and the sentence for what is not, wherever they come from."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from edge_agent.protocol.decode import Command, DesiredRefused, Refusal, decode_command, decode_desired
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import TrialOrder
from edge_agent.protocol.topics import Topics
from edge_agent.protocol.trial_terms import read_trial, trial_text

TOPICS = Topics("edge/v1", "pi")
BAD: list[tuple[dict[str, Any], str]] = [
    ({"least": 7}, "least: 8 to 4096"),
    ({"most": 5000}, "most: 8 to 4096"),
    ({"least": 100, "most": 99}, "least: 100 is more than most, 99"),
    ({"within_s": 1}, "within_s: 60 to 2592000"),
    ({"agreement": 1.5}, "agreement: 0 to 1"),
    ({"slower": 0}, "slower: 0.1 to 100"),
    ({"joules": 1e9}, "joules: 0.1 to 100"),
    ({"mode": "share", "share": 0}, "share: 0.01 to 1"),
    ({"temperature_c": 5}, "temperature_c: 20 to 120"),
]


@pytest.mark.parametrize(("terms", "word"), BAD)
def test_terms_that_cannot_be_are_refused_wherever_they_come_from(terms: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        read_trial(json.dumps(terms))
    body = {"version": 1, "models": [], "policy": {"trial": terms}}
    refused = decode_desired(Inbound(TOPICS.desired, json.dumps(body).encode()))
    assert isinstance(refused, DesiredRefused) and f"policy.trial.{word}" in refused.reason
    order = Inbound(TOPICS.command("install"), json.dumps({"package": "a.tar", "trial": terms}).encode())
    answer = decode_command(order, topics=TOPICS, now_s=0.0)
    assert isinstance(answer, Refusal) and answer.status == 422 and f"trial.{word}" in answer.reason


@pytest.mark.parametrize("text", ["[]", "x", '{"lest": 5}', '{"mode": "shadows"}', '{"least": "5"}', '{"slower": NaN}'])
def test_what_is_no_terms_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_trial(text)


def test_terms_are_kept_whole() -> None:
    assert read_trial(trial_text(TrialOrder())) == TrialOrder()
    assert set(msgspec.json.decode(trial_text(TrialOrder()))) == set(TrialOrder.__struct_fields__)
    order = Inbound(TOPICS.command("install"), b'{"package": "a.tar", "trial": {}}')
    taken = decode_command(order, topics=TOPICS, now_s=0.0)
    assert isinstance(taken, Command) and getattr(taken.body, "trial", None) == TrialOrder()
