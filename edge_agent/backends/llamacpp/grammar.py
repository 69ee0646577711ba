"""Grammars of requests: a JSON schema is converted to GBNF, and both are bounded before llama.cpp parses them.

Any client can send a grammar, and a grammar is a program. llama.cpp's parser is recursive and ends the process when it
recurses too deep; llama-cpp-python's converter writes repetitions out. So counts, nesting and length are bounded first.
The cost of a grammar cannot be computed from its text. Whether it builds at all is tried in a forked copy of the worker
(`run_in_sandbox`); what it costs per token `sampler` measures.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import math
import os
import re
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.backends.llamacpp.library import present
from edge_agent.backends.llamacpp.model import LlamaModel
from edge_agent.base.errors import BackendError, ProgramRefused
from edge_agent.base.limits import MIB

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
    """Raise ProgramRefused for a grammar that takes too much or crashes its parser; see `run_in_sandbox`."""
    known = model.recall_grammar(text)
    try:
        found = run_in_sandbox(lambda: _first_tokens(model, text)) if known == "" else known
    except OSError as error:  # no memory for a process: no statement about the grammar, so it is not remembered
        why = f"the grammar cannot be tried: {error.strerror}"
        raise BackendError(why, "grammar", "ask again when there is more memory") from error
    model.remember_grammar(text, found)
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


# Some grammars build for minutes or take gigabytes, some need seconds per token, and llama.cpp cannot be interrupted in
# either. So a text that is seen for the first time is built in a forked copy and applied to the vocabulary a few times,
# within SANDBOX_COMPUTE_S of CPU time and SANDBOX_MEMORY_BYTES of address space.
SANDBOX_COMPUTE_S = 1.5
SANDBOX_MEMORY_BYTES = 64 * MIB
SANDBOX_WALL_S = 15.0
"""A copy that does not end within this time (it waits for a lock that another thread held at the fork) is killed."""
SANDBOX_LOOK_S = 0.001


def run_in_sandbox(work: Callable[[], object]) -> str | None:
    """Run `work` in a forked copy of this process. None where it ends by itself, even with an error; else what it took.

    The copy shares memory until it writes, and has ended when this returns. Raises OSError if no process can be made.
    """
    with warnings.catch_warnings():
        # Python warns of a fork in a process with threads: the copy takes none of their locks, it computes and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
    if pid == 0:
        _run_limited(work)
    return _verdict(_wait(pid))


def _run_limited(work: Callable[[], object]) -> None:
    """The copy's part. It ends with `_exit`, so that no file of the worker is closed or flushed twice."""
    try:
        faulthandler.disable()  # its crash is expected: no traceback, no backtrace, no core file
        os.environ["GGML_NO_BACKTRACE"] = "1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (pathlib costs memory for one line)
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + SANDBOX_MEMORY_BYTES, held + SANDBOX_MEMORY_BYTES))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SANDBOX_COMPUTE_S)
        work()
    except MemoryError:
        os.abort()
    finally:
        os._exit(0)  # another error comes again in the worker, which reports it


def _wait(pid: int) -> int | None:
    """The copy's exit code (negative: a signal); None for one that was killed after SANDBOX_WALL_S."""
    until_s = time.monotonic() + SANDBOX_WALL_S
    while time.monotonic() < until_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(SANDBOX_LOOK_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _verdict(code: int | None) -> str | None:
    if code == 0:
        return None
    if code is None or code == -signal.SIGPROF:
        return f"takes more than {SANDBOX_COMPUTE_S:g} s to build and to find its first tokens"
    if code in {-signal.SIGABRT, -signal.SIGKILL}:
        return f"takes more than {SANDBOX_MEMORY_BYTES // MIB} MiB to build, or ends its parser"
    return f"ends its parser ({signal.Signals(-code).name if code < 0 else code})"


# The converter ignores keywords that it does not know, and some known ones beside others, so that an answer would break
# its schema. So every keyword is either followed, or does not restrict values, or is refused.
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
