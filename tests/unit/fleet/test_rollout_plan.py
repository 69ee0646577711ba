"""What a plan gives a device, what brings it back, and which device is in which wave."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_agent.base.errors import UsageError
from edge_agent.fleet.rollout_plan import CannotGive, check_plan, contents, plan_waves
from edge_agent.protocol.messages import Desired, InstalledEntry
from edge_agent.protocol.rollout_messages import RolloutPlan

A, B, C, D = (f"sha256:{digit * 64}" for digit in "abcd")


def plan(*models: dict[str, Any], **more: Any) -> RolloutPlan:
    found = msgspec.convert({"models": list(models), **more}, type=RolloutPlan)
    check_plan(found)
    return found


def desired(version: int, *models: dict[str, Any], **more: Any) -> Desired:
    return msgspec.convert({"version": version, "models": list(models), **more}, type=Desired)


def held(*packages: tuple[str, str | None, str]) -> list[InstalledEntry]:
    return [InstalledEntry(model=model, adapter=adapter, package=package) for model, adapter, package in packages]


def models(body: Desired) -> Any:
    return msgspec.to_builtins(body)["models"]


def test_what_the_plan_does_not_name_stays() -> None:
    other = {"model": "x", "package": C}
    before = desired(4, {"model": "m", "package": A}, other, policy={"within_s": 600.0, "others": "remove"})
    give, back = contents(plan({"model": "m", "package": B}), before, None, 5)
    assert (give.version, models(give)) == (5, [{"model": "m", "package": B}, other])
    assert (back.version, models(back)) == (4, models(before))
    assert give.policy == back.policy == before.policy


def test_a_device_without_a_desired_state_gets_back_what_it_holds() -> None:
    new = plan({"model": "m", "package": B}, {"model": "n", "package": C})
    _, back = contents(new, None, held(("m", None, A), ("m", "one", A), ("y", None, D)), 1)
    assert models(back) == [{"model": "m", "package": A}, {"model": "n", "package": None}]
    with pytest.raises(CannotGive, match="does not say what it holds"):
        contents(new, None, None, 1)


def test_what_only_the_plan_names_of_an_earlier_desired_state_comes_from_what_it_holds() -> None:
    before = desired(2, {"model": "m", "adapters": [{"adapter": "one", "package": C}]})
    new = plan({"model": "m", "package": B, "adapters": [{"adapter": "two", "package": D}]})
    give, back = contents(new, before, held(("m", None, A), ("m", "one", C)), 3)
    assert models(give) == [
        {"model": "m", "package": B, "adapters": [{"adapter": "one", "package": C}, {"adapter": "two", "package": D}]}
    ]
    assert models(back) == [
        {
            "model": "m",
            "package": A,
            "adapters": [{"adapter": "one", "package": C}, {"adapter": "two", "package": None}],
        }
    ]


def test_an_adapter_that_came_with_the_package_is_left_to_the_new_one_and_returns_with_the_old() -> None:
    adapters = [{"adapter": "one", "package": A}, {"adapter": "own", "package": C}]
    before = desired(2, {"model": "m", "package": A, "adapters": adapters})
    give, back = contents(plan({"model": "m", "package": B}), before, None, 3)
    assert models(give) == [{"model": "m", "package": B, "adapters": [{"adapter": "own", "package": C}]}]
    assert models(back) == models(before)
    new = plan({"model": "m", "package": B, "adapters": [{"adapter": "one", "package": B}]})
    _, bare = contents(new, None, held(("m", None, A), ("m", "one", A)), 1)
    assert models(bare) == [{"model": "m", "package": A}]


def test_a_removal_takes_the_adapters_along_and_returns_them() -> None:
    before = desired(2, {"model": "m", "package": A, "adapters": [{"adapter": "own", "package": C}]})
    give, back = contents(plan({"model": "m", "package": None}), before, None, 3)
    assert models(give) == [{"model": "m", "package": None}]
    assert models(back) == models(before)


def test_adapters_alone_of_a_model_that_is_to_go_are_refused() -> None:
    before = desired(2, {"model": "m", "package": None})
    with pytest.raises(CannotGive, match="removes 'm'"):
        contents(plan({"model": "m", "adapters": [{"adapter": "one", "package": B}]}), before, held(), 3)


def test_sources_of_packages_that_are_not_named_any_more_are_dropped() -> None:
    old, new = {"package": A, "url": "http://h/a.tar"}, {"package": B, "url": "http://h/b.tar"}
    before = desired(2, {"model": "m", "package": A}, sources=[old])
    give, back = contents(plan({"model": "m", "package": B}, sources=[new]), before, None, 3)
    assert [one.url for one in give.sources] == ["http://h/b.tar"]
    assert [one.url for one in back.sources] == ["http://h/a.tar"]


def test_what_does_not_fit_beside_what_the_device_holds_is_unfit() -> None:
    before = desired(2, *({"model": f"m{number}", "package": A} for number in range(128)))
    with pytest.raises(CannotGive, match="more than 128"):
        contents(plan({"model": "m", "package": B}), before, held(), 3)


def test_shares_count_the_waves_before_and_those_that_are_there_come_first() -> None:
    known = {f"d{number:02}": number >= 5 for number in range(20)}
    waves = plan_waves(plan({"model": "m", "package": A}, waves=["5%", "25%", "100%"]), known, "seed")
    assert [len(wave) for wave in waves] == [1, 4, 15]
    assert sorted(name for wave in waves for name in wave) == sorted(known)
    assert all(known[name] for name in waves[0] + waves[1])
    assert sorted(waves[2][-5:]) == ["d00", "d01", "d02", "d03", "d04"]
    assert plan_waves(plan({"model": "m", "package": A}), known, "other")[1] != waves[1]


def test_named_devices_come_first_and_only_chosen_ones_come_at_all() -> None:
    known = dict.fromkeys(("hall-1", "hall-2", "roof-1"), True)
    chosen = plan({"model": "m", "package": A}, devices=["hall-*"], waves=[["hall-2"], "100%"])
    assert plan_waves(chosen, known, "seed") == [["hall-2"], ["hall-1"]]
    for wrong, said in (
        (["attic-*"], r"devices: 'attic-\*' fits no device"),
        (["roof-*"], r"waves\[0\]: 'hall-2' fits no"),
    ):
        with pytest.raises(UsageError, match=said):
            plan_waves(msgspec.structs.replace(chosen, devices=wrong), known, "seed")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"waves": []}, "waves has 0 entries"),
        ({"waves": ["5"]}, r"waves\[0\] is '5'"),
        ({"waves": ["5%", []]}, r"waves\[1\] names no device"),
        ({"waves": ["101%"]}, r"waves\[0\] is '101%'"),
        ({"stop": {"applied": 1.5}}, "stop.applied is 1.5"),
        ({"stop": {"least_requests": 0}}, "stop.least_requests is 0"),
        ({"within_s": -1.0}, "within_s is -1"),
        ({"watch_s": 1e9}, "watch_s is 1e"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_with_its_key(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan({"model": "m", "package": A}, **more)
