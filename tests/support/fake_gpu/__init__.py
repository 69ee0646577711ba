"""A stand-in for TensorRT and pycuda: the folder is put on the module path of an engine host's interpreter."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GENERATIONS = ("8.2", "8.6", "10.3", "10.16")


def write_python(path: Path, generation: str = "8.6", python: str = sys.executable, **settings: str) -> Path:
    """A program that runs `python` with the stand-in; `settings` are its environment variables in lower case."""
    lines = {"PYTHONPATH": str(HERE), "EDGE_FAKE_TENSORRT": generation}
    lines |= {f"EDGE_FAKE_{name.upper()}": value for name, value in settings.items()}
    said = "\n".join(f"export {name}='{value}'" for name, value in lines.items())
    path.write_text(f"#!/bin/sh\n{said}\nexec '{python}' \"$@\"\n")
    path.chmod(0o755)
    return path
