"""What imports what: the contracts of pyproject.toml, and what the resident daemon must never load."""

from __future__ import annotations

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEAVY = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers", "cryptography", "llama_cpp", "jtop", "tensorrt")


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [pathlib.Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "tools"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {module.split(".")[0] for module in done.stdout.split()}


def test_the_daemon_imports_no_runtime() -> None:
    assert loaded_by("import edge_agent.app.daemon").isdisjoint({*HEAVY, "psutil"})


def test_the_command_line_starts_light() -> None:
    assert loaded_by("import edge_agent.cli").isdisjoint({*HEAVY, "paho", "psutil"})


def test_the_host_tool_starts_without_torch() -> None:
    assert loaded_by("import sys; sys.path.insert(0, 'tools'); import edge_forge.cli").isdisjoint(HEAVY)
