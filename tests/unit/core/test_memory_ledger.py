"""The byte ledger: what is promised is never given twice, predictions follow measurements, everything comes back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.base.limits import GIB, MIB
from edge_agent.core import residency
from edge_agent.core.memory_ledger import FIGURES_KEPT, FootprintKey, MeasuredFootprint, MemoryClaim, MemoryLedger
from edge_agent.core.residency import Fits, HostMemory, ResidentModel

CLAIM = MemoryClaim("sha256:a", "onnx", 100 * MIB)


def test_a_second_worker_brings_its_promise_along() -> None:
    """As far as the claim of the load goes: a build was promised more."""
    ledger = MemoryLedger()
    ledger.promise("m", CLAIM)
    ledger.hold("m", 90 * MIB)
    build = MemoryClaim("sha256:b", "tensorrt", 900 * MIB, "build", bounded=True)
    ledger.promise("m/engine", build)
    ledger.hold("m/engine", 300 * MIB)
    ledger.take_over("m/engine", "m", MemoryClaim("sha256:b", "tensorrt", 200 * MIB))
    (account,) = ledger.accounts().values()
    assert ledger.account("m") is account and account.promised_bytes == 200 * MIB
    ledger.hold("m", 180 * MIB, load_s=2.0)
    assert ledger.outstanding_bytes == 20 * MIB and ledger.load_s("sha256:b") == 2.0
    with pytest.raises(KeyError):
        ledger.take_over("m/engine", "m", CLAIM)


def test_a_first_load_is_predicted_by_the_package_and_the_next_by_what_was_held() -> None:
    ledger = MemoryLedger()
    assert ledger.promise("m", CLAIM) == 100 * MIB
    ledger.hold("m", 150 * MIB, load_s=2.0)
    ledger.hold("m", 140 * MIB)
    ledger.release("m")
    assert ledger.predict(CLAIM) == 150 * MIB
    assert ledger.load_s("sha256:a") == 2.0


def test_what_cannot_be_measured_keeps_a_part_spoken_for_until_it_can() -> None:
    """Seed 5089: the runtime's figure was taken for held; what came with the first use was promised to others."""
    ledger = MemoryLedger()
    ledger.promise("m", CLAIM)
    ledger.hold_estimate("m", 120 * MIB, load_s=2.0)
    assert ledger.outstanding_bytes == 24 * MIB
    ledger.settle("m")
    assert ledger.outstanding_bytes == 24 * MIB, "nothing was learned since"
    assert ledger.predict(CLAIM) == 120 * MIB
    ledger.hold("m", 110 * MIB)
    ledger.settle("m")
    assert (ledger.outstanding_bytes, ledger.reserved_bytes) == (10 * MIB, 120 * MIB)
    ledger.hold_estimate("nobody", 1, load_s=0.0)


def test_a_smaller_stay_corrects_downwards() -> None:
    ledger = MemoryLedger({FootprintKey("sha256:a"): MeasuredFootprint("onnx", 100 * MIB, 150 * MIB, 1.0)})
    ledger.promise("m", CLAIM)
    ledger.hold("m", 90 * MIB)
    assert ledger.predict(CLAIM) == 90 * MIB


def test_a_bound_that_was_not_needed_corrects_nobody() -> None:
    bound = FootprintKey("sha256:a", bounded=True)
    figures = {
        bound: MeasuredFootprint("llamacpp", 3000, 1200, 1.0),
        FootprintKey("sha256:b"): MeasuredFootprint("llamacpp", 100, 110, 1.0),
    }
    assert MemoryLedger(figures).ratio("llamacpp") == 1.1
    assert MemoryLedger({bound: figures[bound]}).ratio("llamacpp") == 1.0


def test_an_unknown_variant_is_corrected_as_its_runtime_s_others_were() -> None:
    figures = {
        FootprintKey("sha256:a"): MeasuredFootprint("onnx", 100, 150, 1.0),
        FootprintKey("sha256:b"): MeasuredFootprint("onnx", 100, 130, 1.0),
        FootprintKey("sha256:c"): MeasuredFootprint("onnx", 100, 900, 1.0),
        FootprintKey("sha256:d"): MeasuredFootprint("llamacpp", 100, 10, 1.0),
    }
    ledger = MemoryLedger(figures)
    assert ledger.predict(MemoryClaim("sha256:new", "onnx", 1000)) == 1500
    assert ledger.predict(MemoryClaim("sha256:new", "llamacpp", 1000)) == 500, "bounded: one odd figure is no rule"
    assert ledger.predict(MemoryClaim("sha256:new", "tensorrt", 1000)) == 1000


def test_what_is_promised_and_not_taken_is_outstanding_until_it_is_settled() -> None:
    ledger = MemoryLedger()
    ledger.promise("m", CLAIM)
    assert ledger.outstanding_bytes == 100 * MIB
    ledger.hold("m", 60 * MIB, mapped_bytes=20 * MIB)
    assert (ledger.outstanding_bytes, ledger.mapped_bytes, ledger.reserved_bytes) == (40 * MIB, 20 * MIB, 100 * MIB)
    ledger.settle("m")
    assert (ledger.outstanding_bytes, ledger.reserved_bytes) == (0, 60 * MIB)


def test_two_promises_under_one_name_are_a_bug() -> None:
    ledger = MemoryLedger()
    ledger.promise("m", CLAIM)
    with pytest.raises(ValueError, match="has an account already"):
        ledger.promise("m", CLAIM)


def test_only_a_figure_that_moved_is_worth_a_write() -> None:
    ledger = MemoryLedger({FootprintKey("sha256:a"): MeasuredFootprint("onnx", 100, 1000, 1.0)})
    ledger.promise("m", CLAIM)
    ledger.hold("m", 1040)
    assert not ledger.worth_keeping()
    ledger.hold("m", 1060)
    assert ledger.worth_keeping()
    assert not ledger.worth_keeping()


def test_the_figures_are_bounded_and_the_oldest_leaves() -> None:
    ledger = MemoryLedger()
    for index in range(FIGURES_KEPT + 1):
        ledger.promise("m", MemoryClaim(f"sha256:{index}", "onnx", 1))
        ledger.hold("m", 1)
        ledger.release("m")
    assert len(ledger.figures()) == FIGURES_KEPT
    assert FootprintKey("sha256:0") not in ledger.figures()


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


class Host(RuleBasedStateMachine):
    """A host with models that turn out larger or smaller than they said; only what `residency` allows is loaded.

    Models that hold no more than they were promised never take what is kept for the host.
    """

    @initialize(total_mib=st.integers(300, 4096), shares=st.lists(st.floats(0.2, 1.0), min_size=5, max_size=5))
    def begin(self, total_mib: int, shares: list[float]) -> None:
        self.total_bytes = total_mib * MIB
        self.shares = dict(zip("abcde", shares, strict=True))
        self.ledger = MemoryLedger()
        self.held: dict[str, int] = {}
        self.now_s = 1000.0

    def memory(self) -> HostMemory:
        return HostMemory(self.total_bytes, self.total_bytes - sum(self.held.values()))

    def residents(self) -> list[ResidentModel]:
        return [
            ResidentModel(name, account.reserved_bytes, busy=False, last_used_s=0.0, load_s=1.0)
            for name, account in self.ledger.accounts().items()
        ]

    @rule(name=NAMES, stated_mib=st.integers(1, 2048))
    def load(self, name: str, stated_mib: int) -> None:
        if name in self.held:
            return
        claim = MemoryClaim(f"sha256:{name}", "onnx", stated_mib * MIB)
        needed = self.ledger.predict(claim)
        outstanding = self.ledger.outstanding_bytes
        found = residency.decide(needed, self.memory(), outstanding, self.residents(), self.now_s)
        if not isinstance(found, Fits):
            return
        for leaving in found.evict:
            del self.held[leaving]
            self.ledger.release(leaving)
        assert self.ledger.promise(name, claim) == needed
        self.held[name] = 0

    @rule(name=NAMES, part=st.floats(0.0, 1.0))
    def grow(self, name: str, part: float) -> None:
        account = self.ledger.account(name)
        if account is None:
            return
        self.held[name] = max(self.held[name], int(account.promised_bytes * self.shares[name] * part))
        if self.held[name]:
            self.ledger.hold(name, self.held[name], load_s=1.0)

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.held.pop(name, None)
        self.ledger.release(name)

    @rule(name=NAMES)
    @precondition(lambda self: self.held)
    def settle(self, name: str) -> None:
        self.ledger.settle(name)

    @invariant()
    def the_reserve_is_never_promised(self) -> None:
        if not hasattr(self, "held"):
            return
        memory = self.memory()
        assert sum(self.held.values()) <= self.ledger.reserved_bytes
        if self.held:
            assert self.ledger.reserved_bytes <= memory.ceiling_bytes
            assert memory.available_bytes - self.ledger.outstanding_bytes >= memory.reserve_bytes

    @invariant()
    def who_has_left_holds_nothing(self) -> None:
        if hasattr(self, "held"):
            assert set(self.ledger.accounts()) == set(self.held)
            if not self.held:
                assert self.ledger.reserved_bytes == self.ledger.outstanding_bytes == 0


Host.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestHost = Host.TestCase


def test_popularity_fades_and_counts_against_the_cost_of_a_reload() -> None:
    uses = residency.Popularity()
    for second in range(10):
        uses.note(float(second))
    assert 9.0 < uses.now(10.0) < 10.0
    assert uses.now(10.0 + residency.POPULAR_S) == pytest.approx(uses.now(10.0) / 2.718281828, rel=1e-6)
    rare = ResidentModel("rare", GIB, False, 900.0, load_s=1.0, uses=0.5)
    often = ResidentModel("often", GIB, False, 100.0, load_s=1.0, uses=20.0)
    costly = ResidentModel("costly", GIB, False, 100.0, load_s=100.0, uses=0.5)
    assert sorted((rare, often, costly), key=lambda one: residency.worth(one, 1000.0)) == [rare, often, costly]


def test_the_seconds_of_a_load_are_known_whatever_the_settings_were() -> None:
    ledger = MemoryLedger()
    assert ledger.load_s("sha256:g") is None
    for digest, options, load_s in (("sha256:g", "", 3.0), ("sha256:g", "context=512", 2.0), ("sha256:gg", "", 9.0)):
        ledger.promise("m", MemoryClaim(digest, "llamacpp", 100, options))
        ledger.hold("m", 100, load_s=load_s)
        ledger.release("m")
    assert ledger.load_s("sha256:g") == 2.0, "the last one"
    assert ledger.predict(MemoryClaim("sha256:g", "llamacpp", 400, "context=1024")) == 400, (
        "others' bytes say nothing of it"
    )
