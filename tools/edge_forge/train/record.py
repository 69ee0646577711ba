"""The record of a training run: settings, cost and curves, written beside its result."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainRecord:
    """Everything measured in one training run; written as record.json, last.

    Of a run that was taken up, times count those before up to the checkpoint; `done_before` is their share of the
    steps, and memory and the first phases are those of the last process.

    Memory is the worker process's own high-water mark: `peak_bytes` in all, `baseline_bytes` after the
    imports and before the base was opened. `cpu_s` is user plus system time of all its threads.
    """

    method: str
    preset: str
    settings: dict[str, Any]
    base_id: str
    labels: list[str]
    wall_s: float
    cpu_s: float
    peak_bytes: int
    baseline_bytes: int
    trainable_parameters: int
    total_parameters: int
    # One entry per evaluation: epoch, train_loss, validation_{loss,accuracy,macro_f1}.
    curves: list[dict[str, float]]
    best_epoch: float
    stopped_early: bool
    # For LoRA above layer 0: bytes of the hidden states kept, and whether in a file; else zero.
    kept_states: dict[str, Any]
    rows: dict[str, int]
    # Texts cut to max_tokens, per split.
    truncated: dict[str, int]
    adapted_modules: list[str]
    # Parts of the wall time: open, keep (tokenise, run the frozen part), measure, train, save.
    phases_s: dict[str, float]
    versions: dict[str, str]
    gpu_peak_bytes: int = 0
    # Processes that trained together; times and memory are those of the first.
    processes: int = 1
    files: list[str] = field(default_factory=list)
    # precision, threads, micro_batch_size, and the timings that chose them.
    choice: dict[str, Any] = field(default_factory=dict)
    # Lowest adapted (or trained) layer, counted from the embeddings.
    first_layer: int = 0
    # Share of the steps that runs before had done, which were killed.
    done_before: float = 0.0
    # Rank that the adapter needs of a bank; 0 where the result has no such form.
    adapter_rank: int = 0

    def write(self, path: Path) -> None:
        """Write as indented JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> TrainRecord:
        """Read what `write` wrote."""
        return TrainRecord(**json.loads(path.read_text(encoding="utf-8")))


def peak_bytes() -> int:
    """High-water mark of this process's resident memory.

    VmHWM and not ru_maxrss, where there is one: Linux hands the parent's peak down to a child's ru_maxrss on exec.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
