"""The desired state: only the moves of the table, an end within the stated time, and the store has the last word."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.causes import Cause
from edge_agent.base.errors import ConfigError
from edge_agent.core.desired_state import (
    ENDED,
    FOR_GOOD,
    LEAST_ATTEMPT_S,
    MOST_ATTEMPTS,
    MOST_CUT_OFF,
    MOST_ITEMS,
    RESTART_S,
    TRANSITIONS,
    Attempt,
    DesiredState,
    InstalledPackages,
    Item,
    ItemState,
    StoreAction,
    Surroundings,
    Terms,
    Wanted,
)

MODEL, ADAPTER = Wanted("m", None, "p1"), Wanted("m", "a", "p2")
WITHIN_S = 600.0


@dataclass
class Board:
    """A store, a clock and sources that a test edits; `step` looks once."""

    items: list[Wanted]
    within_s: float = WITHIN_S
    remove_others: bool = False
    current: dict[tuple[str, str | None], str] = field(default_factory=dict)
    previous: dict[str, str] = field(default_factory=dict)
    damaged: set[tuple[str, str | None]] = field(default_factory=set)
    offered: set[str] = field(default_factory=set)
    saved: bool = True
    readable: bool = True
    now_s: float = 50.0
    wall_s: float = 0.0
    attempt: Attempt | None = None

    def __post_init__(self) -> None:
        items = [Item(one) for one in self.items]
        self.state = DesiredState(1, Terms(self.within_s, self.remove_others), items)

    def around(self) -> Surroundings:
        installed = InstalledPackages(dict(self.current), dict(self.previous), frozenset(self.damaged))
        installed = installed if self.readable else None
        return Surroundings(installed, frozenset(self.offered), self.saved, self.now_s, self.wall_s)

    def step(self, seconds: float = 1.0) -> Attempt | None:
        self.now_s += seconds
        begun = self.state.look(self.around())
        assert begun is None or self.attempt is None, "one attempt at a time"
        self.attempt = begun or self.attempt
        return begun

    def end(self, cause: Cause | None = None, *, done: bool = True) -> None:
        """The attempt under way ends; `done`: with its effect on the store."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        if done and attempt.wanted.package is None:
            self.current.pop(attempt.wanted.key, None)
        elif done:
            self.current[attempt.wanted.key] = attempt.wanted.package or ""
        self.state.attempt_ended(attempt.wanted, None if cause is None else (cause, "it failed"), self.around())

    def restart(self) -> None:
        """The daemon is killed and the next one begins with what was saved."""
        self.attempt = None
        state = self.state
        self.state = DesiredState(1, state.terms, state.items, spent_s=state.spent_s)
        for item in self.state.items:
            item.again_s = -1.0
        self.now_s = 1.0
        self.state.restarted(self.wall_s)

    def item(self, wanted: Wanted) -> Item:
        return next(item for item in self.state.items if item.wanted.key == wanted.key)


ACTS = st.sampled_from(
    ("look", "wait", "offer", "vanish", "done", "failed", "for good", "killed in time", "restart", "full", "free",
     "unreadable", "readable", "by hand", "lost by hand", "clock")
)  # fmt: skip


@given(st.lists(ACTS, max_size=60), st.booleans())
def test_every_version_ends_within_its_time(acts: list[str], remove_others: bool) -> None:
    board = Board([MODEL, ADAPTER, Wanted("old", None, None)], remove_others=remove_others)
    board.current = {("old", None): "p0", ("other", None): "p9"}
    for act in acts:
        play(board, act)
        for item in board.state.items:
            assert item.state in TRANSITIONS
            assert bool(item.reason) or item.state not in (ItemState.REFUSED, ItemState.ROLLED_BACK), item
            assert not item.ended or item.next == ""
    if board.attempt is not None:
        board.end(Cause.EXPIRED, done=False)
    board.readable = True
    for _ in range(int(WITHIN_S) + 2):
        if board.state.ended:
            break
        if board.step() is not None:
            board.end(Cause.STORE, done=False)
    assert board.state.ended and board.state.left_s == 0.0
    assert board.state.spent_s <= WITHIN_S + 1.0 + RESTART_S * acts.count("restart") + 60.0 * acts.count("wait")
    board.step()
    for item in board.state.items:
        assert (item.state is ItemState.APPLIED) == board.around().installed.shows(item.wanted), item  # type: ignore[union-attr]


def play(board: Board, act: str) -> None:
    match act:
        case "look":
            board.step()
        case "wait":
            board.step(60.0)
        case "offer":
            board.offered |= {"p1", "p2"}
        case "vanish":
            board.offered.clear()
        case "done" | "failed" | "for good" | "killed in time" if board.attempt is not None:
            cause = {"done": None, "failed": Cause.STORE, "for good": Cause.SIGNATURE}.get(act, Cause.EXPIRED)
            board.end(cause, done=act in ("done", "killed in time"))
        case "restart":
            board.restart()
        case "full" | "free":
            board.saved = act == "free"
        case "unreadable" | "readable":
            board.readable = act == "readable"
        case "by hand":
            board.current = {("m", None): "p1", ("m", "a"): "p2"}
        case "lost by hand":
            board.current = {("m", None): "p7"}
        case "clock":
            board.wall_s = -board.wall_s + 1e9


@pytest.mark.parametrize("named", [True, False])
def test_a_damaged_model_is_not_gone(named: bool) -> None:
    board = Board([Wanted("m", None, None)] if named else [], remove_others=not named)
    board.damaged = {("m", None), ("m", "a")}
    attempt = board.step()
    assert attempt is not None and (attempt.action, attempt.wanted.key) == (StoreAction.REMOVE, ("m", None))
    board.damaged = set()
    board.end()
    assert board.state.summary is ItemState.APPLIED


def test_more_others_than_the_file_holds_are_left_to_a_later_version() -> None:
    board = Board([], remove_others=True)
    board.current = {(f"m{number}", None): "p" for number in range(2 * MOST_ITEMS)}
    board.step()
    assert len(board.state.items) == MOST_ITEMS


@given(st.lists(ACTS, max_size=40))
def test_nothing_is_begun_for_what_has_ended(acts: list[str]) -> None:
    board = Board([MODEL, ADAPTER])
    for act in acts:
        ended = {item.wanted.key for item in board.state.items if item.ended}
        before = board.attempt
        play(board, act)
        if board.attempt is not None and board.attempt is not before:
            assert board.attempt.wanted.key not in ended
            assert LEAST_ATTEMPT_S <= board.attempt.limit_s <= WITHIN_S


def test_a_package_is_installed_base_before_adapter_and_both_are_applied() -> None:
    board = Board([ADAPTER, MODEL])
    assert board.step() is None and "in no source" in board.item(MODEL).next
    assert board.item(ADAPTER).next == "waits for model 'm'"
    board.offered = {"p1", "p2"}
    begun = board.step()
    assert begun is not None and (begun.wanted, begun.action) == (MODEL, StoreAction.INSTALL)
    assert board.step() is None, "one at a time"
    board.end()
    begun = board.step()
    assert begun is not None and begun.wanted == ADAPTER
    board.end()
    assert board.state.summary is ItemState.APPLIED and board.state.left_s == 0.0


def test_what_could_be_begun_says_that_it_waits_for_its_turn_and_ends_with_that() -> None:
    other = Wanted("x", None, "p3")
    board = Board([MODEL, other], offered={"p1"})
    assert board.step() is not None and "in no source" in board.item(other).next
    board.offered = {"p1", "p3"}
    assert board.step() is None and board.item(other).next == "waits for its turn", "its package came meanwhile"
    board.now_s += WITHIN_S
    board.end(Cause.EXPIRED, done=False)
    board.step()
    assert board.item(other).reason == "not done within 600 s of running: it waits for its turn"


def test_what_a_killed_attempt_did_counts_and_what_a_good_one_did_not_bring_is_refused() -> None:
    board = Board([MODEL], offered={"p1"})
    board.step()
    board.end(Cause.EXPIRED, done=True)
    assert board.state.summary is ItemState.APPLIED
    board = Board([MODEL], offered={"p1"})
    board.step()
    board.end(None, done=False)
    assert board.item(MODEL).state is ItemState.REFUSED and "another name" in board.item(MODEL).reason


@pytest.mark.parametrize("cause", sorted(FOR_GOOD, key=str))
def test_what_the_same_package_meets_again_is_refused_at_once(cause: Cause) -> None:
    board = Board([MODEL], offered={"p1"})
    board.step()
    board.end(cause, done=False)
    assert (board.item(MODEL).state, board.item(MODEL).cause) == (ItemState.REFUSED, cause)


def test_settings_that_cannot_be_read_for_a_moment_refuse_no_package() -> None:
    board = Board([MODEL], offered={"p1"})
    board.step()
    board.end(ConfigError("a value is missing").cause, done=False)
    assert board.item(MODEL).state is ItemState.PENDING


def test_failures_that_may_pass_are_tried_again_with_pauses_and_not_for_ever() -> None:
    board = Board([MODEL], within_s=1e6, offered={"p1"})
    pauses, last_s = [], board.now_s
    while not board.state.ended:
        if board.step() is not None:
            pauses.append(board.now_s - last_s)
            last_s = board.now_s
            board.end(Cause.STORE, done=False)
    assert len(pauses) == MOST_ATTEMPTS and pauses[1] == pytest.approx(10.0) and max(pauses) <= 640.0
    assert board.item(MODEL).reason == "it failed"


def test_a_package_that_vanishes_between_the_look_and_the_install_is_waited_for() -> None:
    board = Board([MODEL], offered={"p1"})
    board.step()
    board.offered.clear()
    board.end(Cause.SOURCE, done=False)
    assert board.item(MODEL).state is ItemState.PENDING
    board.offered = {"p1"}
    while board.step() is None:
        assert not board.state.ended
    board.end()
    assert board.state.summary is ItemState.APPLIED


def test_a_full_disk_and_a_busy_store_are_waited_for_until_the_time_is_up() -> None:
    board = Board([MODEL], within_s=86400.0, offered={"p1"})
    for _ in range(3 * MOST_ATTEMPTS):
        while board.step() is None:
            assert not board.state.ended
        board.end(Cause.DISK_FULL, done=False)
    while board.step() is None:
        pass
    board.end()
    assert board.state.summary is ItemState.APPLIED


def test_attempts_that_found_no_package_are_no_trials_of_it() -> None:
    board = Board([MODEL], within_s=86400.0, offered={"p1"})
    for cause in (*[Cause.SOURCE] * MOST_ATTEMPTS, Cause.STORE):
        while board.step() is None:
            assert not board.state.ended
        board.end(cause, done=False)
    assert board.item(MODEL).state is ItemState.PENDING, "its first trial failed, and it is tried again"


def test_attempts_that_take_the_board_down_are_given_up() -> None:
    board = Board([MODEL], within_s=86400.0, offered={"p1"})
    for _ in range(MOST_CUT_OFF):
        assert board.step() is not None
        board.restart()
    assert board.item(MODEL).state is ItemState.REFUSED and "3 attempts were cut off" in board.item(MODEL).reason
    assert board.step() is None


def test_restarts_alone_use_the_time_up() -> None:
    board = Board([MODEL])
    for _ in range(int(WITHIN_S / RESTART_S)):
        assert not board.state.ended
        board.restart()
    board.step()
    assert board.item(MODEL).state is ItemState.REFUSED
    assert board.item(MODEL).cause is Cause.EXPIRED and "not done within 600 s" in board.item(MODEL).reason


def test_the_wall_clock_decides_nothing() -> None:
    board = Board([MODEL])
    for wall_s in (0.0, 4e9, -5.0, 1.8e9):
        board.wall_s = wall_s
        board.step()
        assert board.item(MODEL).state is ItemState.PENDING
    assert board.state.left_s == pytest.approx(WITHIN_S - 3.0)


def test_the_version_before_returns_by_a_rollback_which_needs_no_package() -> None:
    board = Board([MODEL], current={("m", None): "p2"}, previous={"m": "p1"})
    begun = board.step()
    assert begun is not None and begun.action is StoreAction.ROLL_BACK
    board.end()
    assert board.state.summary is ItemState.APPLIED


def test_what_someone_changes_afterwards_is_told_and_not_undone() -> None:
    board = Board([MODEL], offered={"p1"}, current={("m", None): "p1"})
    board.step()
    assert board.state.summary is ItemState.APPLIED
    board.current[("m", None)] = "p0"
    assert board.step() is None
    assert board.state.summary is ItemState.ROLLED_BACK
    assert board.item(MODEL).reason == "changed on the device after it was applied: it holds package p0 now"
    board.current[("m", None)] = "p1"
    board.step()
    assert board.state.summary is ItemState.APPLIED and board.item(MODEL).reason == ""


def test_removals_come_first_and_work_while_nothing_can_be_saved() -> None:
    board = Board([MODEL, Wanted("old", None, None)], offered={"p1"}, saved=False)
    board.current[("old", None)] = "p0"
    begun = board.step()
    assert begun is not None and begun.action is StoreAction.REMOVE
    board.end()
    assert board.step() is None
    assert board.item(MODEL).next == "waits for a disk that can be written"
    board.saved = True
    assert board.step() is not None


def test_others_are_removed_where_the_policy_says_so_but_not_what_came_with_its_model() -> None:
    board = Board([MODEL, Wanted("n", "kept", "p5")], remove_others=True, offered={"p1"})
    board.current = {
        ("m", None): "p1", ("m", "inside"): "p1", ("m", "stray"): "p3",
        ("n", None): "p4", ("n", "kept"): "p5", ("n", "inside"): "p4", ("x", None): "p6", ("x", "a"): "p7",
    }  # fmt: skip
    removed = []
    while (begun := board.step()) is not None:
        assert begun.action is StoreAction.REMOVE
        removed.append(begun.wanted.key)
        board.current = {
            key: one for key, one in board.current.items() if key[:1] != ("x",) or begun.wanted.model != "x"
        }
        board.end()
    assert set(removed) == {("m", "stray"), ("x", None)}
    assert board.state.summary is ItemState.APPLIED


def test_an_adapter_that_is_to_go_goes_after_the_install_that_may_bring_it() -> None:
    """The package of an adapter brings it to every model with its base."""
    board = Board(
        [Wanted("other", "a", None), ADAPTER], offered={"p2"}, current={("m", None): "p0", ("other", None): "p0"}
    )
    begun = board.step()
    assert begun is not None and begun.wanted == ADAPTER
    assert board.item(Wanted("other", "a", None)).state is ItemState.PENDING
    board.current[("other", "a")] = "p2"
    board.end()
    begun = board.step()
    assert begun is not None and begun.action is StoreAction.REMOVE and begun.wanted.model == "other"
    board.end()
    assert board.state.summary is ItemState.APPLIED


def test_a_store_that_cannot_be_read_neither_begins_nor_loses_anything() -> None:
    board = Board([MODEL], offered={"p1"}, current={("m", None): "p1"})
    board.step()
    board.readable = False
    assert board.step() is None
    assert board.state.summary is ItemState.APPLIED
    board = Board([MODEL], offered={"p1"}, readable=False)
    assert board.step() is None and "store that can be read" in board.item(MODEL).next


def test_what_is_withdrawn_is_refused_and_what_was_applied_stays() -> None:
    board = Board([MODEL, ADAPTER], current={("m", None): "p1"})
    board.step()
    board.state.withdraw(0.0)
    assert [item.state for item in board.state.items] == [ItemState.APPLIED, ItemState.REFUSED]
    assert "withdrawn" in board.item(ADAPTER).reason


def test_ended_states_are_left_by_what_the_store_shows_alone() -> None:
    for state in ENDED:
        assert {event.value for event in TRANSITIONS[state]} <= {"shown", "lost"}
