"""The byte ledger: which memory each model has been promised, what it holds, and how wrong the predictions were.

    needed = ledger.promise(name, claim)             before the load, once `residency` has found room
    ledger.hold(name, held_bytes, mapped_bytes)      after the load and while the model is used: measured
    ledger.hold_estimate(name, stated_bytes, load_s) where the kernel permits no measurement
    ledger.take_over(successor, name, claim)         where a second worker replaces a model's first
    ledger.release(name)                             when its worker has ended

A model grows after its load (arenas, caches), so bytes that it was promised and does not hold yet stay reserved. The
kernel counts weights that are mapped from a file as available, although a model that loses them reads them from the
disk again; they are reserved as well. The most that a variant held is the prediction for its next load. A variant that
was never loaded on this device is predicted as the package's figure times the usual error of its runtime's figures.

Pure: measurements come in as numbers, and the owner stores `figures()` on disk. `residency` decides which model may be
loaded and which is evicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

LEAST_RATIO, HIGHEST_RATIO = 0.5, 3.0
"""Bounds of a runtime's correction: beyond them a measurement or a package is wrong, and no other model should be
predicted by it."""
WORTH_KEEPING = 0.05
"""A figure is written to the memory card again when it has changed by more than 5 %."""
TAKEN_AT_LOAD = 0.8
"""Share of a runtime's own figure that counts as held right after the load; the rest is allocated with the first use.
"""
FIGURES_KEPT = 64


class FootprintKey(NamedTuple):
    """What a measured footprint belongs to.

    `digest` names the variant. `settings`: a generator's context and sequences where they are not the package's, since
    they change its bytes ("" otherwise). `bounded`: the model was loaded into the memory that there was, so its stated
    bytes are a bound and not a need.
    """

    digest: str
    settings: str = ""
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class MemoryClaim:
    """What a variant says that it needs: `stated_bytes` of memory on `runtime`. `least_bytes`: no prediction is below,
    whatever was measured. For the rest see `FootprintKey`."""

    digest: str
    runtime: str
    stated_bytes: int
    settings: str = ""
    bounded: bool = False
    least_bytes: int = 0

    @property
    def key(self) -> FootprintKey:
        """Under what its measurements are kept."""
        return FootprintKey(self.digest, self.settings, self.bounded)


@dataclass(frozen=True, slots=True)
class MeasuredFootprint:
    """The most bytes that a variant held on this device, and the seconds that its load took."""

    runtime: str
    stated_bytes: int
    held_bytes: int
    load_s: float


@dataclass(slots=True)
class MemoryAccount:
    """A model in memory or being loaded.

    `promised_bytes`: reserved for it. `held_bytes`: last measurement; `mapped_bytes`: its part that is mapped from
    files; `most_bytes`: the highest measurement since the load.
    """

    claim: MemoryClaim
    promised_bytes: int
    held_bytes: int = 0
    mapped_bytes: int = 0
    most_bytes: int = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes that no other model may get, and that become free when this one is evicted."""
        return max(self.promised_bytes, self.held_bytes)

    def shrink_to(self, claim: MemoryClaim, promised_bytes: int) -> None:
        """From now on for this claim, with at most what was promised before. What was held for the old one is no
        measurement of it."""
        self.claim, self.promised_bytes = claim, min(self.promised_bytes, promised_bytes)
        self.most_bytes = 0


class MemoryLedger:
    """The accounts of all models in memory, and the measured footprints of up to `FIGURES_KEPT` variants."""

    def __init__(self, figures: Mapping[FootprintKey, MeasuredFootprint] | None = None) -> None:
        self._figures = dict(figures or {})
        self._kept = dict(self._figures)
        self._accounts: dict[str, MemoryAccount] = {}

    def predict(self, claim: MemoryClaim) -> int:
        """The most bytes that the variant is expected to hold."""
        known = self._figures.get(claim.key)
        # A measurement of this very variant and setting is better than any correction of a stated figure.
        predicted_bytes = known.held_bytes if known else int(claim.stated_bytes * self.ratio(claim.runtime))
        return max(claim.least_bytes, predicted_bytes)

    def load_s(self, digest: str) -> float | None:
        """Seconds that the variant's last load took on this device, with any settings; None before the first."""
        found = (figure.load_s for key, figure in reversed(self._figures.items()) if key.digest == digest)
        return next((load_s for load_s in found if load_s > 0.0), None)  # a build is measured without one

    def ratio(self, runtime: str) -> float:
        """Measured over stated bytes: the (upper) median over the runtime's variants, 1 before the first.

        Bounded loads are left out: their stated bytes say nothing about what a model needs.
        """
        found = sorted(
            figure.held_bytes / figure.stated_bytes
            for key, figure in self._figures.items()
            if figure.runtime == runtime and figure.stated_bytes > 0 and not key.bounded
        )
        return max(LEAST_RATIO, min(found[len(found) // 2], HIGHEST_RATIO)) if found else 1.0

    def promise(self, name: str, claim: MemoryClaim) -> int:
        """Reserve the predicted bytes of a model and return them. Raises ValueError if the name has an account."""
        if name in self._accounts:
            raise ValueError(f"{name!r} has an account already")
        self._accounts[name] = MemoryAccount(claim, self.predict(claim))
        return self._accounts[name].promised_bytes

    def hold(self, name: str, held_bytes: int, mapped_bytes: int = 0, load_s: float | None = None) -> None:
        """Record a measurement of a model in memory; `load_s` comes with the first one, right after the load.

        The variant's figure becomes the maximum since this load, so it also falls when a model needs less than before.
        """
        account = self._accounts.get(name)
        if account is None:
            return
        account.held_bytes, account.mapped_bytes = held_bytes, min(mapped_bytes, held_bytes)
        account.most_bytes = max(account.most_bytes, held_bytes)
        claim = account.claim
        # Popped and set again: the dictionary is in the order of the last measurement, and the oldest is dropped.
        known = self._figures.pop(claim.key, None)
        took_s = load_s if load_s is not None else (known.load_s if known else 0.0)
        self._figures[claim.key] = MeasuredFootprint(claim.runtime, claim.stated_bytes, account.most_bytes, took_s)
        while len(self._figures) > FIGURES_KEPT:
            del self._figures[next(iter(self._figures))]

    def hold_estimate(self, name: str, stated_bytes: int, load_s: float) -> None:
        """Record the runtime's own figure for a model that was loaded and cannot be measured.

        Only `TAKEN_AT_LOAD` of it counts as held; the rest stays reserved until a measurement replaces the estimate.
        """
        account = self._accounts.get(name)
        if account is None:
            return
        self.hold(name, stated_bytes, 0, load_s)
        account.held_bytes = int(stated_bytes * TAKEN_AT_LOAD)

    def settle(self, name: str) -> None:
        """Reduce the promise to the highest measurement: the model has been in use long enough to have grown."""
        account = self._accounts.get(name)
        # Without a measurement nothing has been learned, and the promise stays.
        if account is not None and account.most_bytes:
            account.promised_bytes = account.most_bytes

    def release(self, name: str) -> None:
        """Close the account: the model's worker has ended or was never started. A missing account is no error."""
        self._accounts.pop(name, None)

    def take_over(self, successor: str, name: str, claim: MemoryClaim) -> None:
        """What was promised to `successor` is `name`'s from now on, as far as the claim goes; what `name` had is free.
        No new promise, so it needs no room: other programs may have taken it meanwhile. Raises KeyError without an
        account of the successor."""
        self._accounts.pop(name, None)
        account = self._accounts[name] = self._accounts.pop(successor)
        account.shrink_to(claim, self.predict(claim))

    def account(self, name: str) -> MemoryAccount | None:
        """The account of a model in memory."""
        return self._accounts.get(name)

    def accounts(self) -> Mapping[str, MemoryAccount]:
        """All accounts by model."""
        return dict(self._accounts)

    @property
    def outstanding_bytes(self) -> int:
        """Reserved and not held now, which MemAvailable still counts as available.

        That includes bytes that a model held earlier since its load: it will take them again.
        """
        return sum(max(one.promised_bytes, one.most_bytes) - one.held_bytes for one in self._accounts.values())

    @property
    def mapped_bytes(self) -> int:
        """Mapped from files by models in memory: in use, although MemAvailable counts them as available."""
        return sum(one.mapped_bytes for one in self._accounts.values())

    @property
    def reserved_bytes(self) -> int:
        """The bytes that all models in memory may use."""
        return sum(one.reserved_bytes for one in self._accounts.values())

    def figures(self) -> Mapping[FootprintKey, MeasuredFootprint]:
        """The measured footprints, to be stored on disk."""
        return dict(self._figures)

    def worth_keeping(self) -> bool:
        """Whether a figure is new or has changed by more than `WORTH_KEEPING` since this last returned True."""
        changed = any(_moved(self._kept.get(key), figure) for key, figure in self._figures.items())
        if changed:
            self._kept = dict(self._figures)
        return changed


def _moved(before: MeasuredFootprint | None, after: MeasuredFootprint) -> bool:
    if before is None:
        return True
    return abs(after.held_bytes - before.held_bytes) > WORTH_KEEPING * before.held_bytes
