"""What answers leave behind in a compiled grammar, and what another answer makes of it."""

import json
import random
from typing import Any

import pytest

from edge_agent.backends.llamacpp import grammar_process
from edge_agent.backends.llamacpp.grammar_process import SPECIAL, GrammarRefused, Grammars, State

pytest.importorskip("llguidance")

WORDS = [*(bytes([number]) for number in range(256)), SPECIAL + b"<end>"]
TEXTS = json.dumps(
    {
        "type": "object", "required": ["a"], "additionalProperties": False,
        "properties": {"a": {"type": "string", "maxLength": 300, "pattern": r"^(?:\S+\s+){0,29}\S+$"}},
    }
)  # fmt: skip


def answer(rng: random.Random) -> bytes:
    words = ["".join(rng.choices("abcdefghijk", k=rng.randint(1, 7))) for _ in range(29)]
    return json.dumps({"a": " ".join(words)}, separators=(",", ":")).encode()


def written(grammars: Grammars, number: int, text: bytes) -> None:
    for byte in text:
        mask, _ = grammars.mask(number)
        assert mask[byte >> 3] >> (byte & 7) & 1
        grammars.take(number, byte)


def test_states_that_answers_have_used_up_do_not_refuse_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_process, "LIMITS", {**grammar_process.LIMITS, "max_lexer_states": 4_000})
    grammars, rng, compiled = Grammars(WORDS, [256]), random.Random(3), list[Any]()
    for _ in range(16):
        grammars.open(1, "json_schema", TEXTS, [])
        written(grammars, 1, answer(rng))
        assert grammars.mask(1)[1] == State.ENDED
        found = grammars._compiled["json_schema", TEXTS]
        # Kept, not their addresses: what was given up may leave its place to what is compiled next.
        compiled += [] if any(found is one for one in compiled) else [found]
    assert len(compiled) > 1, "one compiled grammar is enough for all: the limit is not met here"


def test_what_one_answer_alone_needs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_process, "LIMITS", {**grammar_process.LIMITS, "max_lexer_states": 200})
    grammars, followed = Grammars(WORDS, [256]), list[int]()
    grammars._on_token = lambda: followed.append(1)
    grammars.open(1, "json_schema", TEXTS, [])
    text = answer(random.Random(3))
    with pytest.raises(GrammarRefused, match="more steps than are possible") as refused:
        written(grammars, 1, text)
    assert refused.value.costly
    assert 0 < len(followed) < 2 * len(text), "followed again at most twice"


def test_an_answer_goes_on_from_the_tokens_that_it_has_as_it_would_have_without_a_break() -> None:
    schema = TEXTS.replace("{0,29}", "{0,49}").replace("300", "500")
    text = answer(random.Random(5))
    whole: dict[int, Any] = {}
    grammars = Grammars(WORDS, [256])
    grammars.open(1, "json_schema", schema, [])
    written(grammars, 1, text[:-2])
    whole[0] = grammars.mask(1)
    timed = list[int]()
    grammars = Grammars(WORDS, [256], on_token=lambda: timed.append(1))
    grammars.open(1, "json_schema", schema, list(text[:-2]))
    assert grammars.mask(1) == whole[0]
    assert len(timed) == len(text) - 2, "each token has a time of its own"


def test_compiled_grammars_are_given_up_where_they_hold_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(WORDS, [256])
    for kind, text in (("regex", "a+"), ("regex", "b+")):
        grammars.check(kind, text)
    assert len(grammars._compiled) == 2
    monkeypatch.setattr(grammar_process, "CROWDED_BYTES", -(1 << 40))
    grammars.open(1, "regex", "c+", [])
    assert list(grammars._compiled) == [("regex", "c+")]
