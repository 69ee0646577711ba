"""Children never import from the current folder, whatever interpreter starts them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.base.child_python import module_command

ROOT = Path(__file__).parents[3]
PYENV = Path.home() / ".pyenv" / "versions"
SHOW = "import sys\nprint([sys.argv[1:], __name__, sys.path])\n"
HOSTILE = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nraise SystemExit('hostile')\n"
INTERPRETERS = [
    None,
    *(str(found[-1]) for minor in range(6, 15) if (found := sorted(PYENV.glob(f"3.{minor}.*/bin/python")))),
]


@pytest.fixture
def hostile(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in ("runpy", "msgspec", "json", "show", "pkgutil", "importlib"):
        (folder / f"{name}.py").write_text(HOSTILE)
    return folder


def output(command, folder, **environment):
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("python", INTERPRETERS)
def test_a_module_is_run_without_the_current_folder(python, hostile, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "show.py").write_text(SHOW)
    for safe_path in ("", "1"):
        given = {"PYTHONPATH": str(tmp_path / "path"), "PYTHONSAFEPATH": safe_path}
        done = output(module_command("show", "-x", "b c", python=python), hostile, **given)
        assert done.returncode == 0, done.stderr
        arguments, name, path = ast.literal_eval(done.stdout)
        assert (arguments, name) == (["-x", "b c"], "__main__")
        assert not {"", str(hostile), str(ROOT / "edge_agent" / "base")} & set(path)
        assert str(tmp_path / "path") in path
    assert not list(hostile.glob("*.ran"))


@pytest.mark.parametrize("python", INTERPRETERS)
def test_a_package_folder_is_run_under_its_own_name(python, hostile, tmp_path):
    package = tmp_path / "path" / "shown"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("from shown.part import found\nprint(found)\n")
    (package / "part.py").write_text("import json\nfound = json.dumps([__package__])\n")
    done = output(module_command(str(package), python=python), hostile)
    assert (done.stdout, done.stderr) == ('["shown"]\n', "")
    assert not list(hostile.glob("*.ran"))


def test_the_plain_way_would_import_it(hostile):
    done = output([sys.executable, "-m", "edge_agent", "--version"], hostile, PYTHONSAFEPATH="")
    assert "hostile" in done.stderr
    assert list(hostile.glob("*.ran"))


def test_no_other_place_starts_an_interpreter():
    """`"-m"` and `sys.executable` in a command line; what starts one another way is named here."""
    found = []
    for folder in ("edge_agent", "tools/edge_forge"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                words = [ast.unparse(item) for item in node.elts] if isinstance(node, ast.List | ast.Tuple) else []
                if any("sys.executable" in word or word in ("'-m'", "'-c'") for word in words[:1] + words[1:2]):
                    found.append((path.name, words[0]))
    assert sorted(found) == [("child_python.py", "python or sys.executable"), ("stage.py", "mosquitto")]
