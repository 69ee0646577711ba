"""Which variant of a model this device runs: a pure choice, with the reason why every other variant was not taken.

Variants that cannot run here are refused first (runtime, board, CPU or GPU features, memory, accuracy); among the rest
the operator's preference decides, then the policy. What is usual for this class of board comes first, and gives way
only to a variant that measurements in turns show to be clearly better (`core.paired_times`): boards of one kind then
run the same variant, whatever else they were doing during their installs. Reasons travel as `RefusalCause` with the
sentence that people read; no code reads the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from edge_agent.base.errors import PackageError
from edge_agent.base.runtimes import traits
from edge_agent.base.units import bytes_text, energy_text
from edge_agent.bundle.catalog import LOSS_LOW, SAME_ACCURACY, TrialFigures, Variant
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.bundle.statement import matches_hardware
from edge_agent.bundle.variant_sizing import explained
from edge_agent.core.paired_times import PairedTimes

# Without a measurement, bytes per weight decide how fast an encoder is on a CPU or an embedded GPU, because reading the
# weights dominates; `base.runtimes` orders the runtimes.
_DTYPE_RANK = {"int8": 0, "int4": 1, "q4": 1, "fp16": 2, "bf16": 2, "fp32": 3}
_SLOW_FLOAT16_RANK = {**_DTYPE_RANK, "fp32": 2, "fp16": 3, "bf16": 3}

TEXT_CHARS = 2000
CLOSE_TIMES = 1.1
"""'balanced' treats times within a tenth as equal, and of these takes the variant with least memory."""
FASTER_TIMES = 1.02
"""'fastest' treats times within a fiftieth as equal: the kernel's scheduling and the clock alone move them as much."""
CLOSE_BYTES = 1.1
"""Memory within a tenth is treated as equal: what a process holds differs from load to load."""
DOT_PRODUCTS = frozenset({"asimddp", "i8mm", "avx512_vnni", "avx_vnni"})
"""CPU features as the kernel names them, with which INT8 takes about half the time of FP32 (docs/figures.md)."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The board, as far as a choice needs it.

    `names` are all names it goes by (board, device-tree compatibles, architecture). `runtimes` are the back ends that
    can load here. `features` are CPU and GPU features as the kernel names them; None: not known, so nothing is refused
    for them. `ram_bytes` is what one model may take in all; None: not known.
    """

    names: tuple[str, ...]
    runtimes: tuple[str, ...]
    features: frozenset[str] | None = None
    ram_bytes: int | None = None

    @property
    def board_class(self) -> str:
        """What is known of its speed before anything was measured."""
        if self.features is None:
            return "a processor whose features are not known"
        return f"a processor {'with' if self.features & DOT_PRODUCTS else 'without'} dot products of INT8"

    @property
    def board(self) -> str:
        """The name for sentences."""
        return self.names[0] if self.names else "an unknown board"


@dataclass(frozen=True, slots=True)
class SelectionPolicy:
    """The operator's settings: `prefer` lists number formats or 'runtime/dtype' names ahead of the policy.

    `policy` is 'balanced', 'fastest' (both bounded by `accuracy_loss_limit`, a fraction), 'smallest' or 'most-
    accurate'. `generators` are the operator's overrides of context and cache.
    """

    policy: str = "balanced"
    prefer: tuple[str, ...] = ()
    accuracy_loss_limit: float = 0.01
    generators: GeneratorOverrides = field(default_factory=GeneratorOverrides)

    def text(self) -> str:
        """The settings as one text, as the state file keeps it to tell whether a choice was made by other settings."""
        generators = self.generators.text()
        more = f" {generators}" if generators else ""
        return f"{self.policy} {','.join(self.prefer)} {self.accuracy_loss_limit:g}{more}"


class RefusalCause(Enum):
    """Why a variant is not the one that runs."""

    RUNTIME_MISSING = "runtime-missing"
    OTHER_HARDWARE = "other-hardware"
    FEATURE_MISSING = "feature-missing"
    TOO_LARGE = "too-large"
    TOO_INACCURATE = "too-inaccurate"
    TRIAL_FAILED = "trial-failed"
    RANKED_LOWER = "ranked-lower"


@dataclass(frozen=True, slots=True)
class RefusedVariant:
    """A variant that is not the one that runs; `detail` is the reason with its figures, for people."""

    name: str
    cause: RefusalCause
    detail: str

    def text(self) -> str:
        """Name and reason."""
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """The chosen variant of `considered` ones under `selection`, and why each other one was not taken.

    `possible` are all that can run here and lose little enough accuracy, the chosen one first. `sure` says how far
    measurements decided; '' where there were none to compare.
    """

    variant: Variant
    considered: int
    selection: SelectionPolicy
    refused: tuple[RefusedVariant, ...]
    possible: tuple[Variant, ...] = ()
    sure: str = ""

    @property
    def fallback(self) -> Variant | None:
        """The variant that answers while the chosen one is compiled on the device; None where nothing is compiled, or
        no other one can run."""
        if not traits(self.variant.runtime).compiles:
            return None
        return next((one for one in self.possible if not traits(one.runtime).compiles), None)

    @property
    def why(self) -> str:
        """Why the chosen variant runs, in a sentence with its figures."""
        chosen, selection = self.variant, self.selection
        preferred = bool({chosen.dtype, chosen.name} & set(selection.prefer))
        reason = "as preferred" if preferred else f"by policy {selection.policy!r}"
        accuracy = "" if chosen.accuracy is None else f", accuracy {chosen.accuracy:.3f}"
        time = "" if chosen.measured is None else f"{_a_text(chosen.measured)}, "
        sizing = chosen.sizing
        shrunk = f", shrunk to {sizing.demand.text()}" if sizing is not None and sizing.shrunk else ""
        memory = bytes_text(_bytes(chosen))
        sure = f" ({self.sure})" if self.sure else ""
        return f"{chosen.name} of {self.considered} {reason}: {time}{memory} of memory{accuracy}{shrunk}{sure}"

    def text(self) -> str:
        """All of it in a sentence, for `edge-agent models --why`."""
        return "; ".join([self.why, *(one.text() for one in self.refused)])[:TEXT_CHARS]


def choose(
    variants: Sequence[Variant], hardware: Hardware, selection: SelectionPolicy, times: PairedTimes | None = None
) -> VariantChoice:
    """The variant to run: the one that is usual for the board, or one that `times` and the memory that was measured
    here show to be clearly better.

    Raises PackageError with the reason of every variant when none can run.
    """
    best = max((one.accuracy for one in variants if one.accuracy is not None), default=None)
    possible: list[Variant] = []
    refused: list[RefusedVariant] = []
    for variant in variants:
        refusal = _cannot_run(variant, hardware) or _too_inaccurate(variant, best, selection)
        if refusal is None:
            possible.append(variant)
        else:
            refused.append(refusal)
    if not possible:
        raise PackageError(
            f"no variant can run on {hardware.board}: {'; '.join(one.text() for one in refused)}",
            remedy="choose a context that fits, or build a smaller variant"
            if any(one.sizing is not None for one in variants)
            else "build a variant for this board",
        )
    ranked = sorted(possible, key=lambda variant: _rank(variant, hardware, selection))
    usual = chosen = ranked[0]
    for challenger in ranked[1:]:
        if _clearly_better(challenger, chosen, selection, times):
            chosen = challenger
    rest = [variant for variant in ranked if variant is not chosen]
    lower = tuple(_ranked_lower(variant, chosen, times) for variant in rest)
    sure = "" if times is None or not rest else _sure(chosen, usual, rest, hardware, times)
    return VariantChoice(chosen, len(variants), selection, (*refused, *lower), (chosen, *rest), sure)


def _clearly_better(
    challenger: Variant, chosen: Variant, selection: SelectionPolicy, times: PairedTimes | None
) -> bool:
    """Whether the whole interval of what was measured speaks for the challenger under the policy.

    The operator's preference is no matter of measuring, nor is the accuracy that the package states.
    """
    if _preferred(challenger, selection) != _preferred(chosen, selection):
        return False  # they are ranked by it
    ratio = None if times is None else times.ratio(challenger.digest, chosen.digest)
    smaller = _bytes(challenger) * CLOSE_BYTES <= _bytes(chosen)
    larger = _bytes(chosen) * CLOSE_BYTES <= _bytes(challenger)
    if selection.policy == "smallest":
        return smaller or (not larger and ratio is not None and ratio.high * FASTER_TIMES < 1.0)
    if ratio is None or (selection.policy == "most-accurate" and _accuracy(challenger) < _accuracy(chosen)):
        return False
    if selection.policy == "balanced":
        return ratio.high * CLOSE_TIMES < 1.0 or (ratio.high < CLOSE_TIMES and smaller)
    return ratio.high * FASTER_TIMES < 1.0


def _sure(
    chosen: Variant, usual: Variant, rest: Sequence[Variant], hardware: Hardware, times: PairedTimes
) -> str:  # fmt: skip
    """How far the measurements decided. 'Faster' and 'better' are said where the whole interval shows it."""
    if chosen is not usual:
        return f"clearly better than {usual.name}, which is usual on {hardware.board_class}, in {times.text()}"
    ratios = [times.ratio(one.digest, chosen.digest) for one in rest]
    if all(ratio is not None and ratio.low > 1.0 for ratio in ratios):
        slower = ", ".join(one.name for one in rest)
        return f"usual on {hardware.board_class}, and faster than {slower} in {times.text()}"
    return (
        f"usual on {hardware.board_class}, and kept: {times.text()} show no other that is clearly better by this policy"
    )


def _cannot_run(variant: Variant, hardware: Hardware) -> RefusedVariant | None:
    name = variant.name
    if variant.runtime not in hardware.runtimes:
        there = ", ".join(hardware.runtimes) or "none is"
        text = f"runtime {variant.runtime!r} is not available here ({there})"
        return RefusedVariant(name, RefusalCause.RUNTIME_MISSING, text)
    if not matches_hardware(variant.hardware, hardware.names):
        text = f"it is for {', '.join(variant.hardware)}, this is {hardware.board}"
        return RefusedVariant(name, RefusalCause.OTHER_HARDWARE, text)
    missing = [] if hardware.features is None else [one for one in variant.features if one not in hardware.features]
    if missing:
        text = f"it needs the processor feature {', '.join(missing)}"
        return RefusedVariant(name, RefusalCause.FEATURE_MISSING, text)
    if hardware.ram_bytes is not None and _bytes(variant) > hardware.ram_bytes:
        return RefusedVariant(name, RefusalCause.TOO_LARGE, _too_large(variant, hardware.ram_bytes))
    return None


def _too_large(variant: Variant, ram_bytes: int) -> str:
    """The two totals, and for a generator the sum of its parts and what would fit."""
    text = f"it needs {bytes_text(_bytes(variant))} of memory, {bytes_text(ram_bytes)} may be used"
    arithmetic = explained(variant, ram_bytes)
    return f"{text}: {arithmetic}" if arithmetic else text


def _too_inaccurate(variant: Variant, best: float | None, selection: SelectionPolicy) -> RefusedVariant | None:
    if selection.policy in ("smallest", "most-accurate"):
        return None
    loss = variant.shown_loss(best)
    if loss <= selection.accuracy_loss_limit + SAME_ACCURACY:
        return None
    allowed = 100 * selection.accuracy_loss_limit
    least = "at least " if LOSS_LOW in variant.metrics else ""
    text = f"it loses {least}{100 * loss:.2f} points of accuracy, {allowed:.2f} are allowed"
    return RefusedVariant(variant.name, RefusalCause.TOO_INACCURATE, text)


def _bytes(variant: Variant) -> int:
    """Bytes that it holds in memory: as measured here, else as the package says."""
    return variant.measured.peak_bytes if variant.measured and variant.measured.peak_bytes else variant.peak_bytes


def _rank(variant: Variant, hardware: Hardware, selection: SelectionPolicy) -> tuple[float, ...]:
    """Sort key of what is usual, the best variant first: by formats and by what the package states, so that boards of
    one class agree."""
    preferred, runtime = _preferred(variant, selection), traits(variant.runtime)
    ranks = _SLOW_FLOAT16_RANK if runtime.slow_float16 else _DTYPE_RANK
    rank: float = ranks.get(variant.dtype, 4)
    if selection.policy == "fastest" and runtime.slow_float16 and variant.dtype == "int8":
        # Without dot products INT8 saves memory and not time: FP32 is ahead where time alone counts.
        slow = hardware.features is not None and not hardware.features & DOT_PRODUCTS
        rank = ranks["fp32"] + 0.5 if slow else rank
    speed = (runtime.speed_rank, rank)
    accuracy = -_accuracy(variant)
    if selection.policy == "most-accurate":
        return (preferred, accuracy, *speed, variant.size_bytes)
    if selection.policy == "smallest":
        return (preferred, variant.peak_bytes, variant.size_bytes, *speed, accuracy)
    return (preferred, *speed, variant.size_bytes, accuracy)


def _preferred(variant: Variant, selection: SelectionPolicy) -> int:
    """The place of a variant in the operator's list; those that are not in it come last together."""
    return min(_position(word, selection.prefer) for word in (variant.dtype, variant.name))


def _accuracy(variant: Variant) -> float:
    return variant.accuracy if variant.accuracy is not None else 0.0


def _position(word: str, prefer: tuple[str, ...]) -> int:
    return prefer.index(word) if word in prefer else len(prefer)


def _a_text(measured: TrialFigures) -> str:
    """What one text takes: time, and energy where the board has a sensor or an estimate."""
    if measured.joules is None:
        return f"{measured.latency_ms:.3g} ms a text"
    about = "about " if measured.energy_estimated else ""
    return f"{measured.latency_ms:.3g} ms and {about}{energy_text(measured.joules)} a text"


def _ranked_lower(variant: Variant, chosen: Variant, times: PairedTimes | None) -> RefusedVariant:
    """A variant that can run, with its figures where both sides have any."""
    if variant.measured is None or chosen.measured is None:
        return RefusedVariant(variant.name, RefusalCause.RANKED_LOWER, f"{chosen.name} comes first")
    accuracy = "" if variant.accuracy is None else f", accuracy {variant.accuracy:.3f}"
    ratio = None if times is None else times.ratio(variant.digest, chosen.digest)
    compared = "" if ratio is None else f", {ratio.text()} as long as {chosen.name}"
    text = f"{_a_text(variant.measured)}{compared}, {bytes_text(_bytes(variant))} of memory{accuracy}"
    return RefusedVariant(variant.name, RefusalCause.RANKED_LOWER, text)
