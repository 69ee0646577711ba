"""Each parser over its real inputs and some hundred changes of them: errors of the project only, within bounds.

`make nightly` goes on from here for ten minutes with coverage as its guide (`python -m tests.fuzz`).
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from edge_agent.base.errors import PackageError
from tests.fuzz import mutate
from tests.fuzz.target import MEMORY_BYTES, Found, Target, check
from tests.fuzz.targets import TARGETS
from tests.support.needs import need

CHANGES = 200
SIGNED = {"envelope", "attach"}
"""Where no change is taken: a signature covers it, or every tensor has to fit."""
SLOW = {"template": 40, "attach": 60, "recipe": 100, "settings": 60}


NEEDS = {
    "gguf-llama": "llama_cpp",
    "safetensors-library": "safetensors",
    "dsse-library": "securesystemslib",
    "onnx-runtime": "onnxruntime",
}


@pytest.mark.parametrize("name", TARGETS)
def test_real_inputs_are_taken(name: str) -> None:
    need(*([NEEDS[name]] if name in NEEDS else []))
    seeds = TARGETS[name].seeds()
    assert seeds
    for seed in seeds:
        assert len(seed) <= TARGETS[name].size_bytes
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_taken_or_refused_by_name(name: str) -> None:
    need(*([NEEDS[name]] if name in NEEDS else []))
    target, chance = TARGETS[name], Random(name)
    seeds = target.seeds()
    taken = 0
    for number in range(SLOW.get(name, CHANGES)):
        data = seeds[number % len(seeds)]
        for _ in range(1 + number % 3):
            data = target.mutated(data, chance)
        taken += check(target, data[: target.size_bytes])
    assert taken or name in SIGNED, "no change was taken: the changes do not reach behind the first check"


def _faulty(run: object) -> Target:
    return Target(run, (PackageError,), lambda: [b"x"], mutate.by_bytes)  # type: ignore[arg-type]


def _raises(data: bytes) -> None:
    raise KeyError(data)


def _refuses_at_length(data: bytes) -> None:
    raise PackageError("x" * 2000)


def _computes(data: bytes) -> None:
    sum(range(200_000_000))


def _holds(data: bytes) -> None:
    assert bytearray(b"\1") * (4 * MEMORY_BYTES)


@pytest.mark.parametrize(
    ("run", "kind"),
    [(_raises, "KeyError at"), (_refuses_at_length, "a sentence"), (_computes, "time"), (_holds, "memory")],
)
def test_a_faulty_parser_is_found(run: object, kind: str) -> None:
    with pytest.raises(Found) as caught:
        check(_faulty(run), b"x")
    assert caught.value.kind.startswith(kind)


def test_an_error_by_name_is_no_failure() -> None:
    def refuses(data: bytes) -> None:
        raise PackageError("no")

    assert not check(_faulty(refuses), b"x")


REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*/*"))


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_inputs_that_failed_once(path: Path) -> None:
    check(TARGETS[path.parent.name], path.read_bytes())
