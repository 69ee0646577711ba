"""The pages are true: every verb, option, target, path, link and setting exists, and the cheap commands are executed.

Console blocks are read as `$ command` and what it prints; output that is shown must come out (`...` stands for
anything). Commands that train, need root or need a broker are checked by their names alone; `make demo` and the
integration tests run those.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from edge_agent.cli import verbs as agent_verbs
from edge_agent.config.load import _all_keys
from edge_agent.config.settings import Settings
from edge_forge import cli as forge_cli
from tests.support import pages
from tests.support.pages import Command

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted([README, *ROOT.glob("docs/**/*.md"), ROOT / "systemd" / "README.md", *ROOT.glob("models/*/card.md")])
README_LINES = 120
FIGURES = ROOT / "docs" / "figures.md"
TOPS = ("docs", "edge_agent", "models", "systemd", "tests", "tools", ".ci")
PARSERS = {"edge-agent": agent_verbs.parser(), "edge-forge": forge_cli._parser()}
TARGETS = pages.targets(ROOT / "Makefile")
KEYS = set(_all_keys(Settings))
SECTIONS = {key.rpartition(".")[0] for key in KEYS}
# What may be run here: quick, without a broker, without root, and harmless in an empty folder.
CHEAP = [
    re.compile(pattern)
    for pattern in (
        r"edge-(agent|forge)( [a-z-]+)? (--help|-h)",
        r"edge-agent --version",
        r"edge-agent check-config( --example)?",
        r"edge-agent service install --root \S+",
        r"edge-forge keygen \S+",
        r"edge-forge init \S+",
    )
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def cheap(text: str) -> list[Command]:
    return [
        command
        for command in pages.commands(text)
        if any(pattern.fullmatch(" ".join(command.words)) for pattern in CHEAP)
    ]


def run(command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    """Execute a command of a page in an empty folder, with our programs on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command.words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PATH": path},
    )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_verbs_and_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [*pages.commands(text), *pages.inline_commands(text)]
    wrong = [pages.wrong_command(command, PARSERS, TARGETS) for command in found]
    assert [problem for problem in wrong if problem] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {link for link in pages.paths(text) if not (page.parent / link).exists()}
    code = {path for path in pages.project_paths(text, TOPS) if not (ROOT / path).exists()}
    assert (links, code) == (set(), set())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_exist(page: Path) -> None:
    """A module that is named below its package: the page follows when it is renamed."""
    packages = (ROOT / "edge_agent", ROOT / "tools" / "edge_forge")
    rooms = {room.name for package in packages for room in package.iterdir() if room.is_dir()}
    dotted = {room.name for room in packages[0].iterdir() if room.is_dir()} - {"config", "base"}
    named = pages.modules_named(page.read_text(encoding="utf-8"), dotted)
    below = {module for module in named if module.split("/")[0] in rooms}
    assert {module for module in below if not _in_a_package(module, packages)} == set()


def _in_a_package(module: str, packages: tuple[Path, ...]) -> bool:
    """A package, a module, or a name in a module or in the `__init__` of a package."""
    parts = module.split("/")
    for package in packages:
        if package.joinpath(*parts).is_dir():
            return True
        for count in range(2, len(parts) + 1):
            place = package.joinpath(*parts[:count])
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if file.is_file() and all(re.search(rf"\b{part}\b", file.read_text("utf-8")) for part in parts[count:]):
                return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_exist(page: Path) -> None:
    named = pages.settings_named(page.read_text(encoding="utf-8"))
    assert {key for key in named - KEYS - SECTIONS if not _is_code(key)} == set()


def test_the_readme_shows_programs() -> None:
    """The first screen has a program; a README without commands would pass everything else."""
    text = README.read_text(encoding="utf-8")
    first = pages.commands(text)
    assert first, "no command in any block"
    assert {"edge-agent", "make"} & {command.words[0] for command in first}
    assert text.count("@@") == 0, "a placeholder was left"


def test_the_quickest_way_to_an_answer_is_named_where_people_begin() -> None:
    helped = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nhelp:\n")[2].partition("\n\n")[0]
    first = [README.read_text(encoding="utf-8"), (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), helped]
    assert ["edge-agent demo --quick" in text for text in first] == [True] * 3


def test_the_readme_is_short() -> None:
    """A newcomer reads one page; figures and details have pages of their own."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


FIGURE_ROWS = pages.last_cells(FIGURES.read_text(encoding="utf-8"))


def source_of(module: str) -> str:
    """What `python -m module` runs, of the tools or of the tests."""
    path = module.replace(".", "/")
    files = (f"{place}/{path}{end}" for place in ("tools", ".") for end in (".py", "/__main__.py"))
    return next(ROOT / file for file in files if (ROOT / file).exists()).read_text(encoding="utf-8")


@pytest.mark.parametrize("cell", FIGURE_ROWS)
def test_every_figure_names_a_command_that_exists(cell: str) -> None:
    (words, *_) = [code.split() for code in pages.inline(cell)] or [[]]
    assert words, f"no command in {cell!r}"
    if words[:2] == ["python", "-m"]:
        source = source_of(words[2])
        assert "__main__" in source
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []
    elif words[0] == "systemd-analyze":
        assert (ROOT / "systemd" / f"{words[-1]}.service").exists()
    else:
        assert pages.wrong_command(Command(tuple(words)), PARSERS, TARGETS) is None


def test_figures_are_found() -> None:
    assert len(FIGURE_ROWS) > 20


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_cheap_commands_do_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    for command in cheap(page.read_text(encoding="utf-8")):
        if not shutil.which(command.words[0], path=str(Path(sys.executable).parent)):
            pytest.fail(f"{command.words[0]} is not installed beside this Python")
        done = run(command, tmp_path)
        print(f"\n$ {' '.join(command.words)}  ->  {done.returncode}")
        assert done.returncode == 0, done.stderr
        assert not command.output or pages.shows(command.output, done.stdout), done.stdout


def block(heading: str) -> list[Command]:
    """The commands under a heading of docs/index.md. What test_client asks with is Python there."""
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    return pages.commands(text.partition(f"## {heading}\n")[2].partition("\n## ")[0])


def test_who_flashes_gets_an_installable_wheel_and_a_doctor_that_speaks(tmp_path: Path) -> None:
    """Installing is `make operators-day`'s part; here stand the name of the wheel, its extra, and the doctor."""
    _, install, doctor = (command.words for command in block("Who flashes"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheel, _, extra = install[-1].partition("[")
    assert wheel == f"./edge_agent-{project['version']}-py3-none-any.whl"
    assert extra.rstrip("]") in project["optional-dependencies"]
    assert doctor == ("try/bin/edge-agent", "doctor")
    done = run(Command(("edge-agent", *doctor[1:])), tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert {"board", "broker"} <= {word for line in done.stdout.splitlines() for word in line.split()}


def test_who_trains_gets_a_recipe_that_can_be_read_and_data(tmp_path: Path) -> None:
    activate, quick, init, look = block("Who trains")
    assert activate.words == (".", ".venv/bin/activate")
    assert quick.words == ("edge-agent", "demo", "--quick")  # built, it is `make demo`'s first half
    assert run(init, tmp_path).returncode == 0
    assert run(look, tmp_path).stdout.split() == ["train.tsv"]
    recipe = tomllib.loads((tmp_path / init.words[-1] / "recipe.toml").read_text(encoding="utf-8"))
    assert {"base", "data", "train"} <= set(recipe)


def test_messages_and_docstrings_name_settings_that_exist() -> None:
    """A remedy that names a setting which does not exist sends a person searching."""
    wrong = {}
    for path in sorted((ROOT / "edge_agent").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for found in re.findall(rf"(?<![\w./\"'%-])({pages.SETTING.pattern})(?![\w/(])", node.value):
                    if found not in KEYS | SECTIONS and not _is_code(found):
                        wrong[f"{path.relative_to(ROOT)}:{node.lineno}"] = found
    assert wrong == {}


def _is_code(dotted: str) -> bool:
    """A module, or a name in a module, of one of our rooms: `worker.one_shot`, `store.model_store.ModelStore`."""
    room, module = dotted.split(".")[:2]
    folder = ROOT / "edge_agent" / room
    return (folder / f"{module}.py").exists() or module == "py"


SAMPLE = """
Text with `edge-agent frobnicate`, `mqtt.colour`, `docs/nowhere.md` and [a link](missing.md).
```console
$ edge-agent infer home "x" --colour red   # a comment
$ sudo make dmeo
$ edge-agent --version
edge-agent ...
$ edge-forge build models/x/recipe.toml --build build && edge-agent check-config
```
"""


def test_the_checker_finds_what_is_wrong() -> None:
    found = [*pages.commands(SAMPLE), *pages.inline_commands(SAMPLE)]
    problems = [pages.wrong_command(command, PARSERS, TARGETS) for command in found]
    assert [problem for problem in problems if problem] == [
        "edge-agent infer has no option --colour",
        "make has no target 'dmeo'",
        "edge-agent has no verb 'frobnicate'",
    ]
    assert pages.paths(SAMPLE) == {"missing.md"}
    assert pages.project_paths(SAMPLE, TOPS) == {"docs/nowhere.md"}
    assert pages.settings_named(SAMPLE) - KEYS == {"mqtt.colour"}
    assert [" ".join(command.words) for command in cheap(SAMPLE)] == ["edge-agent --version", "edge-agent check-config"]
    assert pages.shows("edge-agent ...", "edge-agent 0.1.0\n")
    assert not pages.shows("edge-agent [1]", "edge-agent 1")
