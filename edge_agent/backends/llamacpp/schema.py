"""Reduces a JSON schema to what llama-cpp-python's converter follows, or refuses a keyword by name and place. Pure.

The converter ignores keywords that it does not know, and some known ones beside others, so that an answer would break
its schema. So every keyword is either followed, or does not restrict values, or is refused. Two forms are rewritten: a
small range of whole numbers becomes an `enum`, and a combination of one schema becomes that schema.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edge_agent.base.errors import BackendError

REMARKS = frozenset({
    "$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples", "example", "deprecated",
    "readOnly", "writeOnly", "discriminator",
})  # fmt: skip
"""Keywords that do not restrict values."""
DEFINITIONS = ("$defs", "definitions")
FORMATS = frozenset({"date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"})
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
LISTED = 256
"""The largest range of whole numbers that is written out as an `enum`."""
_OBJECT = frozenset({"type", "properties", "required", "additionalProperties"})
_ARRAY = frozenset({"type", "items", "prefixItems", "minItems", "maxItems"})


def followable(schema: Mapping[str, Any], place: str = "json_schema") -> dict[str, Any]:
    """The schema without annotations, in keywords that the converter follows. Raises BackendError for others."""
    found = {key: value for key, value in schema.items() if key not in REMARKS}
    definitions = {key: _all(found.pop(key), f"{place}.{key}") for key in DEFINITIONS if key in found}
    return {**_body(found, place), **definitions}


def _body(found: dict[str, Any], place: str) -> dict[str, Any]:
    kind = found.get("type")
    if "$ref" in found:
        return _only(found, {"$ref"}, "beside $ref", place)
    if "anyOf" in found or "oneOf" in found:
        union = "anyOf" if "anyOf" in found else "oneOf"
        _only(found, {union}, f"beside {union}", place)
        return {union: _list(found[union], f"{place}.{union}")}
    if isinstance(kind, list):
        return _only(found, {"type"}, "beside a list of types", place)
    if "const" in found or "enum" in found:
        named = "const" if "const" in found else "enum"
        return {named: _only(found, {"type", named}, f"beside {named}", place)[named]}
    if "allOf" in found:
        return _combined(found, place)
    if kind == "object" or (kind is None and found.keys() & {"properties", "additionalProperties"}):
        return _object(found, place)
    if kind == "array" or (kind is None and found.keys() & {"items", "prefixItems"}):
        return _array(found, place)
    if kind == "string" or (kind is None and found.keys() & {"pattern", "format"}):
        return _string(found, place)
    if kind == "integer" and found.keys() & BOUNDS:
        return {"enum": _whole_numbers(_only(found, {"type", *BOUNDS}, "of whole numbers", place), place)}
    return _only(found, {"type"}, f"of type {kind!r}" if kind is not None else "without a type", place)


def _object(found: dict[str, Any], place: str) -> dict[str, Any]:
    _only(found, _OBJECT, "of objects", place)
    properties = found.get("properties", {})
    if not isinstance(properties, dict):
        raise _refused("properties", "is no object", place)
    unknown = [name for name in found.get("required", []) if name not in properties]
    if unknown:
        raise _refused("required", f"names {unknown[0]!r}, which is none of the properties", place)
    if "properties" in found:
        found["properties"] = _all(properties, f"{place}.properties")
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = followable(found["additionalProperties"], f"{place}.additionalProperties")
    return found


def _array(found: dict[str, Any], place: str) -> dict[str, Any]:
    if found.get("uniqueItems") is False:
        del found["uniqueItems"]
    _only(found, _ARRAY, "of arrays", place)
    items, first = found.get("items"), found.get("prefixItems")
    if first is not None or isinstance(items, list):
        if first is not None and items not in (None, False):
            raise _refused("items", "is not followed beside prefixItems (but for false)", place)
        tuple_ = _list(first if first is not None else items, f"{place}.prefixItems")
        for bound in ("minItems", "maxItems"):
            if found.get(bound, len(tuple_)) != len(tuple_):
                raise _refused(bound, f"is not followed: a list of schemas means just these {len(tuple_)} items", place)
        return {"type": "array", "prefixItems": tuple_}
    if isinstance(items, dict):
        return {**found, "items": followable(items, f"{place}.items")}
    return _only(found, {"type"}, "of arrays without a schema in items", place)


def _string(found: dict[str, Any], place: str) -> dict[str, Any]:
    if "pattern" in found:
        return _only(found, {"type", "pattern"}, "beside pattern", place)
    if "format" in found:
        if found["format"] not in FORMATS:
            raise _refused("format", f"is {found['format']!r}; {', '.join(sorted(FORMATS))} are followed", place)
        return _only(found, {"type", "format"}, "beside format", place)
    return _only(found, {"type", "minLength", "maxLength"}, "of strings", place)


def _combined(found: dict[str, Any], place: str) -> dict[str, Any]:
    """Of `allOf` with several schemas the converter follows `properties` only, and requires all of them."""
    parts = _list(_only(found, {"type", "allOf"}, "beside allOf", place)["allOf"], f"{place}.allOf")
    if len(parts) == 1:
        return parts[0]
    for number, part in enumerate(parts):
        if "properties" not in part or part.get("additionalProperties") is not None:
            raise _refused(f"allOf[{number}]", "is not followed: of several, objects with properties alone are", place)
    return {"allOf": parts}


def _whole_numbers(found: Mapping[str, Any], place: str) -> list[int]:
    numbers = {key: found[key] for key in BOUNDS & found.keys()}
    if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in numbers.values()):
        raise _refused("minimum", "and its like are finite numbers", place)
    lows = [math.ceil(numbers["minimum"])] if "minimum" in numbers else []
    lows += [math.floor(numbers["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in numbers else []
    highs = [math.floor(numbers["maximum"])] if "maximum" in numbers else []
    highs += [math.ceil(numbers["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in numbers else []
    named = min(numbers)
    if not lows or not highs or min(highs) - max(lows) >= LISTED:
        raise _refused(named, f"is followed for whole numbers between two bounds that leave at most {LISTED}", place)
    step = numbers.get("multipleOf", 1)
    if step <= 0:
        raise _refused("multipleOf", "is not above 0", place)
    listed = [number for number in range(max(lows), min(highs) + 1) if number % step == 0]
    if not listed:
        raise _refused(named, "and the others leave no number", place)
    return listed


def _all(schemas: Any, place: str) -> dict[str, Any]:
    if not isinstance(schemas, dict):
        raise BackendError(f"{place} is no object of schemas", "json_schema")
    return {name: _schema(one, f"{place}.{name}") for name, one in schemas.items()}


def _list(schemas: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(schemas, list) or not schemas:
        raise BackendError(f"{place} is no list of schemas", "json_schema")
    return [_schema(one, f"{place}[{number}]") for number, one in enumerate(schemas)]


def _schema(one: Any, place: str) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise BackendError(f"{place} is no schema: an object is needed", "json_schema")
    return followable(one, place)


def _only(found: dict[str, Any], followed: set[str] | frozenset[str], where: str, place: str) -> dict[str, Any]:
    for key in found:
        if key not in followed:
            raise _refused(key, f"is not followed {where}", place)
    return found


def _refused(key: str, why: str, place: str) -> BackendError:
    return BackendError(f"{place}.{key} {why}", "json_schema", "leave it out, or say it in other words")
