"""Which variant of a model this device runs: a pure choice with its reasons.

What cannot run here is refused first (runtime, board, CPU or GPU features, memory, accuracy); among the rest the
operator's preference decides, then the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.base.errors import PackageError
from edge_agent.base.runtimes import traits
from edge_agent.base.units import bytes_text, energy_text
from edge_agent.bundle.catalog import SAME_ACCURACY, TrialFigures, Variant
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.bundle.statement import matches_hardware
from edge_agent.bundle.variant_sizing import explained

# Without a measurement: bytes per weight decide how fast an encoder is on a CPU or an embedded GPU, since reading the
# weights dominates; `base.runtimes` orders the runtimes.
_DTYPE_RANK = {"int8": 0, "int4": 1, "q4": 1, "fp16": 2, "bf16": 2, "fp32": 3}
_SLOW_FLOAT16_RANK = {**_DTYPE_RANK, "fp32": 2, "fp16": 3, "bf16": 3}


TEXT_CHARS = 2000
CLOSE_TIMES = 1.1
"""'balanced' takes times within a tenth of the fastest for equal, and of these the variant that needs least memory."""


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
    accurate'. `generators`: what is wanted of their context and cache.
    """

    policy: str = "balanced"
    prefer: tuple[str, ...] = ()
    accuracy_loss_limit: float = 0.01
    generators: GeneratorOverrides = field(default_factory=GeneratorOverrides)

    def text(self) -> str:
        """The wishes as one text, to tell whether a choice was made by others."""
        generators = self.generators.text()
        more = f" {generators}" if generators else ""
        return f"{self.policy} {','.join(self.prefer)} {self.accuracy_loss_limit:g}{more}"


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """The chosen variant, a sentence why, and why each other one was not taken.

    `possible` are all that can run here and lose little enough, the chosen one first.
    """

    variant: Variant
    why: str
    refused: tuple[tuple[str, str], ...]
    possible: tuple[Variant, ...] = ()

    def text(self) -> str:
        """All of it in a sentence, for `edge-agent models --why`."""
        return "; ".join([self.why, *(f"{name}: {reason}" for name, reason in self.refused)])[:TEXT_CHARS]


def choose(variants: Sequence[Variant], hardware: Hardware, wishes: SelectionPolicy) -> VariantChoice:
    """The variant to run: by what was measured here where every possible one was, else by what is known of formats.

    Raises PackageError with the reason of every variant when none can run.
    """
    best = max((one.accuracy for one in variants if one.accuracy is not None), default=None)
    possible, refused = [], []
    for variant in variants:
        reason = _cannot_run(variant, hardware) or _too_inaccurate(variant, best, wishes)
        if reason is None:
            possible.append(variant)
        else:
            refused.append((variant.name, reason))
    if not possible:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
        raise PackageError(
            f"no variant can run on {hardware.board}: {reasons}",
            remedy="choose a context that fits, or build a smaller variant"
            if any(one.sizing is not None for one in variants)
            else "build a variant for this board",
        )
    fastest_ms = _fastest_ms(possible)
    ranked = sorted(possible, key=lambda variant: _rank(variant, wishes, fastest_ms))
    chosen = ranked[0]
    beaten = tuple((variant.name, _beaten(variant, chosen)) for variant in ranked[1:])
    return VariantChoice(chosen, _why(chosen, len(variants), wishes), (*refused, *beaten), tuple(ranked))


def _fastest_ms(possible: Sequence[Variant]) -> float | None:
    """The shortest measured time; None when one of them was not measured, since then nobody can be compared."""
    times = [variant.measured.latency_ms for variant in possible if variant.measured is not None]
    return min(times) if len(times) == len(possible) else None


def _cannot_run(variant: Variant, hardware: Hardware) -> str | None:
    if variant.runtime not in hardware.runtimes:
        return f"runtime {variant.runtime!r} is not available here ({', '.join(hardware.runtimes) or 'none is'})"
    if not matches_hardware(variant.hardware, hardware.names):
        return f"it is for {', '.join(variant.hardware)}, this is {hardware.board}"
    missing = [] if hardware.features is None else [one for one in variant.features if one not in hardware.features]
    if missing:
        return f"it needs the processor feature {', '.join(missing)}"
    if hardware.ram_bytes is not None and _bytes(variant) > hardware.ram_bytes:
        return _too_large(variant, hardware.ram_bytes)
    return None


def _too_large(variant: Variant, ram_bytes: int) -> str:
    """The two totals, and for a generator where they come from and what would fit."""
    text = f"it needs {bytes_text(_bytes(variant))} of memory, {bytes_text(ram_bytes)} may be used"
    arithmetic = explained(variant, ram_bytes)
    return f"{text}: {arithmetic}" if arithmetic else text


def _too_inaccurate(variant: Variant, best: float | None, wishes: SelectionPolicy) -> str | None:
    if best is None or variant.accuracy is None or wishes.policy in ("smallest", "most-accurate"):
        return None
    loss = best - variant.accuracy
    if loss <= wishes.accuracy_loss_limit + SAME_ACCURACY:
        return None
    return f"it loses {100 * loss:.2f} points of accuracy, {100 * wishes.accuracy_loss_limit:.2f} are allowed"


def _bytes(variant: Variant) -> int:
    """What it holds in memory: as measured here, else as the package says."""
    return variant.measured.peak_bytes if variant.measured and variant.measured.peak_bytes else variant.peak_bytes


def _rank(variant: Variant, wishes: SelectionPolicy, fastest_ms: float | None) -> tuple[float, ...]:
    preferred = min((_position(word, wishes.prefer) for word in (variant.dtype, variant.name)), default=0)
    runtime = traits(variant.runtime)
    ranks = _SLOW_FLOAT16_RANK if runtime.slow_float16 else _DTYPE_RANK
    speed: tuple[float, ...] = (runtime.speed_rank, ranks.get(variant.dtype, 4))
    if fastest_ms is not None and variant.measured is not None:
        times = variant.measured.latency_ms / fastest_ms if fastest_ms > 0 else 1.0
        close = wishes.policy == "balanced" and times <= CLOSE_TIMES
        speed = (0.0, _bytes(variant)) if close else (times, 0.0)
    accuracy = -(variant.accuracy if variant.accuracy is not None else 0.0)
    if wishes.policy == "most-accurate":
        return (preferred, accuracy, *speed, variant.size_bytes)
    if wishes.policy == "smallest":
        return (preferred, _bytes(variant), variant.size_bytes, *speed, accuracy)
    return (preferred, *speed, variant.size_bytes, accuracy)


def _position(word: str, prefer: tuple[str, ...]) -> int:
    return prefer.index(word) if word in prefer else len(prefer)


def _why(chosen: Variant, count: int, wishes: SelectionPolicy) -> str:
    reason = "as preferred" if {chosen.dtype, chosen.name} & set(wishes.prefer) else f"by policy {wishes.policy!r}"
    accuracy = "" if chosen.accuracy is None else f", accuracy {chosen.accuracy:.3f}"
    time = "" if chosen.measured is None else f"{_a_text(chosen.measured)}, "
    sizing = chosen.sizing
    shrunk = f", shrunk to {sizing.demand.text()}" if sizing is not None and sizing.shrunk else ""
    return f"{chosen.name} of {count} {reason}: {time}{bytes_text(_bytes(chosen))} of memory{accuracy}{shrunk}"


def _a_text(measured: TrialFigures) -> str:
    """What one text takes: time, and energy where the board tells."""
    if measured.joules is None:
        return f"{measured.latency_ms:.3g} ms a text"
    about = "about " if measured.energy_method.startswith("estimated") else ""
    return f"{measured.latency_ms:.3g} ms and {about}{energy_text(measured.joules)} a text"


def _beaten(variant: Variant, chosen: Variant) -> str:
    """Why another one comes first, with the figures of both sides where there are any."""
    if variant.measured is None or chosen.measured is None:
        return f"{chosen.name} comes first"
    accuracy = "" if variant.accuracy is None else f", accuracy {variant.accuracy:.3f}"
    return f"{_a_text(variant.measured)}, {bytes_text(_bytes(variant))} of memory{accuracy}"
