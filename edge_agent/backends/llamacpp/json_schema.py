r"""A request's JSON schema as llguidance follows it exactly, or the place and keyword of what it does not. Pure.

llguidance follows JSON Schema 2020-12 and its earlier drafts closely. `prepared` closes the gaps that were found with
JSON-Schema-Test-Suite and by validating random answers:

- `format`: calendar dates, times and host names become patterns that know leap years and label lengths.
- `pattern`: ECMA-262, which JSON Schema names, and Rust's regular expressions differ (`.`, `\s`, `[`, `{`).
- numbers are compared as float64: bounds that it cannot hold are rounded inwards, such constants are refused. A whole
  number as an exclusive bound lets itself through where the other bound is less than 1 away: it is moved inwards.
- `additionalItems` counts beside a list in `items` only; names by a pattern that fits few names are listed, since an
  answer that has them all would have no way on.
- keywords that restrict nothing with their value (`uniqueItems: false`) are dropped, misspelt ones are refused.

A file of its own because it is pure and runs in the grammar process, tested without llama.cpp.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote

from edge_agent.backends.llamacpp.ecma_pattern import PatternRefused, rust_pattern
from edge_agent.backends.llamacpp.endless_schema import endless_reference
from edge_agent.backends.llamacpp.schema_refusal import BOUNDS, LISTS, MAPS, ONE, SchemaRefused, escaped

DEPTH = 100
"""Schemas inside each other; llguidance's own reader stops at 128."""
EXACT = 2**53
"""Whole numbers up to here are exact in float64."""
MULTIPLE = 10_000
"""The most that `multipleOf` may be, in units of its last digit: its automaton has a state for every remainder."""
DECIMALS: Final = 9
"""Digits behind the point of a `multipleOf`; llguidance computes its multiples in float64."""
NEAR: Final = 1e-9
"""Distance that stands for "more than" a whole number where other bounds are fractions."""
LENGTHS: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
LISTED_NUMBERS: Final = 1_000
"""Multiples of a step between two bounds that are listed one by one."""
LISTED_CHARS: Final = 40_000
"""Characters of schemas that names by a pattern may take, each name with a copy of its schema."""
LONGEST: Final = 2**31
"""A length from here on bounds no answer; llguidance counts with 32 bits."""
DIALECTS: Final = ("draft-03", "draft-04", "draft-06", "draft-07", "2019-09", "2020-12")
NUMBER_CHARS = 40
"""Characters of a number in a sentence."""

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
DRAFT_3_FORMATS: Mapping[str, str] = {**FORMATS, "time": f"^{_CLOCK}:[0-5][0-9]$"}
"""In draft 3 a time has no offset."""
HOST_CHARS = 253

HOLD_SOMETHING = frozenset({"type", "enum", "anyOf", "oneOf"})
DEFINITIONS = frozenset({"$defs", "definitions"})
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
NO_NUMBERS = ("null", "boolean", "string", "array", "object")
KEYWORDS = ONE | LISTS | MAPS | PLAIN
_BY_LETTERS = {name.lower(): name for name in KEYWORDS}
_MISSPELT = {"propertys": "properties"}
_OLD = frozenset({"extends", "disallow", "divisibleBy"})
_CONTENT = frozenset({"contentEncoding", "contentMediaType"})
_NEEDS_U = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
"""Characters that JSON writes as \\u only; see `key_repeats`."""
_HALF = re.compile("[\ud800-\udfff]")
Names = Callable[[str], "list[str] | None"]
"""The names that fit a pattern and can be written; None where they are too many to list."""


def prepared(schema: Mapping[str, Any], names: Names = lambda _pattern: None) -> dict[str, Any]:
    """The schema in words that llguidance follows exactly. Raises SchemaRefused."""
    dialect = schema.get("$schema", "")
    if not isinstance(dialect, str) or (dialect and not any(known in dialect for known in DIALECTS)):
        raise SchemaRefused("", "$schema", f"is no draft that is followed ({', '.join(DIALECTS)})")
    found = _Preparation(schema, dialect, names).schema(schema, "", 0)
    if not isinstance(found, dict):
        raise SchemaRefused("", "$ref", "leads to `false`: no text fits it")
    found.pop("x-guidance", None)  # llguidance's own switches, among them one that ignores what it cannot follow
    endless = endless_reference(found, lambda reference: found if reference == "#" else _target(found, reference))
    if endless is not None:
        raise SchemaRefused(endless, "$ref", "demands itself without end: no text fits it")
    return found


class _Preparation:
    """The way through one schema; `dialect` is its `$schema`."""

    def __init__(self, root: Mapping[str, Any], dialect: str, names: Names) -> None:
        self._root = root
        self._names = names
        self._reached = reached(root)
        self._way = {way for target in self._reached or () for way in _ways(target)}
        self._has_prefix_items = not dialect or "2020-12" in dialect
        self._draft_3 = "draft-03" in dialect
        self._fractions = any(_is_fraction(value) for value in _bounds(root))
        self._content_asserts = "draft-06" in dialect or "draft-07" in dialect

    def schema(self, given: Any, pointer: str, depth: int, live: bool = True) -> Any:
        """A schema; `live`: it restricts the answer, else it may hold schemas that a $ref names."""
        if depth > DEPTH:
            raise SchemaRefused(pointer, "", f"is nested more than {DEPTH} deep")
        if isinstance(given, list):
            return [self.schema(one, f"{pointer}/{number}", depth + 1, live) for number, one in enumerate(given)]
        if not isinstance(given, Mapping):
            return given
        live = live or (self._reached is not None and pointer in self._reached)
        if not live and self._reached is not None:
            return {
                key: self.schema(value, place, depth + 1, False)
                for key, value in given.items()
                if (place := f"{pointer}/{escaped(key)}") in self._way
            }
        if isinstance(reference := given.get("$ref"), str) and self._end_of(reference, pointer) is False:
            return False
        return self._followed(given, pointer, depth, live)

    def _followed(self, given: Mapping[str, Any], pointer: str, depth: int, live: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in given.items():
            if live:
                self._check_name(key, pointer)
            known = key in KEYWORDS or key in REMARKS
            if not _restricts_nothing(key, value, given) and (known or self._is_on_way(f"{pointer}/{escaped(key)}")):
                found[key] = self._value(key, value, pointer, depth + 1, live)
        self._follow_lists(found, pointer)
        self._list_names(found)
        _follow_format(found, pointer, DRAFT_3_FORMATS if self._draft_3 else FORMATS)
        _round_bounds(found, pointer)
        _list_multiples(found)
        if self._fractions:
            _part_from_whole(found)
        _bound_lengths(found, pointer)
        return found

    def _end_of(self, reference: str, pointer: str) -> Any:
        """What a $ref leads to in the end, through others."""
        seen: set[str] = set()
        found: Any = {"$ref": reference}
        while isinstance(found, Mapping) and isinstance(to := found.get("$ref"), str):
            if to in seen:
                raise SchemaRefused(pointer, "$ref", "leads back to itself and says nothing")
            seen.add(to)
            found = self._root if to == "#" else _target(self._root, to)
        return found

    def _is_on_way(self, place: str) -> bool:
        """Whether a $ref that counts may lead to or through this place."""
        return self._reached is None or place in self._way

    def _inside(self, given: Any, place: str, depth: int, live: bool) -> Any:
        """A schema where a keyword demands one."""
        if live and not isinstance(given, (Mapping, bool)):
            raise SchemaRefused(place, "", f"{json.dumps(given)[:60]} is no schema")
        return self.schema(given, place, depth, live)

    def _follow_lists(self, found: dict[str, Any], pointer: str) -> None:
        if "prefixItems" in found and not self._has_prefix_items:
            raise SchemaRefused(pointer, "prefixItems", "is of 2020-12, which is not the draft of `$schema`")
        if "prefixItems" in found and isinstance(found.get("items"), list):
            raise SchemaRefused(pointer, "items", "is a list beside `prefixItems`, which no draft knows")
        if not isinstance(found.get("items"), list):
            found.pop("additionalItems", None)

    def _list_names(self, found: dict[str, Any]) -> None:
        """Put the names of patterns that fit few names among the properties, where no other name is free."""
        patterns = found.get("patternProperties")
        if not isinstance(patterns, Mapping) or not isinstance(found.get("properties", {}), Mapping):
            return
        if found.get("additionalProperties", True) in (True, {}):
            return
        kept, listed = {}, dict(found.get("properties", {}))
        for pattern, schema in patterns.items():
            names = self._names(pattern) if pattern[:1] == "^" and pattern[-1:] == "$" else None
            if names is None or len(names) * len(json.dumps(schema)) > LISTED_CHARS:
                kept[pattern] = schema
                continue
            for name in names:
                listed[name] = {"allOf": [listed[name], schema]} if name in listed else schema
        found["patternProperties"] = kept
        if listed:
            found["properties"] = listed

    def _value(self, key: str, value: Any, pointer: str, depth: int, live: bool) -> Any:
        place = f"{pointer}/{escaped(key)}"
        if key in REMARKS:
            return self.schema(value, place, depth, False) if place in self._way else value
        if live and key in HOLD_SOMETHING and value == []:
            raise SchemaRefused(pointer, key, "is empty: no text fits it")
        if live and key in LISTS - ONE and not isinstance(value, list):
            raise SchemaRefused(pointer, key, f"is {json.dumps(value)[:60]}; it must be a list of schemas")
        if key in ("const", "enum"):
            _check_constants(value, pointer, key)
            return _without_minus_zero(value)
        if key == "pattern" and isinstance(value, str):
            return _pattern(value, pointer, key)
        if key in MAPS and isinstance(value, Mapping):
            return self._map(key, value, pointer, depth, live)
        if isinstance(value, list) and key in LISTS:
            return [self._inside(one, f"{place}/{number}", depth, live) for number, one in enumerate(value)]
        if key in ONE:
            return self._inside(value, place, depth, live)
        if key == "required":
            _check_required(value, pointer)
        # An unknown keyword may hold schemas that a $ref names, as `components/schemas` of OpenAPI does.
        return value if key in PLAIN else self.schema(value, place, depth, False)

    def _map(self, key: str, given: Mapping[str, Any], pointer: str, depth: int, live: bool) -> dict[str, Any]:
        place = f"{pointer}/{escaped(key)}"
        if key == "patternProperties":
            return self._by_pattern(given, place, depth, live)
        if key == "properties":
            _check_names(given, pointer)
        places = {name: f"{place}/{escaped(name)}" for name in given}
        if key in DEFINITIONS:
            return {
                name: self.schema(given[name], to, depth, False) for name, to in places.items() if self._is_on_way(to)
            }
        return {name: self._inside(given[name], to, depth, live) for name, to in places.items()}

    def _by_pattern(self, given: Mapping[str, Any], place: str, depth: int, live: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, one in given.items():
            found[_pattern(name, place, name)] = self._inside(one, f"{place}/{escaped(name)}", depth, live)
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
        if meant is not None:
            raise SchemaRefused(pointer, key, f"is no keyword; `{meant}` is")


def reached(root: Mapping[str, Any]) -> set[str] | None:
    """Pointers of the schemas that count because a $ref names them; None where it cannot be told (other bases)."""
    found: set[str] = set()
    waiting: list[Any] = [root]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        if not isinstance(one, Mapping):
            continue
        if "$id" in one and one is not root:
            return None
        for key in ("$ref", "$recursiveRef", "$dynamicRef"):
            reference = one.get(key)
            if not isinstance(reference, str) or reference == "#":
                continue
            if not reference.startswith("#/"):
                return None
            pointer = "/" + "/".join(escaped(part) for part in _parts(reference))
            if pointer not in found:
                found.add(pointer)
                waiting.append(_target(root, reference))
        for key, value in one.items():
            if key in MAPS and key not in DEFINITIONS and isinstance(value, Mapping):
                waiting += value.values()
            elif key in ONE or key in LISTS:
                waiting.append(value)
    return found


def _ways(pointer: str) -> Iterator[str]:
    """A pointer, and those of what holds it."""
    while pointer:
        yield pointer
        pointer = pointer.rpartition("/")[0]


def _parts(reference: str) -> list[str]:
    return [unquote(part).replace("~1", "/").replace("~0", "~") for part in reference[2:].split("/")]


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


def _follow_format(found: dict[str, Any], pointer: str, formats: Mapping[str, str]) -> None:
    form = found.get("format")
    pattern = formats.get(form) if isinstance(form, str) else None
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


def _target(root: Mapping[str, Any], reference: str) -> Any:
    """What a pointer into this schema names; None where it names nothing, or another text."""
    found: Any = root if reference.startswith("#/") else None
    for name in _parts(reference) if found is not None else []:
        if isinstance(found, list):
            found = found[int(name)] if _is_place(name) and int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _is_place(name: str) -> bool:
    """Whether a part of a pointer is a place in a list. Python refuses to read some thousand digits."""
    return name.isdecimal() and len(name) <= 9


def _bound_lengths(found: dict[str, Any], pointer: str) -> None:
    for key in LENGTHS & found.keys():
        value = found[key]
        if isinstance(value, float) and value.is_integer():
            value = found[key] = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < LONGEST:
            continue
        if key.startswith("min"):
            raise SchemaRefused(pointer, key, f"is {_short(value)}; less than {LONGEST} is followed")
        del found[key]


def _pattern(text: str, pointer: str, keyword: str) -> str:
    try:
        return rust_pattern(text)
    except PatternRefused as error:
        raise SchemaRefused(pointer, keyword, str(error)) from error


_U_NAME = "holds a control character, which is not followed in a name"
_HALF_TEXT = "holds half of a surrogate pair, which is no character"


def _check_names(properties: Mapping[str, Any], pointer: str) -> None:
    for name in properties:
        if why := _unwritable(name):
            raise SchemaRefused(f"{pointer}/properties", name, why)


def _check_required(names: Any, pointer: str) -> None:
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and (why := _unwritable(name)):
            raise SchemaRefused(pointer, "required", f"names {json.dumps(name)[:60]}: it {why}")


def _unwritable(name: str) -> str:
    if _HALF.search(name):
        return _HALF_TEXT
    return _U_NAME if _NEEDS_U.search(name) else ""


def _check_constants(value: Any, pointer: str, keyword: str) -> None:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, Mapping):
            waiting += one.values()
            for name in one:
                if why := _unwritable(name):
                    raise SchemaRefused(pointer, keyword, f"holds the name {json.dumps(name)[:60]}: it {why}")
        elif isinstance(one, str) and _HALF.search(one):
            raise SchemaRefused(pointer, keyword, f"holds {json.dumps(one)[:60]}: it {_HALF_TEXT}")
        elif isinstance(one, float) and not math.isfinite(one):
            raise SchemaRefused(pointer, keyword, "holds a number beyond float64")
        elif isinstance(one, int) and abs(one) > EXACT:
            raise SchemaRefused(pointer, keyword, f"holds {_short(one)}; whole numbers up to 2^53 are followed")


def _without_minus_zero(value: Any) -> Any:
    """The value with 0 for -0.0, which is the same number and would be the only one that can be written."""
    if isinstance(value, list):
        return [_without_minus_zero(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _without_minus_zero(one) for name, one in value.items()}
    return 0 if isinstance(value, float) and value == 0.0 else value


def _round_bounds(found: dict[str, Any], pointer: str) -> None:
    """Round bounds that float64 cannot hold to the next number inside."""
    for key in BOUNDS & found.keys():
        value = found[key]
        if isinstance(value, float) and not math.isfinite(value):
            raise SchemaRefused(pointer, key, "is beyond float64")
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
        units = Decimal(str(step)).normalize()
        digits = units.as_tuple().digits + (0,) * max(0, int(units.as_tuple().exponent))
        if step <= 0 or int("".join(map(str, digits))) > MULTIPLE:
            raise SchemaRefused(
                pointer, "multipleOf", f"is {_short(step)}; above 0, and at most {MULTIPLE} is followed"
            )
        if int(units.as_tuple().exponent) < -DECIMALS:
            raise SchemaRefused(pointer, "multipleOf", f"is {_short(step)}; {DECIMALS} decimals are followed")


def _list_multiples(found: dict[str, Any]) -> None:
    """Put a bounded number with fractional steps as the list of its values: llguidance writes a multiple of 0.25 with
    two digits and a bounded number without a last zero, so that no text of 0.5 fits both."""
    step, bounds = found.get("multipleOf"), {key: found[key] for key in BOUNDS & found.keys()}
    numbers = [step, *bounds.values()]
    if not _may_be_number(found) or "enum" in found or "const" in found or not isinstance(step, float):
        return
    if step.is_integer() or not all(type(one) in (int, float) and math.isfinite(one) for one in numbers):
        return
    low = max((Decimal(str(bounds[key])) for key in ("minimum", "exclusiveMinimum") if key in bounds), default=None)
    high = min((Decimal(str(bounds[key])) for key in ("maximum", "exclusiveMaximum") if key in bounds), default=None)
    unit = Decimal(str(step))
    if low is None or high is None or (high - low) / unit > LISTED_NUMBERS:
        return
    first, last = math.ceil(low / unit), math.floor(high / unit)
    values = [unit * count for count in range(first, last + 1)]
    over, under = found.get("exclusiveMinimum"), found.get("exclusiveMaximum")
    kept = [
        float(one)
        for one in values
        if (over is None or one > Decimal(str(over))) and (under is None or one < Decimal(str(under)))
    ]
    listed = {"enum": [int(one) if one.is_integer() else one for one in kept]}
    if found.get("type") == "number":
        found |= listed
    elif isinstance(others := found.get("allOf", []), list):
        found["allOf"] = [*others, {"anyOf": [{"type": list(NO_NUMBERS)}, listed]}]
    else:
        return
    for key in ("multipleOf", *bounds):
        del found[key]


def _may_be_number(found: Mapping[str, Any]) -> bool:
    """Whether a schema's type leaves room for numbers that are not whole."""
    kind = found.get("type", "number")
    return kind == "number" or (isinstance(kind, list) and "number" in kind)


def _bounds(root: Any) -> Iterator[Any]:
    """The bounds of numbers anywhere in a schema."""
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield from (one[key] for key in BOUNDS & one.keys())
        if isinstance(one, (list, Mapping)):
            waiting += one.values() if isinstance(one, Mapping) else one


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and not value.is_integer()


def _part_from_whole(found: dict[str, Any]) -> None:
    """Move exclusive bounds that are whole numbers inwards: llguidance lets 0 through under "more than 0 and at most
    0.5", also where the two come from different schemas. Draft 4 says with `true` that a bound is exclusive."""
    for exclusive, plain, step in (("exclusiveMinimum", "minimum", NEAR), ("exclusiveMaximum", "maximum", -NEAR)):
        value = found.get(plain) if found.get(exclusive) is True else found.get(exclusive)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
            continue
        # Where numbers are so large that the step is lost, so are fractions of their kind.
        near = value + max(1.0, abs(value) / 2**20) * step
        other = found.get(plain)
        if not isinstance(other, (int, float)) or found[exclusive] is True or (near - other) * step > 0:
            found[plain] = near
        del found[exclusive]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= NUMBER_CHARS else f"{text[:NUMBER_CHARS]}..."
