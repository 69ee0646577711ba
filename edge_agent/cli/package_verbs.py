"""The verbs of `edge-agent` for the store of this device: install, models, rollback, promote, remove.

A file of its own because with all others in one the verbs are more than 600 lines.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from edge_agent.base.errors import UsageError
from edge_agent.base.terminal import print_json
from edge_agent.base.units import bytes_text
from edge_agent.cli.common_options import config_option

STEP_S = 1.0
"""Between two lines on the progress of one step."""


def add_package_verbs(verbs: Any) -> None:
    """Their arguments."""
    verb = verbs.add_parser("install", help="verify, probe and activate a package")
    config_option(verb)
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "package", nargs="?", help="a package: .tar or folder, or the URL of a .tar, or oci://HOST/REPOSITORY:TAG"
    )
    what.add_argument(
        "--from", type=Path, dest="folder", metavar="DIR",
        help="every package of a folder, by name; those installed are removed from it, a refused one gets NAME.refused "
        "beside it (default: the one package that is named)",
    )  # fmt: skip
    verb.add_argument("--digest", metavar="sha256:HEX", help="of its index: another package is refused (default: any)")
    verb.add_argument(
        "--trial", metavar="JSON",
        help="the terms of a trial on requests, '{}' for those of docs/desired.md; a version that is there answers "
        "meanwhile (default: the new version answers at once)",
    )  # fmt: skip
    verb.add_argument("--again", action="store_true", help="try a package whose trials were cut off three times")
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.add_argument(
        "--progress", action="store_true",
        help="each step as a line of JSON on standard error, at most one a second (default: shown on a terminal alone)",
    )  # fmt: skip
    verb.set_defaults(verb=install)
    verb = verbs.add_parser("models", help="what is installed")
    config_option(verb)
    verb.add_argument("--why", action="store_true", help="why this variant of each, with what was measured here")
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.set_defaults(verb=models)
    verb = verbs.add_parser("rollback", help="return a model to the version before")
    config_option(verb)
    verb.add_argument("model", help="its name on the device (`edge-agent models` lists them)")
    verb.add_argument("--trial", metavar="JSON", help="as for install (default: the version answers at once)")
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.set_defaults(verb=rollback)
    verb = verbs.add_parser("promote", help="end the trial of a model's new version: it answers from now on")
    config_option(verb)
    verb.add_argument("model", help="its name on the device (`edge-agent models` lists them)")
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.set_defaults(verb=promote)
    verb = verbs.add_parser("remove", help="remove a model, or one of its adapters")
    config_option(verb)
    verb.add_argument("model", help="its name on the device (`edge-agent models` lists them)")
    verb.add_argument(
        "--adapter", metavar="NAME", help="the adapter alone (default: the model with all of its adapters)"
    )
    verb.add_argument("--json", action="store_true", help="as JSON (default: lines for people)")
    verb.set_defaults(verb=remove)


class InstallSteps:
    """Tells the steps of an install; a `Progress`. On a terminal one line that is written over, else nothing, unless
    they are wanted as JSON."""

    def __init__(self, stream: TextIO, *, as_json: bool, now_s: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._as_json, self._now_s = stream, as_json, now_s
        self._shown = ("", -math.inf)
        self._wide = 0

    def __call__(self, step: str, done: int, total: int) -> None:
        """See `Progress`."""
        now_s = self._now_s()
        if step == self._shown[0] and now_s - self._shown[1] < STEP_S and done < total:
            return
        self._shown = (step, now_s)
        if self._as_json:
            line = {"step": step, "done_bytes": done, "total_bytes": total}
            print(json.dumps(line), file=self._stream, flush=True)
        elif self._stream.isatty():
            text = f"{step} {bytes_text(done)} of {bytes_text(total)}" if total else step
            self._write(text)

    def end(self) -> None:
        """The line goes: what follows is the report, or the reason."""
        if self._wide:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text.ljust(self._wide)}")
        self._stream.flush()
        self._wide = len(text)


def install(options: argparse.Namespace) -> int:
    """Verify, probe and activate a package."""
    from edge_agent.app.packages import install, install_url, install_waiting

    steps = InstallSteps(sys.stderr, as_json=options.progress)
    if options.folder is not None:
        if options.digest is not None:
            raise UsageError("--digest is of one package, and --from takes all of a folder")
        if options.trial is not None:
            raise UsageError("--trial is for one package, and --from takes all of a folder")
        report = install_waiting(options.config, options.folder)
        return _print_report(report, options.json) or (1 if report["refused"] else 0)
    try:
        if "://" in options.package:
            report = install_url(options.config, options.package, options.digest, steps, options.again, options.trial)
        else:
            report = install(options.config, Path(options.package), steps, options.again, options.digest, options.trial)
    finally:
        steps.end()
    return _print_report(report, options.json)


def models(options: argparse.Namespace) -> int:
    """What is installed."""
    from edge_agent.app.packages import models, models_text

    listed = models(options.config)
    if options.json:
        print_json(listed, 2)
    else:
        print(models_text(listed, options.why))
    return 0


def rollback(options: argparse.Namespace) -> int:
    """Return a model to the version before."""
    from edge_agent.app.packages import rollback

    return _print_report(rollback(options.config, options.model, options.trial), options.json)


def promote(options: argparse.Namespace) -> int:
    """End the trial of a model's new version."""
    from edge_agent.app.packages import promote

    return _print_report(promote(options.config, options.model), options.json)


def remove(options: argparse.Namespace) -> int:
    """Remove a model, or one of its adapters."""
    from edge_agent.app.packages import remove

    return _print_report(remove(options.config, options.model, options.adapter), options.json)


def _print_report(report: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(report)
    else:
        print(report["text"])
    return 0
