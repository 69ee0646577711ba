"""HostMemory: can it ever fit, does it fit now, and who leaves for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import GIB, MIB
from edge_agent.core.residency import (
    DoesNotFit,
    Fits,
    HostMemory,
    ResidentModel,
    decide,
    default_reserve_bytes,
    room_bytes,
)

PI_4GB = HostMemory(total_bytes=4 * GIB, available_bytes=3 * GIB)
NOW_S = 1000.0


def resident(name: str, mib: int, busy: bool = False, unused_s: float = 60.0, load_s: float = 1.0) -> ResidentModel:
    return ResidentModel(name, mib * MIB, busy, NOW_S - unused_s, load_s)


@pytest.mark.parametrize(
    ("total_bytes", "reserve"),
    [
        (512 * MIB, 200 * MIB),
        (1 * GIB, 200 * MIB),
        (2000 * MIB, 200 * MIB),
        (2 * GIB, int(0.1 * 2 * GIB)),
        (2 * GIB + 1, int(0.15 * (2 * GIB + 1))),
        (16 * GIB, int(0.15 * 16 * GIB)),
    ],
)
def test_the_reserve_follows_the_board(total_bytes: int, reserve: int) -> None:
    assert default_reserve_bytes(total_bytes) == reserve


def test_what_fits_as_things_are_sends_nobody_away() -> None:
    assert decide(100 * MIB, PI_4GB, 0, [resident("idle", 500)], NOW_S) == Fits(())


def test_the_boundary_is_exact() -> None:
    free = PI_4GB.available_bytes - default_reserve_bytes(PI_4GB.total_bytes)
    assert decide(free, PI_4GB, 0, [], NOW_S) == Fits(())
    assert isinstance(decide(free + 1, PI_4GB, 0, [], NOW_S), DoesNotFit)
    assert isinstance(decide(free, PI_4GB, 1, [], NOW_S), DoesNotFit)


def test_a_load_has_what_is_free_and_what_the_others_leave_of_the_budget() -> None:
    assert room_bytes(PI_4GB, 0, 0) == 3 * GIB
    assert room_bytes(PI_4GB, 100 * MIB, 2 * GIB) == 3 * GIB - 100 * MIB
    budget = HostMemory(4 * GIB, 3 * GIB, budget_bytes=500 * MIB)
    assert room_bytes(budget, 0, 200 * MIB) == 300 * MIB
    assert room_bytes(budget, 0, 600 * MIB) == 0


def test_never_and_not_now_are_two_answers() -> None:
    ceiling = PI_4GB.total_bytes - default_reserve_bytes(PI_4GB.total_bytes)
    never = decide(ceiling + 1, PI_4GB, 0, [resident("idle", 4096)], NOW_S)
    assert isinstance(never, DoesNotFit)
    assert never.never
    assert "needs 3.4 GiB, this board can give 3.4 GiB (4.0 GiB less a reserve of 614.4 MiB)" in never.reason
    now = decide(ceiling, PI_4GB, 0, [], NOW_S)
    assert isinstance(now, DoesNotFit)
    assert not now.never


def test_not_now_carries_the_arithmetic() -> None:
    memory = HostMemory(1 * GIB, 300 * MIB)
    decision = decide(400 * MIB, memory, 50 * MIB, [resident("busy", 500, busy=True), resident("idle", 20)], NOW_S)
    assert decision == DoesNotFit(
        "needs 400.0 MiB, 300.0 MiB are available less a reserve of 200.0 MiB and 50.0 MiB promised; "
        "idle models would free 20.0 MiB, busy ones stay",
        never=False,
    )


def test_a_board_smaller_than_the_reserve_says_so_without_negative_figures() -> None:
    decision = decide(1 * MIB, HostMemory(128 * MIB, 64 * MIB), 0, [], NOW_S)
    assert isinstance(decision, DoesNotFit)
    assert decision.never
    assert "this board can give 0 B" in decision.reason


def test_the_cheapest_to_reload_for_its_use_leaves_first() -> None:
    memory = HostMemory(1 * GIB, 210 * MIB)
    residents = [
        resident("slow to load", 100, unused_s=100, load_s=20),
        resident("quick and unused", 100, unused_s=100, load_s=1),
        resident("quick and in use", 100, unused_s=2, load_s=1),
    ]
    assert decide(100 * MIB, memory, 0, residents, NOW_S) == Fits(("quick and unused",))
    assert decide(200 * MIB, memory, 0, residents, NOW_S) == Fits(("quick and unused", "slow to load"))


def test_who_a_larger_one_makes_needless_stays() -> None:
    memory = HostMemory(1 * GIB, 200 * MIB)
    residents = [resident("small", 50, unused_s=500), resident("large", 400, unused_s=100)]
    assert decide(300 * MIB, memory, 0, residents, NOW_S) == Fits(("large",))


def test_a_busy_model_stays_even_when_it_alone_would_do() -> None:
    memory = HostMemory(1 * GIB, 200 * MIB)
    decision = decide(100 * MIB, memory, 0, [resident("busy", 500, busy=True)], NOW_S)
    assert isinstance(decision, DoesNotFit)


RESIDENTS = st.lists(
    st.builds(
        ResidentModel,
        name=st.uuids().map(str),
        footprint_bytes=st.integers(0, 2 * GIB),
        busy=st.booleans(),
        last_used_s=st.floats(0, 2000),
        load_s=st.floats(0, 100),
    ),
    max_size=8,
)


@given(st.integers(0, 20 * GIB), st.integers(0, 16 * GIB), st.integers(0, 16 * GIB), st.integers(0, 4 * GIB), RESIDENTS)
def test_any_decision_is_sound(
    needed: int, total: int, available: int, promised: int, residents: list[ResidentModel]
) -> None:
    memory = HostMemory(total, available)
    decision = decide(needed, memory, promised, residents, NOW_S)
    reserve = default_reserve_bytes(total)
    free = available - reserve - promised
    by_name = {one.name: one for one in residents}
    if isinstance(decision, Fits):
        leaving = [by_name[name] for name in decision.evict]
        freed = sum(one.footprint_bytes for one in leaving)
        assert not any(one.busy for one in leaving)
        assert len(set(decision.evict)) == len(decision.evict)
        assert needed <= free + freed
        assert needed <= max(0, total - reserve)
        assert all(free + freed - one.footprint_bytes < needed for one in leaving), "somebody left for nothing"
    else:
        idle = sum(one.footprint_bytes for one in residents if not one.busy)
        assert decision.never == (needed > max(0, total - reserve))
        assert decision.never or needed > free + idle
