"""Which texts a JSON schema lets through: those that are right, and no other; or a refusal that names the place."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from edge_agent.backends.llamacpp.grammar_process import GrammarRefused, Grammars, State
from edge_agent.backends.llamacpp.schema_refusal import SchemaRefused
from tests.support.derivable import END, allowed, derivable, follows, grammars
from tests.support.needs import need


@pytest.fixture(scope="module")
def found() -> Grammars:
    need("llguidance")
    return grammars()


def obj(properties: Any = None, **words: Any) -> dict[str, Any]:
    return {"type": "object", **({} if properties is None else {"properties": properties}), **words}


INT, TEXT = {"type": "integer"}, {"type": "string"}
DATES = {"day": {"type": "string", "format": "date"}}

# (schema, texts that are right, texts that are wrong)
TEXTS: list[tuple[str, Any, list[str], list[str]]] = [
    (
        "an optional property beside further ones",
        obj({"lamp": INT}, additionalProperties=TEXT),
        ['{"lamp":1}', '{"lamp":1,"room":"a"}', '{"room":"a"}', "{}"],
        ['{"lamp":1"room":"a"}', '{"lamp":1,}', '{"lamp":"a"}', '{"lamp":1,"lamp":"a"}', '{"room":1}'],
    ),
    (
        "a required property beside further ones",
        obj({"lamp": INT}, required=["lamp"], additionalProperties=TEXT),
        ['{"lamp":1,"room":"a"}'],
        ['{"lamp":1,"lamp":"a"}', '{"lamp":1,"l\\u0061mp":"a"}', '{"room":"a"}'],
    ),
    (
        "further names, each once",
        obj(additionalProperties=INT),
        ['{"a":1,"b":2}', '{"a":1,"aa":2}'],
        ['{"a":1,"a":2}', '{"a":1,"b":2,"a":3}', '{"a":1, "a":2}', '{"\\u0061":1}'],
    ),
    (
        "names once in every object, and again in another",
        {"type": "array", "items": obj(additionalProperties=obj(additionalProperties=INT))},
        ['[{"a":{"a":1}},{"a":{"b":2,"a":1}}]'],
        ['[{"a":{"b":1,"b":2}}]', '[{"a":{},"a":{}}]'],
    ),
    (
        "names by a pattern, each once",
        obj(patternProperties={"^k[0-9]$": INT}, additionalProperties=False),
        ['{"k1":1,"k2":2}'],
        ['{"k1":1,"k1":2}', '{"k12":1}', '{"x":1}'],
    ),
    (
        "a definition named like a format, used twice",
        obj({"from": {"$ref": "#/$defs/date"}, "to": {"$ref": "#/$defs/date"}}, required=["from", "to"])
        | {"$defs": {"date": {"type": "string", "format": "date"}}},
        ['{"from":"2026-01-31","to":"2026-02-01"}'],
        ['{"from":"2026-01-31","to":2026-02-01}', '{"from":"2026-01-32","to":"2026-02-01"}'],
    ),
    (
        "a definition named like a property",
        obj({"mode": {"enum": ["eco"]}, "last": {"$ref": "#/definitions/mode"}}, required=["mode", "last"])
        | {"definitions": {"mode": {"enum": ["boost"]}}},
        ['{"mode":"eco","last":"boost"}'],
        ['{"mode":"eco","last":"eco"}'],
    ),
    (
        "two definitions of one last name",
        obj({"a": {"$ref": "#/$defs/x/$defs/v"}, "b": {"$ref": "#/$defs/y/$defs/v"}}, required=["a", "b"])
        | {"$defs": {"x": {"$defs": {"v": {"const": 1}}}, "y": {"$defs": {"v": {"const": 2}}}}},
        ['{"a":1,"b":2}'],
        ['{"a":1,"b":1}', '{"a":2,"b":2}'],
    ),
    (
        "a definition whose name is escaped in the pointer",
        {"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": {"const": 7}}},
        ["7"],
        ["8"],
    ),
    (
        "a schema that refers to itself",
        {"$ref": "#/$defs/N", "$defs": {"N": obj({"v": INT, "next": {"$ref": "#/$defs/N"}}, required=["v"])}},
        ['{"v":1,"next":{"v":2}}'],
        ['{"v":1,"next":{}}', '{"v":1,"next":2}'],
    ),
    ("a backslash in enum", {"enum": ["D:\\new"]}, ['"D:\\\\new"'], ['"D:\\new"']),
    ("a line break in enum", {"enum": ["x\ny"]}, ['"x\\ny"'], ['"x\ny"']),
    ("a quote in const", {"const": 'a 6" pot'}, ['"a 6\\" pot"'], ['"a 6" pot"']),
    ("a quote in a name", obj({'b"c': INT}, required=['b"c']), ['{"b\\"c":1}'], ['{"b"c":1}', "{}"]),
    ("a character beyond U+FFFF", {"enum": ["🚪"]}, ['"🚪"'], ['"\ufffd"', '"\\ud83d"']),
    ("a control character in const", {"const": "a\u0001"}, ['"a\\u0001"'], ['"a\u0001"']),
    (
        "an empty name, and one that looks like an operator",
        obj({"": {"const": 1}, "*": {"const": 2}}, required=["", "*"], additionalProperties=INT),
        ['{"":1,"*":2}', '{"":1,"*":2,"x":3}'],
        ['{"":4,"*":2}', '{"*":2}', '{"":1,"*":2,"":3}'],
    ),
    (
        "a property named $ref",
        obj({"$ref": {"type": "string"}}, required=["$ref"]),
        ['{"$ref":"x"}'],
        ['{"$ref":1}', "{}"],
    ),
    ("$ref in a constant", {"const": {"$ref": "#/$defs/x"}}, ['{"$ref":"#/$defs/x"}'], ['"x"', "{}"]),
    (
        "any character in a pattern",
        {"type": "string", "pattern": "^.{2}$"},
        ['"ab"', '"\\"\\\\"', '"é🚪"'],
        ['"a""', '"\\a"', '"\\n\\n"', '"abc"', '"a\nb"'],
    ),
    (
        "a negated class",
        {"type": "string", "pattern": "^[^;]+$"},
        ['"a b"', '"\\n"'],
        ['"a;"', '"a"b"', '"a\nb"', '""'],
    ),
    *(
        (f"a class without marks of JSON: {pattern}", {"type": "string", "pattern": pattern}, right, wrong)
        for pattern, right, wrong in [
            ('^[^"]+$', ['"a"', '"\\\\"', '"\\n"', '"\\u0001"'], ['"\\""', '"a\\"b"', '"\\u0022"']),
            ('^[^,"]+$', ['"a"', '"\\\\"'], ['"\\""', '","']),
            (r"^[^\\]+$", ['"a"', '"\\""'], ['"\\\\"', '"\\u005c"']),
            (r'^[^"\\\n]+$', ['"a"', '"\\t"'], ['"\\""', '"\\\\"', '"\\n"']),
            (r'^[^\w"]$', ['"!"', '"\\\\"'], ['"\\""', '"a"']),
            (r"^[\x00-\x1f]$", ['"\\n"'], ['"\\""', '"\\\\"']),
            ('^(?:[^"a]|[^"b])+$', ['"ab"'], ['"\\""']),
            (r"^\p{Cc}$", ['"\\n"'], ['"\\""', '"a"']),
            (r"^[\p{Cc}a]$", ['"\\n"', '"a"'], ['"\\""']),
            (r"^[^\P{Cc}]$", ['"\\n"'], ['"\\""', '"a"']),
            (r"^[^\x21\D]$", ['"1"'], ['"\\""', '"a"']),
        ]
    ),
    (
        "names by a pattern without quotes",
        obj(patternProperties={'^[^"]*$': INT}, additionalProperties={"type": "null"}),
        ['{"a":1}', '{"\\"":null}'],
        ['{"\\"":1}', '{"a":null}'],
    ),
    ("alternatives at the top", {"type": "string", "pattern": "^up$|^down$"}, ['"up"', '"down"'], ['"up$', '"updown"']),
    ("alternatives with one anchor each", {"type": "string", "pattern": "^ab|yz$"}, ['"abc"', '"xyz"'], ['"ab', '"b"']),
    ("a lazy repetition", {"type": "string", "pattern": "^z+?$"}, ['"z"', '"zz"'], ['""', '"a"']),
    ("a pattern without anchors", {"type": "string", "pattern": "[0-9]"}, ['"a1b"', '"1"'], ['"ab"', "1"]),
    ("escapes in a pattern", {"type": "string", "pattern": r"^\d{2}\.\w\$\/\u0041$"}, ['"12.x$/A"'], ['"12xx$/A"']),
    ("a line break in a pattern", {"type": "string", "pattern": r"^p\nq$"}, ['"p\\nq"'], ['"p\nq"', '"pnq"']),
    ("brackets inside of brackets", {"type": "string", "pattern": "^[[&&a]$"}, ['"["', '"&"', '"a"'], ['"b"', '"]"']),
    ("a class that ends early", {"type": "string", "pattern": "^[a[b]]$"}, ['"a]"', '"[]"'], ['"a"', '"b"']),
    ("a brace that repeats nothing", {"type": "string", "pattern": "^{[a-z]}$"}, ['"{a}"'], ['"a"']),
    ("white space of ECMA", {"type": "string", "pattern": r"^\S$"}, ['"a"'], ['"\ufeff"', '"\u00a0"', '" "']),
    ("lines of ECMA", {"type": "string", "pattern": "^.$"}, ['"a"'], ['"\\r"', '"\u2028"', '"\u2029"']),
    ("pattern and length", {"type": "string", "pattern": "^[ab]+$", "maxLength": 2}, ['"ab"'], ['"aba"', '"c"']),
    (
        "length in characters",
        {"type": "string", "minLength": 2, "maxLength": 2},
        ['"🚪é"', '"\\n\\""'],
        ['"🚪"', '"abc"'],
    ),
    ("type beside const", {"type": "string", "const": 3, "enum": [3]}, [], []),
    ("type beside enum", {"type": "string", "enum": ["a", 1, None]}, ['"a"'], ["1", "null"]),
    ("type beside allOf of one", {"type": "integer", "allOf": [{"minimum": 3}]}, ["3"], ["2", '"3"']),
    ("enum beside const", {"enum": [1, 2], "const": 2}, ["2"], ["1"]),
    ("a list of types with a length", {"type": ["string", "null"], "maxLength": 1}, ['"a"', "null"], ['"ab"', "1"]),
    ("a word beside anyOf", {"anyOf": [INT, TEXT], "maxLength": 1}, ["12", '"a"'], ['"ab"']),
    ("a word beside $ref", {"$ref": "#/$defs/t", "maxLength": 1, "$defs": {"t": TEXT}}, ['"a"'], ['"ab"', "1"]),
    (
        "one property in two schemas of allOf",
        {"allOf": [obj({"a": {"minimum": 2}}, required=["a"]), obj({"a": INT | {"maximum": 3}})]},
        ['{"a":2}', '{"a":3}'],
        ['{"a":4}', '{"a":1}', '{"a":2,"a":3}'],
    ),
    ("anything, as {}", {}, ["null", '{"a":[1,"x"]}', "-1.5e3", '""'], ["", "nul", "[1,]", "01", "{a:1}", "'a'"]),
    ("anything, as true", obj({"a": True}, required=["a"]), ['{"a":[{}]}'], ['{"a":}', "{}"]),
    ("nothing, as false", obj({"a": False}), ["{}", '{"b":1}'], ['{"a":1}']),
    (
        "a list of two",
        {"prefixItems": [INT, TEXT], "items": False, "type": "array"},
        ['[1,"a"]', "[1]"],
        ["[1,2]", "[,]"],
    ),
    ("bounds of whole numbers", {"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, ["-3", "11"], ["-4", "12"]),
    ("bounds of numbers", {"type": "number", "minimum": 0.5, "maximum": 1}, ["0.5", "0.75", "1"], ["0.4", "1.1"]),
    (
        "more than a whole number, and less than 1 more",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        ["0.1", "0.5", "0.000000001"],
        ["0", "0.0", "-0", "0.6"],
    ),
    (
        "less than a whole number, and less than 1 less",
        {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1},
        ["-1.5", "-1.25"],
        ["-1", "-1.0", "-1.6"],
    ),
    (
        "an exclusive bound in another schema than the second bound",
        {"allOf": [{"type": "number", "exclusiveMinimum": 1}, {"anyOf": [{"maximum": 1.5}]}]},
        ["1.25", "1.5"],
        ["1", "1.0", "2"],
    ),
    (
        "an exclusive bound beside a narrower one",
        {"type": "number", "exclusiveMinimum": 3, "minimum": 5, "maximum": 5.5},
        ["5", "5.0", "5.5"],
        ["3", "4"],
    ),
    (
        "exclusive bounds of draft 4",
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "number",
            "minimum": 0,
            "exclusiveMinimum": True,
            "maximum": 0.5,
        },
        ["0.1", "0.5"],
        ["0", "0.0"],
    ),
    (
        "an exclusive bound of whole numbers",
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 2.5},
        ["1", "2"],
        ["0"],
    ),
    (
        "times of draft 3",
        {"$schema": "http://json-schema.org/draft-03/schema#", "type": "string", "format": "time"},
        ['"08:00:00"'],
        ['"08:00:00Z"', '"08:00:00+01:00"', '"24:00:00"'],
    ),
    (
        "multiples of a fraction between bounds, beside other types",
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
        ["0.25", "0.5", '"a"', "[1]"],
        ["0", "1", "0.3"],
    ),
    (
        "multiples of a fraction between bounds, beside one other type",
        {"type": ["number", "null"], "minimum": 0, "maximum": 1, "multipleOf": 0.25},
        ["0.5", "1", "null"],
        ["0.3", '"a"'],
    ),
    (
        "lists in lists",
        {"type": "array", "items": {"anyOf": [{"$ref": "#"}, INT]}, "minItems": 1},
        ["[1]", "[[2],3]"],
        ["[]", "[[]]"],
    ),
    (
        "a chain that may end",
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/b"}}, "required": ["x"]},
                "b": {"oneOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 2}]},
            },
        },
        ['{"x":null}', '{"x":[{"x":null}]}', '{"x":[]}'],
        ["{}", '{"x":{}}'],
    ),
    ("minus zero", {"const": [-0.0]}, ["[0]"], ["[-0]", "[1]"]),
    ("multiples", {"type": "integer", "multipleOf": 7, "minimum": 1}, ["7", "14", "700"], ["8", "0", "701"]),
    (
        "a bound that float64 cannot hold",
        {"type": "integer", "maximum": 2**63 - 1},
        ["5", str(2**63 - 1024)],
        [str(2**63), str(2**63 - 1)[:-1] + "8"],
    ),
    ("alternatives that cannot overlap", {"oneOf": [INT, TEXT]}, ["1", '"a"'], ["true"]),
    ("a keyword that restricts nothing", {"type": "array", "items": INT, "uniqueItems": False}, ["[1,1]"], ['["a"]']),
    (
        "dates of the calendar",
        obj(DATES, required=["day"]),
        [f'{{"day":"{day}"}}' for day in ("2024-02-29", "2000-02-29", "2023-12-31", "0004-02-29")],
        [
            f'{{"day":"{day}"}}'
            for day in ("2023-02-29", "1900-02-29", "2023-02-30", "2023-04-31", "2023-13-01", "0000-01-01")
        ],
    ),
    (
        "times",
        {"format": "time"},
        ['"23:59:59Z"', '"08:00:00.5+01:00"'],
        ['"24:00:00Z"', '"23:59:60Z"', '"22:10:60Z"', '"08:00:00"', '"8:00:00Z"'],
    ),
    (
        "dates with times, beside a pattern",
        {"type": "string", "format": "date-time", "pattern": "Z$"},
        ['"2024-02-29T10:00:00Z"'],
        ['"2023-02-29T10:00:00Z"', '"2024-02-29T10:00:00+01:00"', '"2024-02-29T10:00:60Z"'],
    ),
    (
        "host names",
        {"type": "string", "format": "hostname"},
        ['"a"', '"pi-4.local"', '"1.a-b"', '"' + "a" * 63 + '"'],
        [
            '"-a"',
            '"a-"',
            '"xn--a"',
            '"ab--c"',
            '"a..b"',
            '""',
            '"' + "a" * 64 + '"',
            '"' + ".".join(["a" * 60] * 5) + '"',
        ],
    ),
    (
        "names by a pattern that fits few of them",
        obj({"max": {"minimum": 3}}, patternProperties={"^(min|max)$": INT}, additionalProperties=False),
        ['{"max":3,"min":1}', '{"min":1}', "{}"],
        ['{"max":3,"min":1,', '{"max":2}', '{"min":1,"min":2}', '{"mid":1}'],
    ),
    (
        "names by a pattern, one of whose ways JSON writes as a number only",
        obj(patternProperties={"^(a|b\\u0001|\\n)x": INT}, additionalProperties=False),
        ['{"ax":1}', '{"\\nx":1}'],
        ['{"b\\', '{"a\\'],
    ),
    (
        "multiples of a fraction between bounds",
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25},
        ["0.25", "0.5", "0.75"],
        ["0", "1", "0.3"],
    ),
    (
        "names by a pattern, and a definition of nothing for others",
        obj(patternProperties={"^[ab]$": INT}, additionalProperties={"$ref": "#/$defs/f"}) | {"$defs": {"f": False}},
        ['{"a":1,"b":2}'],
        ['{"a":1,"b":2,', '{"c":1}'],
    ),
    (
        "a name by a pattern that JSON writes as a number only",
        obj(patternProperties={"^\\u0001$": INT}, additionalProperties=False),
        ["{}"],
        ['{"', '{"\\u0001":1}'],
    ),
    (
        "further items beside a list in prefixItems restrict nothing",
        {"prefixItems": [INT], "additionalItems": False, "type": "array"},
        ["[1]", '[1,"a"]'],
        ['["a"]'],
    ),
    (
        "further items beside a list in items",
        {"items": [INT], "additionalItems": {"type": "null"}, "type": "array"},
        ["[1]", "[1,null]"],
        ['["a"]', "[1,1]"],
    ),
    (
        "further items beside one schema in items",
        {"items": INT, "additionalItems": False, "type": "array"},
        ["[1,2]"],
        ['["a"]'],
    ),
    (
        "a definition of nothing",
        {"anyOf": [{"$ref": "#/$defs/f"}, {"type": "null"}], "$defs": {"f": False}},
        ["null"],
        ["1"],
    ),
    ("what no $ref names", INT | {"x-a": {"pattern": r"\bfoo"}, "$defs": {"a": {"not": {}}, "b": 5}}, ["1"], ['"a"']),
    (
        "a schema in a list that a $ref names",
        {"$ref": "#/x-list/1", "x-list": [{"not": 1}, {"type": "string", "pattern": "^.$"}]},
        ['"a"'],
        ['"\\n"', "1"],
    ),
    ("lengths that bound nothing, and as 2.0", TEXT | {"minLength": 2.0, "maxLength": 2**32}, ['"ab"'], ['"a"']),
    (
        "white space",
        obj({"a": INT}, required=["a"]),
        ['{ "a": 1 }', '{\n  "a": 1\n}'],
        ['{"a":1} ', ' {"a":1}', '{   "a":1}'],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), [one[1:] for one in TEXTS], ids=[one[0] for one in TEXTS])
def test_texts(found: Grammars, schema: Any, right: list[str], wrong: list[str]) -> None:
    if not right:
        with pytest.raises(GrammarRefused, match="no text fits it"):
            follows(found, schema, "")
        return
    assert [text for text in right if not follows(found, schema, text)] == [], "right, and not derivable"
    assert [text for text in wrong if follows(found, schema, text)] == [], "wrong, and derivable"


REFUSED: list[tuple[Any, str]] = [
    ({"properties": {"a": {"not": {"type": "null"}}}}, "json_schema at /properties/a/not: `not` is not followed"),
    ({"type": "array", "items": TEXT, "uniqueItems": True}, "at /uniqueItems: `uniqueItems` is not followed"),
    ({"anyOf": [INT, {"if": INT, "then": TEXT}]}, "at /anyOf/1/if: `if` is not followed"),
    ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, "at /oneOf: `oneOf` is followed where its schemas cannot overlap"),
    (
        {"properties": {"m": {"type": "string", "format": "idn-email"}}},
        'at /properties/m/format: `format` is "idn-email"',
    ),
    (
        {"properties": {"m": {"$ref": "#/$defs/m"}}, "$defs": {"m": {"contains": INT}}},
        "at /$defs/m/contains: `contains`",
    ),
    ({"type": "string", "pattern": "^(?=a)"}, "at /pattern: `pattern` looks ahead or behind"),
    ({"properties": {"a/b": {"pattern": r"\bx"}}}, "at /properties/a~1b/pattern: `pattern` has a word boundary"),
    ({"pattern": "^a{,3}$"}, "at /pattern: `pattern` has {,n}"),
    ({"pattern": "a**"}, "repeats a repetition, at character 2"),
    ({"pattern": r"a\0"}, "at /pattern: `pattern` has U+0000, which is not followed, at character 3"),
    ({"pattern": "[z-a]"}, "a range that goes backwards"),
    ({"pattern": "a(b(c)"}, "at /pattern: `pattern` has ( without ), at character 2"),
    ({"pattern": "a)b"}, "at /pattern: `pattern` has ) without (, at character 2"),
    ({"type": "string", "pattern": r"^[^\s\S]$"}, "at /pattern: `pattern` is one that no text fits"),
    ({"type": "string", "minLength": 5, "maxLength": 3}, "no text fits it: its parts exclude each other"),
    ({"type": "array", "minItems": 3, "maxItems": 1}, "no text fits it"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no text fits it"),
    (obj({"a": {"type": "string", "const": 1}}, required=["a"]), "no text fits it"),
    ({"enum": []}, "no text fits it"),
    ({"properties": {"a": {"enum": []}}, "required": ["a"], "type": "object"}, "no text fits it"),
    ({"type": "robot"}, "at /type: `type` is not followed: Invalid type: robot"),
    ({"type": "integer", "const": "x"}, "no text fits it"),
    ({"items": {"maxlength": 3}}, "at /items/maxlength: `maxlength` is no keyword; `maxLength` is"),
    ({"propertys": {}}, "`propertys` is no keyword; `properties` is"),
    ({"required": "a", "type": "object"}, "at /required: `required` is not what it must be"),
    ({"const": 2**53 + 1}, "at /const: `const` holds 9007199254740993; whole numbers up to 2^53 are followed"),
    ({"type": "integer", "multipleOf": 999_983}, "at /multipleOf: `multipleOf` is 999983; above 0, and at most 10000"),
    ({"multipleOf": 0, "type": "integer"}, "at /multipleOf: `multipleOf` is 0"),
    ({"allOf": [{"$ref": "#/allOf/" + "1" * 5000}]}, "at /allOf: `allOf` cannot be followed"),
    ({"items": {"$ref": "other.json"}, "$id": "http://example.com/a/"}, "at /items/$ref: `$ref` is not followed"),
    ({"items": {"type": "number", "minimum": -1e300}}, "at /items/minimum: `minimum` is not followed"),
    ({"$ref": "#/nowhere"}, "at /$ref: `$ref` is not followed"),
    ({"$ref": "https://example.com/a.json"}, "at /$ref: `$ref` is not followed"),
    (obj({"a": INT}, minProperties=2, maxProperties=3), "at /minProperties: `minProperties` is followed where all"),
    ({"$schema": "http://json-schema.org/draft-03/schema#", "divisibleBy": 2}, "at /divisibleBy: `divisibleBy`"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "contentEncoding": "base64"}, "`contentEncoding` is not"),
    (obj(required=["\u0001"]), r'at /required: `required` names "\u0001": it holds a control character'),
    ({"items": {"const": [{"\u0001": 1}]}}, r'at /items/const: `const` holds the name "\u0001"'),
    ({"enum": ["\ud800"]}, "at /enum: `enum` holds "),
    (obj({"\ud800": INT}), "holds half of a surrogate pair"),
    ({"anyOf": [INT, 5]}, "json_schema at /anyOf/1: 5 is no schema"),
    (obj({"a": "x"}), 'json_schema at /properties/a: "x" is no schema'),
    ({"items": 5}, "json_schema at /items: 5 is no schema"),
    ({"$schema": "https://example.com/own", **INT}, "at /$schema: `$schema` is no draft that is followed"),
    (TEXT | {"minLength": 2**32}, "at /minLength: `minLength` is 4294967296; less than 2147483648 is followed"),
    ({"type": "number", "multipleOf": 1e22}, "at /multipleOf: `multipleOf` is 1e+22; above 0, and at most 10000"),
    ({"prefixItems": [INT], "items": [INT]}, "at /items: `items` is a list beside `prefixItems`"),
    (
        {"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [INT]},
        "at /prefixItems: `prefixItems` is of 2020-12",
    ),
    ({"enum": []}, "at /enum: `enum` is empty: no text fits it"),
    ({"items": {"type": []}}, "at /items/type: `type` is empty: no text fits it"),
    ({"oneOf": 5}, "at /oneOf: `oneOf` is 5; it must be a list of schemas"),
    ({"multipleOf": 1e-12}, "at /multipleOf: `multipleOf` is 1e-12; 9 decimals are followed"),
    ({"oneOf": []}, "at /oneOf: `oneOf` is empty: no text fits it"),
    ({"maximum": float("inf")}, "at /maximum: `maximum` is beyond float64"),
    ({"enum": [1, [float("inf")]]}, "at /enum: `enum` holds a number beyond float64"),
    ({"multipleOf": 10**400}, "is " + "1" + "0" * 39 + "...; above 0, and at most 10000"),
    (
        {"items": {"$ref": "#/d/x"}, "d": {"x": {"$id": "http://x/y", "type": "string", "pattern": "/^a$/"}}},
        "at /d/x/pattern: `pattern` cannot be followed: $ inside of an expression is not followed",
    ),
    ({"items": {"pattern": "/^a/"}}, "at /items/pattern: `pattern` cannot be followed: ^ inside of an expression"),
    (
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        "at /items/$ref: `$ref` demands itself without end: no text fits it",
    ),
    (obj({"a": {"$ref": "#"}}, required=["a"]), "at /properties/a/$ref: `$ref` demands itself without end"),
    (obj(required=["b"], additionalProperties={"$ref": "#"}), "at /additionalProperties/$ref: `$ref` demands itself"),
    (
        {
            "anyOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/b"}]}],
            "$defs": {
                "a": {"type": "array", "prefixItems": [INT, {"$ref": "#/$defs/b"}], "minItems": 2},
                "b": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]},
            },
        },
        "at /anyOf/0/$ref: `$ref` demands itself without end",
    ),
    ({"$ref": "#"}, "at /$ref: `$ref` leads back to itself"),
    (obj({"a": {"$ref": "#/properties/a"}}), "at /properties/a/$ref: `$ref` leads back to itself"),
    (obj({"a\u0001": INT}), r"at /properties/a\u0001: `a\u0001` holds a control character"),
]


@pytest.mark.parametrize(("schema", "says"), REFUSED, ids=[one[1][:50] for one in REFUSED])
def test_a_refusal_names_place_and_keyword(found: Grammars, schema: Any, says: str) -> None:
    with pytest.raises(GrammarRefused) as refused:
        found.check("json_schema", json.dumps(schema))
    assert says in str(refused.value)
    assert not refused.value.costly
    assert "Error" not in str(refused.value), "no names of a library's exceptions"


def test_llguidances_own_switches_in_a_schema_have_no_effect(found: Grammars) -> None:
    loose = {"x-guidance": {"lenient": True, "whitespace_pattern": "x", "item_separator": ";"}, "not": INT}
    with pytest.raises(GrammarRefused, match="`not` is not followed"):
        found.check("json_schema", json.dumps(loose))
    assert not follows(found, {"type": "array", "x-guidance": {"item_separator": ";"}}, "[1;2]")


WALKED: list[dict[str, Any]] = [
    obj({"a": INT, "b": {"enum": ["x", None, 1.5]}}, additionalProperties={"type": "boolean"}),
    obj(
        {"t": {"type": "string", "maxLength": 4}, "when": {"format": "date-time", "type": "string"}}, required=["when"]
    ),
    {
        "type": "array",
        "items": {"anyOf": [{"type": "null"}, {"type": "number", "minimum": -1, "maximum": 1}]},
        "maxItems": 4,
    },
    obj(patternProperties={"^s": TEXT, "^n": INT}, additionalProperties=False, minProperties=1),
    {
        "allOf": [
            obj({"p": INT}, required=["p"]),
            obj({"q": {"pattern": r"^[\w.]+@\S{1,3}$", "type": "string"}}, required=["q"]),
        ]
    },
    {"type": "string", "format": "hostname"},
    {},
]


@pytest.mark.parametrize("schema", WALKED, ids=range(len(WALKED)))
def test_what_is_drawn_at_random_is_valid_and_names_nothing_twice(found: Grammars, schema: dict[str, Any]) -> None:
    """A validator that knows nothing of us reads what any choice of tokens gives."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    rng, ended = random.Random(5), 0
    for _ in range(40):
        answer = _drawn(found, schema, rng)
        if answer is not None:
            ended += 1
            validator.validate(json.loads(answer, object_pairs_hook=_once))
    assert ended >= 10


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), f"a name twice in {pairs}"
    return dict(pairs)


def _drawn(found: Grammars, schema: dict[str, Any], rng: random.Random) -> bytes | None:
    found.open(1, "json_schema", json.dumps(schema), [])
    answer = bytearray()
    while len(answer) < 160:
        mask, state = found.mask(1)
        if state == State.ENDED:
            return bytes(answer)
        tokens = allowed(mask)
        closing = [token for token in tokens if token in {END, *b'"}]'}]
        token = rng.choice(closing if closing and rng.random() < 0.4 else tokens)
        if token == END:
            return bytes(answer)
        answer.append(token)
        found.take(1, token)
    return None


@pytest.mark.parametrize(
    ("kind", "text", "right", "wrong"),
    [
        ("regex", r"(on|off)-\d{2}", ["on-07", "off-99"], ["on-7", "onn-07", "on-07x", ""]),
        ("regex", "/a*/", ["//", "/aa/"], ["a", "/"]),
        ("grammar", 'root ::= "é" [a-b]{3} rest?\nrest ::= "!" | "?"', ["éaba", "éaba!"], ["eaba", "éab"]),
        ("grammar", 'root ::= [^x"]+ "\\""', ['ab"'], ['x"', "ab"]),
        ("grammar", r'root ::= "\u0041BCD\x414" [\u0042-\u0043]', ["ABCDA4C"], ["䆼D", "ABCDA4b"]),
        ("grammar", r'root ::= "é\U0001F600\[\]" [\x00-\x1f]', ["é😀[]\t"], ["é😀[]a"]),
        (
            "grammar",
            'root ::= "\t" [a~~b] [a&&c] [+--] [^-a]',
            ["\t~&,b"],
            ["\tc&-b", "\t~b-b", "\t~&.b", "\t~&+a", "\t~&+-"],
        ),
        ("grammar", "root ::= . [[a]", ["\n[", "xa"], ["a", "ab"]),
        (
            "grammar",
            'root ::= Foo foo foo-b foo_b\nFoo ::= "a"\nfoo ::= "b"\nfoo-b ::= "c"\nfoo_b ::= "d"',
            ["abcd"],
            ["bbcd"],
        ),
        ("grammar", 'root ::= start{,2}\nstart ::= "x" # y', ["", "xx"], ["xxx"]),
        ("grammar", 'root ::= "a\nroot ::= b" # "', ["a\nroot ::= b"], ["a"]),
        ("grammar", '%llguidance {}\nstart: "a"', ["a"], ["b"]),
        ("grammar", 'start: WORD+\nWORD: /[a-z]+/ " "', ["a b "], ["a b", "A "]),
    ],
)
def test_regular_expressions_and_grammars(
    found: Grammars, kind: str, text: str, right: list[str], wrong: list[str]
) -> None:
    assert [one for one in right if not derivable(found, kind, text, one)] == []
    assert [one for one in wrong if derivable(found, kind, text, one)] == []


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("grammar", "root ::= (((", "the grammar does not parse: "),
        ("grammar", "nonsense", "the grammar does not parse: "),
        ("grammar", 'top ::= "a"', "No 'root' rule found"),
        ("grammar", "root ::= " + "(" * 4000 + '"a"' + ")" * 4000, "the grammar is nested too deep"),
        ("grammar", "start: " + "(" * 8000 + '"a"' + ")" * 8000, "too deeply nested"),
        ("regex", "a(", "the regex does not parse: unclosed group, at character 2"),
        ("regex", "(\nerror: a", "the regex does not parse: unclosed group"),
        ("regex", "(" * 8000 + "a" + ")" * 8000, "nested parentheses/brackets (250), at character 251"),
        ("regex", "a^b", "the regex does not parse: ^ inside of an expression is not followed"),
        ("regex", r"\bfoo", "the regex does not parse: a word boundary is not followed"),
        ("grammar", "start: A\nA: /a(/", "does not parse: line 2, character 4: unclosed group, at character 2"),
        (
            "grammar",
            "start: <[0-4000000000]>",
            "the grammar does not parse: line 1, character 8: Token range end too large: 4000000000",
        ),
        ("grammar", "root ::= root", "no text fits it"),
        ("grammar", 'root ::= "a"\nb ::= c', "the rule c is not defined, in line 2"),
        ("grammar", 'root ::= "a"\n [z-a]', "a range that goes backwards, in line 2"),
        ("grammar", "root ::= []", "a list in brackets is empty, in line 1"),
        ("grammar", r'root ::= "\d"', r"a text in quotes has \d, which is no escape"),
        ("grammar", r'root ::= "\ud800"', "the number d800 is no character"),
        ("grammar", 'root ::= "a', "a text in quotes has no end"),
        (
            "grammar",
            'start: "a"\n%llguidance {"no_forcing": false}',
            "the settings behind %llguidance are not followed, in line 2",
        ),
        ("regex", "[a&&b]", "no text fits it"),
        ("regex", r"[^\s\S]", "no text fits it"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_words(found: Grammars, kind: str, text: str, says: str) -> None:
    with pytest.raises(GrammarRefused) as refused:
        found.open(1, kind, text, [])
        found.mask(1)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 300
    shown = [
        word
        for word in ('%llguidance {"no', "start: /", "NoExtension", "Failed to convert")
        if word in str(refused.value)
    ]
    assert shown == [], "of the source only what the client wrote"


def test_the_place_in_a_refusal_is_cut_where_names_are_long() -> None:
    refused = SchemaRefused("/properties/" + "x" * 5000, "type", "is not followed")
    assert str(refused).startswith("json_schema at /properties/xxx")
    assert str(refused).endswith("...: `type` is not followed")
    assert len(str(refused)) < 400
