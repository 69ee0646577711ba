"""`edge-forge`: the verbs, their arguments and exit codes. `commands` and `package.package_commands` run them.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Results go to standard output, progress to standard
error. Nothing heavy is imported until a verb needs it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_agent import __version__
from edge_agent.base.completion import add_completion, completion
from edge_agent.base.errors import EdgeError, UsageError
from edge_agent.base.terminal import clean_streams, hang_up, last_resort, system_error
from edge_forge.kinds.registry import DEFAULT, KINDS

# verb: (module with `main(arguments: argparse.Namespace) -> int | None`, what it does)
_STEPS = {
    "train": "train the adapter or model of a recipe",
    "evaluate": "scores of what was trained, by PyTorch",
    "export": "the ONNX graphs: the base with its adapter bank, and the merged model",
    "quantize": "number formats of the graphs, measured by the code that the device runs",
    "package": "unsigned packages (build signs them too)",
}

_PACKAGE_COMMANDS = "edge_forge.package.package_commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Nothing that a verb raises leaves it as a traceback."""
    with clean_streams():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
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
    except BrokenPipeError:
        hang_up()
        return 1
    except OSError as error:
        print(f"edge-forge: {system_error(error)}", file=sys.stderr)
        return 1
    except SystemExit:
        raise
    # The last resort: the program ends with one line and a file. A panic of a library in Rust (tokenizers, safetensors)
    # is no Exception.
    except BaseException as error:  # noqa: BLE001
        print(last_resort("edge-forge", error, str(getattr(arguments, "verb", arguments.run))), file=sys.stderr)
        return 1


def _load(place: str) -> Callable[[argparse.Namespace], int | None]:
    module, _, function = place.partition(":")
    found: Callable[[argparse.Namespace], int | None] = getattr(importlib.import_module(module), function)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-forge", description="From a recipe to a signed package for edge-agent.")
    parser.add_argument("--version", action="version", version=f"edge-forge {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _init_verb(verbs)
    for verb, what in _STEPS.items():
        step = verbs.add_parser(verb, help=what)
        _recipe_arguments(step)
        step.set_defaults(run="edge_forge.commands:step", verb=verb)
    build = verbs.add_parser("build", help="all of it: from data to signed packages and a report")
    build.add_argument("recipe", type=Path, nargs="+", help="recipes, or folders that hold one")
    build.add_argument(
        "--together", type=_count, default=1, metavar="N",
        help="of several recipes train so many at the same time, each in its own process (default: 1)",
    )  # fmt: skip
    _common_arguments(build)
    build.add_argument(
        "--no-trial", action="store_true", help="do not install the packages in a scratch store (default: do)"
    )
    build.set_defaults(run="edge_forge.commands:build")
    side = verbs.add_parser("compare", help="recipes and methods side by side: quality, time, memory, size, latency")
    side.add_argument("recipe", type=Path, nargs="+", help="recipes, or folders that hold one")
    side.add_argument(
        "--methods",
        metavar="LIST",
        help="ways to adapt each: lora,full or with presets lora:B,full:A (default: the recipe's own)",
    )
    side.add_argument(
        "--seeds",
        type=_count,
        default=1,
        metavar="N",
        help="train each so often, with seeds that follow on the recipe's own (default: 1)",
    )
    side.add_argument(
        "--step-sizes",
        default="",
        metavar="LIST",
        help="factors over each method's step size, as 0.3,1,3; the best on the validation rows is taken "
        "(default: the step size of the recipe or of the table of methods)",
    )
    _knowledge_arguments(side)
    _common_arguments(side)
    side.set_defaults(run="edge_forge.commands:compare")
    seen = verbs.add_parser("diagnose", help="what training did to the weights and to what the base knew")
    _recipe_arguments(seen)
    ways = seen.add_mutually_exclusive_group()
    ways.add_argument("--methods", metavar="LIST", help="methods side by side: lora,full (default: the recipe's own)")
    ways.add_argument("--ranks", metavar="LIST", help="ranks side by side: 1,8,16 (default: the recipe's own)")
    _knowledge_arguments(seen)
    seen.set_defaults(run="edge_forge.commands:diagnose")
    _sequence_verb(verbs)
    _sweep_verb(verbs)
    _package_verbs(verbs)
    _provision_verb(verbs)
    add_completion(verbs, "edge-forge").set_defaults(run="edge_forge.cli:complete", verb="completion")
    return parser


def _init_verb(verbs: Any) -> None:
    new = verbs.add_parser("init", help="write a commented recipe with a small data set")
    new.add_argument("name", help="the adapter's name; also the folder's")
    new.add_argument("--dir", type=Path, default=Path(), help="where to make the folder (default: here)")
    new.add_argument(
        "--task",
        choices=tuple(KINDS),
        default=DEFAULT,
        help=f"a classifier, a generator (llama.cpp), or a generator that learns which of two answers is better "
        f"(default: {DEFAULT})",
    )
    new.set_defaults(run="edge_forge.recipe.scaffold:init")


def _knowledge_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked of the base before and after tuning (default of all: what [diagnose] of the recipe names)."""
    ends = "(default: of the recipe)"
    parser.add_argument("--similarity", type=Path, metavar="FILE",
                        help=f"encoders: sentence pairs with text_a, text_b and score, as STS-B {ends}")  # fmt: skip
    parser.add_argument("--earlier", type=Path, action="append", metavar="RECIPE",
                        help=f"encoders: a linear probe of that recipe's task; repeat for several {ends}")  # fmt: skip
    parser.add_argument("--text", type=Path, metavar="FILE", help=f"generators: texts for the perplexity {ends}")
    parser.add_argument("--pairs", type=Path, metavar="FILE",
                        help=f"generators: sentence pairs with good and bad, as BLiMP {ends}")  # fmt: skip
    parser.add_argument("--exact", action="append", metavar="SET",
                        help="generators: questions with one right answer each: maths, code, or a .jsonl file with "
                        f"prompt and answer; repeat for several {ends}")  # fmt: skip


def _sequence_verb(verbs: Any) -> None:
    row = verbs.add_parser(
        "sequence", help="train tasks one after another on one model, and score all of them after each"
    )
    row.add_argument(
        "recipe",
        type=Path,
        nargs="+",
        help="recipes of classifiers, or of generators, on one base, in the order of training",
    )
    _common_arguments(row)
    row.set_defaults(run="edge_forge.sequence:sequence")


def _sweep_verb(verbs: Any) -> None:
    sweep = verbs.add_parser("sweep", help="search for the values of a recipe that train best; Optuna draws them")
    _recipe_arguments(sweep)
    sweep.add_argument(
        "--over", action="append", default=[], metavar="KEY=VALUES",
        help="a key to vary, with a range or a list: train.learning_rate=1e-4:1e-2:log, train.epochs=2:8, "
        "method.rank=4,8,16; repeat for several (default: step size and epochs, with an adapter also rank and targets)",
    )  # fmt: skip
    sweep.add_argument(
        "--trials", type=int, default=20, metavar="N",
        help="trials in all, those of an earlier run of the same sweep counted (default: %(default)s)",
    )  # fmt: skip
    sweep.add_argument(
        "--preset", choices=("ranks",),
        help="ranks: every rank that the recipe takes, trained to the end (default: a search)",
    )  # fmt: skip
    sweep.set_defaults(run="edge_forge.sweep.search:main", verb="sweep")


def _count(text: str) -> int:
    """A whole number from 1 to 100."""
    if not (text.isdecimal() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100")
    return int(text)


def complete(arguments: argparse.Namespace) -> None:
    """`edge-forge completion SHELL`."""
    print(completion(_parser(), arguments.shell))


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe.toml, or the folder that holds one")
    _common_arguments(parser)


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], dest="overlay", metavar="KEY=VALUE",
        help="a key of the recipe for this run, as train.epochs=3 or export.merged=false; repeat for several "
        "(default: the recipe as it stands)",
    )  # fmt: skip
    parser.add_argument("--build", type=Path, metavar="DIR", help="the build folder (default: build/ of the project)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON (default: tables)")
    parser.add_argument("--quiet", action="store_true", help="say only what is wrong (default: each step)")


def _package_verbs(subparsers: Any) -> None:
    keygen = subparsers.add_parser("keygen", help="make signing keys and the trust root that devices need")
    keygen.add_argument("dir", type=Path, metavar="DIR", help="the folder for the keys; keep it off the devices")
    ways = keygen.add_mutually_exclusive_group()
    ways.add_argument(
        "--rotate",
        choices=("root", "release", "all"),
        help="new keys and the next root file, signed by old and new (default: keys that are there stay)",
    )
    ways.add_argument(
        "--product", action="append", metavar="NAME",
        help="a further release key that signs this product alone, and the next root file; repeat for several "
        "(default: none)",
    )  # fmt: skip
    ways.add_argument(
        "--adopt", action="store_true", help="take over the keys in DIR, which were made by another user or elsewhere"
    )
    keygen.set_defaults(run=f"{_PACKAGE_COMMANDS}:keygen_verb")

    sign = subparsers.add_parser("sign", help="sign a package in place")
    _package_argument(sign)
    sign.add_argument("--key", type=Path, action="append", required=True, metavar="FILE", help="a private release key")
    sign.add_argument(
        "--root",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a root file that travels with it (default: none)",
    )
    sign.set_defaults(run=f"{_PACKAGE_COMMANDS}:sign_verb")

    verify = subparsers.add_parser("verify", help="check a package as a device would, weights included")
    _package_argument(verify)
    verify.add_argument(
        "--root",
        type=Path,
        metavar="FILE",
        help="the trust root (default: root.json of $EDGE_FORGE_KEYS, else of the build folder that holds it)",
    )
    verify.add_argument("--allow-unsigned", action="store_true", help="check everything but who made it")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    verify.set_defaults(run=f"{_PACKAGE_COMMANDS}:verify_verb")

    oci = subparsers.add_parser("oci", help="write a package as an OCI layout, for skopeo to push into a registry")
    _package_argument(oci)
    oci.add_argument("folder", type=Path, metavar="DIR", help="to write; must not be there")
    oci.set_defaults(run=f"{_PACKAGE_COMMANDS}:oci_verb")

    inspect = subparsers.add_parser("inspect", help="say what a package holds; checks no signature")
    _package_argument(inspect)
    inspect.add_argument("--json", action="store_true", help="print it as JSON (default: a table)")
    inspect.set_defaults(run=f"{_PACKAGE_COMMANDS}:inspect_verb")


def _provision_verb(verbs: Any) -> None:
    verb = verbs.add_parser("provision", help="fill a root file system, mounted or in an image file")
    verb.add_argument(
        "root", type=Path, metavar="ROOT", help="a raw image file, or where its root partition is mounted"
    )
    verb.add_argument(
        "--package", type=Path, action="append", default=[], metavar="FILE",
        help="a package for the first boot to install, a base before its adapters; repeat for several (default: none)",
    )  # fmt: skip
    verb.add_argument(
        "--trust-root", type=Path, metavar="FILE",
        help="the root.json that the boards trust (default: as `verify` finds it for the first package)",
    )  # fmt: skip
    verb.add_argument("--settings", type=Path, metavar="FILE", help="settings that all boards share (default: none)")
    verb.add_argument(
        "--devices", type=Path, metavar="FILE",
        help="devices.csv, a board a line: name, broker, username, password or password_file, ca, cert, key "
        "(default: one board, named in the settings)",
    )  # fmt: skip
    verb.add_argument(
        "--device", metavar="NAME", help="put this board's own files into ROOT (default: into none but --out's tars)"
    )
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="write a tar of its own files for every board (default: none)"
    )
    verb.add_argument(
        "--seed", type=Path, metavar="BOOT",
        help="leave ROOT as it is and write a seed of cloud-init into the mounted boot partition (default: none)",
    )  # fmt: skip
    verb.add_argument(
        "--layer", type=Path, metavar="DIR",
        help="leave ROOT as it is and write a layer of rpi-image-gen into this folder (default: none)",
    )  # fmt: skip
    verb.add_argument(
        "--wheel", type=Path, metavar="FILE", help="edge-agent's wheel (default: of --wheels, else of dist/ here)"
    )
    verb.add_argument(
        "--wheels", type=Path, metavar="DIR", help="take wheels from this folder alone (default: download, and keep)"
    )
    verb.add_argument(
        "--extra", action="append", default=[], metavar="NAME",
        help="an extra of edge-agent to install; repeat for several (default: what the packages need)",
    )  # fmt: skip
    verb.add_argument(
        "--drop-in", action="append", default=[], metavar="NAME",
        help="a drop-in of the service, as `edge-agent service install` takes them (default: none)",
    )  # fmt: skip
    verb.add_argument("--arch", help="refuse an image of another one: aarch64 or x86_64 (default: take either)")
    verb.add_argument("--dry-run", action="store_true", help="say every file, write nothing")
    verb.add_argument(
        "--boot", action="store_true",
        help="before anything is written start a copy of the filled image (systemd-nspawn, without a network) and wait "
        "for its first answer (default: do not)",
    )  # fmt: skip
    verb.add_argument("--remove", action="store_true", help="take back what provision put there")
    verb.add_argument("--json", action="store_true", help="print the result as JSON (default: lines for people)")
    verb.set_defaults(run="edge_forge.provision.provision_commands:provision_verb")


def _package_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="a package: one tar, or a folder")


if __name__ == "__main__":
    sys.exit(main())
