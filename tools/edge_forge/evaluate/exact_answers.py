"""Questions with one right answer, asked of a generator: small sets on arithmetic and on code, or the user's own.

The first rows of a set are shown with their answers in front of every question, so that a model that knows nothing of
the form answers in it; they are not asked. The answer is greedy, and its first line counts. Nothing that a model writes
is executed: questions on code are judged by the text of the answer too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_agent.base.errors import ConfigError
from edge_forge.data.generator_rows import Turn
from edge_forge.data.knowledge_files import SHOWN, ExactQuestion

if TYPE_CHECKING:
    from edge_forge.data.chat_tokenizer import ChatTokenizer

_ANSWER_TOKENS = 24
_AROUND = " \t.`'\""


def same(said: str, wanted: str) -> bool:
    """Whether an answer is the wanted one: white space, quotes around it and a full stop behind it play no part."""
    return _plain(said) == _plain(wanted)


def first_line(said: str) -> str:
    """What counts of an answer: a model without an end token goes on with a further question."""
    return next((line for line in said.splitlines() if line.strip()), "")


def prompt(shown: Sequence[ExactQuestion], asked: str) -> str:
    """A question behind others with their answers."""
    told = "".join(f"Question: {one.prompt}\nAnswer: {one.answers[0]}\n\n" for one in shown)
    return f"{told}Question: {asked}\nAnswer:"


def marks(model: Any, tokenizer: ChatTokenizer, questions: Sequence[ExactQuestion], longest: int) -> list[bool]:
    """Whether each question behind the first `SHOWN` is answered rightly; prompt and answer take at most `longest`
    tokens. Where a prompt is longer, fewer are shown, for all questions alike. Raises ConfigError where one is too long
    by itself."""
    from edge_forge.models.causal_lm import answers

    asked, ids = questions[SHOWN:], prompts(tokenizer, questions, longest)
    said = [first_line(tokenizer.decode(found)) for found in answers(model, ids, _ANSWER_TOKENS, tokenizer.ends)]
    return [any(same(one, due) for due in row.answers) for one, row in zip(said, asked, strict=True)]


def prompts(tokenizer: ChatTokenizer, questions: Sequence[ExactQuestion], longest: int) -> list[tuple[int, ...]]:
    """The tokens of every question behind the first `SHOWN`, as devices render prompts, beside an answer in `longest`
    tokens. Raises ConfigError where one does not fit."""
    shown, asked, most = questions[:SHOWN], questions[SHOWN:], longest - _ANSWER_TOKENS
    for count in range(len(shown), -1, -1):
        texts = [prompt(shown[:count], one.prompt) for one in asked]
        # The turn of the answer is not read: a row's tokens up to where it begins are the prompt as devices render it.
        rows = [tokenizer.encode((Turn("user", text), Turn("assistant", "x"))) for text in texts]
        found = [row.ids[: row.answer] for row in rows]
        if max(map(len, found)) <= most:
            return found
    raise ConfigError(
        f"a question takes more than the {most} tokens that the base has room for beside an answer",
        "diagnose.exact", "leave the set out, or shorten its questions",
    )  # fmt: skip


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text.strip(_AROUND))
