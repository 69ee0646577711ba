"""Structured answers against other people's schemas: which are taken, and which texts they let through.

`--maskbench` is the folder `maskbench/data` of JSONSchemaBench, `--suite` a clone of JSON-Schema-Test-Suite; neither is
part of this repository. Every instance is written as compact JSON and followed byte by byte through the masks' own
grammar. **Wrong** is an invalid instance that can be drawn; a valid one that cannot is counted apart (the order of
properties is the schema's). `--walks N` draws N random answers for each schema that is taken and has `jsonschema`
validate them, formats too; patterns are read as ECMA-262 has them and multiples computed with decimals, which
`jsonschema` leaves to Python's `re` and floats. **Stuck** is an answer that nothing can follow and that may not end.
Ends with 1 if anything is wrong or stuck.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.backends.llamacpp.grammar_process import SPECIAL, GrammarRefused, Grammars, State

WHERE = {
    "maskbench": "git clone https://github.com/guidance-ai/jsonschemabench, the clone or its folder maskbench/data",
    "suite": "git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite",
}
DRAFTS = {
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft3": "http://json-schema.org/draft-03/schema#",
}
ON_SCHEMAS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, re.error)
END = 256
CLOSING = frozenset({*b'"}]', END})
WALK_BYTES = 300
SHOWN = 20


class SchemaCase(NamedTuple):
    """A schema with (instance, whether it is valid)."""

    group: str
    name: str
    schema: Any
    instances: Sequence[tuple[Any, bool]]


@dataclass
class SchemaTally:
    """What came of a group of schemas."""

    schemas: int = 0
    taken: int = 0
    invalid: int = 0
    wrong: int = 0
    valid: int = 0
    not_derivable: int = 0
    walks: int = 0
    walks_wrong: int = 0
    walks_stuck: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unplaced: int = 0
    compile_ms: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


def maskbench(folder: Path) -> Iterator[SchemaCase]:
    """The cases of JSONSchemaBench in its maskbench form."""
    clone = folder / "maskbench" / "data"
    for path in sorted((clone if clone.is_dir() else folder).glob("*.json")):
        found = json.loads(path.read_text())
        group = re.sub(r"_[0-9]+$", "", path.stem.split("---")[0])
        yield SchemaCase(
            group, path.stem, found["schema"], [(one["data"], one["valid"]) for one in found.get("tests", [])]
        )


def suite(folder: Path) -> Iterator[SchemaCase]:
    """The cases of JSON-Schema-Test-Suite; a schema without `$schema` gets its draft's."""
    for draft, uri in DRAFTS.items():
        for path in sorted((folder / "tests" / draft).rglob("*.json")):
            for group in json.loads(path.read_text()):
                schema = group["schema"]
                if isinstance(schema, bool):
                    schema = {} if schema else {"not": {}}
                wanted = schema if "$schema" in schema else {"$schema": uri, **schema}
                instances = [(one["data"], one["valid"]) for one in group["tests"]]
                yield SchemaCase(draft, f"{draft}/{path.stem}: {group['description']}", wanted, instances)


def try_case(grammars: Grammars, case: SchemaCase, tally: SchemaTally, walks: int, rng: random.Random) -> None:
    """Compile a schema, follow its instances, draw from it."""
    text = json.dumps(case.schema, ensure_ascii=False)
    tally.schemas += 1
    started_s = time.process_time()
    try:
        grammars.check("json_schema", text)
    except GrammarRefused as error:
        tally.refused[_keyword(str(error))] += 1
        if "`" not in str(error) and "no text fits" not in str(error):
            tally.unplaced += 1
            tally.examples.append(f"(no keyword) {case.name}: {error}")
        return
    tally.compile_ms.append(1000.0 * (time.process_time() - started_s))
    tally.taken += 1
    for instance, valid in case.instances:
        data = json.dumps(instance, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        drawn = grammars.fits("json_schema", text, data)
        tally.valid += valid
        tally.invalid += not valid
        tally.not_derivable += valid and not drawn
        if drawn and not valid:
            tally.wrong += 1
            tally.examples.append(f"WRONG {case.name}: {data[:200].decode('utf-8', 'replace')}")
    for _ in range(walks):
        _walk(grammars, case, text, tally, rng)


def _keyword(sentence: str) -> str:
    return sentence.split("`")[1] if "`" in sentence else sentence.removeprefix("json_schema").split(": ")[-1][:60]


def _walk(grammars: Grammars, case: SchemaCase, text: str, tally: SchemaTally, rng: random.Random) -> None:
    try:
        answer = _drawn(grammars, text, rng)
    except GrammarRefused as error:
        tally.walks_stuck += 1
        tally.examples.append(f"STUCK {case.name}: {error}")
        return
    if answer is None:
        return
    tally.walks += 1
    wrong = _wrong(answer, case.schema)
    if wrong:
        tally.walks_wrong += 1
        tally.examples.append(f"WRONG {case.name}: drew {answer[:200].decode('utf-8', 'replace')}: {wrong[:160]}")


def _drawn(grammars: Grammars, text: str, rng: random.Random) -> bytes | None:
    """A random answer, None where it does not end in time; closing signs come more often, so that most do. Raises
    GrammarRefused where nothing can follow."""
    grammars.open(0, "json_schema", text, [])
    answer = bytearray()
    while len(answer) < WALK_BYTES:
        try:
            mask, state = grammars.mask(0)
        except GrammarRefused as error:
            if error.costly:
                return None
            raise GrammarRefused(f"{error}: {bytes(answer[-80:]).decode('utf-8', 'replace')}") from error
        tokens = [token for token in range(END + 1) if state != State.ENDED and mask[token >> 3] >> (token & 7) & 1]
        if not tokens:
            return bytes(answer)
        closing = [token for token in tokens if token in CLOSING]
        token = rng.choice(closing if closing and rng.random() < 0.4 else tokens)
        if token == END:
            return bytes(answer)
        answer.append(token)
        grammars.take(0, token)
    return None


def _wrong(answer: bytes, schema: Any) -> str:
    import jsonschema  # type: ignore[import-untyped]
    from referencing.exceptions import Unresolvable

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        value = json.loads(answer, object_pairs_hook=once)
    except ValueError as error:
        return str(error)
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    exact = jsonschema.validators.extend(kind, {"multipleOf": _multiple_of} if "multipleOf" in kind.VALIDATORS else {})
    try:
        validator = exact(_with_ecma_patterns(schema), format_checker=kind.FORMAT_CHECKER)
        return next((error.message for error in validator.iter_errors(value)), "")
    except (*ON_SCHEMAS, Unresolvable, jsonschema.exceptions.UnknownType):
        # A schema on which the validator itself fails says nothing about the answer.
        return ""


_SPACES = r"\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_OTHERS = (
    r"\x00-\x08\x0e-\x1f!-\x9f\xa1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e\u2030-\u205e\u2060-\u2fff\u3001-\ufefe"
    r"\uff00-\U0010ffff"
)
_CLASSES = {
    "s": _SPACES, "S": _OTHERS, "d": "0-9", "D": r"\x00-/:-\U0010ffff", "w": "0-9A-Za-z_",
    "W": r"\x00-/:-@\[-\^`{-\U0010ffff", ".": r"\x00-\t\x0b\x0c\x0e-\u2027\u202a-\U0010ffff",
}  # fmt: skip
_PIECE = re.compile(r"\\.|[\[\].$]", re.DOTALL)


def ecma_pattern(pattern: str) -> str:
    """A pattern of ECMA-262 for Python's `re`: its classes of characters, and `$` at the end only."""
    inside = False

    def piece(match: re.Match[str]) -> str:
        nonlocal inside
        text = match[0]
        if text in ("[", "]"):
            opens, inside = text == "[" and not inside, text == "["
            return text if opens or text == "]" else "\\["
        if text == "$":
            return "$" if inside else r"\Z"
        found = _CLASSES.get(text[-1]) if (text[0] == "\\" or not inside) else None
        if found is None or text == "\\.":
            return text
        return found if inside else f"[{found}]"

    return _PIECE.sub(piece, pattern)


def _with_ecma_patterns(schema: Any) -> Any:
    """The schema with its patterns, and names by a pattern, as Python's `re` reads them."""
    if isinstance(schema, list):
        return [_with_ecma_patterns(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key in ("const", "enum") else _with_ecma_patterns(value) for key, value in schema.items()}
    if isinstance(schema.get("pattern"), str):
        found["pattern"] = ecma_pattern(schema["pattern"])
    if isinstance(by_pattern := found.get("patternProperties"), dict):
        found["patternProperties"] = {ecma_pattern(name): one for name, one in by_pattern.items()}
    return found


def _multiple_of(_: Any, step: Any, value: Any, __: Any) -> Iterator[Any]:
    """`multipleOf` by decimals, as the numbers are written."""
    import jsonschema

    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    try:
        left = Decimal(str(value)) % Decimal(str(step))
    except DecimalException:
        return
    if left:
        yield jsonschema.ValidationError(f"{value} is not a multiple of {step}")


def table(tallies: dict[str, SchemaTally]) -> str:
    """The tallies as text, a line for each group and one for all."""
    head = f"{'group':<16}{'schemas':>8}{'taken':>8}{'wrong':>7} of {'invalid':<9}{'not derivable':>14} of {'valid':<8}"
    lines = [head + f"{'walks wrong':>12} of {'walks':<8}{'stuck':>6}{'compile ms p50 / p99':>22}"]
    for name, one in {**tallies, "all": _sum(list(tallies.values()))}.items():
        times = sorted(one.compile_ms) or [0.0]
        took = f"{times[len(times) // 2]:.1f} / {times[int(len(times) * 0.99)]:.1f}"
        left = f"{name:<16}{one.schemas:>8}{one.taken:>8}{one.wrong:>7} of {one.invalid:<9}{one.not_derivable:>14} of "
        lines.append(left + f"{one.valid:<8}{one.walks_wrong:>12} of {one.walks:<8}{one.walks_stuck:>6}{took:>22}")
    return "\n".join(lines)


def _sum(tallies: list[SchemaTally]) -> SchemaTally:
    total = SchemaTally()
    for one in tallies:
        for name in (
            "schemas",
            "taken",
            "invalid",
            "wrong",
            "valid",
            "not_derivable",
            "walks",
            "walks_wrong",
            "walks_stuck",
            "unplaced",
        ):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.compile_ms += one.compile_ms
        total.refused.update(one.refused)
    return total


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="python -m bench.schemas")
    for name, where in WHERE.items():
        parser.add_argument(f"--{name}", type=Path, help=where)
    parser.add_argument("--walks", type=int, default=0, help="random answers for each schema that is taken")
    parser.add_argument("--every", type=int, default=1, help="only every n-th schema")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    folders = {name: getattr(options, name) for name in WHERE if getattr(options, name) is not None}
    missing = [name for name in WHERE if name not in folders or not folders[name].is_dir()]
    for name in missing:
        print(f"not tried: {name} ({folders.get(name, 'no folder is given')}); get it by: {WHERE[name]}")
    if len(missing) == len(WHERE):
        return 2
    words = [*(bytes([number]) for number in range(END)), SPECIAL + b"<end>"]
    grammars, rng, found = Grammars(words, [END]), random.Random(1), dict[str, dict[str, SchemaTally]]()
    for name, cases in (("maskbench", maskbench), ("suite", suite)):
        if name in missing:
            continue
        tallies = found[name] = {}
        tried = list(cases(folders[name]))[:: options.every]
        if not tried:
            print(f"{folders[name]} holds no schemas of {name}; they are in: {WHERE[name]}")
            return 2
        for case in tried:
            try_case(grammars, case, tallies.setdefault(case.group, SchemaTally()), options.walks, rng)
        print(f"\n{name}\n{table(tallies)}")
        total = _sum(list(tallies.values()))
        print(f"refused: {', '.join(f'{key} {count}' for key, count in total.refused.most_common(24))}")
        print(f"refused without a keyword: {total.unplaced}")
        for example in [one for tally in tallies.values() for one in tally.examples][:SHOWN]:
            print(example)
    if options.out is not None:
        figures = {name: {key: vars(one) for key, one in tallies.items()} for name, tallies in found.items()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    totals = [_sum(list(tallies.values())) for tallies in found.values()]
    return int(any(one.wrong or one.walks_wrong or one.walks_stuck for one in totals))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
