"""Run the steps of a plan through the cache, keyed by their inputs, their settings and the version of their code.

The version of a step's code is taken from the code itself: a digest over the modules that its entry modules reach by
imports inside `edge_forge` and `edge_agent` (imports inside functions count too), and over the versions of the named
distributions. Comments, docstrings and layout play no part, since the digest is over the syntax tree. No module is
imported to find this out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

from edge_agent.base.errors import ConfigError, EdgeError
from edge_forge.plan.cache import BuildStep, Cache, StepResult, file_digest
from edge_forge.progress import Progress
from edge_forge.train.checkpoints import Checkpoints, RunFolders

Made = TypeVar("Made")

Code = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""By step: its entry modules, and the distributions whose versions change its result."""


class Once(Generic[Made]):
    """A property, computed once for each plan as by `functools.cached_property`; two plans compute at the same time.

    Up to Python 3.11 the standard one has a lock that all instances share: the second of two trainings would wait.
    """

    def __init__(self, compute: Callable[[Any], Made]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, plan: None, owner: type) -> Once[Made]: ...
    @overload
    def __get__(self, plan: object, owner: type) -> Made: ...
    def __get__(self, plan: object | None, owner: type) -> Once[Made] | Made:
        if plan is None:
            return self
        # Found there from now on: the descriptor has no __set__, so the instance's own attribute goes first.
        return cast(Made, vars(plan).setdefault(self._name, self._compute(plan)))


class StepRunner:
    """Runs named steps for one recipe in one build folder. `entries` holds the finished ones by title."""

    def __init__(self, recipe_dir: Path, cache: Cache, progress: Progress, code: Code) -> None:
        self.recipe_dir = recipe_dir
        self.cache = cache
        self.progress = progress
        self.code = code
        self.entries: dict[str, StepResult] = {}

    def run(
        self,
        name: str,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        work: Callable[[Path], Mapping[str, Any]],
        title: str = "",
    ) -> StepResult:
        """Run a step unless the cache has its result; `inputs` are digests, `settings` JSON values, both in its key."""
        modules, distributions = self.code[name]

        def quietly(folder: Path) -> Mapping[str, Any]:
            if "transformers" in distributions:
                quiet()
            return work(folder)

        entry = self.cache.run(
            BuildStep(name, inputs, settings, code_version(modules, distributions), quietly, title or name)
        )
        self.entries[title or name] = entry
        return entry

    def run_folders(self, folder: Path) -> RunFolders:
        """What outlasts the training that works in `folder`; says so where a killed run left a checkpoint
        that it goes on from."""
        found = self.cache.checkpoints(folder)
        if Checkpoints(found).newest() is not None:
            self.progress.say(
                "a training of the same inputs and settings was ended: it goes on from its last checkpoint"
            )
        return RunFolders(found.absolute(), (self.cache.root / "logs" / folder.name).absolute())

    def timings(self) -> list[dict[str, Any]]:
        """The finished steps in order: their titles, seconds, and whether the result was there already."""
        return [
            {"name": name, "took_s": entry.record["took_s"], "cached": entry.cached}
            for name, entry in self.entries.items()
        ]


def quiet() -> None:
    """No progress bars of transformers within a step: the forge has its own. Called before the step imports PyTorch.

    OpenMP threads that wait by spinning keep the core from the thread that they wait for as soon as another program
    runs; OpenMP reads the variable when PyTorch is imported.

    Where torchao is installed, it says at its import, which peft causes, that it cannot load its extensions for GPUs.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def digest_of_data(path: Path, section: str = "data") -> str:
    """sha256 of a data file that a section of the recipe names. Raises ConfigError that names it."""
    try:
        return file_digest(path)
    except OSError as error:
        raise ConfigError(
            f"the data file cannot be read: {error.strerror}", str(path), f"see [{section}] of the recipe"
        ) from error


def with_log(error: EdgeError, log: Path, build: Path) -> EdgeError:
    """The same error, with the training log kept where the step's own folder does not take it away."""
    if not log.is_file():
        return error
    kept = build / "logs" / "train.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, kept)
    if error.remedy is not None:
        error.remedy = error.remedy.replace(str(log.resolve()), str(kept))
    return error


def plain(section: Any) -> dict[str, Any]:
    """A section of the recipe as JSON values."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(section)
    return found


_ROOTS = ("edge_forge", "edge_agent")
# They carry words and limits of other rooms, not results; a new message must not cost a training run.
_WITHOUT_EFFECT = frozenset(
    {
        "edge_agent.base.errors",
        "edge_agent.base.limits",
        "edge_forge.progress",
        "edge_forge.plan.cache",
        "edge_forge.user_state",
    }
)
# A recipe's values are in a step's key as its settings, so the code that reads them is not, of whatever kind it is.
_WITHOUT_EFFECT_BELOW = "edge_forge.recipe."


# Runtimes that a step may run beside those of its kind, with what decides their results.
_FURTHER_RUNTIMES: Code = {"litert": (("edge_agent.backends.litert",), ("ai-edge-litert",))}


def runtime_versions(runtimes: Iterable[str]) -> dict[str, str]:
    """For the settings of a step that runs graphs of `runtimes`: the code versions of those that not every plan has.

    They are no part of a step's `Code`, so that results of other runtimes stay when one of these comes or changes.
    """
    return {name: code_version(*_FURTHER_RUNTIMES[name]) for name in sorted(_FURTHER_RUNTIMES.keys() & set(runtimes))}


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
        if name not in reached and not _is_without_effect(name):
            reached.add(name)
            waiting.extend(_imports(name))
    return reached


def _is_without_effect(name: str) -> bool:
    return name in _WITHOUT_EFFECT or name.startswith(_WITHOUT_EFFECT_BELOW)


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
