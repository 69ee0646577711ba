"""The byte ledger: what models are promised, what they hold, and how far the promise was from the truth.

    needed = ledger.promise(name, claim)      before the load: asked of `residency` and set aside
    ledger.hold(name, held, mapped)           measured after the load and while it works
    ledger.state(name, stated, load_s)        where the kernel lets nothing be measured
    ledger.release(name)                      its worker has ended

A model grows after its load (arenas, caches), so what it was promised and does not hold yet stays spoken for. Weights
that are mapped from a file count as available to the kernel although a model that loses them runs from the disk; they
are spoken for too. The most that a variant held is its prediction the next time; one that was never loaded here is
predicted by the package's figure times what its runtime's figures were usually off by.

Pure: measurements come in as numbers, the owner keeps `figures()` on disk. Who may load and who leaves is
`residency`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEAST_RATIO, HIGHEST_RATIO = 0.5, 3.0
"""Bounds on a runtime's correction: beyond them a measurement or a package is wrong, not a rule."""
WORTH_KEEPING = 0.05
"""A figure is worth a write to the card when it moved by more than a twentieth."""
TAKEN_AT_LOAD = 0.8
"""What is held of a runtime's own figure right after the load at least: the rest comes with the first use."""
FIGURES_KEPT = 64


@dataclass(frozen=True, slots=True)
class MemoryClaim:
    """What a variant says of itself: `digest` names it, `stated_bytes` is the package's figure.

    A generator with other settings than its package's holds other bytes: then the settings follow the digest, after a
    space.
    """

    digest: str
    runtime: str
    stated_bytes: int


@dataclass(frozen=True, slots=True)
class MeasuredFootprint:
    """What a variant was found to hold on this device at most, and the seconds that its load took."""

    runtime: str
    stated_bytes: int
    held_bytes: int
    load_s: float


@dataclass(slots=True)
class MemoryAccount:
    """A model in memory or on its way there.

    `promised_bytes`: set aside for it; `held_bytes`: measured last; `mapped_bytes`: the part of these that is mapped
    from files; `most_bytes`: the highest of all measurements since its load.
    """

    claim: MemoryClaim
    promised_bytes: int
    held_bytes: int = 0
    mapped_bytes: int = 0
    most_bytes: int = 0

    @property
    def reserved_bytes(self) -> int:
        """What may not be given to anybody else, and what comes free when it leaves."""
        return max(self.promised_bytes, self.held_bytes)


BOUNDED = " shrunk"
"""Ends the name of a variant that was loaded into the bytes there were: its stated bytes are a bound."""


class MemoryLedger:
    """The accounts of all models in memory, and the figures of all variants that ever were."""

    def __init__(self, figures: Mapping[str, MeasuredFootprint] | None = None) -> None:
        self._figures = dict(figures or {})
        self._kept = dict(self._figures)
        self._accounts: dict[str, MemoryAccount] = {}

    def predict(self, claim: MemoryClaim) -> int:
        """Bytes that the variant will hold at most."""
        known = self._figures.get(claim.digest)
        return known.held_bytes if known else int(claim.stated_bytes * self.ratio(claim.runtime))

    def load_s(self, digest: str) -> float | None:
        """Seconds that the variant's last load took here, with whatever settings; None before the first."""
        return next(
            (one.load_s for name, one in reversed(self._figures.items()) if name.partition(" ")[0] == digest), None
        )

    def ratio(self, runtime: str) -> float:
        """Measured over stated bytes, the (upper) median over the runtime's variants; 1 before the first.

        What was stated as a bound, and not as a need, says nothing about needs.
        """
        found = [
            figure.held_bytes / figure.stated_bytes
            for name, figure in self._figures.items()
            if figure.runtime == runtime and figure.stated_bytes > 0 and not name.endswith(BOUNDED)
        ]
        return max(LEAST_RATIO, min(sorted(found)[len(found) // 2], HIGHEST_RATIO)) if found else 1.0

    def promise(self, name: str, claim: MemoryClaim) -> int:
        """Set a model's prediction aside and return it. A name that has an account already is a ValueError."""
        if name in self._accounts:
            raise ValueError(f"{name!r} has an account already")
        self._accounts[name] = MemoryAccount(claim, self.predict(claim))
        return self._accounts[name].promised_bytes

    def hold(self, name: str, held_bytes: int, mapped_bytes: int = 0, load_s: float | None = None) -> None:
        """A measurement of a model in memory; `load_s` comes with the first one, right after the load.

        The figure is what this stay in memory needed at most, so that it also falls when a model shrinks for good.
        """
        account = self._accounts.get(name)
        if account is None:
            return
        account.held_bytes, account.mapped_bytes = held_bytes, min(mapped_bytes, held_bytes)
        account.most_bytes = max(account.most_bytes, held_bytes)
        known = self._figures.pop(account.claim.digest, None)
        took_s = load_s if load_s is not None else (known.load_s if known else 0.0)
        claim = account.claim
        self._figures[claim.digest] = MeasuredFootprint(claim.runtime, claim.stated_bytes, account.most_bytes, took_s)
        while len(self._figures) > FIGURES_KEPT:
            del self._figures[next(iter(self._figures))]

    def state(self, name: str, stated_bytes: int, load_s: float) -> None:
        """A model was loaded and cannot be measured: the runtime's own figure, of which a part may come with its use.

        That part stays spoken for until a measurement says otherwise.
        """
        account = self._accounts.get(name)
        if account is None:
            return
        self.hold(name, stated_bytes, 0, load_s)
        account.held_bytes = int(stated_bytes * TAKEN_AT_LOAD)

    def settle(self, name: str) -> None:
        """The model has worked for a while: what it never took is not promised to it any longer."""
        account = self._accounts.get(name)
        if account is not None and account.most_bytes:
            account.promised_bytes = account.most_bytes

    def release(self, name: str) -> None:
        """The model's worker has ended, or was never begun; no account is no error."""
        self._accounts.pop(name, None)

    def account(self, name: str) -> MemoryAccount | None:
        """The account of a model in memory."""
        return self._accounts.get(name)

    def accounts(self) -> Mapping[str, MemoryAccount]:
        """All accounts by model."""
        return dict(self._accounts)

    @property
    def outstanding_bytes(self) -> int:
        """Promised, or taken once since the load, and not held now: MemAvailable still counts it."""
        return sum(max(one.promised_bytes, one.most_bytes) - one.held_bytes for one in self._accounts.values())

    @property
    def mapped_bytes(self) -> int:
        """Mapped from files by models in memory: MemAvailable counts it although it is in use."""
        return sum(one.mapped_bytes for one in self._accounts.values())

    @property
    def reserved_bytes(self) -> int:
        """What all models in memory may take."""
        return sum(one.reserved_bytes for one in self._accounts.values())

    def figures(self) -> Mapping[str, MeasuredFootprint]:
        """What to keep on disk."""
        return dict(self._figures)

    def worth_keeping(self) -> bool:
        """True when a figure is new or has moved enough since the last time this said so."""
        changed = any(_moved(self._kept.get(digest), figure) for digest, figure in self._figures.items())
        if changed:
            self._kept = dict(self._figures)
        return changed


def _moved(before: MeasuredFootprint | None, after: MeasuredFootprint) -> bool:
    if before is None:
        return True
    return abs(after.held_bytes - before.held_bytes) > WORTH_KEEPING * before.held_bytes
