"""Messages on `desired` become attempts, one at a time, and `reported`; restarts, old messages and a full disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent.agent.commands import FetchedBytes
from edge_agent.base.causes import Cause
from edge_agent.base.errors import StoreError
from edge_agent.core.desired_state import MOST_ITEMS, DesiredState, FoundPackage, Item, ItemState, Terms, Wanted
from edge_agent.core.trial_records import TrialRecord
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.messages import TrialOrder
from edge_agent.protocol.trial_terms import read_trial
from edge_agent.store.desired_file import DesiredFile
from tests.support.fakes import FakeLibrary, a_model, a_variant
from tests.support.in_process import NAME, PREFIX, Device
from tests.support.virtual_time import later

P1, P2 = "sha256:" + "1" * 64, "sha256:" + "2" * 64


class Shop:
    """A source that a test fills."""

    def __init__(self, *digests: str) -> None:
        self.digests = set(digests)
        self.place = ""

    async def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        """See `PackageSource`."""
        return {digest: FoundPackage(f"{self.place}{digest[7]}.tar") for digest in wanted if digest in self.digests}

    def refused(self, found: FoundPackage) -> None:
        """See `PackageSource`."""
        self.digests = {digest for digest in self.digests if f"{self.place}{digest[7]}.tar" != found.name}


class Installer:
    """An operator that installs into a FakeLibrary after `takes_s`, or raises `faults` in turn."""

    def __init__(self, library: FakeLibrary, takes_s: float = 1.0) -> None:
        self.library, self.takes_s = library, takes_s
        self.calls: list[tuple[Any, ...]] = []
        self.faults: list[Exception] = []
        self.trials: list[str] = []
        self.ends_s = 0.0
        self.fetched: tuple[int, ...] = ()

    async def install(
        self, package: str, limit_s: float | None = None, digest: str | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        await self._spend("install", package, limit_s)
        self.trials.append(trial)
        self.library.install(a_model("m", a_variant(package[0] * 64)))
        return {}

    async def install_from(
        self, path: str, digest: str, limit_s: float | None = None, trial: str = ""
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        await self._spend("install_from", path, limit_s)
        self.trials.append(trial)
        self.library.install(a_model("m", a_variant(digest[7:])))
        return {}

    async def fetch(
        self,
        url: str,
        digest: str,
        limit_s: float | None = None,
        progress: FetchedBytes | None = None,
        trial: str = "",
    ) -> Mapping[str, Any]:
        """See `Operator`."""
        if progress is not None:
            for done in self.fetched:
                progress(done, 1000)
                await later(1.0)
        await self._spend("fetch", url, limit_s)
        self.trials.append(trial)
        self.library.install(a_model("m", a_variant(digest[7:])))
        return {}

    async def remove(self, model: str, adapter: str | None, limit_s: float | None = None) -> Mapping[str, Any]:
        """See `Operator`."""
        await self._spend("remove", model, limit_s)
        self.library.remove(model)
        return {}

    async def rollback(self, model: str, limit_s: float | None = None, trial: str = "") -> Mapping[str, Any]:
        """See `Operator`."""
        await self._spend("rollback", model, limit_s)
        return {}

    async def _spend(self, *call: Any) -> None:
        self.calls.append(call)
        try:
            await later(self.takes_s)
        except asyncio.CancelledError:
            await later(self.ends_s)
            raise
        if self.faults:
            raise self.faults.pop(0)


class FullDisk(DesiredFile):
    """A file whose disk is full while `full` is set."""

    full = False
    unreadable = False

    def read(self) -> DesiredState | None:
        """See `DesiredStorage`."""
        if self.unreadable:
            raise StoreError("cannot be read: Input/output error", "desired.json")
        return super().read()

    def write(self, state: DesiredState) -> None:
        """See `DesiredStorage`."""
        if self.full:
            raise StoreError("the disk says: No space left on device", cause=Cause.DISK_FULL)
        super().write(state)


def parts(folder: Path, *digests: str) -> dict[str, Any]:
    library = FakeLibrary()
    return {
        "library": library,
        "source": Shop(*digests),
        "operator": Installer(library),
        "desired": FullDisk(folder),
    }


def message(version: int, package: str | None = P1, **more: Any) -> Inbound:
    body = {"version": version, "models": [{"model": "m", "package": package}], **more}
    return Inbound(f"{PREFIX}/{NAME}/desired", json.dumps(body).encode(), qos=1, retained=True)


def reported(device: Device) -> dict[str, Any]:
    found = [one for one in device.transport.published if one.topic == f"{PREFIX}/{NAME}/reported"]
    assert found and all(one.retain for one in found)
    body: dict[str, Any] = json.loads(found[-1].payload)
    return body


def every_reported(device: Device) -> list[dict[str, Any]]:
    topic = f"{PREFIX}/{NAME}/reported"
    return [json.loads(one.payload) for one in device.transport.published if one.topic == topic]


async def pass_s(device: Device, seconds: int) -> None:
    for _ in range(seconds):
        device.desired.tick()
        await later(1.0)
    device.desired.tick()


def test_a_package_that_is_there_is_installed_and_reported(tmp_path: Path) -> None:
    async def scenario(device: Device) -> None:
        device.desired.tick()
        first = reported(device)
        assert (first["version"], first["state"], first["items"], first["installed"]) == (None, None, [], [])
        await device.intake.take(message(7))
        await pass_s(device, 1)
        (item,) = reported(device)["items"]
        assert item["state"] == "pending" and item["until"] - reported(device)["ts"] > 86_000
        await pass_s(device, 5)
        last = reported(device)
        assert (last["version"], last["state"]) == (7, "applied")
        assert last["items"][0] | {"since": 0} == {
            "model": "m", "adapter": None, "package": P1, "state": "applied", "since": 0, "attempts": 1,
            "reason": None, "cause": None, "next": None, "until": None, "progress": None,
        }  # fmt: skip
        assert last["installed"] == [{"model": "m", "adapter": None, "package": P1}]
        (call,) = device.operator.calls
        assert call[:2] == ("install", "1.tar") and 86_000 < call[2] <= 86_400

    device = Device.run(scenario, ports=parts(tmp_path, P1))
    assert [text for kind, text in device.events if kind == "desired"] == [
        "version 7 is taken: 1 items, within 86400 s",
        "version 7 has ended: applied",
    ]


def test_duplicates_old_versions_and_other_contents_change_nothing(tmp_path: Path) -> None:
    async def scenario(device: Device) -> None:
        for one in (message(7), message(7), message(5, P2), message(7, P2)):
            await device.intake.take(one)
        await pass_s(device, 10)
        assert len(device.operator.calls) == 1
        assert reported(device)["state"] == "applied"
        assert reported(device)["not_taken"] == {
            "version": 7,
            "reason": "version 7 was taken with other contents; give a higher one",
        }
        await device.intake.take(Inbound(f"{PREFIX}/{NAME}/desired", b"{}", retained=True))
        await pass_s(device, 1)
        assert reported(device)["not_taken"]["version"] is None and reported(device)["version"] == 7
        await device.intake.take(message(8))
        await pass_s(device, 3)
        assert (reported(device)["version"], reported(device)["not_taken"]) == (8, None)

    Device.run(scenario, ports=parts(tmp_path, P1, P2))


def test_the_last_of_a_flood_of_messages_is_taken(tmp_path: Path) -> None:
    """A script that publishes in a loop: most are dropped unread, and the broker sends the one that it retains once."""

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        for _ in range(8_200):  # as many came before
            device.context.door_rate.note_futile("DesiredTarget/", device.clock.monotonic_s())
        for version in range(2, 200):
            await device.intake.take(message(version))
        assert device.context.door_rate.take_turned_away() == 198
        assert device.desired.state is not None and device.desired.state.version == 1
        await pass_s(device, 2)
        assert reported(device)["version"] == 199

    Device.run(scenario, ports=parts(tmp_path, P1))


def test_what_was_put_off_in_a_flood_yields_to_what_was_read_after_it(tmp_path: Path) -> None:
    async def scenario(device: Device) -> None:
        for put_off in (message(2), replace(message(2), payload=b"")):
            device.desired.receive_later(put_off)
            device.desired.receive(message(3))
            await pass_s(device, 2)
            state = reported(device)
            assert (state["version"], state.get("not_taken")) == (3, None)
            assert device.desired.state is not None and not device.desired.state.withdrawn

    Device.run(scenario, ports=parts(tmp_path, P1))


def test_a_newer_version_stops_the_attempt_for_the_older_one(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1, P2)
    ports["operator"].takes_s = 100.0

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        await pass_s(device, 5)
        await device.intake.take(message(2, P2))
        await pass_s(device, 110)
        assert [call[:2] for call in device.operator.calls] == [("install", "1.tar"), ("install", "2.tar")]
        assert reported(device)["installed"] == [{"model": "m", "adapter": None, "package": P2}]
        assert (reported(device)["version"], reported(device)["state"]) == (2, "applied")

    Device.run(scenario, ports=ports)


def test_a_source_that_vanishes_is_waited_for_until_the_time_is_up(tmp_path: Path) -> None:
    async def scenario(device: Device) -> None:
        await device.intake.take(message(1, policy={"within_s": 120}))
        await pass_s(device, 60)
        (item,) = reported(device)["items"]
        assert item["next"] == "waits for the package, which is in no source"
        await pass_s(device, 60)
        (item,) = reported(device)["items"]
        assert (item["state"], item["cause"]) == ("refused", "expired")
        assert item["reason"] == "not done within 120 s of running: it waits for the package, which is in no source"
        assert device.operator.calls == []

    Device.run(scenario, ports=parts(tmp_path))


def test_sources_are_tried_in_turn_and_kept_over_a_restart(tmp_path: Path) -> None:
    """The incoming folder first; a server that does not give the package is waited for."""
    ports = parts(tmp_path)
    ports["operator"].faults = [StoreError("the server answers 404", cause=Cause.SOURCE)] * 2
    sources = [{"package": P1, "url": f"http://{host}/p.tar"} for host in ("a", "b")]

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1, sources=sources))
        await pass_s(device, 20)
        assert [call[:2] for call in device.operator.calls] == [
            ("fetch", sources[0]["url"]),
            ("fetch", sources[1]["url"]),
        ]

    Device.run(scenario, ports=ports)
    ports = parts(tmp_path)

    async def restarted(device: Device) -> None:
        await pass_s(device, 5)
        assert [call[:2] for call in device.operator.calls] == [("fetch", sources[0]["url"])]
        assert reported(device)["state"] == "applied"

    Device.run(restarted, ports=ports)


def test_a_refusal_and_a_failure_carry_the_cause_of_the_install(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1)
    ports["operator"].faults = [
        StoreError("another install is at work", cause=Cause.BUSY),
        RuntimeError("a bug"),
        *[StoreError("the signature does not fit", cause=Cause.SIGNATURE)] * 2,
    ]

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        await pass_s(device, 12)
        (item,) = reported(device)["items"]
        assert (item["state"], item["cause"], item["attempts"]) == ("pending", "agent-error", 1)
        assert item["next"] == "tried again in 10 s"
        await pass_s(device, 14)
        (item,) = reported(device)["items"]
        assert (item["state"], item["cause"]) == ("pending", "signature"), "another source may give it signed"
        await pass_s(device, 100)
        (item,) = reported(device)["items"]
        assert (item["state"], item["cause"]) == ("refused", "signature")
        assert item["reason"] == "the signature does not fit"

    Device.run(scenario, ports=ports)


def test_a_file_that_is_not_the_package_is_passed_by_and_the_next_source_is_tried(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1)
    ports["operator"].faults = [StoreError("this is another package", cause=Cause.SOURCE)] * 2
    sources = [{"package": P1, "url": f"http://{host}/p.tar"} for host in ("a", "b")]

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1, sources=sources))
        await pass_s(device, 60)
        assert [call[:2] for call in device.operator.calls] == [
            ("install", "1.tar"),
            ("fetch", sources[1]["url"]),
            ("fetch", sources[0]["url"]),
        ]
        assert ports["source"].digests == set(), "the file is not taken again before it changes"
        assert reported(device)["state"] == "applied"

    Device.run(scenario, ports=ports)


def test_a_stick_that_is_pulled_out_is_waited_for(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1)
    ports["source"].place = "/media/edge-agent/usb/"
    ports["operator"].faults = [StoreError("it cannot be read: is the stick still there?", cause=Cause.SOURCE)]

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        await pass_s(device, 30)
        (item,) = reported(device)["items"]
        assert (item["state"], item["cause"]) == ("pending", "source") and "is the stick still there" in item["reason"]
        assert item["next"] == "waits for the package, which is in no source"
        ports["source"].digests = {P1}
        await pass_s(device, 30)
        assert [call[:2] for call in device.operator.calls] == [("install_from", "/media/edge-agent/usb/1.tar")] * 2
        assert reported(device)["state"] == "applied"

    Device.run(scenario, ports=ports)


def test_a_trust_root_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1)
    ports["operator"].faults = [StoreError("there is no trust root", cause=Cause.NO_TRUST_ROOT)] * 9

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        await pass_s(device, 2000)
        assert len(device.operator.calls) > 8 and reported(device)["state"] == "pending"
        assert reported(device)["items"][0]["cause"] == "no-trust-root"
        await pass_s(device, 2000)
        assert reported(device)["state"] == "applied"

    Device.run(scenario, ports=ports)


def test_the_next_attempt_waits_until_a_stopped_one_has_ended(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1, P2)
    ports["operator"].takes_s, ports["operator"].ends_s = 100.0, 15.0

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        await pass_s(device, 5)
        await device.intake.take(message(2, P2))
        await pass_s(device, 10)
        assert len(device.operator.calls) == 1
        assert reported(device)["items"][0]["next"] == "waits for the end of an attempt for an earlier version"
        await pass_s(device, 20)
        assert len(device.operator.calls) == 2

    Device.run(scenario, ports=ports)


def test_a_killed_daemon_begins_where_it_was_and_counts_the_attempt(tmp_path: Path) -> None:
    """Three daemons in turn are killed in the middle of the attempt; the fourth gives the package up."""
    for count in range(4):
        ports = parts(tmp_path, P1)
        ports["operator"].takes_s = 1000.0

        async def scenario(device: Device, count: int = count) -> None:
            await device.intake.take(message(1))  # the broker's retained message, at every start
            await pass_s(device, 5)
            assert len(device.operator.calls) == (count < 3)

        device = Device.run(scenario, ports=ports)  # ends without `close`
        state = device.desired.state
        assert state is not None and state.spent_s >= 30.0 * count
    assert state.summary is ItemState.REFUSED
    assert "3 attempts were cut off" in reported(device)["items"][0]["reason"]


def test_an_orderly_stop_is_no_cut_off(tmp_path: Path) -> None:
    for _ in range(5):
        ports = parts(tmp_path, P1)
        ports["operator"].takes_s = 1000.0

        async def scenario(device: Device) -> None:
            await device.intake.take(message(1))
            await pass_s(device, 8)
            assert len(device.operator.calls) == 1
            await device.desired.close()

        Device.run(scenario, ports=ports)
    state = DesiredFile(tmp_path).read()
    assert state is not None
    (item,) = state.items
    assert (item.state, item.cut_off, item.attempts) == (ItemState.PENDING, 0, 0)


def test_on_a_full_disk_only_removals_are_begun(tmp_path: Path) -> None:
    ports = parts(tmp_path, P1)
    ports["desired"].full = True
    ports["library"].install(a_model("old"))

    async def scenario(device: Device) -> None:
        body = {"version": 1, "models": [{"model": "m", "package": P1}, {"model": "old", "package": None}]}
        await device.intake.take(Inbound(f"{PREFIX}/{NAME}/desired", json.dumps(body).encode()))
        await pass_s(device, 30)
        assert [call[0] for call in device.operator.calls] == ["remove"]
        states = {item["model"]: (item["state"], item["next"]) for item in reported(device)["items"]}
        assert states == {"old": ("applied", None), "m": ("pending", "waits for a disk that can be written")}
        ports["desired"].full = False
        await pass_s(device, 15)
        assert reported(device)["state"] == "applied"

    Device.run(scenario, ports=ports)


def test_an_empty_message_withdraws_and_an_older_version_is_still_not_taken(tmp_path: Path) -> None:
    async def scenario(device: Device) -> None:
        await device.intake.take(message(3))
        await pass_s(device, 2)
        await device.intake.take(Inbound(f"{PREFIX}/{NAME}/desired", b""))
        await device.intake.take(message(2))
        await pass_s(device, 20)
        last = reported(device)
        assert (last["version"], last["state"]) == (3, "refused") and "withdrawn" in last["items"][0]["reason"]
        assert last["not_taken"]["reason"] == "version 2 is older than 3, which was taken"
        assert device.operator.calls == [] and last["withdrawn"] is True

    async def next_daemon(device: Device) -> None:
        await pass_s(device, 3)
        assert reported(device)["withdrawn"] is True
        await device.intake.take(message(3))
        await pass_s(device, 3)
        assert reported(device)["withdrawn"] is False and reported(device)["state"] == "refused"

    Device.run(scenario, ports=parts(tmp_path))
    Device.run(next_daemon, ports=parts(tmp_path))


def test_a_change_on_the_device_is_reported_as_rolled_back_and_left_alone(tmp_path: Path) -> None:
    async def scenario(device: Device) -> None:
        await device.intake.take(message(1))
        await pass_s(device, 10)
        device.library.install(a_model("m", a_variant(P2[7:])))
        await pass_s(device, 30)
        assert reported(device)["state"] == "rolled-back"
        assert f"it holds package {P2} now" in reported(device)["items"][0]["reason"]
        assert len(device.operator.calls) == 1

    Device.run(scenario, ports=parts(tmp_path, P1))


def test_reported_fits_a_message_whatever_is_named(tmp_path: Path) -> None:
    long = "m" * 64

    async def scenario(device: Device) -> None:
        adapters = [{"adapter": f"{'a' * 60}{number:03}", "package": P1} for number in range(126)]
        body = {
            "version": 1,
            "models": [{"model": long, "package": P2, "adapters": adapters}],
            "policy": {"within_s": 60},
        }
        await device.intake.take(Inbound(f"{PREFIX}/{NAME}/desired", json.dumps(body).encode()))
        await pass_s(device, 60)
        state = device.desired.state
        assert state is not None
        for item in state.items:
            item.reason = "r" * 1000
        await pass_s(device, 310)
        found = [one for one in device.transport.published if one.topic.endswith("/reported")][-1]
        assert len(found.payload) <= 128 * 1024 and len(json.loads(found.payload)["items"]) == 127

    Device.run(scenario, ports=parts(tmp_path))


def test_a_download_is_followed_without_flooding_the_broker(tmp_path: Path) -> None:
    ports = parts(tmp_path)
    ports["operator"].fetched, ports["operator"].takes_s = tuple(range(0, 1000, 5)), 1.0

    async def scenario(device: Device) -> None:
        await device.intake.take(message(1, sources=[{"package": P1, "url": "http://a/p.tar"}]))
        await pass_s(device, 100)
        steps = [one["items"][0]["progress"] for one in every_reported(device) if one["items"]]
        told = [step["fetched_bytes"] for step in steps if step is not None]
        assert told == sorted(set(told)) and 5 <= len(told) <= 100 / 15 + 2
        assert all(step is None or step["total_bytes"] == 1000 for step in steps)
        await pass_s(device, 200)
        assert reported(device)["state"] == "applied" and reported(device)["items"][0]["progress"] is None

    Device.run(scenario, ports=ports)


def test_a_state_that_the_disk_does_not_give_now_is_waited_for(tmp_path: Path) -> None:
    async def first(device: Device) -> None:
        await device.intake.take(message(7))
        await pass_s(device, 5)

    Device.run(first, ports=parts(tmp_path, P1))
    for seconds, version in ((60, 7), (700, 5)):
        ports = parts(tmp_path, P1)
        ports["desired"].unreadable = True
        ports["library"].install(a_model("m", a_variant(P1[7:])))

        async def scenario(
            device: Device, seconds: int = seconds, version: int = version, ports: dict[str, Any] = ports
        ) -> None:
            await device.intake.take(message(5, P2))
            await pass_s(device, 1)
            assert reported(device)["version"] is None and "cannot be read" in reported(device)["not_taken"]["reason"]
            await pass_s(device, seconds)
            ports["desired"].unreadable = False
            await pass_s(device, 15)
            assert reported(device)["version"] == version, "after a long wait the broker's message begins anew"

        Device.run(scenario, ports=ports)


def test_the_file_is_never_larger_than_is_read_again(tmp_path: Path) -> None:
    items = [Item(Wanted(f"{'m' * 60}{number}", "a" * 64, P1), reason="\u20ac" * 3000) for number in range(MOST_ITEMS)]
    state = DesiredState(1, Terms(60.0), items, fingerprint="f" * 64)
    DesiredFile(tmp_path).write(state)
    read = DesiredFile(tmp_path).read()
    assert read is not None and len(read.items) == MOST_ITEMS and read.items[0].reason == "\u20ac" * 100


def test_a_file_that_cannot_be_read_lets_the_brokers_message_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "desired.json").write_bytes(b'{"version": ')
    assert DesiredFile(tmp_path).read() is None


def test_the_terms_of_a_trial_reach_the_store_over_a_restart_and_its_figures_are_reported(tmp_path: Path) -> None:
    ports = parts(tmp_path)
    terms = {"within_s": 600, "trial": {"least": 10, "slower": 2.5}}

    async def first(device: Device) -> None:
        await device.intake.take(message(1, policy=terms))
        device.desired.tick()

    async def second(device: Device) -> None:
        device.context.note_trial(TrialRecord("m", 2, P1, "running", 5.0, figures={"requests": 7}))
        ports["source"].digests.add(P1)
        for _ in range(15):
            device.desired.tick()
            await later(1.0)
        (told,) = reported(device)["trials"]
        assert (told["model"], told["state"], told["figures"]) == ("m", "running", {"requests": 7})

    for scenario in (first, second):
        Device.run(scenario, ports=ports)
    (text,) = ports["operator"].trials
    assert read_trial(text) == TrialOrder(least=10, slower=2.5)
