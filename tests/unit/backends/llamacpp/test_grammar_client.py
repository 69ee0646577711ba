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


def test_small_costs_count_too(client: GrammarClient) -> None:
    """The kernel's clock of a process stands still between two ticks while a timer of CPU time runs; a thread's goes
    on."""
    grammar = opened(client, "regex", "[a-z]*")
    for _ in range(20):
        before_s = grammar.cpu_s
        client.take(grammar, ord("a"))
        until(client, lambda: grammar.phase is not Phase.AWAITED)
        assert grammar.cpu_s > before_s


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
    killed(client)
    client.take(second, ord("x"))
    until(client, lambda: second.phase is not Phase.AWAITED)
    assert client._pid != before
    assert allowed(second.mask) == [ord("y")]
    until(client, lambda: first.phase is Phase.GOES)
    assert allowed(first.mask) == [ord("b"), END]


def test_a_grammar_whose_process_is_ended_from_outside_twice_fails_without_blame(client: GrammarClient) -> None:
    grammar = opened(client, "regex", "abc")
    for token in b"ab":
        until(client, lambda: grammar.phase is Phase.GOES)
        killed(client)
        client.take(grammar, token)
    until(client, lambda: grammar.phase is Phase.FAILED)
    assert (grammar.costly, grammar.blamed) == (False, False)
    assert "ended from outside" in grammar.reason


def killed(client: GrammarClient) -> None:
    os.kill(client._pid, signal.SIGKILL)
    os.waitid(os.P_PID, client._pid, os.WEXITED | os.WNOWAIT)


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


def test_a_process_that_is_stopped_is_started_again(client: GrammarClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops it, or takes its CPU, is no client: what it computed counts, not how long it took."""
    grammar = opened(client, "regex", "ab")
    before = client._pid
    os.kill(before, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(grammar_client, "HEAD_S", 0.2)
        client.take(grammar, ord("a"))
        until(client, lambda: client._pid != before)
    until(client, lambda: grammar.phase is not Phase.AWAITED)
    assert (grammar.phase, allowed(grammar.mask)) == (Phase.GOES, [*b"b"])


def test_a_process_that_computes_without_end_is_put_down_to_its_grammar(
    client: GrammarClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = iter([0.0, 5.0])
    grammar = opened(client, "regex", "ab")
    os.kill(client._pid, signal.SIGSTOP)
    monkeypatch.setattr(grammar_client, "HEAD_S", 0.2)
    monkeypatch.setattr(grammar_client, "_cpu_s", lambda _pid: next(used))
    client.take(grammar, ord("a"))
    until(client, lambda: grammar.phase is not Phase.AWAITED)
    assert (grammar.reason, grammar.costly, grammar.blamed) == ("the regex does not end", True, True)


def doublings(levels: int, word: str) -> str:
    rules = (f"r{n} ::= r{n - 1} r{n - 1}" for n in range(1, levels + 1))
    return "\n".join([f"root ::= r{levels}", *rules, f'r0 ::= "{word}"?'])


def test_another_client_waits_behind_one_costly_grammar_and_the_first_clients_others_end(client: GrammarClient) -> None:
    bombs = [client.begin("grammar", doublings(18, f"b{n}"), "bomber") for n in range(4)]
    other = client.begin("json_schema", "{}", "other")
    until(client, lambda: other.phase is Phase.READY)
    assert [bomb.phase for bomb in bombs] == [Phase.FAILED] * 4
    assert [bomb.costly for bomb in bombs] == [True, False, False, False]
    assert "another grammar of this client" in bombs[3].reason
    assert bombs[3].cpu_s == 0.0, "it was never compiled"


def test_grammars_are_compiled_first_of_whom_they_cost_least(client: GrammarClient) -> None:
    first = client.begin("grammar", doublings(11, "a"), "one")
    until(client, lambda: first.phase is not Phase.CHECKED)
    later = [client.begin("regex", "a", "one"), client.begin("regex", "b", "one"), client.begin("regex", "c", "two")]
    until(client, lambda: later[2].phase is Phase.READY)
    assert later[1].phase is Phase.CHECKED


def test_what_a_clients_grammars_cost_is_summed_and_forgiven_with_time(
    client: GrammarClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs less than what is held against a client; together they do not go on without end."""
    monkeypatch.setattr(grammar_client, "CLIENT_S", 0.3)
    costly = None
    for number in range(200):
        grammar = client.begin("grammar", doublings(12, f"b{number}"), "bomber")
        until(client, lambda grammar=grammar: grammar.phase is not Phase.CHECKED)  # type: ignore[misc]
        if grammar.costly:
            costly = grammar
            break
    assert costly is not None and "grammars of this client took" in costly.reason
    assert client.begin("regex", "a", "other").phase is Phase.CHECKED
    until(client, lambda: all(one.phase is not Phase.CHECKED for one in client._grammars.values()))
    monkeypatch.setattr(grammar_client, "CLIENT_SHARE", 1e6)
    again = client.begin("regex", "xa", "bomber")
    until(client, lambda: again.phase is not Phase.CHECKED)
    assert again.phase is Phase.READY


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
