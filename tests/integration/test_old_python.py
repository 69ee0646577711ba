"""A JetPack 4 board runs its TensorRT worker in the system's Python 3.6: what a worker imports must run there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# One whole job through registry, echo backend and task, on an interpreter without a single third-party package.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import edge_agent.base.errors, edge_agent.base.limits
import edge_agent.backends.api, edge_agent.backends.bank, edge_agent.backends.onnx, edge_agent.backends.queue
import edge_agent.backends.slots, edge_agent.backends.tensors
import edge_agent.tasks.classify, edge_agent.tasks.embed, edge_agent.tasks.tokens
import edge_agent.tasks.chat, edge_agent.tasks.generate, edge_agent.tasks.sampling, edge_agent.tasks.textstream
import edge_agent.worker.flow
from edge_agent.backends import registry
from edge_agent.backends.api import AdapterSource, Job, Limits, Unavailable
from edge_agent.tasks import registry as kinds

spec = {"kind": "classify", "labels": ["a", "b"], "max_tokens": 8, "threshold": 0.0, "out_of_scope": None}
task = kinds.build(spec, None)
session = registry.create("echo").load({}, {})
session.attach(AdapterSource("x", "", ""))
prepared = task.prepare(["hello", "a text that is far too long"], {"top_k": 2})
session.submit(Job("1", "x", prepared.rows, {}))
(done,) = session.step(Limits(8, 1))
results = task.answer(done.outputs, prepared, {"top_k": 2})
assert [len(one["labels"]) for one in results] == [2, 2], results
assert [one["truncated"] for one in results] == [False, True], results
assert isinstance(registry.create("onnx").probe(), Unavailable) or "numpy" in sys.modules
print("%d.%d" % sys.version_info[:2])
"""


def interpreter(version):
    """An interpreter of that version on the search path or under pyenv, or None."""
    found = shutil.which(f"python{version}")
    managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for candidate in [*managed, *([Path(found)] if found else [])]:
        asked = subprocess.run([str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                               capture_output=True, text=True, check=False)  # fmt: skip
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return str(candidate)
    return None


@pytest.mark.parametrize("version", ["3.6", "3.8"])
def test_a_worker_room_runs_on_the_boards_own_python(version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"NO PYTHON {version} HERE: that the worker runs on JetPack's own Python was NOT checked")
    ran = subprocess.run(
        [python, "-I", "-c", PROGRAM, str(ROOT)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == version


def test_the_program_itself_is_right():
    """On this interpreter, so that a failure above means the other version and not the program."""
    ran = subprocess.run([sys.executable, "-I", "-c", PROGRAM, str(ROOT)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
