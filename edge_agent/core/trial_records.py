"""What is shown and kept of the trial of a version, for each model the last one, and what a trial has measured.

A file of its own because the daemon always has it; the judge itself (`core.version_trial`) is imported when a trial
begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One version on trial, or how its trial ended.

    `package`: the digest of the index of the package that it came from. `since_s`: wall clock of the begin. `spent_s`,
    `restarts`: running seconds, and daemons that ended in mid-trial. `sure`: False where time or requests ran out and
    the terms decided. `reason`: the verdict, or what the trial waits for. `figures`: see `VersionTrial.figures`.
    `settled`: the store shows that it is over, and the same version may be tried again.
    """

    model: str
    version: int
    package: str
    state: Literal["running", "promoted", "returned"]
    since_s: float
    spent_s: float = 0.0
    restarts: int = 0
    sure: bool | None = None
    reason: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    settled: bool = False


@dataclass(frozen=True, slots=True)
class TrialSamples:
    """What a trial under way has seen, so that the next daemon goes on with it.

    `seen`, `failed`, `agreed`, `deaths`: see `VersionTrial`; `looked`: judgements that were made. The lists are of the
    requests that both versions answered, where the figure is known: `ratios` of compute times, `old_ms`, `new_ms`,
    `drops` of the top score, `joules` (ratios), `old_c` and `new_c` (temperatures after a computation).
    """

    version: int
    package: str
    seen: int = 0
    failed: int = 0
    agreed: int = 0
    deaths: int = 0
    looked: int = 0
    last_failure: str = ""
    ratios: tuple[float, ...] = ()
    old_ms: tuple[float, ...] = ()
    new_ms: tuple[float, ...] = ()
    drops: tuple[float, ...] = ()
    joules: tuple[float, ...] = ()
    old_c: tuple[float, ...] = ()
    new_c: tuple[float, ...] = ()
