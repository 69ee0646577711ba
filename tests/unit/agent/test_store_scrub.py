"""Files of the store that have lost bits are found, written anew from where their package lies, and reported."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_agent.agent.store_scrub import BUSY_S, BUSY_TRIES, FIRST_S, StoreScrub
from edge_agent.base.causes import Cause
from edge_agent.base.errors import StoreError
from edge_agent.bundle.manifest import Descriptor
from edge_agent.core.desired_state import FoundPackage
from edge_agent.store.disk import Blobs
from edge_agent.store.inbox_packages import InboxPackages, package_digest
from edge_agent.store.model_store import Damage, ModelStore
from tests.support import packages as tiny
from tests.support.fakes import a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later
from tests.unit.store.test_install import install_context

P1 = "sha256:" + "1" * 64
DAMAGE = Damage("sha256:x", ("m",), "missing or changed on disk", (P1,))


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads have no place on virtual time."""

    async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


class Store:
    """Has these damaged files until a package is installed."""

    def __init__(self, *damage: Damage) -> None:
        self.damage: Sequence[Damage] = damage
        self.changes = 0
        self.looks = 0

    def scrub(self, pace: Callable[[], None]) -> Sequence[Damage]:
        """See `ScrubbedStore`."""
        self.looks += 1
        return self.damage

    def generation(self) -> int:
        """See `ScrubbedStore`; `changes` installs are at work, one in each look."""
        return min(self.looks, self.changes)


class Places:
    """A source with this package, and an operator that installs it; see `PackageSource` and `Operator`."""

    def __init__(self, store: Store, *names: str, faults: Sequence[Exception] = ()) -> None:
        self.store, self.names, self.faults = store, names, list(faults)
        self.calls: list[tuple[str, str]] = []

    async def find(self, wanted: Collection[str]) -> Mapping[str, FoundPackage]:
        return {P1: FoundPackage(self.names[0])} if self.names else {}

    def refused(self, found: FoundPackage) -> None:
        raise AssertionError("nothing is refused here")

    async def install(self, package: str, *_: Any, digest: str = "", **__: Any) -> Mapping[str, Any]:
        return self._done("install", package)

    async def install_from(self, path: str, digest: str, *_: Any) -> Mapping[str, Any]:
        return self._done("install_from", path)

    async def fetch(self, url: str, digest: str, *_: Any) -> Mapping[str, Any]:
        return self._done("fetch", url)

    def _done(self, *call: str) -> Mapping[str, Any]:
        self.calls.append((call[0], call[1]))
        if self.faults:
            raise self.faults.pop(0)
        self.store.damage = ()
        return {}


def scrub(device: Device, places: Any, *urls: str, every_s: float = 7 * 86400.0) -> StoreScrub:
    return StoreScrub(device.context, places.store, device.manager, places, places, lambda _package: urls, every_s)


@pytest.mark.parametrize(
    ("names", "urls", "call"),
    [
        (("a.tar",), (), ("install", "a.tar")),
        (("/media/usb/a.tar",), ("http://h/a",), ("install_from", "/media/usb/a.tar")),
        ((), ("http://h/a",), ("fetch", "http://h/a")),
    ],
)
def test_what_is_damaged_is_written_anew_and_its_worker_ended(
    names: tuple[str, ...], urls: tuple[str, ...], call: tuple[str, str]
) -> None:
    async def scenario(device: Device) -> None:
        await device.ask("q1")
        await later(1.0)
        assert device.served().worker is not None
        places = Places(Store(DAMAGE), *names)
        await scrub(device, places, *urls).look()
        assert places.calls == [call]
        assert device.served().worker is None, "it may have loaded the damaged file"
        assert ("store-damaged", "1 damaged files of m were written anew") in device.events
        assert "store" not in device.context.conditions
        await device.ask("q2")
        await later(1.0)
        assert device.transport.reply("q2")["status"] == 200

    Device.run(scenario, a_model())


def test_what_no_source_has_makes_the_device_degraded_until_it_is_whole() -> None:
    async def scenario(device: Device) -> None:
        gone = StoreError("the server answers 404", cause=Cause.SOURCE)
        places = Places(Store(DAMAGE), faults=[gone])
        await scrub(device, places, "http://h/a").look()
        assert "damaged files of m" in device.context.conditions["store"]
        places.store.damage = ()
        await scrub(device, places).look()
        assert "store" not in device.context.conditions
        assert device.kinds().count("store-damaged") == 1

    Device.run(scenario, a_model())


def test_what_an_install_deletes_while_the_store_is_read_is_no_damage() -> None:
    async def scenario(device: Device) -> None:
        places = Places(Store(DAMAGE), "a.tar")
        places.store.changes = 99
        await scrub(device, places).look()
        assert places.calls == [] and device.context.conditions == {} and places.store.looks == 3
        places.store.changes = places.store.looks + 1
        await scrub(device, places).look()
        assert places.calls == [("install", "a.tar")], "read once more, and damaged still"

    Device.run(scenario, a_model())


def test_another_change_of_the_store_is_waited_for_and_the_first_look_is_after_an_hour() -> None:
    async def scenario(device: Device) -> None:
        busy = StoreError("another install is at work", cause=Cause.BUSY)
        places = Places(Store(DAMAGE), "a.tar", faults=[busy, busy])
        task = asyncio.create_task(scrub(device, places).run())
        await later(FIRST_S - 1.0)
        assert places.calls == []
        await later(3 * BUSY_S)
        assert len(places.calls) == 3 and places.store.damage == ()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    Device.run(scenario, a_model())


@pytest.mark.parametrize(("every_s", "first_s"), [(FIRST_S / 4, FIRST_S / 4), (FIRST_S * 2, FIRST_S)])
def test_the_first_look_is_no_later_than_the_interval(every_s: float, first_s: float) -> None:
    async def scenario(device: Device) -> None:
        places = Places(Store())
        task = asyncio.create_task(scrub(device, places, every_s=every_s).run())
        await later(first_s - 1.0)
        assert places.store.looks == 0
        await later(2.0)
        assert places.store.looks == 1
        await later(every_s - 3.0)
        assert places.store.looks == 1
        await later(3.0)
        assert places.store.looks == 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    Device.run(scenario, a_model())


def test_a_store_that_is_busy_all_the_time_heals_nothing() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("q1")
        await later(1.0)
        busy = StoreError("another install is at work", cause=Cause.BUSY)
        places = Places(Store(DAMAGE), "a.tar", faults=[busy] * BUSY_TRIES)
        await scrub(device, places).look()
        assert len(places.calls) == BUSY_TRIES and places.store.looks == 1
        assert device.served().worker is not None, "nothing was written that it has not loaded"
        assert "damaged files of m" in device.context.conditions["store"]

    Device.run(scenario, a_model())


def test_a_store_that_cannot_be_read_through_is_not_reported_as_whole() -> None:
    async def scenario(device: Device) -> None:
        places = Places(Store(DAMAGE))
        await scrub(device, places).look()
        assert "store" in device.context.conditions
        places.store.changes = 99
        await scrub(device, places).look()
        assert "store" in device.context.conditions, "nothing is known of it"

    Device.run(scenario, a_model())


def test_only_workers_of_what_was_written_anew_are_ended() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("q1")
        await later(1.0)
        before = Damage("sha256:y", ("m",), "missing or changed on disk")
        places = Places(Store(before, Damage("sha256:x", ("other",), "missing or changed on disk", (P1,))), "a.tar")
        await scrub(device, places).look()
        assert places.calls == [("install", "a.tar")] and device.served().worker is not None

    Device.run(scenario, a_model())


def test_a_file_whose_entry_the_disk_does_not_give_ends_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = Blobs(tmp_path)
    found = Descriptor(media_type="application/octet-stream", digest="sha256:" + "0" * 64, size=1)
    blobs.folder.mkdir(parents=True, exist_ok=True)
    blobs.path(found.digest).write_bytes(b"x")
    assert blobs.there(found)

    def broken(_path: Path, **_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", broken)
        gone = blobs.there(found), blobs.intact(found)
    assert gone == (False, False), "a daemon whose look raises anything but an EdgeError ends"


def test_a_flipped_bit_of_a_real_store_is_found_and_healed_from_the_incoming_folder(tmp_path: Path) -> None:
    package = tiny.base_package(tmp_path)
    store = ModelStore(tmp_path / "store", install_context())
    store.install(package)
    weights = Path(store.active()[0].variant.files["model"])
    good = weights.read_bytes()
    weights.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    paces: list[int] = []
    (damage,) = store.scrub(lambda: paces.append(1))
    assert (damage.models, damage.packages) == (("tiny",), (package_digest(package),)) and len(paces) > 1
    inbox = InboxPackages(tmp_path)
    found = inbox.find(damage.packages)[damage.packages[0]]
    store.install(tmp_path / found.name, digest=damage.packages[0])
    assert store.scrub() == () and weights.read_bytes() == good
