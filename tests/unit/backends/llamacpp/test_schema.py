"""What of a JSON schema is followed, and that the rest is refused by name instead of being passed over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backends.llamacpp.schema import followable
from edge_agent.base.errors import BackendError


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
