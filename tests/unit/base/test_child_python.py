"""Children never import from the current folder, whatever interpreter starts them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.base.child_python import child_environment, module_command

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
    assert sorted(found) == [
        ("child_python.py", "python or sys.executable"),
        ("power_mode.py", "str(root / PROGRAM)"),  # nvpmodel
        ("stage.py", "program"),  # mosquitto
    ]


CODE = {
    "PYTHONSTARTUP": "/tmp/x.py", "PYTHONHOME": "/tmp", "PYTHONPYCACHEPREFIX": "/tmp", "PYTHONINSPECT": "1",
    "PYTHONBREAKPOINT": "evil.run", "PYTHONWARNINGS": "error::evil.Warning", "PYTHONUSERBASE": "/tmp",
    "LD_AUDIT": "/tmp/evil.so", "LD_PROFILE": "libc.so.6", "LD_DEBUG_OUTPUT": "x", "HF_HOME": "cache",
    "LLAMA_CPP_LIB_PATH": "lib", "GGML_BACKEND_PATH": "evil.so", "OPENSSL_CONF": "openssl.cnf",
}  # fmt: skip


def test_a_child_gets_no_variable_that_runs_other_code_and_no_search_path_with_the_current_folder():
    given = {
        **CODE,
        "LD_LIBRARY_PATH": ":/usr/local/cuda/lib64:lib:.:/opt/x",
        "LD_PRELOAD": "evil.so /usr/lib/aarch64-linux-gnu/libgomp.so.1",
        "PYTHONPATH": f".:/dev/tree:{os.pathsep}",
        "PATH": "/usr/bin::bin",
        "HF_HUB_CACHE": "/data/hub",
        "PYTHONUTF8": "1",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert child_environment(given) == {
        "LD_LIBRARY_PATH": "/usr/local/cuda/lib64:/opt/x",
        "LD_PRELOAD": "/usr/lib/aarch64-linux-gnu/libgomp.so.1",
        "PYTHONPATH": "/dev/tree",
        "PATH": "/usr/bin",
        "HF_HUB_CACHE": "/data/hub",
        "PYTHONUTF8": "1",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert child_environment({"LD_PRELOAD": "evil.so", "PYTHONPATH": ""}) == {}


@pytest.mark.parametrize("python", INTERPRETERS)
def test_an_isolated_parent_has_children_that_look_no_further_than_it_does(python):
    """The unit starts `python -I`."""
    program = (
        "import runpy; found = runpy.run_path(%r); print(found['child_environment']({'PYTHONPATH': '/x', 'A': 'b'}))"
    )
    place = str(ROOT / "edge_agent" / "base" / "child_python.py")
    done = output([python or sys.executable, "-I", "-c", program % place], ROOT)
    assert ast.literal_eval(done.stdout) == {"A": "b", "PYTHONNOUSERSITE": "1"}, done.stderr


def test_every_child_interpreter_gets_the_cleaned_environment():
    """What starts a process with `module_command` says `env=`; the exceptions hand on one that is clean already."""
    clean = {"child_environment", "_environment", "environment"}
    handed_on = {"host_client.py", "grammar_client.py"}  # children of a worker
    seen = set()
    for folder in ("edge_agent", "tools/edge_forge"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if "module_command(" not in text or path.name in {"child_python.py", *handed_on}:
                continue
            for node in ast.walk(ast.parse(text)):
                starts = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                    ("subprocess.run", "subprocess.Popen", "create_subprocess_exec")
                )
                if starts:
                    env = next((one.value for one in node.keywords if one.arg == "env"), None)
                    words = (
                        {ast.unparse(one.func) for one in ast.walk(env) if isinstance(one, ast.Call)} if env else set()
                    )
                    assert words & clean, f"{path.name}:{node.lineno}"
                    seen.add(path.name)
    assert {"supervisor.py", "daemon.py", "stage.py"} <= seen
