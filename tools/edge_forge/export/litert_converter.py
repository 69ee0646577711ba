"""What a plan knows of the converter for LiteRT before it imports it: whether it is there, and what it will make.

A file of its own because `export.litert` imports PyTorch.
"""

from __future__ import annotations

import importlib.util

SHORTEST = 16
REMEDY = "`make litert` in the clone, or take litert out of [quantize]"
_MODULES = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")


def absent() -> tuple[str, ...]:
    """The modules that are not installed, of those that convert, quantise and measure."""
    return tuple(name for name in _MODULES if importlib.util.find_spec(name) is None)


def lengths(max_tokens: int) -> list[int]:
    """The numbers of tokens that get a signature: each twice the one before, and `max_tokens` itself.

    A text costs what its signature costs, so at most twice its own length; more signatures would take more memory.
    """
    found = [SHORTEST]
    while found[-1] * 2 < max_tokens:
        found.append(found[-1] * 2)
    return [length for length in found if length < max_tokens] + [max_tokens]
