"""Tests that need llama.cpp: skipped loudly where it is not installed, failed in CI."""

import importlib.util
import os

import pytest

_MISSING = importlib.util.find_spec("llama_cpp") is None
needs_llama = pytest.mark.skipif(
    _MISSING and not os.environ.get("CI"),
    reason="llama-cpp-python is not installed: install edge-agent with its extra llamacpp",
)
