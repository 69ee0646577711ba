"""Read a recipe of any kind: TOML, tables, variables, unknown keys; and the sections that all kinds share.

The sections of one kind are in `classifier_recipe` and `generator_recipe`. This module loads no runtime.
"""

from __future__ import annotations

import codecs
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from edge_agent.base.errors import ConfigError, PackageError, UsageError, brief
from edge_agent.base.limits import MIB, NAME_CHARACTERS
from edge_agent.bundle.jsonio import read_file

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its old name
    import tomli as tomllib

MERGED = "-merged"
"""What the merged model's name has behind the recipe's."""
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]


class Section(msgspec.Struct, frozen=True):
    """A table of the recipe."""


class BaseSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[base]`: the pretrained model."""

    source: str | tuple[str, ...]
    """Where to look, in order: a folder, `python:DISTRIBUTION`, or a hub id (see `bases`)."""
    version: Annotated[int, msgspec.Meta(ge=1)] = 1
    """The anti-rollback counter of the base's own package; raise it when the bank's settings change."""
    name: str
    """The base's model name on the device and in MQTT topics; recipes that share a base share it."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources as a sequence, also where the recipe has one string."""
        return (self.source,) if isinstance(self.source, str) else self.source


class PackageSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[package]`: what is shipped, and under whose name."""

    version: Annotated[int, msgspec.Meta(ge=1)] = 1
    """The anti-rollback counter: a device refuses a lower one than it has committed."""
    channel: str = "stable"
    keys: str = "${EDGE_FORGE_KEYS:-}"
    """The folder of signing keys (`edge-forge keygen`); empty: development keys in the build folder, made once."""
    hardware: tuple[str, ...] = ()
    """Boards the package is for; empty: any."""
    min_agent: str = "0.1.0"
    expires_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 365
    probes: Annotated[int, msgspec.Meta(ge=2, le=32)] = 8
    licence: str = ""
    """Of the adapter and of the merged model; the base's package is of no recipe's own."""
    failed_training: Literal["refuse", "warn"] = "refuse"
    """What happens to a model that answers one class (also by its threshold), or is far worse than the commonest class
    (a generator: than its base): nothing is packaged, or it is packaged and said."""


class DiagnoseSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[diagnose]`: what `edge-forge diagnose` calls an intruder dimension, and what it does about them."""

    top: Annotated[int, msgspec.Meta(ge=1, le=512)] = 10
    """So many singular vectors of each tuned weight are looked at, those of the largest singular values."""
    cosine: Share = 0.5
    """One whose largest cosine to any singular vector of the base is below this is an intruder."""
    most: Annotated[int, msgspec.Meta(ge=0)] = 0
    """So many intruders, over all weights, are taken without a word."""
    forgotten: Share = 0.05
    """So much of what the base knew may be lost: a correlation, the accuracy of a probe or a share of pairs by its
    fall, a perplexity by its rise as a share of what it was."""
    rows: Annotated[int, msgspec.Meta(ge=3, le=1_000_000)] = 1500
    """Rows of each file that are asked at most, at even distances over the file; of an earlier recipe's rows by the
    shares of its labels."""
    beyond: Literal["warn", "fail"] = "warn"
    """What `edge-forge diagnose` does where there are more intruders, or more is forgotten."""


class CommonRecipe(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every recipe has. `name` is the adapter's name on the device."""

    name: str
    base: BaseSection
    description: str = ""
    package: PackageSection = PackageSection()
    diagnose: DiagnoseSection = DiagnoseSection()

    @property
    def merged_name(self) -> str:
        """The merged model's name on the device."""
        return self.name + MERGED


@dataclass(frozen=True)
class RecipeSchema:
    """A kind of recipe: its type, and the tables whose keys are not fields of a section."""

    kind: type[CommonRecipe]
    tables: Mapping[str, tuple[str, ...]]

    def keys(self, section: str) -> tuple[str, ...]:
        """The known keys of a section, or of the document itself for ''."""
        if section in self.tables:
            return self.tables[section]
        fields = {field.name: field.type for field in msgspec.structs.fields(self.kind)}
        names: tuple[str, ...] = (fields[section] if section else self.kind).__struct_fields__
        return names

    @property
    def sections(self) -> tuple[str, ...]:
        """The names of the tables."""
        return tuple(
            field.name for field in msgspec.structs.fields(self.kind) if field.name not in ("name", "description")
        )


R = TypeVar("R", bound=CommonRecipe)


def check_name(name: str, suffix: str = "") -> str:
    """What is wrong with a name that devices are to take, with `suffix` behind it too; '' where nothing is."""
    most = NAME_CHARACTERS - len(suffix)
    behind = f" ({most} and {suffix!r})" if suffix else ""
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        return f"{brief(name)} cannot be a name: lower-case letters, digits, '.', '_' and '-' are taken"
    if not (name[0].isalnum() and name[-1].isalnum()):
        return f"{brief(name)} cannot be a name: it must begin and end with a letter or a digit"
    if len(name) > most:
        return f"{brief(name)} has {len(name)} characters; devices take {NAME_CHARACTERS}{behind}"
    return ""


def check_names(recipe: CommonRecipe, where: str) -> None:
    """Refuse names that a device would refuse. Raises ConfigError."""
    keys = (("name", recipe.name, MERGED), ("base.name", recipe.base.name, ""),
            ("package.channel", recipe.package.channel, ""))  # fmt: skip
    for key, name, suffix in keys:
        problem = check_name(name, suffix)
        if problem:
            raise ConfigError(problem, f"{where}: {key}")


_PLACES = {
    ("base", "source"), ("data", "train"), ("data", "validation"), ("data", "test"), ("package", "keys"),
    ("diagnose", "similarity"), ("diagnose", "earlier"), ("diagnose", "text"), ("diagnose", "pairs"),
    ("compress", "unlabelled"), ("quantize", "tensorrt_engines"),
}  # fmt: skip
RECIPE_BYTES = MIB
# A key in so many parts, written bare or in quotes: the parser's time grows with the square of their number (20,000
# parts take it 4 s), and no recipe has more than three.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def read(path: Path) -> Mapping[str, Any]:
    """The parsed TOML document of a recipe. Raises ConfigError that names the file."""
    try:
        raw = read_file(path, RECIPE_BYTES)
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError("it is written in UTF-16; TOML is UTF-8", str(path), "save the file as UTF-8")
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError("there is no such recipe", str(path), "edge-forge init NAME writes one") from None
    except PackageError as error:
        raise ConfigError(f"it is no recipe: {error.what}", str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read: {getattr(error, 'strerror', None) or error}", str(path)) from error
    if found := _LONG_KEY.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError("a key or a text in dots has more than 64 parts", f"{path}:{line}", "keys have three at most")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"it is no valid TOML: {error}", str(path)) from error
    except RecursionError as error:
        raise ConfigError("its lists or tables nest too deep", str(path), "no key takes lists within lists") from error


def overlaid(document: Mapping[str, Any], settings: Sequence[str]) -> Mapping[str, Any]:
    """The document with keys replaced by 'KEY=VALUE' or 'SECTION.KEY=VALUE' in turn.

    VALUE is TOML; what is no TOML is taken as a string, so that a shell's word needs no quotes. Raises UsageError.
    """
    found = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        names = [name.strip() for name in path.split(".")]
        if not equals or len(names) > 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names):
            raise UsageError(f"{brief(setting)} sets no key", "--set", "write --set SECTION.KEY=VALUE")
        section: Any = found if len(names) == 1 else found.setdefault(names[0], {})
        if not isinstance(section, dict):
            raise UsageError(f"{names[0]!r} is no table of the recipe", "--set", f"write --set {names[0]}=VALUE")
        section[names[-1]] = toml_value(text.strip())
    return found


def toml_value(text: str) -> Any:
    """A value written as TOML; the text itself where it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def convert(
    raw: Mapping[str, Any], where: str, environment: Mapping[str, str], schema: RecipeSchema, kind: type[R]
) -> R:
    """A document as a recipe of `schema`; what single keys do not show to be wrong is the caller's to check."""
    raw = _without_idle(raw)
    _refuse_unknown(raw, where, schema)
    _check_numbers(raw, where)
    expanded = {
        section: _expand(section, keys, where, environment) if isinstance(keys, dict) else keys
        for section, keys in {"package": {}, **raw}.items()
    }
    try:
        recipe = msgspec.convert(expanded, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".")
        raise ConfigError(
            _plain(message) + _given(expanded, key), f"{where}: {key}" if key else where, _choices(kind, key)
        ) from error
    check_names(recipe, where)
    return recipe


def with_line(error: ConfigError, file: Path, overlay: Sequence[str] = ()) -> ConfigError:
    """The same error with the file and line of the key that it is about: 'task.labels', or 'FILE: task.labels'.

    A key that one of the settings `overlay` gave ('KEY=VALUE', see `overlaid`) stands on no line: the option is named.
    Errors about other places (a line of data, a base's folder) stay as they are.
    """
    where = error.where or ""
    if where == str(file):  # 'bad.toml' alone looks like a key of a table
        return error
    key = where.removeprefix(f"{file}: ")
    found = re.match(r"([A-Za-z0-9_]+)(?:\.([A-Za-z0-9_]+))?", key)
    if found is None or (key == where and not re.fullmatch(r"([a-z]+)\.[a-z_0-9]+|recipe", where)):
        return error
    line = _line_of(file, found[1], found[2] or "") or _line_of(file, "", found[1])
    place = f"{file}:{line}: {key}" if line else f"{file}: {key}"
    for option in ("".join(setting.partition("=")[0].split()) for setting in overlay):
        # A table that only an option brings is named by that option.
        if option in (f"{found[1]}.{found[2]}", found[1]) or (not line and option.startswith(f"{found[1]}.")):
            place = f"--set {option}"
    error.where = place
    return error


def _line_of(file: Path, section: str, key: str) -> int:
    """The line that a key stands on, that of its table where it does not stand there, 0 where neither does."""
    table, found = "", 0
    for number, line in enumerate(file.read_text(encoding="utf-8").removeprefix("\ufeff").splitlines(), 1):
        header = re.match(r"\s*\[([^\]]+)\]", line)
        if header:
            table = header[1].strip()
            found = number if table == section else found
        elif table == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) and key:
            return number
    return found


def _given(document: Mapping[str, Any], key: str) -> str:
    """The value that a key has, for a sentence on its bounds; '' where it says no more than the sentence."""
    value: Any = document
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return f", not {value!r}" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _choices(kind: type[CommonRecipe], key: str) -> str | None:
    """The values that a key takes, where they are few and named."""
    section, _, name = key.partition("[")[0].partition(".")
    found = next((field.type for field in msgspec.structs.fields(kind) if field.name == section), None)
    fields = msgspec.structs.fields(found) if isinstance(found, type) and issubclass(found, msgspec.Struct) else ()
    for field in fields:
        if field.name == name:
            allowed = [one for one in _arguments(field.type) if isinstance(one, str)]
            return f"use {' or '.join(repr(one) for one in allowed if one)}" if allowed else None
    return None


def _arguments(form: object) -> Iterator[object]:
    """The arguments of a type, and those of its arguments: 'a' and 'b' of tuple[Literal['a', 'b'], ...]."""
    for one in get_args(form):
        yield one
        yield from _arguments(one)


def _plain(message: str) -> str:
    """msgspec's wording in ours; the type and the bound stay as they are."""
    missing = re.match(r"Object missing required field `(.+)`", message)
    return f"the key {missing[1]!r} is missing" if missing else message[:1].lower() + message[1:].replace("`", "'")


def _refuse_unknown(raw: Mapping[str, Any], where: str, schema: RecipeSchema) -> None:
    for key, value in raw.items():
        if key not in schema.keys(""):
            raise ConfigError(f"unknown key {brief(key)}", _at(where, key), _suggestion(key, "", schema))
        if key not in schema.sections:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{brief(key)} must be a table, as in [{key}]", where)
        for inner in value:
            if inner not in schema.keys(key):
                raise ConfigError(
                    f"unknown key '{key}.{inner}'", _at(where, key, inner), _suggestion(inner, key, schema)
                )


def _at(where: str, *keys: str) -> str:
    """The place of a key, as far as it can stand in a sentence; its line follows (`with_line`)."""
    return f"{where}: {'.'.join(keys)}" if all(re.fullmatch(r"[A-Za-z0-9_]+", key) for key in keys) else where


def _check_numbers(raw: Mapping[str, Any], where: str, table: str = "") -> None:
    """Refuse numbers that no key takes: inf and nan, and whole ones beyond TOML's 64 bits. Raises ConfigError."""
    for key, value in raw.items():
        if isinstance(value, dict):
            _check_numbers(value, where, f"{table}{key}.")
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise ConfigError(f"{one} is no finite number", f"{where}: {table}{key}")
            if isinstance(one, int) and one.bit_length() > 63:
                raise ConfigError("it is a whole number of more than 64 bits", f"{where}: {table}{key}")


_GONE = {
    ("quantize", "int8"): "INT8 has one form, a scale for each token: delete the line",
    ("quantize", "calibration_rows"): "INT8 takes no ranges from rows any more: delete the line",
    ("method", "use_rslora"): 'it is a method of its own: write name = "rslora"',
    ("method", "use_dora"): 'it is a method of its own: write name = "dora"',
}
"""Keys that recipes had before, and what to do with the line."""
_IDLE: Mapping[tuple[str, str], Callable[[Any], bool]] = {
    ("quantize", "int8"): lambda value: value in ("best", "dynamic", "static"),
    ("quantize", "calibration_rows"): lambda value: type(value) is int,
    ("method", "use_rslora"): lambda value: value is False,
    ("method", "use_dora"): lambda value: value is False,
}
"""Which of their values a recipe may still have: those without which it asks for nothing else than it gets."""


def idle_keys(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, what to do with its line) of keys that have no effect any more, for a warning."""
    return [
        (f"{section}.{key}", _GONE[section, key]) for section, key in _IDLE if _is_idle(section, key, raw.get(section))
    ]


def _is_idle(section: str, key: str, table: Any) -> bool:
    return isinstance(table, dict) and key in table and (section, key) in _IDLE and _IDLE[section, key](table[key])


def _without_idle(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        section: {key: value for key, value in table.items() if not _is_idle(section, key, table)}
        if isinstance(table, dict)
        else table
        for section, table in raw.items()
    }


def _suggestion(key: str, section: str, schema: RecipeSchema) -> str:
    if gone := _GONE.get((section, key)):
        return gone
    near = difflib.get_close_matches(key, schema.keys(section), n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    elsewhere = [name for name in schema.sections if key in schema.keys(name)]
    if elsewhere:
        return f"{key!r} belongs into [{elsewhere[0]}]"
    return f"known keys{f' of [{section}]' if section else ''}: {', '.join(schema.keys(section))}"


def _expand(section: str, keys: Mapping[str, Any], where: str, environment: Mapping[str, str]) -> dict[str, Any]:
    def fill(key: str, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            given = environment.get(found[1], "")
            if given:
                return given if section == "base" else os.path.abspath(given)  # noqa: PTH100 - as a shell means it
            if found[2] is not None:
                return found[2]
            raise ConfigError(
                f"the variable {found[1]} is not set", f"{where}: {section}.{key}", f"set it: {found[1]}=..."
            )

        return _VARIABLE.sub(value, text)

    done = dict(keys)
    for key, text in keys.items():
        if (section, key) in _PLACES:
            if isinstance(text, str):
                done[key] = fill(key, text)
            elif isinstance(text, list):
                done[key] = [fill(key, item) if isinstance(item, str) else item for item in text]
    if section == "package" and "keys" not in keys:
        done["keys"] = fill("keys", PackageSection().keys)
    return done
