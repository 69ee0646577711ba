"""OpenAI's bodies to questions and back: what is followed, what is refused by name, what errors look like."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.client import Answer, DeadlineMissed, DeviceBusy, Embedding, InvalidRequest, UnknownName
from edge_agent.gateway import openai_form
from edge_agent.gateway.openai_form import WrongField, http_error
from edge_agent.protocol.messages import AdapterEntry, ModelEntry, Models, Reply

HI = [{"role": "user", "content": "Hi"}]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = ("model", "messages", "stream", "temperature", "stop", "n", "tools", "response_format", "deadline_s",
          "priority", "input", "encoding_format", "dimensions", "stream_options", "logprobs", "user",
          "max_tokens")  # fmt: skip


def chat(**fields: Any) -> openai_form.ChatQuestion:
    return openai_form.chat_question({"model": "tiny", "messages": HI, **fields})


def test_parameters_go_to_the_device_by_our_names() -> None:
    found = chat(
        temperature=0.5, top_p=0.9, seed=3, stop=["x"], max_completion_tokens=7, logprobs=True, top_k=4,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}},
        stream=True, stream_options={"include_usage": True}, deadline_s=5, priority=1,
        user="me", metadata={}, n=1, tools=[], presence_penalty=0,
    )  # fmt: skip
    assert found.params == {
        "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "max_tokens": 7, "logprobs": True, "top_k": 4,
        "json_schema": {"type": "integer"},
    }  # fmt: skip
    assert (found.stream, found.include_usage, found.deadline_s, found.priority) == (True, True, 5, 1)
    assert chat(max_tokens=9).params == {"max_tokens": 9}
    assert chat(response_format={"type": "json_object"}).params == {"json_schema": {"type": "object"}}
    assert chat(response_format={"type": "text"}).params == {}


def test_messages_are_roles_and_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "me"}]
    assert chat(messages=given).messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"temprature": 1}, "temprature"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"priority": 1.5}, "priority"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(WrongField) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert http_error(caught.value).status == 400
    assert http_error(caught.value).body["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, None),
        ({"input": [1, 2]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(fields: dict[str, Any], param: str | None) -> None:
    if param is None:
        assert openai_form.embed_question({"model": "m", **fields}).texts == [""]
        return
    with pytest.raises(WrongField) as caught:
        openai_form.embed_question({"model": "m", **fields})
    assert caught.value.param == param


@given(ANY_JSON | st.dictionaries(st.sampled_from(FIELDS), ANY_JSON))
def test_any_body_is_a_question_or_a_refusal(body: Any) -> None:
    for read in (openai_form.chat_question, openai_form.embed_question):
        try:
            read(body)
        except InvalidRequest as error:
            assert http_error(error).status == 400


@pytest.mark.parametrize(
    ("name", "alone", "found"),
    [
        ("tiny", "pi", ("pi/tiny", None)),
        ("tiny/one", "pi", ("pi/tiny", "one")),
        ("pi/tiny", "pi", ("pi/tiny", None)),
        ("pi/tiny/one", "pi", ("pi/tiny", "one")),
        ("jetson/tiny", None, ("jetson/tiny", None)),
        ("jetson/tiny/one", None, ("jetson/tiny", "one")),
    ],
)
def test_a_model_is_named_as_it_is_listed(name: str, alone: str | None, found: tuple[str, str | None]) -> None:
    assert openai_form.split_model(name, alone) == found


@pytest.mark.parametrize(
    ("name", "alone"), [("a/b/c/d", None), ("tiny", None), ("a//b", None), ("a/b/c", "pi"), ("/", "pi")]
)
def test_a_name_of_another_form_is_refused(name: str, alone: str | None) -> None:
    with pytest.raises(WrongField):
        openai_form.split_model(name, alone)


def test_models_are_listed_with_their_adapters() -> None:
    adapter = AdapterEntry(name="one", digest="d", version=1, rank=2, resident=True, labels=[])
    model = ModelEntry(
        name="tiny", version=1, base_id="b", task="generate", labels=[], resident=True, variant="v", variants=[],
        adapters=[adapter],
    )  # fmt: skip
    every = {"pi": Models(ts=7.5, boot_id="b", seq=1, models=[model])}
    assert [one["id"] for one in openai_form.model_list(every, "pi")] == ["tiny", "tiny/one"]
    listed = openai_form.model_list(every, None)
    assert [one["id"] for one in listed] == ["pi/tiny", "pi/tiny/one"]
    assert listed[0] == {"id": "pi/tiny", "object": "model", "created": 7, "owned_by": "pi", "task": "generate"}
    for one in listed:
        assert openai_form.split_model(one["id"], None)[0] == "pi/tiny"


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (DeviceBusy(429, Cause.QUEUE_FULL, "full", 1.2), 429, "rate_limit_error", "2"),
        (DeviceBusy(429, Cause.CLIENT_SHARE, "full", 0.01), 429, "rate_limit_error", "1"),
        (RequestError(503, Cause.HEAT, "hot", 30.0), 503, "server_error", "30"),
        (RequestError(599, Cause.UNAVAILABLE, "?"), 503, "server_error", None),
        (DeadlineMissed(408, Cause.EXPIRED, "late"), 504, "timeout_error", None),
        (UnknownName(404, Cause.UNKNOWN_ADAPTER, "no"), 404, "invalid_request_error", None),
        (InvalidRequest(413, Cause.TOO_LARGE, "large"), 413, "invalid_request_error", None),
        (RequestError(500, Cause.WORKER_DIED, "died"), 500, "server_error", None),
    ],
)
def test_an_error_has_openais_form(error: RequestError, status: int, kind: str, retry_after: str | None) -> None:
    found = http_error(error)
    assert found.status == status
    said = {"message": error.reason, "type": kind, "param": None, "code": error.cause.value}
    assert found.body == {"error": said}
    assert found.headers.get("Retry-After") == retry_after


def test_vectors_go_back_as_numbers_or_as_base64() -> None:
    found = [Embedding(embedding=[0.5, -0.25], tokens=3, truncated=False)] * 2
    plain = openai_form.embeddings(found, "m", as_base64=False)
    assert [one["embedding"] for one in plain["data"]] == [[0.5, -0.25]] * 2
    assert plain["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    packed = openai_form.embeddings(found, "m", as_base64=True)["data"][1]
    assert struct.unpack("<2f", base64.b64decode(packed["embedding"])) == (0.5, -0.25)


def test_an_answer_that_time_has_cut_has_the_finish_reason_length() -> None:
    usage = {"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 4}
    logprobs = [{"id": 1, "token": "a", "bytes": [97], "logprob": -0.5}]
    result = {"text": "t", "finish_reason": "deadline", "usage": usage, "seed": 1, "logprobs": logprobs}
    found = openai_form.chat_completion(Answer(Reply(id="7", status=200, result=result)), "tiny", 5)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.5
    assert found["usage"]["total_tokens"] == 7
    assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
