"""`edge-forge`: the verbs, their arguments and exit codes. What they do is in `run` and `packaging`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Results go to standard output, progress to standard
error. Nothing heavy is imported until a verb needs it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.base.errors import EdgeError, UsageError
from edge_forge.package.verbs import register as register_packaging

# verb: (module with `main(arguments: argparse.Namespace) -> int | None`, what it does)
_STEPS = {
    "train": "train the adapter or model of a recipe",
    "evaluate": "scores of what was trained, by PyTorch",
    "export": "the ONNX graphs: the base with its adapter bank, and the merged model",
    "quantize": "number formats of the graphs, measured by the code that the device runs",
    "package": "unsigned packages (build signs them too)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        work: Callable[[argparse.Namespace], int | None] = _load(arguments.run)
        return work(arguments) or 0
    except UsageError as error:
        print(f"edge-forge: {error}", file=sys.stderr)
        return 2
    except EdgeError as error:
        print(f"edge-forge: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nedge-forge: stopped; finished steps are kept, nothing half-written is", file=sys.stderr)
        return 130


def _load(place: str) -> Callable[[argparse.Namespace], int | None]:
    module, _, function = place.partition(":")
    found: Callable[[argparse.Namespace], int | None] = getattr(importlib.import_module(module), function)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-forge", description="From a recipe to a signed package for edge-agent.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    new = verbs.add_parser("init", help="write a commented recipe with a small data set")
    new.add_argument("name", help="the adapter's name; also the folder's")
    new.add_argument("--dir", type=Path, default=Path(), help="where to make the folder (default: here)")
    new.add_argument(
        "--task", choices=("classify", "generate"), default="classify", help="a classifier, or a generator (llama.cpp)"
    )
    new.set_defaults(run="edge_forge.recipe.scaffold:init")
    for verb, what in _STEPS.items():
        step = verbs.add_parser(verb, help=what)
        _recipe_arguments(step)
        step.set_defaults(run="edge_forge.run:step", verb=verb)
    build = verbs.add_parser("build", help="all of it: from data to signed packages and a report")
    _recipe_arguments(build)
    build.set_defaults(run="edge_forge.run:build")
    side = verbs.add_parser("compare", help="recipes and methods side by side: quality, time, memory, size, latency")
    side.add_argument("recipe", type=Path, nargs="+", help="recipes, or folders that hold one")
    side.add_argument("--methods", metavar="LIST", help="ways to adapt each: lora,full or with presets lora:B,full:A")
    _common_arguments(side)
    side.set_defaults(run="edge_forge.compare:compare")
    register_packaging(verbs)
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe.toml, or the folder that holds one")
    _common_arguments(parser)


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--build", type=Path, metavar="DIR", help="the build folder (default: build/ of the project)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="say only what is wrong")


if __name__ == "__main__":
    sys.exit(main())
