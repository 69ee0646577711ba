"""Random histories of the desired state: none is stuck, none is half applied, what is reported is what the store holds.

A failing one is reproduced by `python -m tests.support.histories --only N`; 10,000 by `make histories HISTORIES=10000`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from edge_agent.core.desired_state import DesiredState
from edge_agent.store.disk import Blobs
from tests.support.histories import UNKNOWN, History, catalogue, simulate

COUNT = 50


def test_every_version_ends_whatever_goes_wrong() -> None:
    counts: Counter[str] = Counter()
    for seed in range(COUNT):
        outcome = simulate(seed)
        assert not outcome.complaints, str(outcome)
        counts += outcome.counts
    assert counts["item applied"] > 2 * COUNT and counts["item refused"] > COUNT / 4, "they are not idle"
    assert counts["from a stick"] > COUNT / 10
    assert counts["cut in a change"] > COUNT / 10 and counts["kill"] > COUNT / 4 and counts["full"] > COUNT / 4


def test_a_seed_is_the_same_history_every_time() -> None:
    for seed in (3, 56):
        assert list(simulate(seed).trace) == list(simulate(seed).trace)


def test_a_state_that_never_ends_and_a_store_that_loses_a_file_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(DesiredState, "_time_is_up", lambda *_: None)
        assert any("is stuck" in text for seed in range(20) for text in simulate(seed).complaints)
    whole = Blobs.keep_only
    monkeypatch.setattr(Blobs, "keep_only", lambda blobs, digests: whole(blobs, sorted(digests)[1:]))
    assert any("half applied" in text for text in simulate(0).complaints)


def told(story: Callable[[History], Any]) -> None:
    """A history that a test tells, with quick installs; it must break no rule."""

    async def whole(history: History) -> None:
        history.quick = True
        history.start()
        await story(history)

    outcome = simulate(0, whole)
    assert not outcome.complaints, str(outcome)


async def reported(history: History, wish: dict[str, Any], seconds: float = 90.0) -> dict[tuple[str, str | None], Any]:
    """The items of `reported` so long after a version was published that has 60 s."""
    history.publish(wish, 60)
    await asyncio.sleep(seconds)
    assert history.reported["version"] == history.version
    return {(item["model"], item["adapter"]): item for item in history.reported["items"]}


def test_what_does_not_exist_is_refused_by_a_sentence_and_the_rest_is_applied() -> None:
    async def story(history: History) -> None:
        known = catalogue()
        for digest in known.data:
            history.arrive(digest)
        tiny, mini = known.models["tiny"][0], known.models["mini"][0]
        intents = {"adapter": "intents", "package": known.adapters[1]}
        no_such = {"adapter": "no-such", "package": known.adapters[0]}
        items = await reported(
            history,
            {
                "models": [
                    {"model": "tiny", "package": tiny, "adapters": [no_such]},
                    {"model": "mini", "package": UNKNOWN},
                    {"model": "ghost", "adapters": [intents]},
                    {"model": "gone", "package": None, "adapters": []},
                ]
            },
        )
        said = {key: (item["state"], item["cause"]) for key, item in items.items()}
        assert said == {
            ("tiny", None): ("applied", None),
            ("tiny", "no-such"): ("refused", "package-refused"),
            ("mini", None): ("refused", "expired"),
            ("ghost", "intents"): ("refused", "package-refused"),
            ("gone", None): ("applied", None),
        }
        assert "brought no adapter 'no-such' of 'tiny'" in items["tiny", "no-such"]["reason"]
        assert "waits for the package, which is in no source" in items["mini", None]["reason"]
        assert "brought no adapter 'intents' of 'ghost'" in items["ghost", "intents"]["reason"]
        assert history.reported["state"] == "refused"
        again = await reported(history, {"models": [{"model": "mini", "package": mini}]}, 30.0)
        assert again["mini", None]["state"] == "applied", "nothing was lost for what came after"

    told(story)


def test_a_package_that_is_still_being_copied_is_waited_for_and_one_that_is_cut_in_the_install_is_tried_again() -> None:
    async def story(history: History) -> None:
        digest = catalogue().models["mini"][0]
        path, data = history.inbox / f"{digest[7:15]}.tar", catalogue().data[digest]
        history.publish({"models": [{"model": "mini", "package": digest}]}, 300)
        for size in range(0, len(data), len(data) // 5):  # it grows while it is looked at
            path.write_bytes(data[:size])
            await asyncio.sleep(11.0)
        (item,) = history.reported["items"]
        assert (item["state"], item["next"]) == ("pending", "waits for the package, which is in no source")
        path.write_bytes(data)
        history.meanwhile = lambda: os.truncate(path, 4096)
        await asyncio.sleep(14.0)
        (item,) = history.reported["items"]
        assert (item["state"], item["cause"]) == ("pending", "source") and "bytes early" in item["reason"], item
        path.write_bytes(data)
        await asyncio.sleep(30.0)
        (item,) = history.reported["items"]
        assert (item["state"], item["attempts"]) == ("applied", 2)

    told(story)


def test_a_good_package_that_takes_the_place_of_a_bad_one_during_its_install_is_taken() -> None:
    async def story(history: History) -> None:
        digest = catalogue().models["mini"][0]
        path, data = history.inbox / f"{digest[7:15]}.tar", catalogue().data[digest]
        path.write_bytes(data[:-2000] + bytes(len(data[-2000:])))

        def exchange() -> None:
            (history.inbox / ".arriving").write_bytes(data)
            (history.inbox / ".arriving").replace(path)

        history.meanwhile = exchange
        (item,) = (await reported(history, {"models": [{"model": "mini", "package": digest}]}, 45.0)).values()
        assert (item["state"], item["attempts"]) == ("applied", 2), item

    told(story)
