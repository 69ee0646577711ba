"""`python -m tests.fuzz [--seconds 600] [TARGET ...]`: looks for inputs on which a parser fails, guided by coverage.

The targets share the time; each runs in a process of its own, as many at once as there are processors. Where `atheris`
is installed, libFuzzer chooses the inputs by the lines of Python that they reach, and half of the changes are the
target's own; elsewhere all are the target's own, without a guide. The inputs that were worth keeping lie in
build/fuzz/corpus, those that failed, one per place in the code, in build/fuzz/found. Ends with 1 where there are such.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.target import Target

BUILD = Path("build/fuzz")
# libFuzzer's own limits stand far above the target's and catch what stops Python itself: a loop or memory in C.
RESIDENT_MIB = 1024
OVERTIME_S = 300.0
REGRESSIONS = Path(__file__).parent / "regressions"


def main() -> int:
    """Run all targets, or one of them in this process (`--one`)."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n", 1)[0])
    options.add_argument("--seconds", type=float, default=600.0, help="of all targets together (600)")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once (all processors)")
    options.add_argument("--one", action="store_true", help="run the one target in this process")
    options.add_argument("targets", nargs="*", help="which (all)")
    given = options.parse_args()
    if given.one:
        _run_one(given.targets[0], given.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        options.error(f"there is no target {unknown[0]}; there are: {', '.join(TARGETS)}")
    names = given.targets or list(TARGETS)
    each_s = given.seconds * given.jobs / len(names)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: inputs are changed without a guide", flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        failed = [
            name for name, fine in zip(names, pool.map(lambda one: _child(one, each_s), names), strict=True) if not fine
        ]
    print(f"{len(names)} targets, {len(failed)} with inputs that fail: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _child(name: str, seconds: float) -> bool:
    """Run a target in a process and print a line about it; False where an input failed."""
    found, began = BUILD / "found" / name, time.monotonic()
    found.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--one", name, "--seconds", f"{seconds:.0f}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code: int | str = process.wait(seconds + OVERTIME_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "a kill, since it went on beyond its time"
    text = (BUILD / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    runs = re.findall(r"^(?:Done |#)(\d+)", text, re.MULTILINE)
    failures = sorted(one.name for one in found.iterdir())
    ended = "" if code == 0 else f", ended with {code} (see {BUILD / name}.log)"
    print(f"{name}: {runs[-1] if runs else '?'} inputs in {time.monotonic() - began:.0f} s{ended}", flush=True)
    for one in failures:
        print(f"  failed: {found / one}", flush=True)
    return not failures and code == 0


def _run_one(name: str, seconds: float) -> None:
    """Look for failures of one target; does not return where atheris is used."""
    if importlib.util.find_spec("atheris") is None:
        from tests.fuzz.targets import TARGETS

        _unguided(TARGETS[name], name, seconds)
        return
    import atheris

    with atheris.instrument_imports(include=["edge_agent", "edge_forge"]):
        from tests.fuzz.targets import TARGETS
    target, seen = TARGETS[name], set[str]()
    corpus, found = BUILD / "corpus" / name, BUILD / "found" / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    _forget_mended(target, found, corpus)
    for number, seed in enumerate(_seeds(target, name)):
        (corpus / f"seed-{number}").write_bytes(seed)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)
        return bytes((target.mutated(data, chance) if chance.random() < 0.5 else atheris.Mutate(data, most))[:most])

    flags = [f"-max_total_time={seconds:.0f}", f"-max_len={target.size_bytes}", f"-timeout={target.hang_s}",
             f"-rss_limit_mb={RESIDENT_MIB}", f"-artifact_prefix={found}/"]  # fmt: skip
    atheris.Setup(
        [sys.argv[0], *flags, str(corpus)], lambda data: _try(target, name, data, seen), custom_mutator=changed
    )
    atheris.Fuzz()


def _forget_mended(target: Target, found: Path, corpus: Path) -> None:
    """Move inputs that failed in an earlier run, and do no more, to the corpus."""
    from tests.fuzz.target import Found, check

    for path in sorted(found.iterdir()):
        with contextlib.suppress(Found):
            check(target, path.read_bytes())
            path.replace(corpus / path.name)


def _seeds(target: Target, name: str) -> list[bytes]:
    return [*target.seeds(), *(path.read_bytes() for path in sorted((REGRESSIONS / name).glob("*")))]


def _unguided(target: Target, name: str, seconds: float) -> None:
    chance, seeds, seen = Random(), _seeds(target, name), set[str]()
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = chance.choice(seeds)
        for _ in range(1 + chance.randrange(6)):
            data = target.mutated(data, chance)[: target.size_bytes]
        _try(target, name, data, seen)
        number += 1
    print(f"Done {number} runs")


def _try(target: Target, name: str, data: bytes, seen: set[str]) -> None:
    """Check an input; the first one for each place of failure is kept, and the search goes on."""
    from tests.fuzz.target import Found, check

    try:
        check(target, data)
    except Found as failure:
        if failure.kind not in seen:
            seen.add(failure.kind)
            folder = BUILD / "found" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / re.sub(r"[^A-Za-z0-9.]+", "-", failure.kind)).write_bytes(data)
            with contextlib.suppress(OSError):
                print(f"FAILED {failure}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
