"""Installed models as the store gives them to the rest of the device, in the terms of the package format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.bundle.gguf_memory import Demand, GgufHeader

SAME_ACCURACY = 5e-7
"""Half a unit in the sixth place: 0.91 - 0.90 must not count as more than 0.01 by rounding of the last bit."""


LOSS_LOW = "accuracy_loss_low"
"""The key in `Variant.metrics` of the lower bound of the loss of accuracy against the package's FP32 variant, on the
same rows (a fraction; negative: a gain is possible)."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a model or an adapter answers.

    `kind` is 'classify', 'slots', 'answers', 'embed' or 'generate'. `labels` are a classifier's in logit order, or of
    spans. Below `threshold` the best label is reported as `out_of_scope`. `max_tokens` bounds a text; more is cut and
    said. For a generator it is the context of one sequence, prompt and answer together; a longer prompt is refused.
    `prompt` is put before every text of an encoder that was trained with one. `pairs`: it takes two texts at once.
    Answers are spans of a context: of `answer_tokens` at most, a long context in windows that share `window_overlap`
    tokens; with `no_answer` the model knows questions that a context does not answer.
    """

    kind: str
    labels: tuple[str, ...] = ()
    max_tokens: int = 128
    threshold: float = 0.0
    out_of_scope: str | None = None
    prompt: str = ""
    pairs: bool = False
    window_overlap: int = 0
    answer_tokens: int = 0
    no_answer: bool = False


@dataclass(frozen=True, slots=True)
class TrialFigures:
    """What a trial on this device measured: compute time of one text of `text_bytes`, bytes held by the worker, seconds
    to load, and joules of such a text (None: `energy_method` is the reason).

    `energy_estimated`: the joules come from the board's published power, not from a sensor.
    """

    latency_ms: float
    peak_bytes: int
    load_s: float
    text_bytes: int
    joules: float | None = None
    energy_method: str = ""
    energy_estimated: bool = False


@dataclass(frozen=True, slots=True)
class Sizing:
    """How a generator is to be loaded, by its file's header. `full` is the demand without `shrink_context`."""

    header: GgufHeader
    demand: Demand
    full: Demand

    @property
    def shrunk(self) -> bool:
        """Whether it gets less than was requested."""
        return self.demand != self.full


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a model: a runtime, a number format, its files and what the host measured.

    `digest` is the manifest's. `files` maps a role ('model', 'tokenizer') to an absolute path; it is empty for a
    variant that the package offered and the device did not keep. `accuracy` is a fraction on the recipe's test set.
    `features` are CPU or GPU features that it needs, `hardware` the boards that it is for (empty: any). `metrics` are
    the host's figures, `measured` this device's (None: it was not tried here). `sizing` is there for a generator whose
    header was looked at (`bundle.variant_sizing`).
    """

    digest: str
    runtime: str
    dtype: str
    files: Mapping[str, str]
    size_bytes: int
    peak_bytes: int
    accuracy: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: TrialFigures | None = None
    sizing: Sizing | None = None

    @property
    def name(self) -> str:
        """How people and golden probes name it: 'onnx/int8'."""
        return f"{self.runtime}/{self.dtype}"

    def shown_loss(self, best: float | None) -> float:
        """The loss of accuracy (a fraction) that the package's rows show: by the lower bound where the package states
        one; else the accuracy `best` less its own, which a row or two decide. 0 where nothing is known."""
        if LOSS_LOW in self.metrics:
            return self.metrics[LOSS_LOW]
        return 0.0 if best is None or self.accuracy is None else best - self.accuracy


@dataclass(frozen=True, slots=True)
class Adapter:
    """An unmerged adapter of a base: `base_id` must equal the model's. `version` is its release's counter.

    `digest` is its manifest's, `file_digest` its weights'. `rank` 0: it is a classifier's head alone. `measured` is
    what a text took with it here, on the variant of the base that was chosen.
    """

    name: str
    digest: str
    path: str
    base_id: str
    task: TaskSpec
    rank: int
    size_bytes: int
    version: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    file_digest: str = ""
    accuracy: float | None = None
    measured: TrialFigures | None = None


@dataclass(frozen=True, slots=True)
class InstalledState:
    """What tells one state of an installed model from another: its version (a rollback has a lower one), the digest of
    its chosen variant, the names of its adapters."""

    version: int
    variant: str
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model as it is active on this device, with the one variant that was chosen and its adapters.

    `version` rises with every change of the model on this device (install, adapter, removal); a rollback returns to an
    older one. `kind` is 'base' (takes adapters of its `base_id`) or 'merged' (takes none; `merged_from` names what was
    folded, by digests). `trial`: the terms on which it is tried on requests first, '' where it answers.
    """

    name: str
    base_id: str
    version: int
    variant: Variant
    variants: tuple[Variant, ...]
    task: TaskSpec
    adapters: tuple[Adapter, ...] = ()
    kind: str = "base"
    merged_from: Mapping[str, str] = field(default_factory=dict)
    trial: str = ""

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of that name, or None."""
        return next((adapter for adapter in self.adapters if adapter.name == name), None)
