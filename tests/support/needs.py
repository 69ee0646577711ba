"""What a test needs from outside: skipped loudly where it is absent, failed in CI, where it must be there."""

from __future__ import annotations

import importlib
import os
import shutil

import pytest


def need(*modules: str) -> None:
    """The modules can be imported, or the test skips (fails where CI is set) and says what was not checked."""
    for name in modules:
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            text = f"NO {name} HERE: what needs it was NOT checked ({error}); make setup llamacpp litert"
            if os.environ.get("CI"):
                pytest.fail(text)
            pytest.skip(text)


def program(name: str, package: str) -> str:
    """The path of a program of that Debian package, or the test skips (fails where CI is set)."""
    found = shutil.which(name)
    if found is None:
        text = f"NO {name} HERE: what needs it was NOT checked; apt install {package}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found
