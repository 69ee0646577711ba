"""The house rules as ratchets: each exemption list may only shrink."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("edge_agent", "tools") for path in (ROOT / room).rglob("*.py"))
FILE_LINES = 600
FUNCTION_LINES = 60
PARAMETERS = 7
COMPOSITION_ROOT = "edge_agent/app/"

# Task boundaries where anything may come out of foreign code; each says in a comment what happens next.
# tokens.py: `tokenizers` raises bare Exception for a file it cannot read; the load fails with its words.
BROAD_EXCEPT_ALLOWED = frozenset(
    {
        "edge_agent/cli/__init__.py",
        "edge_agent/sensors/jtop.py",
        "edge_agent/tasks/tokens.py",
        "edge_agent/worker/child.py",
        "tools/edge_forge/cli.py",
    }
)

# Standard containers that take any number of items unless a bound is given: module, class, the bound's name and place.
CONTAINERS = {
    ("collections", "deque"): ("maxlen", 1),
    **{
        (module, kind): ("maxsize", 0)
        for module in ("asyncio", "queue", "multiprocessing")
        for kind in ("Queue", "LifoQueue", "PriorityQueue", "JoinableQueue")
    },
    **{(module, "SimpleQueue"): ("", -1) for module in ("queue", "multiprocessing")},
}
UNBOUNDED_CONTAINERS = 0

# Where the attributes of another object are written: an assignment, annotated or augmented assignment or deletion whose
# target is `x.attribute` or `x.attribute[...]`, and x is none of the names `self`, `cls`, `os`, `sys`
# (`self.other.attribute` counts; so does an object that the same function has just made). At commit 2a2e28b there were
# 162 in edge_agent and 34 in edge_forge without entries (`x.attribute[...]`). Entries left: two of Jinja's environment
# in edge_agent; those of onnx's graphs and of llama.cpp's batches in edge_forge.
# Four more are properties of TensorRT's builder (backends/tensorrt/engine_host/build_engine.py), which has no setters.
FOREIGN_WRITES = {"edge_agent": 81 + 4 + 2, "tools/edge_forge": 29 + 20}
FOREIGN_WRITES_OF_THE_COMPOSITION_ROOT = 0

# A module of edge_agent that is so short, or that only one other module imports and that is not long, says in its
# docstring why it is not a part of its neighbour or of its importer: with the words of STATED.
SHORT_LINES = 50
ONE_IMPORTER_LINES = 150
STATED = "file of its own because"
# A program of its own that the system's Python of a board runs; it imports nothing of edge_agent.
SELF_CONTAINED = "edge_agent/backends/tensorrt/engine_host/"

# The two packages of the distribution: a file name is used once in each. A public class name is used once in both, the
# simulation and the benchmarks together.
PACKAGES = ("edge_agent", "tools/edge_forge")
# File names that every sub-package may have.
TOLERATED_FILES = frozenset({"__init__.py", "__main__.py", "api.py", "registry.py"})

# Names that hold a sentence for people. Code decides by a value (`base.causes`), never by what such a sentence says:
# it carries names that clients choose, and a reworded sentence would change what the code does.
SENTENCES = frozenset(
    {"reason", "text", "why", "message", "what", "sentence", "said", "error", "remedy", "energy_method"}
)
READING_METHODS = frozenset(
    {"startswith", "endswith", "find", "rfind", "index", "count", "split", "partition", "removeprefix", "removesuffix"}
    | {"replace"}
)
PATTERN_METHODS = frozenset({"match", "search", "fullmatch", "findall", "finditer", "sub", "split"})
# By file: functions in which such a name holds a text in a format, which is parsed, and why that is no sentence of
# ours; and the two that have nothing but a sentence to go by.
PARSERS = {
    "edge_agent/actuators/power_mode.py": ("asks_for_reboot", "output of nvpmodel, whose exit code says nothing of it"),
    "edge_agent/app/fleet_rollout.py": ("_given _source", "arguments of the command line: NAME=VALUE"),
    "edge_agent/fleet/rollout_plan.py": ("_share", "a share in a plan: 25%"),
    "edge_agent/base/shown_text.py": ("many_lines", "replaces characters that a terminal acts on, whatever the words"),
    "edge_agent/backends/cpu_words.py": ("cpu_words", "the kernel's list of instruction sets in /proc/cpuinfo"),
    "edge_agent/backends/encoder_session.py": ("runtime_error", "the runtimes' own words for a failed allocation"),
    "edge_agent/backends/llamacpp/gbnf.py": ("lark_without_settings", "the grammar, which is a program text"),
    "edge_agent/backends/llamacpp/grammar_process.py": ("__init__", "a schema's text: whether it has a keyword at all"),
    "edge_agent/backends/llamacpp/library.py": (
        "take",
        "the log lines of llama.cpp, which has no other interface for these",
    ),
    "edge_agent/bundle/chat_template.py": (
        "pieces",
        "the constants of a template, in which it looks for marks",
    ),
    "edge_agent/bundle/jsonio.py": ("_plain", "the path in a message of msgspec is put into our form"),
    "edge_agent/bundle/prompt_tokens.py": (
        "__init__ _marks _of_template _plain _unwritten found pieces",
        "the texts that it splits: prompts, and what an added token looks like",
    ),
    "edge_agent/bundle/sign.py": ("_from_base64", "base64 text"),
    "edge_agent/bundle/weight_files.py": ("_check_base", "a field of the adapter file"),
    "edge_agent/config/fields.py": ("accepts from_text", "values of settings, and environment variables"),
    "edge_agent/config/secrets.py": ("_secret", "a password file"),
    "edge_agent/lifecycle/jetson.py": ("parse_release", "the release file of L4T"),
    "edge_agent/lifecycle/service.py": ("_put", "whether a unit file is the one that would be written"),
    "edge_agent/lifecycle/supervision.py": ("status", "white space in a line for systemd"),
    "edge_agent/mqtt/transport.py": ("_sync", "log on transition: a trouble that was told already is not told again"),
    "edge_agent/sensors/boards.py": (
        "_parts match parse_compatible parse_cpu_features parse_cpu_list",
        "files of /proc",
    ),
    "edge_agent/sensors/files.py": ("parse_number", "files of /sys"),
    "edge_agent/sensors/memory.py": (
        "daemon_bytes parse_buddyinfo parse_cgroup parse_meminfo parse_pressure parse_reclaimable parse_vmstat",
        "files of /proc and of the control group",
    ),
    "edge_agent/sensors/power.py": ("parse_pmic", "output of vcgencmd"),
    "edge_agent/sensors/thermal.py": ("parse_measured", "output of vcgencmd"),
    "edge_agent/sensors/throttle.py": (
        "find_under_voltage parse_measured_clock parse_word",
        "output of vcgencmd, and names in /sys",
    ),
    "edge_agent/store/state_file.py": (
        "figures",
        "files of all releases have the method of the energy only as its sentence",
    ),
    "edge_agent/tasks/generate.py": ("_overlap", "stop strings in a generated text"),
}
# Decisions that are still read out of a sentence, by file. The numbers may only fall.
DECISIONS_BY_SENTENCE: dict[str, int] = {}

# Rooms that backends import, and 'module:class' or 'module' of this package as a text.
BELOW_THE_BACKENDS = tuple(f"edge_agent/{room}/" for room in ("base", "bundle", "config", "core", "protocol"))
MODULE_PATH = re.compile(r"edge_agent(\.\w+)+(:\w+)?")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        yield from ((name(path), node) for node in ast.walk(parsed(path)))


def functions() -> Iterator[tuple[str, Function]]:
    for place, node in nodes():
        if isinstance(node, Function):
            yield f"{place}:{node.lineno} {node.name}", node


def length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {place: lines for place, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {place: length(node) for place, node in functions()}
    assert {place: lines for place, lines in lengths.items() if lines > FUNCTION_LINES} == {}
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 35


def test_functions_take_few_parameters() -> None:
    def count(node: Function) -> int:
        arguments = node.args
        listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        return len([argument for argument in listed if argument.arg not in {"self", "cls"}])

    # A composition root passes every part to its constructor and has nothing else to bundle them for.
    counted = {place: count(node) for place, node in functions() if not place.startswith(COMPOSITION_ROOT)}
    assert {place: parameters for place, parameters in counted.items() if parameters > PARAMETERS} == {}


def test_public_names_have_docstrings() -> None:
    missing = []
    for path in SOURCES:
        tree = parsed(path)
        if not ast.get_docstring(tree) and path.stat().st_size:
            missing.append(name(path))
        missing += [f"{name(path)}:{node.lineno} {node.name}" for node in _public(tree) if not ast.get_docstring(node)]
    assert missing == []


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def test_broad_excepts_only_at_named_boundaries() -> None:
    found = {
        f"{place}:{node.lineno}"
        for place, node in nodes()
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    }
    assert {entry for entry in found if entry.rsplit(":", 1)[0] not in BROAD_EXCEPT_ALLOWED} == set()


def test_every_queue_is_bounded() -> None:
    found = [f"{name(path)}:{line}" for path in SOURCES for line in unbounded(parsed(path))]
    assert len(found) <= UNBOUNDED_CONTAINERS, found


def unbounded(tree: ast.Module) -> list[int]:
    """The lines of a module that make a deque or a queue without a bound, directly or as a factory of defaults."""
    names = _imported(tree)
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        made = _container(node.func, names)
        if made is not None and not _bounded(node, *CONTAINERS[made]):
            lines.append(node.lineno)
        factories = [keyword.value for keyword in node.keywords if keyword.arg == "default_factory"]
        if getattr(node.func, "attr", getattr(node.func, "id", "")) == "defaultdict":
            factories += node.args[:1]
        lines += [factory.lineno for factory in factories if _container(factory, names)]
    return lines


def _imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """What an imported name stands for: (module, name), with an empty name for a module."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return names


def _container(node: ast.expr, names: dict[str, tuple[str, str]]) -> tuple[str, str] | None:
    """The standard container that an expression names, as a key of CONTAINERS."""
    if isinstance(node, ast.Name):
        named = names.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        named = (names.get(node.value.id, ("", ""))[0], node.attr)
    elif isinstance(node, ast.Subscript):
        return _container(node.value, names)
    else:
        named = None
    return named if named in CONTAINERS else None


def _bounded(call: ast.Call, keyword: str, place: int) -> bool:
    """Whether a call gives a bound that is not a literal None, 0 or less."""
    given = [item.value for item in call.keywords if item.arg == keyword and keyword]
    if 0 <= place < len(call.args):
        given.append(call.args[place])
    for value in given:
        literal = ast.literal_eval(value) if isinstance(value, ast.Constant | ast.UnaryOp) else 1
        if literal is not None and literal > 0:
            return True
    return False


IMPORTS = """\
import asyncio, collections, queue
from collections import deque, defaultdict
from queue import Queue as Fifo
"""


@pytest.mark.parametrize(
    "made",
    [
        "collections.deque()",
        "collections.deque([1])",
        "collections.deque(maxlen=None)",
        "deque()",
        "field(default_factory=deque)",
        "field(default_factory=deque[int])",
        "defaultdict(deque)",
        "asyncio.Queue()",
        "asyncio.Queue(maxsize=0)",
        "queue.Queue(-1)",
        "queue.SimpleQueue()",
        "Fifo()",
        "Fifo(0)",
    ],
)
def test_an_unbounded_container_is_found(made: str) -> None:
    assert unbounded(ast.parse(f"{IMPORTS}x = {made}")) == [4]


@pytest.mark.parametrize(
    "made", ["deque(maxlen=9)", "deque([], 9)", "deque(maxlen=LIMIT)", "Fifo(4)", "queue.Queue(maxsize=4)", "Queue()"]
)
def test_a_bounded_container_passes(made: str) -> None:
    assert unbounded(ast.parse(f"{IMPORTS}x = {made}")) == []


def test_few_write_the_attributes_of_other_objects() -> None:
    for room, allowed in FOREIGN_WRITES.items():
        found = [f"{place}:{line}" for place, line in foreign_writes(room)]
        assert len(found) <= allowed, found


def test_composition_roots_set_nothing_after_construction() -> None:
    found = [f"{place}:{line}" for place, line in foreign_writes("edge_agent") if place.startswith(COMPOSITION_ROOT)]
    assert len(found) <= FOREIGN_WRITES_OF_THE_COMPOSITION_ROOT, found


def foreign_writes(room: str) -> Iterator[tuple[str, int]]:
    """The places of a package (a folder below the root) that write to an attribute of an object other than self."""
    for place, node in nodes():
        if place.startswith(f"{room}/"):
            yield from ((place, target.lineno) for target in _targets(node) if _is_foreign(target))


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to or deletes, tuples and lists taken apart."""
    if isinstance(node, ast.Assign | ast.Delete):
        open_targets = list(node.targets)
    else:
        open_targets = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
    while open_targets:
        target = open_targets.pop()
        if isinstance(target, ast.Tuple | ast.List):
            open_targets += target.elts
        else:
            yield target.value if isinstance(target, ast.Starred) else target


def _is_foreign(target: ast.expr) -> bool:
    while isinstance(target, ast.Subscript):
        target = target.value
    if not isinstance(target, ast.Attribute):
        return False
    return not (isinstance(target.value, ast.Name) and target.value.id in {"self", "cls", "os", "sys"})


@pytest.mark.parametrize(
    "line",
    ["a.b = 1", "self.a.b = 1", "x, a.b = 1, 2", "a.b += 1", "a.b[1] = 2", "a.b[1] += 2", "del a.b[1]", "del a.b"],
)
def test_a_write_to_another_object_is_found(line: str) -> None:
    assert any(_is_foreign(target) for node in ast.walk(ast.parse(line)) for target in _targets(node))


@pytest.mark.parametrize("line", ["self.a = 1", "a = 1", "a[1] = 2", "self.a[1] = 2", "del self.a[1]", "x = a.b[1]"])
def test_a_write_to_its_own_object_is_none(line: str) -> None:
    assert not any(_is_foreign(target) for node in ast.walk(ast.parse(line)) for target in _targets(node))


def test_a_public_class_name_is_used_once() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name(path))
    assert {found: where for found, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_name_is_used_once(package: str) -> None:
    places = defaultdict(list)
    for path in SOURCES:
        if name(path).startswith(f"{package}/") and path.name not in TOLERATED_FILES:
            places[path.name].append(name(path))
    assert {found: where for found, where in places.items() if len(where) > 1} == {}


def test_short_modules_say_why_they_stand_alone() -> None:
    importers = _importers()
    unexplained = {}
    for path in SOURCES:
        place, lines = name(path), len(path.read_text(encoding="utf-8").splitlines())
        if not place.startswith("edge_agent/") or place.startswith(SELF_CONTAINED) or path.name.startswith("__"):
            continue
        short = lines < SHORT_LINES or (lines < ONE_IMPORTER_LINES and len(importers[_module(path)]) == 1)
        if short and STATED not in " ".join((ast.get_docstring(parsed(path)) or "").split()):
            unexplained[place] = lines
    assert unexplained == {}


def _module(path: pathlib.Path) -> str:
    return name(path).removeprefix("tools/").removesuffix(".py").replace("/", ".")


def _importers() -> dict[str, set[str]]:
    """By module: the files of the two packages and of the tools that import it, anywhere in them."""
    found: dict[str, set[str]] = defaultdict(set)
    for place, node in nodes():
        if isinstance(node, ast.ImportFrom) and node.module:
            found[node.module].add(place)
            for alias in node.names:
                found[f"{node.module}.{alias.name}"].add(place)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.name].add(place)
    return found


def test_no_room_below_the_backends_names_a_module_in_a_string() -> None:
    """The import contracts do not see an import by name; `backends.registry` alone loads modules of its own room so."""
    found = [
        f"{place}:{node.lineno}"
        for place, node in nodes()
        if place.startswith(BELOW_THE_BACKENDS) and isinstance(node, ast.Constant) and isinstance(node.value, str)
        if MODULE_PATH.fullmatch(node.value)
    ]
    assert found == []


def test_nothing_sleeps_in_unit_tests() -> None:
    """But in a loop whose clock the test owns (tests.support.virtual_time), where a sleep takes no time."""
    offenders = []
    for path in (ROOT / "tests" / "unit").rglob("*.py"):
        if "virtual_time" in path.read_text(encoding="utf-8"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        offenders += [
            f"{name(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "sleep" and _delay(node) != 0
        ]
    assert offenders == []


def _delay(call: ast.Call) -> object:
    """The literal delay of a sleep call; `asyncio.sleep(0)` only yields."""
    return call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None


def test_no_machine_path_or_workplace_name_is_committed() -> None:
    offenders = [
        name(path)
        for path in [*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "Makefile"]
        if "/work/" + "main" in path.read_text(encoding="utf-8") or "/root/" + "." in path.read_text(encoding="utf-8")
    ]
    assert offenders == []


def test_no_decision_is_read_out_of_a_sentence() -> None:
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path in SOURCES:
        if name(path).startswith("edge_agent/"):
            for line in sentence_readings(parsed(path)):
                found[name(path)][_function_at(parsed(path), line)].append(line)
    allowed = {place: set(functions.split()) for place, (functions, _) in PARSERS.items()}
    decisions = {
        place: lines
        for place, by_function in found.items()
        if (
            lines := [
                line for function, at in by_function.items() if function not in allowed.get(place, ()) for line in at
            ]
        )
    }
    assert {place: len(lines) for place, lines in decisions.items()} == DECISIONS_BY_SENTENCE, decisions
    idle = {place: names - found[place].keys() for place, names in allowed.items() if names - found[place].keys()}
    assert idle == {}, "these parse nothing any more: take them off the list"


def _function_at(tree: ast.Module, line: int) -> str:
    """The name of the innermost function around a line; empty at module level."""
    around = [
        node for node in ast.walk(tree) if isinstance(node, Function) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return min(around, key=length).name if around else ""


def sentence_readings(tree: ast.AST) -> list[int]:
    """The lines on which code looks at what a sentence says: a comparison, a search, a method of str, a pattern."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Call) and _reads(node)]


def _reads(node: ast.Compare | ast.Call) -> bool:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        asks = any(isinstance(operator, ast.In | ast.NotIn | ast.Eq | ast.NotEq) for operator in node.ops)
        return asks and any(_is_sentence(side) for side in sides)
    if not isinstance(node.func, ast.Attribute):
        return False
    by_method = node.func.attr in READING_METHODS and _is_sentence(node.func.value)
    return by_method or (node.func.attr in PATTERN_METHODS and any(map(_is_sentence, node.args)))


def _is_sentence(node: ast.expr) -> bool:
    """A name or an attribute of SENTENCES, also within `str(...)` and after `.lower()` and the like."""
    while isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
            node = node.args[0]
        elif isinstance(node.func, ast.Attribute) and not node.args:
            node = node.func.value
        else:
            return False
    return getattr(node, "attr", getattr(node, "id", "")) in SENTENCES


@pytest.mark.parametrize(
    "line",
    [
        'if "quarantine" in reason: pass',
        'if reason.startswith("too hot"): pass',
        'if error.reason.lower() == "gone": pass',
        'if str(error).endswith("x"): pass',
        'if re.search("°C", self.why): pass',
        "if PATTERN.match(event.message): pass",
        'shown = choice.why.replace("of 2", "of 3")',
        'if text in ("a", "b"): pass',
        'estimated = self.energy_method.startswith("estimated")',
        'error.remedy = error.remedy.replace("a", "b")',
    ],
)
def test_a_decision_by_a_sentence_is_found(line: str) -> None:
    assert sentence_readings(ast.parse(line)) == [1]


@pytest.mark.parametrize(
    "line", ["if reason is None: pass", "if cause is Cause.HEAT: pass", 'say(f"it ended: {reason}")', "if reason: pass"]
)
def test_passing_a_sentence_on_is_no_decision(line: str) -> None:
    assert sentence_readings(ast.parse(line)) == []
