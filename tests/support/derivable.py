"""What a grammar lets through, text by text: the grammar process's own code over a vocabulary of single bytes."""

from __future__ import annotations

import json
from typing import Any

from edge_agent.backends.llamacpp.grammar_process import SPECIAL, GrammarRefused, Grammars, State

TOKENS = [*(bytes([number]) for number in range(256)), SPECIAL + b"<end>"]
END = 256


def grammars() -> Grammars:
    """A vocabulary of 256 bytes and an end."""
    return Grammars(TOKENS, [END])


def allowed(mask: bytes) -> list[int]:
    """The tokens of a mask."""
    return [token for token in range(len(TOKENS)) if mask[token >> 3] >> (token & 7) & 1]


def derivable(found: Grammars, kind: str, text: str, answer: bytes | str) -> bool:
    """Whether an answer that is just this text can be drawn. Raises GrammarRefused for a grammar that is refused."""
    found.open(1, kind, text, [])
    for byte in answer.encode("utf-8", "surrogatepass") if isinstance(answer, str) else answer:
        try:
            mask, state = found.mask(1)
        except GrammarRefused:
            return False
        if state == State.ENDED or not mask[byte >> 3] >> (byte & 7) & 1:
            return False
        found.take(1, byte)
    mask, state = found.mask(1)
    return state == State.ENDED or bool(mask[END >> 3] >> (END & 7) & 1)


def follows(found: Grammars, schema: Any, answer: bytes | str) -> bool:
    """`derivable` under a JSON schema."""
    return derivable(found, "json_schema", json.dumps(schema), answer)
