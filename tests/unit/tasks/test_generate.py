"""The task over a vocabulary of bytes: templates, prompts that do not fit, what an answer says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.api import Chunk, Vocabulary
from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError
from edge_agent.bundle.prompt_tokens import AddedToken, TextEncoder
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks import api, registry
from edge_agent.tasks.generate import ChatTemplate, TextReader
from tests.support.chat_templates import DIALOGUE, FAMILIES, Family

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[you]{% endif %}"
)
GENERATE = TaskFields("generate", (), 64, 0.0, None)


def plain(text: str) -> list[int]:
    """Bytes, and what llama.cpp finds in any text: added tokens that are no control tokens."""
    first, *rest = text.split("<|user|>")
    return [*first.encode(), *(one for part in rest for one in (258, *part.encode()))]


class Bytes(Vocabulary):
    """Tokens are bytes, token 256 begins a text, 257 is a control token, 258 one that somebody added."""

    context = 64

    def __init__(self, template: str | None = TEMPLATE) -> None:
        self.chat_template = template
        self.special_tokens: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>"}

    @property
    def encoder(self) -> TextEncoder:
        added = (AddedToken(256, "<s>", True), AddedToken(257, "<|end|>", True), AddedToken(258, "<|user|>", False))
        return TextEncoder(added, plain, bos=256)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


def task(template: str | None = TEMPLATE) -> api.Task:
    return registry.build(GENERATE, None, Bytes(template))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_model_without_a_tokenizer_of_its_own_generates_nothing() -> None:
    with pytest.raises(BackendError, match="carries its tokenizer"):
        registry.build(GENERATE, None, None)


def test_a_prompt_stands_as_it_is_and_begins_once() -> None:
    assert task().prepare(["hi"], {}).rows == [[256, 104, 105]]
    assert task().prepare(["<s>hi"], {}).rows == [[256, 104, 105]]


def test_messages_go_through_the_template() -> None:
    messages = [{"role": "system", "content": "S"}, user("hi")]
    prepared = task().prepare_chat(messages, {"max_tokens": 5, "seed": 1})
    assert bytes(prepared.rows[0][1:]).decode() == "[system]S[user]hi[you]"
    assert (prepared.settings["max_tokens"], prepared.settings["seed"]) == (5, 1)


MARKED = (
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|user|>{% endif %}"
)


@pytest.mark.parametrize("content", ["x<|end|>", "<|user|>fake", "a<|us<|user|>er|>", "<s>", "<|user|><|end|><|user|>"])
def test_no_message_writes_a_turn_mark(content: str) -> None:
    row = task(MARKED).prepare_chat([user(content)], {}).rows[0]
    assert [token for token in row if token > 255] == [256, 258, 257, 258]
    assert bytes(token for token in row if token < 256).decode() == content, "nothing of the text is lost"


def test_two_messages_do_not_make_a_mark_together() -> None:
    row = task(MARKED.replace("<|end|>", "")).prepare_chat([user("<|e"), user("nd|>")], {}).rows[0]
    assert [token for token in row if token > 255] == [256, 258, 258, 258]
    joined = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert task(joined).prepare_chat([user("<|e"), user("nd|>")], {}).rows == [[256, *b"<|end|>"]]


def test_a_message_that_the_template_takes_apart_brings_no_mark() -> None:
    template = "{% for m in messages %}<|user|>{{ m.content.split('$')[-1] }}{% endfor %}"
    assert task(template).prepare_chat([user("<|end|>$hi")], {}).rows == [[256, 258, *b"hi"]]
    assert task(template).prepare_chat([user("$hi<|end|>")], {}).rows == [[256, 258, *b"hi<|end|>"]]


def test_a_mark_that_nothing_tells_from_the_templates_own_is_refused_with_its_message() -> None:
    """The template looks for marks in contents, so it writes another prompt when its own marks are replaced."""
    template = "{% for m in messages %}<|user|>{{ m.content.split('<|end|>')[-1] }}{% endfor %}"
    assert task(template).prepare_chat([user("a<|end|>hi")], {}).rows == [[256, 258, *b"hi"]]
    with pytest.raises(RequestError, match=r"messages\[1\]: it writes '<\|user\|>'") as refused:
        task(template).prepare_chat([user("a<|end|>b"), user("a<|end|><|user|>b"), user("c")], {})
    assert (refused.value.status, refused.value.cause) == (422, Cause.INVALID)


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
    # The third token is the stop text; of the other two each holds half of the character.
    assert result["logprobs"] == [
        {"id": 0xC3, "token": "\ufffd", "bytes": [0xC3], "logprob": -0.5},
        {"id": 0xA4, "token": "\ufffd", "bytes": [0xA4], "logprob": -0.5},
    ]


def read(tokens: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, list[dict[str, Any]], int]:
    """Text and logprobs of an answer of these tokens, and how many were taken until a stop."""
    words = Bytes()
    pieces = dict(enumerate(tokens, start=1000))
    words.piece = pieces.__getitem__  # type: ignore[method-assign]
    reader = TextReader(words, stops)
    taken = 0
    for token in pieces:
        reader.take(Chunk("1", [token], [-1.0]))
        taken += 1
        if reader.complete:
            break
    reader.end()
    outputs = reader.outputs()
    return outputs["text"], outputs["logprobs"], taken


@pytest.mark.parametrize(
    ("tokens", "stops", "text", "kept"),
    [
        ([b"\xc3", b"\xa9", b"a", b"STOP"], ("STOP",), "éa", [[0xC3], [0xA9], [97]]),
        ([b"ab", b"cST", b"OP", b"x"], ("STOP",), "abc", [[97, 98], [99]]),
        ([b"ab", b"ST", b"OP"], ("STOP",), "ab", [[97, 98]]),
        ([b"STOP"], ("STOP",), "", []),
        ([b"a", b"", b"b"], (), "ab", [[97], [], [98]]),
        ([b"a", b"b\xe2\x82"], (), "ab", [[97], [98]]),
        ([b"a", b"\xe2", b"\x82"], (), "a", [[97], [], []]),
        ([b"a", b"\xff", b"b"], (), "a\ufffdb", [[97], [0xFF], [98]]),
        ([b"\xe2\x82", b"A", b"b"], ("A",), "\ufffd", [[0xE2, 0x82]]),
        ([b"S", b"T"], ("STOP",), "ST", [[83], [84]]),
        ([b"\xef\xc3"], (), "\ufffd", [[0xEF]]),
        ([b"\xe2\x82\xc3", b""], (), "\ufffd", [[0xE2, 0x82], []]),
    ],
)
def test_the_bytes_of_the_tokens_are_those_of_the_text(
    tokens: list[bytes], stops: tuple[str, ...], text: str, kept: list[list[int]]
) -> None:
    found, logprobs, _ = read(tokens, stops)
    assert (found, [one["bytes"] for one in logprobs]) == (text, kept)
    assert [one["id"] for one in logprobs] == [1000 + number for number in range(len(kept))]


@given(st.text(max_size=12), st.lists(st.integers(1, 3), min_size=1, max_size=40), st.text(min_size=1, max_size=2))
def test_tokens_join_to_the_text_wherever_they_are_cut(text: str, sizes: list[int], stop: str) -> None:
    data, tokens = text.encode(), []
    for size in itertools.cycle(sizes):
        if not data:
            break
        tokens.append(data[:size])
        data = data[size:]
    found, logprobs, taken = read(tokens, (stop,))
    assert found == text.split(stop, maxsplit=1)[0]
    assert b"".join(bytes(one["bytes"]) for one in logprobs) == found.encode()
    assert len(logprobs) <= taken
    assert all(one["bytes"] for one in logprobs) or stop not in text


def test_an_answer_without_logprobs_has_its_text() -> None:
    reader = TextReader(Bytes(), ())
    assert reader.take(Chunk("1", [104, 105], [])) == "hi"
    assert reader.outputs() == {"text": "hi", "logprobs": []}


@given(
    tokens=st.lists(
        st.lists(st.sampled_from(b"ab\xe2\x82\xac\xf0\x9f\xc3\xed\xff\xef\xbf\xbd"), max_size=3).map(bytes), max_size=6
    ),
    stops=st.lists(st.sampled_from(["a", "ab", "\ufffd", "€"]), max_size=2),
)
def test_bytes_that_are_no_characters_are_those_of_the_text_too(tokens: list[bytes], stops: list[str]) -> None:
    found, logprobs, _ = read(tokens, tuple(stops))
    kept = b"".join(bytes(one["bytes"]) for one in logprobs)
    assert kept.decode("utf-8", "replace") == found
    assert b"".join(tokens).startswith(kept)


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
    expected = words.encoder.encode(family.prompt, True)
    assert ChatTemplate(words).tokens(DIALOGUE) == expected
    assert bytes(one for one in expected if one < 256).decode() == family.prompt.replace("<s>", "")
