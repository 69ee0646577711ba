"""Whether a JSON schema demands itself without end, so that no text fits it. Pure.

llguidance takes `{"type": "array", "items": {"$ref": "#"}, "minItems": 1}`: every token can be followed by another, and
no answer ever ends. A schema can end when what it demands can; what a `$ref` names is taken for endless until it is
found to end.

A file of its own because it is one search over a whole schema, which nothing else here needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edge_agent.backends.llamacpp.schema_refusal import LISTS, escaped

Target = Callable[[str], Any]
"""What a `$ref` names."""


def endless_reference(schema: Mapping[str, Any], target: Target) -> str | None:
    """The JSON pointer of a schema whose `$ref` makes this one endless; None where an answer can end."""
    ending = dict.fromkeys(_references(schema), False)
    grown = bool(ending)
    while grown:  # every round finds another that ends, or is the last
        grown = False
        for reference, ends in ending.items():
            if not ends and _culprit(target(reference), "", ending) is None:
                ending[reference] = grown = True
    return _culprit(schema, "", ending)


def _references(inside: Any) -> Iterator[str]:
    waiting = [inside]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            if isinstance(reference := one.get("$ref"), str):
                yield reference
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _culprit(schema: Any, pointer: str, ending: Mapping[str, bool]) -> str | None:
    """Where inside of what a schema demands a `$ref` is that does not end; None where it can end."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str) and not ending.get(reference, True):
        return pointer
    demanded = [*_demanded(schema)]
    found = next(
        (at for place, one in demanded if (at := _culprit(one, f"{pointer}/{place}", ending)) is not None), None
    )
    for key in sorted(LISTS & {"anyOf", "oneOf"} & schema.keys()):
        choices = schema[key] if isinstance(schema[key], list) else []
        each = [_culprit(one, f"{pointer}/{key}/{number}", ending) for number, one in enumerate(choices)]
        if each and None not in each and found is None:
            found = each[0]
    return found


def _demanded(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What every answer to a schema holds, with its place: `allOf`, required properties, the least items."""
    together = schema.get("allOf")
    yield from ((f"allOf/{number}", one) for number, one in enumerate(together if isinstance(together, list) else []))
    if schema.get("type") in ("object", ["object"]):
        properties, required = schema.get("properties", {}), schema.get("required", [])
        for name in required if isinstance(required, list) and isinstance(properties, Mapping) else []:
            if name in properties:
                yield f"properties/{escaped(name)}", properties[name]
            elif not schema.get("patternProperties"):
                yield "additionalProperties", schema.get("additionalProperties", True)
    if schema.get("type") in ("array", ["array"]) and isinstance(least := schema.get("minItems"), int):
        items = schema.get("items", True)
        first = schema.get("prefixItems", items if isinstance(items, list) else [])
        key = "prefixItems" if "prefixItems" in schema else "items"
        yield from ((f"{key}/{number}", one) for number, one in enumerate(first[:least]))
        if least > len(first):
            yield ("additionalItems", schema.get("additionalItems")) if isinstance(items, list) else ("items", items)
