r"""A request's JSON schema as llguidance follows it exactly, or the place and keyword of what it does not. Pure.

llguidance follows JSON Schema 2020-12 and its earlier drafts closely. `prepared` closes the gaps that were found with
JSON-Schema-Test-Suite and by validating random answers:

- `format`: calendar dates, times and host names become patterns that know leap years and label lengths.
- `pattern`: ECMA-262, which JSON Schema names, and Rust's regular expressions differ (`.`, `\s`, `[`, `{`).
- numbers are compared as float64: bounds that it cannot hold are rounded inwards, such constants are refused.
- keywords that restrict nothing with their value (`uniqueItems: false`) are dropped, misspelt ones are refused.

A file of its own because it is pure and runs in the grammar process, tested without llama.cpp.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edge_agent.backends.llamacpp.ecma_pattern import PatternRefused, rust_pattern

DEPTH = 100
"""Schemas inside each other; llguidance's own reader stops at 128."""
EXACT = 2**53
"""Whole numbers up to here are exact in float64."""
MULTIPLE = 10_000
"""The most that `multipleOf` may be, in units of its last digit: its automaton has a state for every remainder."""
TRIED = 150
"""Schemas inside a refused one that are tried one by one, to find the place."""

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"  # noqa: E501
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
# Without the second 60: whether a minute has one depends on the offset, and on a list that no pattern knows.
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-]{_CLOCK})"
_X, _H = "[a-zA-Z0-9]", "[a-zA-Z0-9-]"
# A label of at most 63 characters without "--" at its third place, which marks an encoded name with rules of its own.
_LABEL = f"(?:{_X}(?:{_H}?{_X}|{_H}{{2}}{_X}|{_H}(?:{_X}{_H}|-{_X}){_H}{{0,58}}{_X})?)"
FORMATS: Mapping[str, str] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[tT]{_TIME}$",
    "hostname": rf"^{_LABEL}(?:\.{_LABEL})*$",
}
"""Formats that llguidance takes too loosely, as patterns of its own. RFC 3339, RFC 1123."""
HOST_CHARS = 253

ONE = frozenset({
    "items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
PLAIN = frozenset({
    "type", "enum", "const", "required", "format", "pattern", "$ref", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "uniqueItems", "dependencies", "dependentRequired", "minContains", "maxContains", "$recursiveRef", "$dynamicRef",
})  # fmt: skip
REMARKS = frozenset({
    "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "title",
    "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "contentSchema",
})  # fmt: skip
"""Keywords that do not restrict values; what they hold is no schema."""
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
KEYWORDS = ONE | LISTS | MAPS | PLAIN
_BY_LETTERS = {name.lower(): name for name in KEYWORDS}
_MISSPELT = {"propertys": "properties"}
_OLD = frozenset({"extends", "disallow", "divisibleBy"})
_CONTENT = frozenset({"contentEncoding", "contentMediaType"})
_NEEDS_U = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
"""Characters that JSON writes as \\u only; see `key_repeats`."""


class SchemaRefused(Exception):
    """A schema that cannot be followed: JSON pointer of the place, keyword ('' for none), and why."""

    def __init__(self, pointer: str, keyword: str, why: str) -> None:
        self.pointer, self.keyword, self.why = pointer, keyword, why
        place = pointer + (f"/{escaped(keyword)}" if keyword else "")
        super().__init__(f"json_schema{' at ' + place if place else ''}: {f'`{keyword}` ' if keyword else ''}{why}")


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema in words that llguidance follows exactly. Raises SchemaRefused."""
    dialect = schema.get("$schema")
    found: dict[str, Any] = _Preparation(dialect if isinstance(dialect, str) else "").schema(schema, "", 0)
    found.pop("x-guidance", None)  # llguidance's own switches, among them one that ignores what it cannot follow
    return found


class _Preparation:
    """The way through one schema; `dialect` is its `$schema`."""

    def __init__(self, dialect: str) -> None:
        self._draft_3 = "draft-03" in dialect
        self._content_asserts = "draft-06" in dialect or "draft-07" in dialect

    def schema(self, given: Any, pointer: str, depth: int) -> Any:
        if not isinstance(given, Mapping):
            return given
        if depth > DEPTH:
            raise SchemaRefused(pointer, "", f"is nested more than {DEPTH} deep")
        found: dict[str, Any] = {}
        for key, value in given.items():
            if not _restricts_nothing(key, value, given):
                self._check_name(key, pointer)
                found[key] = self._value(key, value, pointer, depth + 1)
        _follow_format(found, pointer)
        _round_bounds(found, pointer)
        return found

    def _value(self, key: str, value: Any, pointer: str, depth: int) -> Any:
        place = f"{pointer}/{escaped(key)}"
        if key in REMARKS:
            return value
        if key in ("const", "enum"):
            _check_constants(value, pointer, key)
            return value
        if key == "pattern" and isinstance(value, str):
            return _pattern(value, pointer, key)
        if key == "patternProperties" and isinstance(value, Mapping):
            return self._by_pattern(value, place, depth)
        if key in MAPS and isinstance(value, Mapping):
            if key == "properties":
                _check_names(value, pointer)
            return {name: self.schema(one, f"{place}/{escaped(name)}", depth) for name, one in value.items()}
        if isinstance(value, list) and key in LISTS:
            return [self.schema(one, f"{place}/{number}", depth) for number, one in enumerate(value)]
        # An unknown keyword may hold schemas that a $ref names, as `components/schemas` of OpenAPI does.
        return self.schema(value, place, depth) if key not in PLAIN else value

    def _by_pattern(self, given: Mapping[str, Any], place: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, one in given.items():
            found[_pattern(name, place, name)] = self.schema(one, f"{place}/{escaped(name)}", depth)
        if len(found) != len(given):
            raise SchemaRefused(place, "", "holds one pattern in two spellings")
        return found

    def _check_name(self, key: str, pointer: str) -> None:
        if self._draft_3 and key in _OLD:
            raise SchemaRefused(pointer, key, "is followed in no version (it is of draft 3)")
        if self._content_asserts and key in _CONTENT:
            raise SchemaRefused(pointer, key, "is not followed (drafts 6 and 7 let it restrict texts)")
        if key in KEYWORDS:
            return
        meant = _BY_LETTERS.get(key.lower()) or _MISSPELT.get(key.lower())
        if meant is not None and not _holds_schemas(pointer):
            raise SchemaRefused(pointer, key, f"is no keyword; `{meant}` is")


def _holds_schemas(pointer: str) -> bool:
    """Whether the place is below an unknown keyword, where names are no keywords."""
    parts = pointer.split("/")[1:]
    at = 0
    while at < len(parts):
        numbered = parts[at] in LISTS and at + 1 < len(parts) and parts[at + 1].isdigit()
        if parts[at] in MAPS or numbered:
            at += 2
        elif parts[at] in ONE:
            at += 1
        else:
            return True
    return False


def _restricts_nothing(key: str, value: Any, given: Mapping[str, Any]) -> bool:
    if key == "uniqueItems":
        return value is False
    if key in ("dependencies", "dependentRequired", "dependentSchemas"):
        return bool(value == {})
    if key in ("propertyNames", "unevaluatedItems", "unevaluatedProperties"):
        return value is True or bool(value == {})
    if key in ("then", "else"):
        return "if" not in given
    if key in ("minContains", "maxContains"):
        return "contains" not in given
    return key == "if" and "then" not in given and "else" not in given


def _follow_format(found: dict[str, Any], pointer: str) -> None:
    form = found.get("format")
    pattern = FORMATS.get(form) if isinstance(form, str) else None
    if pattern is None:
        return
    del found["format"]
    if form == "hostname":
        longest = found.get("maxLength", HOST_CHARS)
        found["maxLength"] = min(longest, HOST_CHARS) if isinstance(longest, int) else longest
    if "pattern" not in found:
        found["pattern"] = pattern
        return
    others = found.get("allOf", [])
    if not isinstance(others, list):
        raise SchemaRefused(pointer, "allOf", "is no list of schemas")
    found["allOf"] = [*others, {"pattern": pattern}]


def _pattern(text: str, pointer: str, keyword: str) -> str:
    try:
        return rust_pattern(text)
    except PatternRefused as error:
        raise SchemaRefused(pointer, keyword, str(error)) from error


def _check_names(properties: Mapping[str, Any], pointer: str) -> None:
    for name in properties:
        if _NEEDS_U.search(name):
            raise SchemaRefused(f"{pointer}/properties", name, "holds a control character, which is not followed")


def _check_constants(value: Any, pointer: str, keyword: str) -> None:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, int) and abs(one) > EXACT:
            raise SchemaRefused(pointer, keyword, f"holds {one}; whole numbers up to 2^53 are followed")


def _round_bounds(found: dict[str, Any], pointer: str) -> None:
    """Round bounds that float64 cannot hold to the next number inside."""
    for key in BOUNDS & found.keys():
        value = found[key]
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) <= EXACT:
            continue
        try:
            near = float(value)
        except OverflowError:
            raise SchemaRefused(pointer, key, "is beyond float64") from None
        low = key in ("minimum", "exclusiveMinimum")
        if near < value and low:
            near = math.nextafter(near, math.inf)
        elif near > value and not low:
            near = math.nextafter(near, -math.inf)
        found[key] = int(near)
    step = found.get("multipleOf")
    if isinstance(step, (int, float)) and not isinstance(step, bool):
        digits = f"{step:f}".rstrip("0").replace(".", "") if step < 1 else f"{step}".replace(".", "")
        if step <= 0 or int(digits or 0) > MULTIPLE:
            raise SchemaRefused(pointer, "multipleOf", f"is {step}; above 0, and at most {MULTIPLE} is followed")


def located(schema: Mapping[str, Any], wrong: str, tried: Callable[[Mapping[str, Any]], str]) -> SchemaRefused:
    """Where a prepared schema that llguidance refuses with `wrong` has its reason.

    `tried` compiles a schema and gives llguidance's message, '' for none. The schemas inside are tried alone (with the
    definitions), and the way goes down to the innermost that is refused for the same reason.
    """
    shared = {key: schema[key] for key in ("$schema", "$defs", "definitions") if key in schema}
    pointer, inside, left = "", schema, TRIED
    seen = {""}
    going = True
    while going and left > 0:
        going = False
        for place, one in _children(schema, inside, pointer):
            if place in seen or left == 0:
                continue
            seen.add(place)
            left -= 1
            if tried({**shared, **one})[:20] == wrong[:20]:
                pointer, inside, going = place, one, True
                break
    keyword, why = reason(wrong, inside)
    if keyword == "$ref" and keyword not in inside:
        pointer = next(_outward(inside, pointer), pointer)
    return SchemaRefused(pointer, keyword, why)


def _outward(inside: Any, pointer: str) -> Iterator[str]:
    """Where schemas refer to others outside of this one."""
    if isinstance(inside, Mapping):
        if isinstance(inside.get("$ref"), str) and not inside["$ref"].startswith("#"):
            yield pointer
        for key, value in inside.items():
            yield from _outward(value, f"{pointer}/{escaped(key)}")
    elif isinstance(inside, list):
        for number, value in enumerate(inside):
            yield from _outward(value, f"{pointer}/{number}")


def _children(
    root: Mapping[str, Any], inside: Mapping[str, Any], pointer: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in inside.items():
        place = f"{pointer}/{escaped(key)}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#/"):
            target: Any = root
            for part in value[2:].split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                target = target.get(name) if isinstance(target, Mapping) else None
            if isinstance(target, Mapping):
                yield value[1:], target
        elif key in MAPS and key not in ("$defs", "definitions") and isinstance(value, Mapping):
            yield from ((f"{place}/{escaped(name)}", one) for name, one in value.items() if isinstance(one, Mapping))
        elif key in LISTS and isinstance(value, list):
            yield from ((f"{place}/{at}", one) for at, one in enumerate(value) if isinstance(one, Mapping))
        elif key in ONE and isinstance(value, Mapping):
            yield place, value


_UNKNOWN_KEYS = re.compile(r'Unimplemented keys: \["([^"]+)"')
_EXPECTED = re.compile(r"[Ee]xpected .* for '([A-Za-z]+)'|^([A-Za-z]+) must be ")


def reason(wrong: str, inside: Mapping[str, Any]) -> tuple[str, str]:
    """(keyword, why) of llguidance's message about a schema; the keyword is '' where the message names none."""
    line = " ".join(wrong.split())[:160]
    unknown = _UNKNOWN_KEYS.search(wrong)
    if unknown:
        return unknown[1], "is not followed"
    if "oneOf" in wrong:
        return "oneOf", "is followed where its schemas cannot overlap (types, a constant that differs); use anyOf"
    if "Unknown format" in wrong:
        return "format", f"is {json.dumps(inside.get('format'))[:60]}, which is not followed"
    if "min/maxProperties" in wrong:
        keyword = "minProperties" if "minProperties" in inside else "maxProperties"
        return keyword, "is followed where all of `properties` are required"
    if "patternProperty" in wrong:
        return "patternProperties", "is followed where no name fits two of its patterns"
    if wrong.startswith(("Pointer", "Resource", "circular", "Definition")):
        return "$ref", f"is not followed: {line}"
    if "range" in wrong and (bounds := [key for key in inside if key in BOUNDS]):
        return bounds[0], f"is not followed: {line}"
    expected = _EXPECTED.search(wrong)
    if expected:
        return expected[1] or expected[2], f"is not what it must be: {line}"
    if "Unsatisfiable" in wrong or "unsatisfiable" in wrong:
        return "", "no text fits it: its parts exclude each other"
    if "type" in wrong.lower() and "type" in inside:
        return "type", f"is not followed: {line}"
    named = [key for key in ("pattern", "patternProperties", "allOf", "$ref", "anyOf") if key in inside]
    return named[0] if named else "", f"cannot be followed: {line}"
