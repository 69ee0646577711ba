"""Which variant of a model this device runs: a pure choice, with the reason why every other variant was not taken.

Variants that cannot run here are refused first (runtime, board, CPU or GPU features, memory, accuracy); among the rest
the operator's preference decides, then the policy. Reasons travel as `RefusalCause` with the sentence that people read;
no code reads the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from edge_agent.base.errors import PackageError
from edge_agent.base.runtimes import traits
from edge_agent.base.units import bytes_text, energy_text
from edge_agent.bundle.catalog import SAME_ACCURACY, TrialFigures, Variant
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.bundle.statement import matches_hardware
from edge_agent.bundle.variant_sizing import explained

# Without a measurement, bytes per weight decide how fast an encoder is on a CPU or an embedded GPU, because reading the
# weights dominates; `base.runtimes` orders the runtimes.
_DTYPE_RANK = {"int8": 0, "int4": 1, "q4": 1, "fp16": 2, "bf16": 2, "fp32": 3}
_SLOW_FLOAT16_RANK = {**_DTYPE_RANK, "fp32": 2, "fp16": 3, "bf16": 3}

TEXT_CHARS = 2000
CLOSE_TIMES = 1.1
"""'balanced' treats times within a tenth of the fastest as equal, and of these takes the variant with least memory."""


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

    `possible` are all that can run here and lose little enough accuracy, the chosen one first.
    """

    variant: Variant
    considered: int
    selection: SelectionPolicy
    refused: tuple[RefusedVariant, ...]
    possible: tuple[Variant, ...] = ()

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
        return f"{chosen.name} of {self.considered} {reason}: {time}{memory} of memory{accuracy}{shrunk}"

    def text(self) -> str:
        """All of it in a sentence, for `edge-agent models --why`."""
        return "; ".join([self.why, *(one.text() for one in self.refused)])[:TEXT_CHARS]


def choose(variants: Sequence[Variant], hardware: Hardware, selection: SelectionPolicy) -> VariantChoice:
    """The variant to run: by what was measured here where every possible one was, else by what is known of formats.

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
    fastest_ms = _fastest_ms(possible)
    ranked = sorted(possible, key=lambda variant: _rank(variant, selection, fastest_ms))
    lower = tuple(_ranked_lower(variant, ranked[0]) for variant in ranked[1:])
    return VariantChoice(ranked[0], len(variants), selection, (*refused, *lower), tuple(ranked))


def _fastest_ms(possible: Sequence[Variant]) -> float | None:
    """The shortest measured time; None when one of them was not measured, because then times cannot be compared."""
    times = [variant.measured.latency_ms for variant in possible if variant.measured is not None]
    return min(times) if len(times) == len(possible) else None


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
    if best is None or variant.accuracy is None or selection.policy in ("smallest", "most-accurate"):
        return None
    loss = best - variant.accuracy
    if loss <= selection.accuracy_loss_limit + SAME_ACCURACY:
        return None
    allowed = 100 * selection.accuracy_loss_limit
    text = f"it loses {100 * loss:.2f} points of accuracy, {allowed:.2f} are allowed"
    return RefusedVariant(variant.name, RefusalCause.TOO_INACCURATE, text)


def _bytes(variant: Variant) -> int:
    """Bytes that it holds in memory: as measured here, else as the package says."""
    return variant.measured.peak_bytes if variant.measured and variant.measured.peak_bytes else variant.peak_bytes


def _rank(variant: Variant, selection: SelectionPolicy, fastest_ms: float | None) -> tuple[float, ...]:
    """Sort key, the best variant first."""
    preferred = min((_position(word, selection.prefer) for word in (variant.dtype, variant.name)), default=0)
    runtime = traits(variant.runtime)
    ranks = _SLOW_FLOAT16_RANK if runtime.slow_float16 else _DTYPE_RANK
    speed: tuple[float, ...] = (runtime.speed_rank, ranks.get(variant.dtype, 4))
    if fastest_ms is not None and variant.measured is not None:
        times = variant.measured.latency_ms / fastest_ms if fastest_ms > 0 else 1.0
        close = selection.policy == "balanced" and times <= CLOSE_TIMES
        speed = (0.0, _bytes(variant)) if close else (times, 0.0)
    accuracy = -(variant.accuracy if variant.accuracy is not None else 0.0)
    if selection.policy == "most-accurate":
        return (preferred, accuracy, *speed, variant.size_bytes)
    if selection.policy == "smallest":
        return (preferred, _bytes(variant), variant.size_bytes, *speed, accuracy)
    return (preferred, *speed, variant.size_bytes, accuracy)


def _position(word: str, prefer: tuple[str, ...]) -> int:
    return prefer.index(word) if word in prefer else len(prefer)


def _a_text(measured: TrialFigures) -> str:
    """What one text takes: time, and energy where the board has a sensor or an estimate."""
    if measured.joules is None:
        return f"{measured.latency_ms:.3g} ms a text"
    about = "about " if measured.energy_estimated else ""
    return f"{measured.latency_ms:.3g} ms and {about}{energy_text(measured.joules)} a text"


def _ranked_lower(variant: Variant, chosen: Variant) -> RefusedVariant:
    """A variant that can run, with its figures where both sides have any."""
    if variant.measured is None or chosen.measured is None:
        return RefusedVariant(variant.name, RefusalCause.RANKED_LOWER, f"{chosen.name} comes first")
    accuracy = "" if variant.accuracy is None else f", accuracy {variant.accuracy:.3f}"
    text = f"{_a_text(variant.measured)}, {bytes_text(_bytes(variant))} of memory{accuracy}"
    return RefusedVariant(variant.name, RefusalCause.RANKED_LOWER, text)
