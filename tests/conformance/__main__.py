"""Ours beside the programs and suites of others, on one page: `python -m tests.conformance` (`make conformance`).

Nothing of others is part of this repository: suites are given by path, programs are those that are installed. What is
not there is skipped, and the page says how to get it. A check that is not asked for keeps its last outcomes. Ends
with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from tests.conformance import documents, wire
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
}


FOUND = tuple[str, list[Outcome]]


def page(found: dict[str, tuple[str, list[Outcome]]]) -> str:
    """The outcomes of each check as Markdown, with the day on which it ran."""
    lines = [
        "# Conformance",
        "",
        f"Written by `make conformance` on {platform.machine()}, Python {platform.python_version()}. Suites and "
        "programs of others are no part of this repository; a suite's version is its commit.",
        "",
        "| what of ours | against | version | on | tried | failed | |",
        "|---|---|---|---|---:|---:|---|",
    ]
    left = []
    for name in CHECKS:
        day, outcomes = found.get(name, ("", []))
        for one in outcomes:
            if not one.version:
                left.append(f"- {one.against} ({one.subject}): {_cell(one.note)}")
                continue
            said = _cell("; ".join(part for part in (*one.failed, one.note) if part))
            counts = f"{one.tried:,} | {len(one.failed)}"
            lines.append(f"| {one.subject} | {one.against} | {one.version} | {day} | {counts} | {said} |")
        left += [f"- {name}: was not run"] * (not outcomes)
    left.append(
        "- llama.cpp's own converter beside ours: not part of it yet. What our converter writes is run by llama.cpp in "
        "tests/integration/test_gguf.py"
    )
    return "\n".join([*lines, "", "## Not tried", "", *left]) + "\n"


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
        "--out", type=Path, default=ROOT / "docs" / "conformance.md", help="default: docs/conformance.md"
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
        day = time.strftime("%Y-%m-%d", time.gmtime())
        (work / f"{name}.found").write_bytes(msgspec.json.encode((day, outcomes)))
    kept = {path.stem: path.read_bytes() for path in work.glob("*.found")}
    options.out.write_text(page({name: msgspec.json.decode(data, type=FOUND) for name, data in kept.items()}))
    print(f"written: {options.out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
