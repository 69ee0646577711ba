"""The table of devices: what stands in it, what comes first, and what others may have written."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from edge_agent.base.shown_text import json_text
from edge_agent.fleet.device_table import DeviceTable, age_text, summary_text, table_text
from edge_agent.protocol import messages
from tests.support import told_devices as told

WALL_S = 1_790_000_000.0
NOW_S = 500.0


def table(*said: tuple[str, str, Any], patterns: tuple[str, ...] = ()) -> DeviceTable:
    found = DeviceTable(patterns)
    for device, kind, body in said:
        found.take(device, kind, body if isinstance(body, bytes) else msgspec.json.encode(body), NOW_S)
    return found


def status(state: str = "online", reason: str = "", age_s: float = 5.0) -> messages.Status:
    return told.status(state, reason, ts=WALL_S - age_s)


def reported(state: str = "applied", version: int = 7, reason: str | None = None) -> messages.Reported:
    item = messages.ReportedItem(model="m", adapter=None, package="sha256:0", state=state, since=1.0, reason=reason)  # type: ignore[arg-type]
    return messages.Reported(
        ts=1.0, boot_id="b", seq=1, version=version, state=state, items=[item], installed=[]  # type: ignore[arg-type]
    )  # fmt: skip


def lines(known: DeviceTable, width: int | None = None) -> list[str]:
    return table_text(known.rows(NOW_S, WALL_S), width)


def test_what_is_in_trouble_stands_first_with_its_reason() -> None:
    known = table(
        ("a", "status", status()),
        ("b", "status", status("degraded", "no subscription to cmd/+")),
        ("c", "status", status()),
        ("c", "reported", reported("refused", reason="signed by an unknown key")),
        ("d", "status", status()),
        ("d", "telemetry", told.telemetry(84.0, "hot", refusals={"503": 3})),
    )
    rows = known.rows(NOW_S, WALL_S)
    assert [row.device for row in rows if row.trouble] == ["b", "c", "d"]
    assert [row.device for row in rows] == ["b", "c", "d", "a"]
    assert "m refused: signed by an unknown key" in "\n".join(lines(known))
    assert "84 °C" in "\n".join(lines(known))
    assert rows[2].refused == 3
    assert summary_text(rows) == "4 devices: 1 degraded, 3 online; 3 in trouble"


def test_a_device_that_has_been_silent_for_two_heartbeats_is_lost() -> None:
    known = table(("late", "status", status(age_s=61.0)), ("here", "status", status(age_s=59.0)))
    assert {row.device: (row.state, row.age_s) for row in known.rows(NOW_S, WALL_S)} == {
        "late": ("lost", 61.0),
        "here": ("online", 59.0),
    }


def test_the_age_of_a_wrong_clock_is_not_known_until_something_new_is_heard() -> None:
    known = table(("old", "status", told.status(ts=100.0)))
    assert known.rows(NOW_S, WALL_S)[0].age_s is None
    assert known.rows(NOW_S, WALL_S)[0].state == "online"
    known.take("old", "telemetry", msgspec.json.encode(told.telemetry()), NOW_S)
    assert known.rows(NOW_S + 7, WALL_S)[0].age_s == 7.0


def test_only_devices_that_fit_a_pattern_are_kept() -> None:
    said = [(name, "status", status()) for name in ("hall-1", "hall-2", "roof-1")]
    assert [row.device for row in table(*said, patterns=("hall-*",)).rows(NOW_S, WALL_S)] == ["hall-1", "hall-2"]


def test_what_is_no_message_of_a_device_is_counted_and_left_out() -> None:
    known = table(("client", "status", status()), ("a b", "status", status()), ("ok", "status", b'{"state": 1}'))
    assert known.rows(NOW_S, WALL_S) == []
    assert known.unreadable == 3
    assert summary_text([], known.unreadable) == "0 devices: none; 0 in trouble; 3 messages could not be read"


def test_a_retained_message_that_is_taken_back_is_not_one_that_cannot_be_read() -> None:
    known = table(("a", "status", status()), ("a", "models", b""), ("b", "status", b""))
    assert known.unreadable == 0
    assert [row.device for row in known.rows(NOW_S, WALL_S)] == ["a"]
    known.forget("a")
    assert known.rows(NOW_S, WALL_S) == []


def test_nothing_that_a_device_says_reaches_the_terminal_as_a_control_or_ends_the_table() -> None:
    nasty = "\x1b[2J\u202egnp.exe\r\n" * 50
    info = messages.Info(
        schema="1", agent=nasty, device="x", boot_id="b", ts=0.0, board=nasty, python="3", runtimes=[], limits={}
    )
    huge = json.dumps(msgspec.to_builtins(reported())).replace('"version": 7', '"version": ' + "9" * 4000).encode()
    known = table(
        ("x", "status", status("degraded", nasty)),
        ("x", "info", info),
        ("x", "reported", huge),
        ("x", "telemetry", told.telemetry(1e308, "normal", refusals={"x": 10**30})),
        ("y", "status", status()),
        ("y", "telemetry", told.telemetry(50.0, governor={"level": {"a": nasty}})),
    )
    rows = known.rows(NOW_S, WALL_S)
    shown = lines(known, 100)
    assert all(char.isprintable() for line in shown for char in line)
    assert max(map(len, shown)) <= 100
    json.loads(json_text([row.plain() for row in rows]))
    assert rows[0].refused is None


def test_a_report_is_waited_for_from_devices_that_are_there() -> None:
    known = table(
        ("up", "status", status()), ("off", "status", status("offline")), ("lost", "status", status(age_s=1e6))
    )
    assert list(known.unheard(NOW_S, WALL_S)) == ["up"]
    known.take("up", "telemetry", msgspec.json.encode(told.telemetry()), NOW_S)
    assert list(known.unheard(NOW_S, WALL_S)) == []


def test_ages_are_in_their_largest_unit() -> None:
    assert [age_text(one) for one in (None, 0.4, 119, 120, 7200, 200_000)] == [
        "?",
        "0 s",
        "119 s",
        "2 min",
        "2 h",
        "2 d",
    ]


def test_a_version_on_trial_stands_beside_the_one_that_answers() -> None:
    def trial(state: str, **more: Any) -> messages.ReportedTrial:
        return messages.ReportedTrial(model="m", version=8, package="p", state=state, since=1.0, spent_s=9.0, **more)  # type: ignore[arg-type]

    entry = messages.ModelEntry(
        name="m",
        version=7,
        base_id="b",
        task="classify",
        labels=[],
        resident=True,
        variant="v",
        variants=[],
        adapters=[],
    )
    there = messages.Models(ts=1.0, boot_id="b", seq=1, models=[entry])
    running = trial("running", figures={"requests": 120.0, "agreement": 0.97, "x" * 500: float("inf")})
    for name, one, shown in (
        ("a", running, "(trial of 8: 120)"),
        ("b", trial("returned", reason="agreement 0.1"), None),
        ("c", trial("running"), "(trial of 8: 0)"),
    ):
        said = msgspec.structs.replace(reported(), trials=[one])
        known = table((name, "status", status()), (name, "models", there), (name, "reported", said))
        assert (shown or "trial") in "\n".join(lines(known)) or shown is None
        assert ("trial" in "\n".join(lines(known))) == (shown is not None)
        (row,) = json.loads(json_text([row.plain() for row in known.rows(NOW_S, WALL_S)]))
        assert row["trials"][0]["state"] == one.state and row["trials"][0]["figures"].get("requests") in (120.0, None)
