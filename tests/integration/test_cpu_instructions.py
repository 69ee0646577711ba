"""A build of llama.cpp for another CPU is refused before any of its code runs, each time in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.llama import needs_llama

pytestmark = needs_llama

CHILD = """
import json, sys
from edge_agent.backends.llamacpp import library
from edge_agent.base.errors import BackendMissing
if sys.argv[1] != "real":
    words = frozenset(sys.argv[2:])
    library.cpu_words = lambda: words
answer = {}
try:
    opened = library.open_library()
    answer["unchecked"] = opened.unchecked
except BackendMissing as error:
    answer["refused"] = str(error)
with open("/proc/self/maps") as maps:
    loaded = {line.split()[-1].rpartition("/")[2] for line in maps if "/lib" in line}
answer["loaded"] = sorted(name for name in loaded if name.startswith(("libllama", "libggml")))
answer["imported"] = sorted(name for name in sys.modules if name.startswith("llama_cpp"))
answer["built_for"] = library._built_for(library.library_folder()) if sys.argv[1] == "real" else []
print(json.dumps(answer))
"""


def opened(*arguments: str, **environment: str) -> dict[str, Any]:
    """What opening the library came to in a fresh process, on a CPU with these flags or on this one ('real')."""
    command = [sys.executable, "-c", CHILD, *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return opened("real")


def test_the_real_build_names_what_it_was_built_for_and_this_cpu_has_it(here: dict[str, Any]) -> None:
    if not here["built_for"]:
        assert here["unchecked"], "a build that names nothing was not checked, and it says so"
        pytest.skip("this build of llama.cpp names no instructions")
    assert here["unchecked"] == ""
    assert "refused" not in here
    assert set(here["built_for"]) & {"sse3", "neon", "avx"}
    assert len([name for name in here["loaded"] if name.startswith("libggml-cpu")]) == 1, "the CPU part is loaded once"


def test_a_build_for_another_cpu_is_refused_before_the_library_is_loaded(here: dict[str, Any]) -> None:
    if not here["built_for"]:
        pytest.skip("this build of llama.cpp names no instructions")
    found = opened("fake", "fpu", "swp")
    assert f"needs {', '.join(here['built_for'])}, which this CPU does not have" in found["refused"]
    assert "build it on this board" in found["refused"]
    assert found["imported"] == []
    assert not [name for name in found["loaded"] if name.startswith(("libllama", "libggml.so"))], found["loaded"]


def test_one_missing_instruction_is_enough(here: dict[str, Any]) -> None:
    if not here["built_for"]:
        pytest.skip("this build of llama.cpp names no instructions")
    from edge_agent.backends.llamacpp.library import INSTRUCTIONS

    *others, last = here["built_for"]
    found = opened("fake", *(INSTRUCTIONS[name] for name in others))
    assert f"needs {last}, which" in found["refused"]
    assert opened("fake", *(INSTRUCTIONS[name] for name in here["built_for"]))["unchecked"] == ""


def test_where_the_kernel_names_nothing_that_is_said_and_the_library_is_used() -> None:
    found = opened("fake")
    assert found["unchecked"] == "the kernel does not say which instructions this CPU has"
    assert "llama_cpp" in found["imported"]


def test_a_build_in_one_piece_is_used_and_says_that_it_was_not_checked(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    real = Path(spec.submodule_search_locations[0]) / "lib"
    for path in real.iterdir():
        if path.name != "libggml-cpu.so":
            (tmp_path / path.name).symlink_to(path)
    found = opened("real-but-moved", "avx", LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert "its CPU part cannot be asked which instructions it needs" in found["unchecked"]
    (tmp_path / "libggml-cpu-haswell.so").touch()
    assert opened("real-but-moved", "avx", LLAMA_CPP_LIB_PATH=str(tmp_path))["unchecked"] == ""
