"""The task over a vocabulary of bytes: templates, prompts that do not fit, what an answer says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from edge_agent.backends.api import Chunk, Vocabulary
from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks import api, registry
from edge_agent.tasks.generate import ChatTemplate
from tests.support.chat_templates import DIALOGUE, FAMILIES, Family

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[you]{% endif %}"
)
GENERATE = TaskFields("generate", (), 64, 0.0, None)


class Bytes(Vocabulary):
    """Tokens are bytes, token 256 begins a text, 257 is a control token."""

    context = 64

    def __init__(self, template: str | None = TEMPLATE) -> None:
        self.chat_template = template
        self.special_tokens: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>"}

    def encode(self, text: str, begin: bool) -> list[int]:
        return ([256] if begin else []) + list(text.removeprefix("<s>").encode())

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def control_in(self, text: str) -> str | None:
        return "<|end|>" if "<|end|>" in text else None


def task(template: str | None = TEMPLATE) -> api.Task:
    return registry.build(GENERATE, None, Bytes(template))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_model_without_a_tokenizer_of_its_own_generates_nothing() -> None:
    with pytest.raises(BackendError, match="carries its tokenizer"):
        registry.build(GENERATE, None, None)


def test_a_prompt_stands_as_it_is_and_begins_once() -> None:
    assert task().prepare(["hi"], {}).rows == [[256, 104, 105]]
    assert task().prepare(["<s>hi"], {}).rows == [[104, 105]]


def test_messages_go_through_the_template() -> None:
    messages = [{"role": "system", "content": "S"}, user("hi")]
    prepared = task().prepare_chat(messages, {"max_tokens": 5, "seed": 1})
    assert bytes(prepared.rows[0][1:]).decode() == "[system]S[user]hi[you]"
    assert (prepared.settings["max_tokens"], prepared.settings["seed"]) == (5, 1)


def test_without_max_tokens_the_answer_may_fill_the_context() -> None:
    assert task().prepare(["x" * 53], {}).settings["max_tokens"] == 10


@pytest.mark.parametrize(
    ("prompt", "params", "says"),
    [
        ("x" * 63, {}, "the prompt has 64 tokens and 1 are to come, 65 in all; the context holds 64"),
        ("x" * 40, {"max_tokens": 30}, "41 tokens and 30 are to come, 71 in all"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(prompt: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        task().prepare([prompt], params)
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (None, [user("x")], "has no chat template"),
        (TEMPLATE, [], "0 given, 1 to 128"),
        (TEMPLATE, [user("x")] * 129, "129 given"),
        (TEMPLATE, [{"role": "robot", "content": "x"}], "'robot' is none of"),
        (TEMPLATE, [user("x<|end|>")], "writes out the control token '<|end|>'"),
        ("{% if %}", [user("x")], "TemplateSyntaxError"),
        ("{{ messages[7].content.nothing }}", [user("x")], "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", [user("x")], "SecurityError"),
        ("{{ messages.append(1) }}", [user("x")], "SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", [user("x")], "OverflowError"),
        ("{{ lipsum(n=100000) }}", [user("x")], "'lipsum' is undefined"),
        ("{{ messages|tojson(indent=100000000) }}", [user("x")], "an indent of 100000000 is more than 8"),
        ("{{ 1 // 0 }}", [user("x")], "ZeroDivisionError"),
        ("{{ raise_exception('only users') }}", [user("x")], "refuses the messages: only users"),
    ],
)
def test_a_template_that_cannot_is_a_sentence(template: str | None, messages: list[Any], says: str) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        task(template).prepare_chat(messages, {})
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)


def test_a_template_that_writes_without_end_is_stopped() -> None:
    endless = "{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}"
    with pytest.raises(RequestError, match="more than") as refused:
        task(endless).prepare_chat([user("x")], {})
    assert (refused.value.status, refused.value.cause) == (413, Cause.TOO_LARGE)


def test_an_answer_says_what_it_took() -> None:
    generate = task()
    prepared = generate.prepare(["hi"], {"stop": ["!"], "seed": 4, "logprobs": True})
    reader = generate.reader(prepared, {"stop": ["!"]})
    assert reader is not None
    assert [reader.take(Chunk("1", [token], [-0.5])) for token in "ä!".encode()] == ["", "ä", ""]
    assert reader.complete
    figures = {"finish": "stop", "prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 3}
    (result,) = generate.answer({**figures, **reader.outputs()}, prepared, {})
    assert (result["text"], result["finish_reason"], result["seed"]) == ("ä", "stop", 4)
    assert result["usage"] == {"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 3}
    assert [entry["logprob"] for entry in result["logprobs"]] == [-0.5] * 3


def test_probes_are_rows_without_parameters() -> None:
    assert task().probe(["a", "b"]) == api.Prepared([[256, 97], [256, 98]], [2, 2], [False, False], {})


def test_encoders_take_no_messages() -> None:
    with pytest.raises(RequestError, match="takes texts, not messages") as refused:
        registry.build(msgspec.structs.replace(GENERATE, kind="embed"), None).prepare_chat([user("x")], {})
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)


def test_one_prompt_is_continued_at_a_time() -> None:
    with pytest.raises(RequestError, match="one prompt is continued at a time, not 2") as refused:
        task().prepare(["a", "b"], {})
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)


def test_a_prompt_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bytes, "encode", lambda *_: [])
    with pytest.raises(RequestError, match="the prompt is empty") as refused:
        task().prepare([""], {})
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_prompt_is_what_the_shared_renderer_makes(family: Family) -> None:
    words = Bytes(family.source)
    words.special_tokens = family.special_tokens
    assert ChatTemplate(words).render(DIALOGUE) == family.prompt
