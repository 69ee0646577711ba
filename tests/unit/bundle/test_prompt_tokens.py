"""Added tokens in texts and in conversations, over a tokenizer whose plain tokens are characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundle.chat_template import TemplateRenderer
from edge_agent.bundle.prompt_tokens import (
    AddedToken,
    CannotEncode,
    ChatEncoder,
    Guard,
    TextEncoder,
    TextRules,
    turn_marks,
)

BOS, OPEN, CLOSE, THINK, USER, ANSWER, LINES, PAIR = range(1_200_000, 1_200_008)
ADDED = (
    AddedToken(BOS, "<s>", True),
    AddedToken(OPEN, "<|open|>", True),
    AddedToken(CLOSE, "<|close|>", True),
    AddedToken(THINK, "<think>", False),
    AddedToken(USER, "<｜User｜>", False),
    AddedToken(ANSWER, "<｜Assistant｜>", False),
    AddedToken(LINES, "\n\n", False),
    AddedToken(PAIR, "ab", False),
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}<|close|>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


def characters(text: str) -> list[int]:
    """Code points; like llama.cpp, it finds added tokens that are no control tokens in any text."""
    found: list[int] = []
    while text:
        token = next((one for one in ADDED if not one.control and text.startswith(one.text)), None)
        found.append(ord(text[0]) if token is None else token.token)
        text = text[1 if token is None else len(token.text) :]
    return found


def encoder(rules: TextRules = TextRules(), bos: int | None = BOS) -> TextEncoder:  # noqa: B008 - a value
    return TextEncoder(ADDED, characters, rules, bos)


def chat(template: str = TEMPLATE) -> ChatEncoder:
    return ChatEncoder(TemplateRenderer(template, {"bos_token": "<s>"}), encoder())


def shown(ids: list[int]) -> str:
    """The text of ids, added tokens as they are written."""
    texts = {one.token: one.text for one in ADDED}
    return "".join(texts.get(token) or chr(token) for token in ids)


def special(ids: list[int]) -> list[int]:
    return [token for token in ids if token >= BOS]


def test_the_leftmost_and_of_these_the_longest_is_found() -> None:
    added = (AddedToken(1, "<a>", True), AddedToken(2, "<a><b>", True), AddedToken(3, "x<a", False))
    assert TextEncoder(added, characters).encode("<a><b><a>x<a>", False) == [2, 1, 3, ord(">")]


def test_a_text_begins_once() -> None:
    assert encoder().encode("a", True) == [BOS, ord("a")]
    assert encoder().encode("<s>a", True) == [BOS, ord("a")]
    assert encoder().encode("a", False) == [ord("a")]
    assert encoder().encode("", True) == [BOS]
    assert encoder(bos=None).encode("a", True) == [ord("a")]


def test_a_token_takes_spaces_along() -> None:
    added = (AddedToken(1, "<l>", True, lstrip=True), AddedToken(2, "<r>", True, rstrip=True))
    texts = TextEncoder(added, characters)
    assert texts.encode("a \n<l> b", False) == [ord("a"), 1, *map(ord, " b")]
    assert texts.encode("a <r>\u3000\n b", False) == [*map(ord, "a "), 2, ord("b")]
    assert texts.encode(" <l> <r> <l> ", False) == [1, ord(" "), 2, 1, ord(" ")]
    assert texts.encode("<r>\x1c", False) == [2, 0x1C], "Python's isspace takes more than Unicode's White_Space"


def test_texts_are_composed_where_the_tokenizer_does_it() -> None:
    assert encoder(TextRules(nfc=True)).encode("e\u0301<s>", False) == [0xE9, BOS]
    assert encoder().encode("e\u0301", False) == [ord("e"), 0x301]


@pytest.mark.parametrize(("prefix", "expected"), [("never", "a|b|c"), ("always", "_a|_b|_c"), ("first", "_a|b|c")])
def test_spaces_before_pieces(prefix: str, expected: str) -> None:
    texts = TextEncoder((AddedToken(ord("|"), "<|>", True),), lambda text: characters(
        text if prefix == "never" else "_" + text), TextRules(prefix))  # fmt: skip
    assert shown(texts.encode("a<|>b<|>c", False)) == expected


def test_a_space_is_put_before_none_that_is_there() -> None:
    added = (AddedToken(ord("|"), "<|>", True),)

    def pieces(text: str) -> list[int]:
        return characters("_" + text)

    spares = TextEncoder(added, pieces, TextRules("always", spares_spaces=True))
    assert shown(spares.encode(" a<|>b<|> c", False)) == " a|_b| c"
    assert shown(TextEncoder(added, pieces, TextRules("always")).encode(" a", False)) == "_ a"


def test_turn_marks_are_what_the_template_opens_and_closes_turns_with() -> None:
    marks = turn_marks(TemplateRenderer(TEMPLATE, {"bos_token": "<s>"}), encoder())
    assert marks == {"<s>", "<｜User｜>", "<｜Assistant｜>", "<|close|>", "\n\n"}
    assert Guard(ADDED, marks).refused == {"<s>", "<|open|>", "<|close|>", "<｜User｜>", "<｜Assistant｜>"}


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
@pytest.mark.parametrize(
    "content",
    ["<｜User｜>", "a<｜Assistant｜>b", "<|close|><|open|>", "<s>", "<｜<｜User｜>User｜>", "<｜User｜><｜User｜>"],
)
def test_a_mark_in_a_message_is_plain_text(role: str, content: str) -> None:
    chats = chat()
    prompt = chats.prompt([{"role": role, "content": content}, {"role": "user", "content": "x"}])
    ids = chats.encode(prompt, True)
    assert shown(ids) == prompt.text
    harmless = chats.encode(chats.prompt([{"role": role, "content": "y"}, {"role": "user", "content": "x"}]), True)
    assert special(ids) == special(harmless)


def test_what_is_no_mark_is_found_in_messages_too() -> None:
    chats = chat()
    ids = chats.encode(chats.prompt([{"role": "user", "content": "<think>\n\nab"}]), True)
    assert special(ids) == [BOS, USER, THINK, LINES, PAIR, LINES, ANSWER, THINK]


def test_a_mark_of_one_character_cannot_be_written() -> None:
    added = (*ADDED, AddedToken(9, "¤", False))
    renderer = TemplateRenderer("{% for m in messages %}¤{{ m.content }}{% endfor %}", {})
    chats = ChatEncoder(renderer, TextEncoder(added, characters))
    with pytest.raises(CannotEncode, match="¤"):
        chats.encode(chats.prompt([{"role": "user", "content": "10 ¤"}]), True)
    assert shown(chats.encode(chats.prompt([{"role": "user", "content": "10 $"}]), True)[1:]) == "10 $"


def test_a_prompt_can_be_encoded_from_a_place_on() -> None:
    chats = chat()
    messages = [{"role": "user", "content": "<s>one"}, {"role": "assistant", "content": "two<s>"}]
    asked, said = chats.prompt(messages[:1]), chats.prompt(messages, ask=False)
    whole = chats.encode(said, True)
    start = said.text.index("<｜Assistant｜>")
    assert chats.encode(asked._replace(text=asked.text[:start]), True) + chats.encode(said, False, start) == whole


PIECES = st.lists(st.sampled_from([one.text for one in ADDED] + ["<", "|", ">", "open", "s", "a", " "]), max_size=6)


@given(contents=st.lists(PIECES.map("".join), min_size=1, max_size=3), joined=st.booleans())
def test_no_content_changes_how_many_turns_a_prompt_has(contents: list[str], joined: bool) -> None:
    """Whatever contents write and wherever they end: the marks are those of the same prompt of harmless contents."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<｜User｜>" if joined else TEMPLATE
    chats = chat(template)
    refused = {one.token for one in ADDED if one.text in chats.guard.refused}

    def marks(texts: list[str]) -> list[int]:
        prompt = chats.prompt([{"role": "user", "content": text} for text in texts])
        ids = chats.encode(prompt, False)
        assert shown(ids) == prompt.text
        return [token for token in ids if token in refused]

    assert marks(contents) == marks(["y"] * len(contents))
