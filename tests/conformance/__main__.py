"""Ours beside the programs and suites of others, on one page: `python -m tests.conformance` (`make conformance`).

Nothing of others is part of this repository: suites are given by path, programs are those that are installed. What is
not there is skipped, and the page says how to get it. What was tried before, on whatever machine, stays on the page
with its day until it is tried again: it is kept in docs/conformance.json, which the page is made from. Ends with 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tests.conformance import documents, gguf_converter, wire
from tests.conformance.outcome import REPOSITORIES, ROOT, Outcome, Places

CHECKS: dict[str, Callable[[Places], Iterator[Outcome]]] = {
    "packages": documents.packages,
    "signatures": documents.signatures,
    "interface": documents.interface,
    "metrics": documents.metrics,
    "debian": documents.debian,
    "brokers": wire.brokers,
    "clients": wire.clients,
    "houses": wire.houses,
    "schemas": documents.schemas,
    "maskbench": documents.maskbench,
    "converter": gguf_converter.converter,
}


@dataclass(frozen=True, slots=True)
class Row:
    """An outcome of a check with the day (UTC) on which it came, and where."""

    check: str
    on: str
    where: str
    outcome: Outcome


def merged(kept: list[Row], check: str, found: list[Outcome], on: str, where: str) -> list[Row]:
    """The rows after a check has run. One that was skipped now and had been tried before stays as it was."""
    before = {(row.outcome.subject, row.outcome.against): row for row in kept if row.check == check}
    rows = []
    for one in found:
        old = before.get((one.subject, one.against))
        rows.append(old if old is not None and old.outcome.version and not one.version else Row(check, on, where, one))
    return [row for row in kept if row.check != check] + rows


def page(rows: list[Row]) -> str:
    """The rows as Markdown, in the order of the checks."""
    wheres = sorted({row.where for row in rows if row.outcome.version})
    lines = [
        "# Conformance",
        "",
        f"Written by `make conformance` on {' and '.join(wheres)}. Suites and programs of others are no part of this "
        "repository; a suite's version is its commit. A row stays, with its day, until its check is run again "
        "(`make conformance CHECKS=brokers`).",
        "",
        "| what of ours | against | version | on | tried | failed | |",
        "|---|---|---|---|---:|---:|---|",
    ]
    left = []
    for name in CHECKS:
        mine = [row for row in rows if row.check == name]
        for row in mine:
            one = row.outcome
            if not one.version:
                left.append(f"- {one.against} ({one.subject}): {_cell(one.note)}")
                continue
            said = _cell("; ".join(part for part in (*one.failed, one.note) if part))
            counts = f"{one.tried:,} | {len(one.failed)}"
            lines.append(f"| {one.subject} | {one.against} | {one.version} | {row.on} | {counts} | {said} |")
        left += [f"- {name}: was not run"] * (not mine)
    if left:
        lines += ["", "## Not tried", "", *left]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0], prog="python -m tests.conformance")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"these alone: {', '.join(CHECKS)} (default: all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "conformance", help="default: build/conformance")
    parser.add_argument("--npm", type=Path, help="folder of npm's packages (default: WORK/npm)")
    parser.add_argument("--python", type=Path, help="a Python with aiomqtt and gmqtt (default: WORK/python/bin/python)")
    parser.add_argument("--hass", type=Path, help="Home Assistant (default: build/home-assistant/bin/hass)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs" / "conformance.md",
        help="the page, with its .json beside it (default: docs/conformance.md)",
    )
    for name, where in REPOSITORIES.items():
        parser.add_argument(
            f"--{name}", type=Path, default=Path("..") / where.split("/")[-1], help=f"a clone of {where}"
        )
    options = parser.parse_args(arguments)
    if unknown := set(options.checks) - set(CHECKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    places = Places(
        work,
        (options.npm or work / "npm").resolve(),
        options.python or work / "python" / "bin" / "python",
        options.hass or ROOT / "build" / "home-assistant" / "bin" / "hass",
        {name: getattr(options, name).resolve() for name in REPOSITORIES},
    )
    record = options.out.with_suffix(".json")
    rows = msgspec.json.decode(record.read_bytes(), type=list[Row]) if record.exists() else []
    failed = 0
    for name in options.checks or list(CHECKS):
        outcomes = []
        for found in CHECKS[name](places):
            one = found if found.tried or not found.version else replace(found, failed=("nothing was tried",))
            outcomes.append(one)
            failed += len(one.failed)
            state = "SKIPPED: " + one.note if not one.version else f"{one.tried} tried, {len(one.failed)} failed"
            print(f"{one.subject} / {one.against} {one.version}: {state}", flush=True)
            for line in one.failed[:20]:
                print(f"  {line}", flush=True)
        where = f"{platform.machine()}, Python {platform.python_version()}"
        rows = merged(rows, name, outcomes, time.strftime("%Y-%m-%d", time.gmtime()), where)
        record.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
        options.out.write_text(page(rows))
    print(f"written: {options.out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
