"""What a request's grammar may be: bounded before llama.cpp's parser, which recurses, and the converter see it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp import grammar
from edge_agent.backends.llamacpp.grammar import followable
from edge_agent.backends.llamacpp.library import open_library
from edge_agent.backends.llamacpp.model import TRIED_KEPT, LlamaModel
from edge_agent.base.errors import BackendError, ProgramRefused
from tests.support import tiny_gguf
from tests.support.needs import need


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "maxLength": 20_000}, "json_schema.maxLength is 20000; at most 1000"),
        ({"type": "string", "minLength": 2_000_000_000}, "json_schema.minLength is 2e+09"),
        ({"type": "array", "items": {"type": "array", "maxItems": 1001}}, "json_schema.items.maxItems is 1001"),
        ({"anyOf": [{}, {"minItems": 5000}]}, "json_schema.anyOf[1].minItems is 5000"),
        ({"type": "string", "pattern": "^" + "a{9999}" * 600}, "pattern repeats more than 10000 times"),
        ({"type": "string", "pattern": "^((a{0,99}){99}){0,99}$"}, "json_schema.pattern repeats more than 10000 times"),
    ],
)
def test_counts_that_would_be_written_out_are_refused_by_name(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendError, match=r"at most|more than") as caught:
        grammar.check_schema(schema)
    assert reason in str(caught.value)


def test_usual_schemas_pass() -> None:
    grammar.check_schema(
        {
            "type": "object",
            "properties": {"maxLength": {"type": "string", "maxLength": 1000, "pattern": "^[a-z]{2,8}$"}},
            "required": ["maxLength"],
        }
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("root ::= " + "(" * 2001 + '"a"' + ")" * 2001, "nested 2001 deep; at most 2000"),
        ("root ::= " + "|".join(['"a"'] * 514), "has 513 alternatives; at most 512"),
        ("root ::= " + "[a-z]{0,2000} " * 3, "add up to more than 5000 repetitions"),
        ("root ::= " + '"' + "a" * 70_000 + '"', "has 70011 characters; at most 65536"),
    ],
)
def test_grammars_beyond_what_the_parser_stands_are_refused(text: str, reason: str) -> None:
    with pytest.raises(BackendError, match=r"at most|more than") as caught:
        grammar.check(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "quoted", ['"' + "(|" * 3000 + '"', "[" + "(|" * 3000 + "]", "# " + "(|" * 3000, r'"\"((" "|"']
)
def test_what_is_quoted_opens_and_parts_nothing(quoted: str) -> None:
    grammar.check(f"root ::= {quoted}")


@pytest.mark.parametrize("piece", ["[", '"', '["', '["\\', "[\\", "#", "[^", "(["])
def test_text_that_never_ends_is_read_once(piece: str) -> None:
    """Looked at again from every place 16,000 signs would take eight seconds, these an hour."""
    text = "root ::= " + piece * ((grammar.GBNF_CHARS - 10) // len(piece))
    began_s = time.process_time()
    with contextlib.suppress(BackendError):
        grammar.check(text)
    assert time.process_time() - began_s < 10.0


@given(st.text(max_size=300))
def test_any_text_is_checked_without_another_error(text: str) -> None:
    with contextlib.suppress(BackendError):
        grammar.check(text)


@pytest.mark.parametrize("braces", ["{5,2}", "{ 2000 }", "{1_000}", "{12345}", "{,5}", "{2000", "{}", "{٣}", "{1,2,3}"])
def test_braces_that_parsers_read_differently_are_refused(braces: str) -> None:
    with pytest.raises(BackendError, match="of at most four digits"):
        grammar.check(f'root ::= "a"{braces}')
    with pytest.raises(BackendError, match="pattern has"):
        grammar.check_schema({"type": "string", "pattern": f"^a{braces}$"})


def test_a_carriage_return_ends_a_comment_as_it_does_for_the_parser() -> None:
    with pytest.raises(BackendError, match="5000 repetitions"):
        grammar.check("root ::= #\r" + "[ab]{2000} " * 3)


@pytest.mark.parametrize("pattern", ["^[{}]{2,8}$", r"^\{a\}$", "^a{3}b{2,}$"])
def test_patterns_with_braces_that_repeat_nothing_pass(pattern: str) -> None:
    grammar.check_schema({"type": "string", "pattern": pattern})


def test_references_that_the_converter_does_not_recognise_do_not_keep_it_busy() -> None:
    """Its reserved names are stored under others, so it follows them anew each time: three ways at every level."""
    need("llama_cpp")
    names = ["boolean", "integer", "number", "object", "array", "uuid", "char", "string", "null", "value"]
    rules: dict[str, Any] = {
        name: {"prefixItems": [{"$ref": f"#/$defs/{following}"}] * 3} for name, following in itertools.pairwise(names)
    }
    schema = {"properties": {"x": {"$ref": "#/$defs/boolean"}}, "$defs": {**rules, "value": {"const": 1}}}
    with pytest.raises(BackendError, match="more than 5000 places"):
        grammar.schema_grammar(schema)


HARMLESS = 'root ::= "{" [a-z]+ ":" [0-9]{1,3} "}"'
DOUBLING = "\n".join(["root ::= r0", *(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(18)), 'r18 ::= "a"?'])
AMBIGUOUS = "root ::= (" + "|".join(["[a-z]"] * 12) + ")+"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    need("llama_cpp", "gguf")
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    tiny_gguf.write_model(path)
    found = LlamaModel(open_library(), str(path), False)
    yield found
    found.close()


@pytest.mark.parametrize("text", [HARMLESS, 'root ::= "a', "root ::= root", 'root ::= ""'])
def test_a_grammar_that_costs_nothing_is_let_through(model: LlamaModel, text: str) -> None:
    """Also one that does not parse: the worker's own attempt says why."""
    grammar.try_out(model, text)
    assert model.tried[text] is None


def test_a_grammar_that_takes_too_long_is_refused_and_remembered(model: LlamaModel) -> None:
    with pytest.raises(ProgramRefused, match=r"takes more than (1.5 s|64 MiB)"):
        grammar.try_out(model, DOUBLING)
    began_s = time.monotonic()
    with pytest.raises(ProgramRefused, match="takes more than"):
        grammar.try_out(model, DOUBLING)
    assert time.monotonic() - began_s < grammar.SANDBOX_COMPUTE_S, "the second time it is known"


def test_a_system_without_room_for_a_process_is_not_the_grammars_fault(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", full)
        with pytest.raises(BackendError, match="cannot be tried: Cannot allocate memory") as caught:
            grammar.try_out(model, 'root ::= "new"')
    assert not isinstance(caught.value, ProgramRefused)
    grammar.try_out(model, 'root ::= "new"')


def test_only_so_many_grammars_are_remembered(model: LlamaModel) -> None:
    for number in range(TRIED_KEPT + 5):
        grammar.try_out(model, f'root ::= "{number}"')
    assert len(model.tried) == TRIED_KEPT


def _take_memory() -> None:
    held = bytearray(2 * grammar.SANDBOX_MEMORY_BYTES)
    assert held


def _end_badly() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _go_on() -> None:
    while True:
        pass


def _raise() -> None:
    raise ValueError("no matter")


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (_raise, None),
        (_take_memory, "more than 64 MiB"),
        (_end_badly, "ends its parser (SIGSEGV)"),
        (_go_on, "takes more than 1.5 s"),
    ],
)
def test_a_copy_takes_the_blow(work: Callable[[], None], told: str | None) -> None:
    found = grammar.run_in_sandbox(work)
    assert (found is None) if told is None else told in str(found)


def test_a_copy_that_waits_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "SANDBOX_WALL_S", 0.2)
    assert "takes more than" in str(grammar.run_in_sandbox(signal.pause))


KEYS = st.sampled_from(["pattern", "maxLength", "items", "anyOf", "minItems"])
SCHEMAS = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(KEYS, one, max_size=4),
    max_leaves=20,
)


@given(SCHEMAS)
def test_any_schema_is_checked_without_another_error(schema: Any) -> None:
    try:
        grammar.check_schema({"x": schema})
    except BackendError as error:
        assert any(words in str(error) for words in ("at most", "more than"))


def test_what_the_parser_says_is_the_reason_and_does_not_reach_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    result, said = grammar._listening(lambda: os.write(2, b"parse: expecting a name\n\nroot ::= ...\n"))
    assert (result, said) == (38, "expecting a name")
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"


def test_a_long_schema_that_llama_cpp_can_follow_is_followed() -> None:
    need("llama_cpp")
    text = grammar.schema_grammar({"type": "array", "items": {"type": "string", "maxLength": 400}, "maxItems": 100})
    grammar.check(text)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "number", "minimum": 0, "maximum": 1}, "json_schema.minimum is not followed of type 'number'"),
        ({"type": "integer", "minimum": 0}, "minimum is followed for whole numbers between two bounds"),
        ({"type": "integer", "minimum": 0, "maximum": 256}, "that leave at most 256"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "leave no number"),
        ({"type": "integer", "multipleOf": 7}, "json_schema.multipleOf is followed for whole numbers between"),
        ({"type": "array", "items": {}, "uniqueItems": True}, "json_schema.uniqueItems is not followed of arrays"),
        ({"type": "array", "contains": {"const": 5}}, "json_schema.contains is not followed"),
        ({"type": "array", "minItems": 2}, "minItems is not followed of arrays without a schema in items"),
        ({"prefixItems": [{}, {}], "minItems": 1}, "json_schema.minItems is not followed: a list of schemas means"),
        ({"prefixItems": [{}], "items": {}}, "json_schema.items is not followed beside prefixItems"),
        ({"type": "string", "format": "email"}, "json_schema.format is 'email'; date, date-time, time"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "minLength is not followed beside pattern"),
        (
            {"type": "object", "patternProperties": {"^a": {}}},
            "json_schema.patternProperties is not followed of objects",
        ),
        ({"type": "object", "required": ["zzz"]}, "json_schema.required names 'zzz', which is none of the properties"),
        ({"type": "object", "propertys": {}}, "json_schema.propertys is not followed of objects"),
        (
            {"properties": {"l": {"type": "string", "maxlength": 3}}},
            "json_schema.properties.l.maxlength is not followed",
        ),
        ({"anyOf": [{"type": "null"}], "type": "string"}, "json_schema.type is not followed beside anyOf"),
        ({"type": ["string", "null"], "maxLength": 5}, "json_schema.maxLength is not followed beside a list of types"),
        ({"$ref": "#/$defs/a", "maxLength": 3}, "json_schema.maxLength is not followed beside $ref"),
        ({"allOf": [{"properties": {}}, {"type": "string"}]}, "json_schema.allOf[1] is not followed"),
        ({"not": {"type": "null"}}, "json_schema.not is not followed without a type"),
        ({"if": {}, "then": {}, "type": "string"}, "json_schema.if is not followed of strings"),
        ({"properties": {"a": True}}, "json_schema.properties.a is no schema"),
        ({"$defs": {"a": {"type": "integer", "maximum": 1}}}, "json_schema.$defs.a.maximum is followed for whole"),
        ({"anyOf": []}, "json_schema.anyOf is no list of schemas"),
    ],
)
def test_what_would_be_passed_over_is_refused_by_place_and_name(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError) as caught:
        followable(schema)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "followed"),
    [
        ({}, {}),
        ({"title": "any"}, {}),
        ({"type": "integer", "minimum": 0.5, "exclusiveMaximum": 4}, {"enum": [1, 2, 3]}),
        ({"type": "integer", "exclusiveMinimum": 0, "maximum": 20, "multipleOf": 7}, {"enum": [7, 14]}),
        ({"allOf": [{"$ref": "#/$defs/a"}], "default": None}, {"$ref": "#/$defs/a"}),
        ({"type": "string", "enum": ["a", None]}, {"enum": ["a", None]}),
        ({"prefixItems": [{"type": "null"}], "items": False}, {"type": "array", "prefixItems": [{"type": "null"}]}),
        ({"type": "array", "items": {}, "uniqueItems": False}, {"type": "array", "items": {}}),
        ({"type": "number", "description": "x"}, {"type": "number"}),
    ],
)
def test_what_can_be_followed_is_put_into_the_converters_words(
    schema: dict[str, Any], followed: dict[str, Any]
) -> None:
    assert followable(schema) == followed


def test_what_pydantic_writes_is_followed() -> None:
    """Of `Command(room: Room | None = None, action: Action, level: Annotated[int, Field(ge=0, le=100)] = 50)`."""
    action = {"enum": ["on", "off"], "title": "Action", "type": "string"}
    room = {"properties": {"name": {"title": "Name", "type": "string"}}, "required": ["name"], "type": "object"}
    found = followable({
        "$defs": {"Action": action, "Room": room},
        "properties": {
            "room": {"anyOf": [{"$ref": "#/$defs/Room"}, {"type": "null"}], "default": None},
            "action": {"$ref": "#/$defs/Action"},
            "level": {"default": 50, "maximum": 100, "minimum": 0, "title": "Level", "type": "integer"},
        },
        "required": ["action"],
        "title": "Command",
        "type": "object",
    })  # fmt: skip
    assert found["properties"]["room"] == {"anyOf": [{"$ref": "#/$defs/Room"}, {"type": "null"}]}
    assert found["properties"]["level"] == {"enum": list(range(101))}
    assert found["$defs"]["Action"] == {"enum": ["on", "off"]}


WORDS = st.sampled_from([
    "type", "properties", "items", "anyOf", "allOf", "enum", "required", "minimum", "maximum", "multipleOf", "$defs",
    "additionalProperties", "prefixItems", "pattern", "const", "minItems",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["string", "integer", "object", "array"]),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(WORDS, one, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_whatever_is_no_schema_is_a_sentence(schema: dict[str, Any]) -> None:
    try:
        followable(schema)
    except BackendError as error:
        assert str(error).startswith("json_schema: json_schema")
    except (TypeError, AttributeError, ValueError):
        pass  # `grammar.schema_grammar` says of these that it is no schema
