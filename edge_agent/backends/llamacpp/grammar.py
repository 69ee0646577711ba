"""Grammars of requests: a JSON schema is converted to GBNF, and both are bounded before llama.cpp parses them.

Any client can send a grammar, and a grammar is a program. llama.cpp's parser is recursive and ends the process when it
recurses too deep; llama-cpp-python's converter writes repetitions out. So counts, nesting and length are bounded first.
The cost of a grammar per token cannot be computed from its text: `sampler` measures it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.backends.llamacpp import grammar_sandbox
from edge_agent.backends.llamacpp.library import present
from edge_agent.backends.llamacpp.model import LlamaModel
from edge_agent.backends.llamacpp.schema import followable
from edge_agent.base.errors import BackendError, ProgramRefused

ROOT = b"root"
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
GBNF_CHARS = 64 * 1024
NESTING = 2000
"""Nested parentheses: llama.cpp parsed 8,000 of them and crashed on 20,000."""
ALTERNATIVES = 512
"""Alternatives: the parser keeps one stack for each that the text may be in, and the cost grows with the cube of their
number: a thousand equal ones, repeated, took 10 s for one token."""
COUNT = 1000
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
PATTERN_REPEATS = 10_000
"""Of a pattern's {m,n}, multiplied: the converter may write them out inside each other."""
GRAMMAR_REPEATS = 5000
"""Of a grammar's {m,n}, added: the parser writes every one out; a thousand of {0,2000} took 570 MiB."""
REASON_CHARS = 200

_REPEATS = re.compile(r"\{([^{}]*\}?)")
_PLAIN = re.compile(r"([0-9]{1,4})(?:,([0-9]{0,4}))?\}")
# The parts of GBNF in which a parenthesis groups nothing: a literal, a character class, a comment. Closing quotes are
# optional in the pattern, so that the regular expression never backtracks.
_QUOTED = re.compile(r'"(?:[^"\\]+|\\.)*"?|\[(?:[^\]\\]+|\\.)*\]?|#[^\r\n]*', re.DOTALL)
_ESCAPED = re.compile(r"\\.|\[(?:[^\]\\]+|\\.)*\]?", re.DOTALL)
"""The parts of a pattern in which a brace repeats nothing."""
VISITS = 5000
"""Places that the converter visits; a reference that it does not resolve doubles them at every level."""
ANY_SIGN, PRINTABLE = r'[^"\\]', r'[^"\\\x7F\x00-\x1F]'
"""Control characters, which the converter lets into texts, are written as escapes in JSON."""
TRIED_KEPT = 64
TRIAL_TOKENS = 2
LOOKED_AT = 64


def build(model: LlamaModel, params: Mapping[str, Any]) -> Any:
    """llama.cpp's sampler of the request's grammar, None where it has none. Raises BackendError with the reason."""
    if "json_schema" in params:
        text = schema_grammar(params["json_schema"])
    elif "grammar" in params:
        text = params["grammar"]
    else:
        return None
    check(text)
    try_out(model, text)
    handle, said = _listening(lambda: model.library.api.llama_sampler_init_grammar(model.vocab, text.encode(), ROOT))
    if not present(handle):
        raise BackendError(f"the grammar does not parse: {said}", "grammar", "GBNF with a rule `root` is needed")
    return handle


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The GBNF of a JSON schema, by llama-cpp-python's converter. Raises BackendError for one that it cannot read.

    The import costs no memory here: llama-cpp-python has imported its converter already.
    """
    from llama_cpp import llama_grammar

    check_schema(schema)
    try:
        wanted = followable(schema)
        make: Any = llama_grammar.SchemaConverter
        converter = make(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        _limit_visits(converter)
        converter.visit(converter.resolve_refs(json.loads(json.dumps(wanted)), "schema"), "")
        return str(converter.format_grammar()).replace(ANY_SIGN, PRINTABLE)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RecursionError) as error:
        raise BackendError(
            f"json_schema is no schema that can be followed: {type(error).__name__} {str(error)[:120]}", "json_schema"
        ) from error


def _limit_visits(converter: Any) -> None:
    visit, visits = converter.visit, 0

    def counted(schema: Any, name: str) -> Any:
        nonlocal visits
        visits += 1
        if visits > VISITS:
            raise ValueError(f"its references lead to more than {VISITS} places")
        return visit(schema, name)

    converter.visit = counted


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise BackendError that names the place of a count that would be written out too often."""
    for place, key, value in _entries(schema, "json_schema"):
        if key in COUNTS and isinstance(value, (int, float)) and value > COUNT:
            raise BackendError(f"{place}.{key} is {value:g}; at most {COUNT} are possible", "json_schema")
        if key == "pattern" and isinstance(value, str):
            repeats = 1
            for count in _counts(_ESCAPED.sub("", value), f"{place}.pattern"):
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
    if sum(_counts(bare, "the grammar")) > GRAMMAR_REPEATS:
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


def _counts(text: str, where: str) -> Iterator[int]:
    """The larger number of every {m,n}, at least 1. Raises BackendError for braces that only a parser understands."""
    for inside in _REPEATS.findall(text):
        plain = _PLAIN.fullmatch(inside)
        low, high = (plain[1], plain[2] or plain[1]) if plain else ("1", "0")
        if int(high) < int(low):
            raise BackendError(
                f"{where} has {{{inside[:20]}; {{m}}, {{m,}} or {{m,n}} of at most four digits each is possible",
                "grammar",
            )
        yield max(int(high), 1)


def try_out(model: LlamaModel, text: str) -> None:
    """Raise ProgramRefused for a grammar that takes too much or crashes its parser; see `grammar_sandbox`."""
    known = model.tried.pop(text, "")
    try:
        found = grammar_sandbox.trouble(lambda: _first_tokens(model, text)) if known == "" else known
    except OSError as error:  # no memory for a process: no statement about the grammar, so it is not remembered
        why = f"the grammar cannot be tried: {error.strerror}"
        raise BackendError(why, "grammar", "ask again when there is more memory") from error
    model.tried[text] = found
    while len(model.tried) > TRIED_KEPT:
        del model.tried[next(iter(model.tried))]
    if found is not None:
        raise ProgramRefused(f"the grammar {found}", "grammar", "write it without ambiguity, and with less in it")


def _first_tokens(model: LlamaModel, text: str) -> None:
    """Build the grammar and apply it to the whole vocabulary for a few tokens, each time taking the longest allowed."""
    api = model.library.api
    handle = api.llama_sampler_init_grammar(model.vocab, text.encode(), ROOT)
    for _ in range(TRIAL_TOKENS if present(handle) else 0):
        found = np.zeros(model.vocab_size, CANDIDATE)
        found["id"] = np.arange(model.vocab_size, dtype=np.int32)
        api.llama_sampler_apply(handle, ctypes.byref(token_array(api, found)))
        allowed = [int(token) for token in found["id"][np.isfinite(found["logit"])][-LOOKED_AT:]]
        longest = max(allowed, key=model.piece_bytes, default=None)
        if longest is None or model.ends(longest):
            return
        api.llama_sampler_accept(handle, longest)


def token_array(api: Any, found: npt.NDArray[Any]) -> Any:
    """llama.cpp's view of candidates (`CANDIDATE`); it must not outlive them."""
    data = ctypes.cast(found.ctypes.data, ctypes.POINTER(api.llama_token_data))
    return api.llama_token_data_array(data, len(found), -1, False)


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
