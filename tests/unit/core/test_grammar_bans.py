"""Whose grammars are not taken for a while, and that memory of it is bounded."""

from __future__ import annotations

import pytest

from edge_agent.core.grammar_bans import BAN_S, CLIENTS_KEPT, GrammarBans, has_grammar


@pytest.mark.parametrize(
    ("params", "brings"),
    [
        ({}, False),
        ({"max_tokens": 3}, False),
        ({"grammar": "x"}, True),
        ({"json_schema": {}}, True),
        ({"regex": "a"}, True),
    ],
)
def test_a_grammar_and_a_schema_are_programs(params: dict[str, object], brings: bool) -> None:
    assert has_grammar(params) is brings


def test_a_client_is_barred_for_a_while_and_nobody_else() -> None:
    bans = GrammarBans()
    bans.ban("a", 100.0)
    assert bans.banned_s("a", 100.0) == BAN_S
    assert bans.banned_s("a", 100.0 + BAN_S) == 0.0
    assert bans.banned_s("b", 100.0) == 0.0


def test_the_oldest_is_forgotten_first() -> None:
    bans = GrammarBans()
    for index in range(CLIENTS_KEPT):
        bans.ban(str(index), 0.0)
    bans.ban("0", 1.0)
    bans.ban("new", 1.0)
    assert bans.banned_s("0", 1.0) == BAN_S
    assert bans.banned_s("1", 1.0) == 0.0
