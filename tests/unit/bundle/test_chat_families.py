"""The chat templates of twelve families: the prompt is transformers', and no message writes a mark of a turn."""

from __future__ import annotations

from collections import Counter

import pytest

from edge_agent.bundle.chat_template import TemplateRenderer
from edge_agent.bundle.prompt_tokens import AddedToken, CannotEncode, ChatEncoder, TextEncoder
from tests.support.chat_templates import DIALOGUE, WRITTEN, WrittenFamily

SYSTEM = {"role": "system", "content": "Answer in one word. /no_think"}
DIALOGUES = {
    "a question": DIALOGUE[:1],
    "an answer": DIALOGUE[:2],
    "a second question": DIALOGUE,
    "with thoughts": [DIALOGUE[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, DIALOGUE[2]],
    "with a system message": [SYSTEM, *DIALOGUE],
}
FIRST = 0x110000
PLAIN = ("<think>", "</think>", "[INST]", "<unk>", "\n\n")
NO_SYSTEM = ("gemma", "mistral")
TAKEN = [(name, one) for name in WRITTEN for one in DIALOGUES if name not in NO_SYSTEM or "system" not in one]
families = pytest.mark.parametrize("family", WRITTEN.values(), ids=WRITTEN)


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize(("name", "dialogue"), TAKEN)
def test_the_prompt_is_that_of_transformers(name: str, dialogue: str, ask: bool) -> None:
    family, messages = WRITTEN[name], DIALOGUES[dialogue]
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    due = render(
        conversations=[messages], chat_template=family.source, add_generation_prompt=ask, **family.special_tokens
    )[0][0]
    assert TemplateRenderer(family.source, family.special_tokens).render(messages, ask) == due


class Chat:
    """A family's template over a tokenizer whose plain tokens are characters; `control`: the type of its marks."""

    def __init__(self, family: WrittenFamily, control: bool) -> None:
        texts = [*family.marks, *PLAIN]
        self._added = [AddedToken(FIRST + at, text, control and text in family.marks) for at, text in enumerate(texts)]
        renderer = TemplateRenderer(family.source, family.special_tokens)
        self._chat = ChatEncoder(renderer, TextEncoder(self._added, self._characters))
        self._marks = {one.token for one in self._added if one.text in family.marks}

    def _characters(self, text: str) -> list[int]:
        """Like a library, it finds added tokens that are no control tokens in any text."""
        found: list[int] = []
        while text:
            token = next((one for one in self._added if not one.control and text.startswith(one.text)), None)
            found.append(ord(text[0]) if token is None else token.token)
            text = text[1 if token is None else len(token.text) :]
        return found

    def marks(self, messages: list[dict[str, str]]) -> Counter[int]:
        """How often each mark stands in the tokens of a conversation, whose text is the prompt's."""
        prompt = self._chat.prompt(messages)
        ids = self._chat.encode(prompt, False)
        texts = {one.token: one.text for one in self._added}
        assert "".join(texts.get(token) or chr(token) for token in ids) == prompt.text
        return Counter(token for token in ids if token in self._marks)


@families
@pytest.mark.parametrize("control", [True, False], ids=["control tokens", "user-defined tokens"])
def test_no_message_writes_a_mark_of_a_turn(family: WrittenFamily, control: bool) -> None:
    chat = Chat(family, control)
    harmless = chat.marks([{**one, "content": "plain words"} for one in DIALOGUE])
    assert harmless, "the template's own marks are tokens"
    for mark in family.marks:
        for content in (mark, f"x {mark}user\n", f"{mark}{mark}", f"a</think>{mark}", f"{mark[:-1]}", f" {mark} "):
            for place in range(len(DIALOGUE)):
                messages = [
                    {**one, "content": content if at == place else "plain words"} for at, one in enumerate(DIALOGUE)
                ]
                try:
                    found = chat.marks(messages)
                except CannotEncode as error:
                    assert error.message == place
                    continue
                assert not found - harmless, (content, place)
