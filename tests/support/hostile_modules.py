"""Modules under the names of those that our programs import, which leave a mark where one of them is run.

A file of its own because two tests plant them: in the folder of a command, and in those of a whole build.
"""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "accelerate", "datasets", "edge_agent", "edge_forge", "json", "llama_cpp", "matplotlib", "msgspec", "numpy", "onnx",
    "paho", "psutil", "runpy", "safetensors", "sitecustomize", "tokenizers", "tomllib", "torch", "transformers",
    "usercustomize",
)  # fmt: skip
PACKAGES = ("onnxruntime", "cryptography")
_HOSTILE = "import pathlib\npathlib.Path({mark!r}).touch()\nraise SystemExit('hostile')\n"


def plant(folder: Path) -> None:
    """Write the modules into a folder, two of them as packages."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.py").write_text(_HOSTILE.format(mark=str(folder / f"{name}.ran")))
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(_HOSTILE.format(mark=str(folder / f"{name}.ran")))


def ran(folder: Path) -> list[str]:
    """The names of those that were run."""
    return sorted(path.stem for path in folder.glob("*.ran"))
