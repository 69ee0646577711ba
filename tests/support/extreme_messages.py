"""Messages of the right form whose values are extreme: each leaf of a type in turn, by msgspec's description of it.

Random changes of real messages hardly ever make a number of 400 digits, which msgspec takes for any `int`, which
Python's `float` does not hold, and which msgspec does not write again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

INTS: tuple[int, ...] = (-1, 0, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**400))
FLOATS: tuple[float, ...] = (-1.0, 0.0, 1e308, -1e308, 5e-324, *INTS)
TEXTS = ("", "\x1b[2J", "x" * 5000, "\u202e", "<script>", "a/b", "~self", "1" * 400)
KEYS = ("", "\x1b[2J", "x" * 300, "__proto__", "a/b")
ANY: tuple[Any, ...] = (None, True, *FLOATS, "x", [], {}, [[[]]], {"a": {"b": 10**400}})
MANY = 200


def ordinary(kind: type) -> Any:
    """A message of this type with some value in each field, as JSON has it."""
    return _ordinary(inspect.type_info(kind))


def extremes(kind: type, whole: Any = None) -> Iterator[bytes]:
    """Messages of this type, each with one extreme value, and otherwise as `whole` (default: `ordinary`), so that what
    is checked first does not hide what is checked later. Some of them are of no right form after all."""
    info = inspect.type_info(kind)
    for value in _extremes(info, _ordinary(info) if whole is None else whole):
        yield json.dumps(value).encode()


def _ordinary(info: Any) -> Any:
    match info:
        case inspect.StructType():
            return {field.encode_name: _ordinary(field.type) for field in info.fields}
        case inspect.UnionType():
            nothing = (inspect.NoneType, inspect.CustomType)
            return _ordinary(next(one for one in info.types if not isinstance(one, nothing)))
        case inspect.DictType():
            return {"m": _ordinary(info.value_type)}
        case inspect.ListType() | inspect.VarTupleType():
            return [_ordinary(info.item_type)]
        case inspect.LiteralType():
            return info.values[0]
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return 3
        case inspect.FloatType():
            return 0.5
        case _:
            return "m"


def _extremes(info: Any, whole: Any) -> Iterator[Any]:
    match info:
        case inspect.StructType():
            known = whole if isinstance(whole, dict) else _ordinary(info)
            for field in info.fields:
                name = field.encode_name
                inner = known.get(name, _ordinary(field.type))
                yield from ({**known, name: value} for value in _extremes(field.type, inner))
        case inspect.UnionType():
            for one in info.types:
                yield from _extremes(one, whole)
        case inspect.DictType():
            inner = next(iter(whole.values()), None) if isinstance(whole, dict) else None
            inner = _ordinary(info.value_type) if inner is None else inner
            yield {}
            yield dict.fromkeys(KEYS, inner)
            yield {f"n{number}": inner for number in range(MANY)}
            yield from ({"m": value} for value in _extremes(info.value_type, inner))
        case inspect.ListType() | inspect.VarTupleType():
            inner = whole[0] if isinstance(whole, list) and whole else _ordinary(info.item_type)
            yield from ([], [inner] * MANY)
            yield from ([value] for value in _extremes(info.item_type, inner))
        case inspect.LiteralType():
            yield from info.values
        case inspect.BoolType():
            yield from (True, False)
        case inspect.IntType():
            yield from INTS
        case inspect.FloatType():
            yield from FLOATS
        case inspect.NoneType():
            yield None
        case inspect.StrType():
            yield from TEXTS
        case inspect.AnyType():
            yield from ANY
        case _:
            return
