"""The version of a step's code, taken from the code itself, so that nobody has to remember to raise a number.

It is a digest over the modules that a step's entry module reaches by imports inside `edge_forge` and `edge_agent`
(imports inside functions count too) and over the versions of the named distributions. Comments, docstrings and layout
play no part: the digest is over the syntax tree. No module is imported to find this out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

_ROOTS = ("edge_forge", "edge_agent")
# They carry words and limits of other rooms, not results; a new message must not cost a training run.
_WITHOUT_EFFECT = frozenset(
    {
        "edge_agent.base.errors",
        "edge_agent.base.limits",
        "edge_forge.progress",
        "edge_forge.recipe.classifier_recipe",
        "edge_forge.recipe.schema",
        "edge_forge.recipe.generator_recipe",
        "edge_forge.plan.cache",
    }
)


def code_version(modules: Sequence[str], distributions: Sequence[str] = ()) -> str:
    """A short digest of `modules` with all they reach, and of the installed versions of `distributions`."""
    digest = hashlib.sha256()
    for name in sorted(_closure(modules)):
        digest.update(f"{name}={_module_digest(name)}\n".encode())
    for name in sorted(distributions):
        digest.update(f"{name}=={_version(name)}\n".encode())
    return digest.hexdigest()[:16]


def _closure(modules: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in reached and name not in _WITHOUT_EFFECT:
            reached.add(name)
            waiting.extend(_imports(name))
    return reached


@functools.cache
def _path(name: str) -> Path | None:
    """The source file of a module below the roots; found without importing it (only its root package)."""
    root, *rest = name.split(".")
    if root not in _ROOTS:
        return None
    spec = importlib.util.find_spec(root)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(folder).joinpath(*rest)
        for candidate in (place.with_suffix(".py"), place / "__init__.py") if rest else (place / "__init__.py",):
            if candidate.is_file():
                return candidate
    return None


@functools.cache
def _tree(name: str) -> ast.Module:
    path = _path(name)
    if path is None:
        raise LookupError(f"the module {name} has no source file")
    return ast.parse(path.read_bytes())


@functools.cache
def _imports(name: str) -> frozenset[str]:
    """The modules below the roots that a module imports, anywhere in its source."""
    path = _path(name)
    package = name if path is not None and path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            base = base.rstrip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(module for module in found if _path(module) is not None)


@functools.cache
def _module_digest(name: str) -> str:
    tree = _tree(name)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
