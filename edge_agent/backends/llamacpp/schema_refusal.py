"""Where and why a JSON schema is refused: the JSON pointer, the keyword and a sentence. Pure.

llguidance says what it does not follow, not where. `located` goes down to the innermost schema that is refused for the
same reason; `reason` puts llguidance's message in words with the keyword.

A file of its own because the preparation of a schema (`json_schema`) refuses by the same class, and knows nothing of
llguidance's messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

PLACE_CHARS = 300
"""Characters of a place in a sentence; a schema's names may be as long as its client likes."""
REASON_CHARS = 160
"""Characters of what llguidance says."""
TRIED = 150
"""Schemas inside a refused one that are tried one by one, to find the place."""

ONE = frozenset({
    "items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})


class SchemaRefused(Exception):
    """A schema that cannot be followed: JSON pointer of the place, keyword ('' for none), and why."""

    def __init__(self, pointer: str, keyword: str, why: str) -> None:
        self.pointer, self.keyword, self.why = pointer, keyword, why
        place = pointer + (f"/{escaped(keyword)}" if keyword else "")
        place = place if len(place) <= PLACE_CHARS else f"{place[:PLACE_CHARS]}..."
        super().__init__(
            _shown(f"json_schema{' at ' + place if place else ''}: {f'`{keyword}` ' if keyword else ''}{why}")
        )


def _shown(text: str) -> str:
    """A sentence whose names hold no control characters and no halves of surrogate pairs."""
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in text)


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


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
    if not keyword:  # a schema with an identifier of its own, which cannot be tried alone
        for place, pattern in _patterns(schema, ""):
            if f"/{pattern}/" in wrong:
                return SchemaRefused(place, "pattern", f"cannot be followed: {_line(wrong)}")
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


def _patterns(inside: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """Every `pattern` with the place of its schema."""
    if isinstance(inside, Mapping) and isinstance(inside.get("pattern"), str):
        yield pointer, inside["pattern"]
    pairs = inside.items() if isinstance(inside, Mapping) else enumerate(inside) if isinstance(inside, list) else ()
    for key, value in pairs:
        yield from _patterns(value, f"{pointer}/{escaped(str(key))}")


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


_ANCHOR = re.compile(r"(?:Failed to convert regex .*?: )?lookarounds not supported yet; (\w+)(?: in regex .*)?")
_ANCHORS = {"Start": "^", "End": "$", "StartLF": "^", "EndLF": "$", "StartCRLF": "^", "EndCRLF": "$"}


def of_anchors(wrong: str) -> str:
    """A message in which llguidance's name of what stands for a place in the text is put in words."""
    return _ANCHOR.sub(lambda found: _anchor(found[1]), wrong)


def _anchor(name: str) -> str:
    sign = _ANCHORS.get(name)
    return f"{sign} inside of an expression is not followed" if sign else "a word boundary is not followed"


def _line(wrong: str) -> str:
    return of_anchors(" ".join(wrong.split()))[:REASON_CHARS]


_UNKNOWN_KEYS = re.compile(r'Unimplemented keys: \["([^"]+)"')
_EXPECTED = re.compile(r"[Ee]xpected .* for '([A-Za-z]+)'|^([A-Za-z]+) must be ")


def reason(wrong: str, inside: Mapping[str, Any]) -> tuple[str, str]:
    """(keyword, why) of llguidance's message about a schema; the keyword is '' where the message names none."""
    line = _line(wrong)
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
    if "Regex is empty" in wrong and "pattern" in inside and not {"format", "minLength", "maxLength"} & inside.keys():
        return "pattern", "is one that no text fits"
    expected = _EXPECTED.search(wrong)
    if expected:
        return expected[1] or expected[2], f"is not what it must be: {line}"
    if "Unsatisfiable" in wrong or "unsatisfiable" in wrong:
        return "", "no text fits it: its parts exclude each other"
    if "type" in wrong.lower() and "type" in inside:
        return "type", f"is not followed: {line}"
    named = [key for key in ("pattern", "patternProperties", "allOf", "$ref", "anyOf") if key in inside]
    return named[0] if named else "", f"cannot be followed: {line}"
