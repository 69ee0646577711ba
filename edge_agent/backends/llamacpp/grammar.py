"""Grammars that requests bring: a JSON schema to GBNF, and what llama.cpp is spared of both.

Whoever may ask may send a program here. llama.cpp's parser works by recursion and ends the process when that goes too
deep, llama-cpp-python's converter writes repetitions out; so counts, nesting and length are bounded before either sees
them. How much a grammar costs per token cannot be told from its text: `sampler` measures that.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edge_agent.backends.llamacpp.library import present
from edge_agent.backends.llamacpp.model import Model
from edge_agent.base.errors import BackendError

ROOT = b"root"
GBNF_CHARS = 64 * 1024
NESTING = 2000
"""Parentheses; llama.cpp has survived 8,000 of them and died of 20,000."""
ALTERNATIVES = 512
"""Each one that the text so far may be inside of is looked at beside every other, so cost goes with the cube of them: a
thousand alike, repeated, took 10 s for one token."""
COUNT = 1000
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
PATTERN_REPEATS = 10_000
"""Of a pattern's {m,n}, multiplied: the converter may write them out inside each other."""
GRAMMAR_REPEATS = 5000
"""Of a grammar's {m,n}, added: the parser writes every one out; a thousand of {0,2000} took 570 MiB."""
REASON_CHARS = 200

_BRACES = re.compile(r"\{(\d{0,9})(?:,(\d{0,9}))?\}")
# What of GBNF may hold a parenthesis that opens nothing: a literal, a class of characters, a comment.
# Its ends may be missing, so that it never has to look twice at the same text.
_QUOTED = re.compile(r'"(?:[^"\\]+|\\.)*"?|\[(?:[^\]\\]+|\\.)*\]?|#[^\n]*', re.DOTALL)


def build(model: Model, params: Mapping[str, Any]) -> Any:
    """llama.cpp's sampler of the request's grammar, None where it has none. Raises BackendError with the reason."""
    if "json_schema" in params:
        text = schema_grammar(params["json_schema"])
    elif "grammar" in params:
        text = params["grammar"]
    else:
        return None
    check(text)
    handle, said = _listening(lambda: model.library.api.llama_sampler_init_grammar(model.vocab, text.encode(), ROOT))
    if not present(handle):
        raise BackendError(f"the grammar does not parse: {said}", "grammar", "GBNF with a rule `root` is needed")
    return handle


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The GBNF of a JSON schema, by llama-cpp-python's converter. Raises BackendError for one that it cannot read.

    Its import costs nothing here: the package, which imports it, is loaded with the library.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    check_schema(schema)
    try:
        return str(json_schema_to_gbnf(json.dumps(schema)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RecursionError) as error:
        raise BackendError(
            f"json_schema is no schema that can be followed: {type(error).__name__} {str(error)[:120]}", "json_schema"
        ) from error


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise BackendError for counts that would be written out without end, naming where they stand."""
    for place, key, value in _entries(schema, "json_schema"):
        if key in COUNTS and isinstance(value, (int, float)) and value > COUNT:
            raise BackendError(f"{place}.{key} is {value:g}; at most {COUNT} are possible", "json_schema")
        if key == "pattern" and isinstance(value, str):
            repeats = 1
            for count in _counts(value):
                repeats *= count
                if repeats > PATTERN_REPEATS:
                    what = f"{place}.pattern repeats more than {PATTERN_REPEATS} times in all"
                    raise BackendError(what, "json_schema", "shorten its {m,n}")


def check(text: str) -> None:
    """Raise BackendError for a grammar that is too long, branches too much, or is nested too deep for its parser."""
    if len(text) > GBNF_CHARS:
        raise BackendError(f"the grammar has {len(text)} characters; at most {GBNF_CHARS} are possible", "grammar")
    bare = _QUOTED.sub("", text)
    if bare.count("|") > ALTERNATIVES:
        raise BackendError(
            f"the grammar has {bare.count('|')} alternatives; at most {ALTERNATIVES} are possible", "grammar"
        )
    if sum(_counts(bare)) > GRAMMAR_REPEATS:
        raise BackendError(f"the grammar's {{m,n}} add up to more than {GRAMMAR_REPEATS} repetitions", "grammar")
    depth = deepest = 0
    for sign in bare:
        if sign == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif sign == ")":
            depth -= 1
    if deepest > NESTING:
        raise BackendError(f"the grammar is nested {deepest} deep; at most {NESTING} are possible", "grammar")


def _counts(text: str) -> Iterator[int]:
    """The larger number of every {m,n}, at least 1."""
    return (max(int(low or 1), int(high or 1), 1) for low, high in _BRACES.findall(text))


def _entries(value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Every (place, key, value) of all objects inside."""
    waiting = [(value, place)]
    while waiting:
        inside, where = waiting.pop()
        if isinstance(inside, Mapping):
            for key, one in inside.items():
                yield where, str(key), one
                waiting.append((one, f"{where}.{key}"))
        elif isinstance(inside, list):
            waiting += [(one, f"{where}[{number}]") for number, one in enumerate(inside)]


def _listening(call: Any) -> tuple[Any, str]:
    """The call's result, and the first line that it wrote to standard error: the parser does not use llama.cpp's log.

    It would also write the whole grammar into the journal, once for every bad request.
    """
    kept = os.dup(2)
    heard = os.memfd_create("grammar")
    try:
        os.dup2(heard, 2)
        try:
            result = call()
        finally:
            os.dup2(kept, 2)
        said = os.pread(heard, REASON_CHARS, 0).decode("utf-8", "replace").strip().split("\n")[0]
    finally:
        os.close(kept)
        os.close(heard)
    return result, said.removeprefix("parse: ") or "it gives no reason"
