"""The grammar process and its client: who is at fault when it ends, and that the others go on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.backends.llamacpp import grammar_client
from edge_agent.backends.llamacpp.grammar_client import FollowedGrammar, GrammarClient, Phase, grammar_of
from tests.support.derivable import END, TOKENS, allowed
from tests.support.needs import need


class Words:
    """A model that is only a vocabulary."""

    def words(self) -> tuple[list[bytes], list[int]]:
        return TOKENS, [END]


@pytest.fixture
def client() -> Iterator[GrammarClient]:
    need("llguidance")
    found = GrammarClient(Words())  # type: ignore[arg-type]
    yield found
    found.end()
    assert found._pid == 0 or not Path(f"/proc/{found._pid}").exists()


def until(client: GrammarClient, true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < end_s, "it never comes"
        client.pump(0.05)


def opened(client: GrammarClient, kind: str, text: str) -> FollowedGrammar:
    grammar = client.begin(kind, text)
    until(client, lambda: grammar.phase is not Phase.CHECKED)
    if grammar.phase is Phase.READY:
        client.open(grammar)
        until(client, lambda: grammar.phase is not Phase.AWAITED)
    return grammar


def test_masks_follow_the_tokens(client: GrammarClient) -> None:
    grammar = opened(client, "regex", "a[bc]d")
    seen = []
    for token in b"acd":
        seen.append(allowed(grammar.mask))
        client.take(grammar, token)
        until(client, lambda: grammar.phase is not Phase.AWAITED)
    assert seen == [[*b"a"], [*b"bc"], [*b"d"]]
    assert (grammar.phase, grammar.mask) == (Phase.ENDED, b"")
    assert 0.0 <= grammar.cpu_s < 2.0


EXPLODES = "\n".join(["root ::= r0", *(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(18)), 'r18 ::= "a"?'])
OVERLAPPING = {"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(10, 60)]}
BRANCHING = {"allOf": [{"anyOf": [{"pattern": f"a{n}"}, {"pattern": f"b{n}"}, {}]} for n in range(15)]}
DOUBLING = "\n".join(["start: x0", *(f"x{n}: x{n + 1} x{n + 1}" for n in range(40)), 'x40: "a"?'])
HOSTILE = [
    ("grammar", EXPLODES),
    ("regex", "qx" + "a?" * 8000 + "b"),
    ("json_schema", json.dumps(OVERLAPPING)),
    ("grammar", 'root ::= "qx" ' + '"a"? ' * 3000 + '"b"'),
    ("grammar", DOUBLING),
    ("regex", "((a{0,1000}){0,1000}){0,1000}b"),
    ("grammar", "start: A\nA: " + " & ".join(f"/(.*{chr(97 + n)}.{{20}})+/" for n in range(8))),
    ("json_schema", json.dumps(BRANCHING)),
]


@pytest.mark.parametrize(("kind", "text"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_grammar_ends_alone_and_within_its_time(client: GrammarClient, kind: str, text: str) -> None:
    """Whatever it does, an answer beside it has the masks that it would have alone."""
    other = opened(client, "regex", "(xy)*z")
    client.take(other, ord("x"))
    hostile = client.begin(kind, text)
    until(client, lambda: hostile.phase is not Phase.CHECKED)
    if hostile.phase is Phase.READY:
        client.open(hostile)
    for _ in range(60):
        until(client, lambda: hostile.phase is not Phase.AWAITED)
        if hostile.phase is not Phase.GOES:
            break
        client.take(hostile, allowed(hostile.mask)[0])
    assert hostile.cpu_s < grammar_client.GRACE_S + grammar_client.COMPILE_S
    if hostile.phase is Phase.FAILED:
        assert hostile.costly == (hostile.cpu_s > grammar_client.COSTLY_S or "it takes" not in hostile.reason)
        assert any(words in hostile.reason for words in ("takes more", "took", "breaks its parser")), hostile.reason
    until(client, lambda: other.phase is Phase.GOES)
    assert allowed(other.mask) == [*b"y"]


def test_a_process_that_is_ended_from_outside_is_started_again(client: GrammarClient) -> None:
    first, second = opened(client, "regex", "ab*"), opened(client, "grammar", 'root ::= "xyz"')
    client.take(first, ord("a"))
    until(client, lambda: first.phase is Phase.GOES)
    before = client._pid
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    client.take(second, ord("x"))
    until(client, lambda: second.phase is not Phase.AWAITED)
    assert client._pid != before
    assert (second.phase, second.costly) == (Phase.FAILED, False)
    assert "ended from outside" in second.reason
    until(client, lambda: first.phase is Phase.GOES)
    assert allowed(first.mask) == [ord("b"), END]


def test_a_process_that_cannot_be_started_is_said_and_tried_again(
    client: GrammarClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_spawn", full)
        grammar = client.begin("regex", "a")
        until(client, lambda: grammar.phase is not Phase.CHECKED)
    assert (grammar.phase, grammar.costly) == (Phase.FAILED, False)
    assert "cannot be started: Cannot allocate memory" in grammar.reason
    assert allowed(opened(client, "regex", "a").mask) == [*b"a"]


def test_a_process_that_does_not_answer_is_ended(client: GrammarClient, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = opened(client, "regex", "ab")
    os.kill(client._pid, signal.SIGSTOP)
    monkeypatch.setattr(grammar_client, "HEAD_S", 0.2)
    client.take(grammar, ord("a"))
    until(client, lambda: grammar.phase is not Phase.AWAITED)
    assert grammar.reason == "the regex does not end"
    monkeypatch.undo()
    assert allowed(opened(client, "regex", "a").mask) == [*b"a"]


def test_what_is_forgotten_is_not_computed_again(client: GrammarClient) -> None:
    grammar = client.begin("regex", "a")
    client.close(grammar)
    other = opened(client, "regex", "b")
    assert (grammar.phase, allowed(other.mask)) == (Phase.CHECKED, [*b"b"])


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, None),
        ({"regex": "a"}, ("regex", "a")),
        ({"grammar": "x"}, ("grammar", "x")),
        ({"json_schema": {"b": 1, "a": "é"}}, ("json_schema", '{"b": 1, "a": "é"}')),
    ],
)
def test_the_grammar_of_a_job(params: dict[str, object], found: tuple[str, str] | None) -> None:
    assert grammar_of(params) == found
