"""Messages between the daemon and a worker process: one tagged struct per request, answer and event.

Daemon to worker, tagged by `op`: requests. One with a call number gets exactly one answer with that number; one without
gets none. Worker to daemon, tagged by `ev`: answers, and events about jobs. `worker.wire` frames them as msgpack maps.

    request            answer              what it does
    ProbeBackends      BackendsProbed      which runtimes can be used on this machine
    LoadModel          ModelLoaded         load the one model that this worker serves
    AttachAdapter      AdapterAttached     make an adapter resident beside the model
    DetachAdapter      Accepted            forget an adapter
    MeasureTexts       TextsMeasured       raw outputs of texts, while no job is inside
    SetStepLimits      Accepted            what the next steps may use
    ReadFootprint      FootprintRead       bytes held
    ShrinkMemory       FootprintRead       return freed memory to the system first
    CancelJob          JobCancelled        drop a job that has not finished
    SubmitJobs         Accepted            hand over jobs; each ends with JobDone or JobFailed
    CloseWorker        none                end the process

Every request may be answered with CallRefused instead. The types live here, below `agent` and `worker`, because neither
of the two rooms may import the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, field

from edge_agent.base.causes import Cause, WorkerDeath
from edge_agent.base.texts import Text

TextTokens = tuple[int, int, int | None]
"""How the tokenizer took one text: its bytes in UTF-8, its tokens without special ones, the unknown ones among them
(None: the tokenizer has no unknown token)."""


class StepLimits(Struct, frozen=True, omit_defaults=True):
    """What the governor grants a worker. `decode_threads` 0: as `threads`. `busy_permille`: the part of the time, in
    thousandths, in which a generator's steps may run. `most_rows`, at a load, sizes the session; None: `max_rows`."""

    max_rows: int
    threads: int
    decode_threads: int = 0
    busy_permille: int = 1000
    most_rows: int | None = None


class TaskFields(Struct, frozen=True):
    """What a model or an adapter answers; the fields of `bundle.catalog.TaskSpec`."""

    kind: str
    labels: tuple[str, ...]
    max_tokens: int
    threshold: float
    out_of_scope: str | None
    prompt: str = ""
    pairs: bool = False
    window_overlap: int = 0
    answer_tokens: int = 0
    no_answer: bool = False


class LoadMemory(Struct, frozen=True):
    """Bytes that the device has for a load, and whether a runtime that can make itself smaller is to `shrink` into
    them."""

    memory_bytes: int
    shrink: bool = False


class JobWork(Struct, frozen=True, omit_defaults=True):
    """One job. Either `texts` or `messages`; what follows them is a generator's alone.

    `client` is whose prompt cache it may use; `flush_ms` how long text of a stream is collected; `left_s` seconds until
    its deadline, None without one.
    """

    id: str
    adapter: str | None
    params: Mapping[str, Any]
    texts: Sequence[Text] = ()
    messages: Sequence[Mapping[str, str]] = ()
    client: str = ""
    stream: bool = False
    flush_ms: float = 0.0
    left_s: float | None = None


class WorkerRequest(Struct, tag_field="op", omit_defaults=True, kw_only=True):
    """A message to a worker; `call` is the number that its answer carries, None where no answer is wanted."""

    call: int | None = field(default=None, name="n")


class ProbeBackends(WorkerRequest, tag="probe"):
    """Ask what the named backends can do here."""

    backends: Sequence[str]


class LoadModel(WorkerRequest, tag="load"):
    """Load a model. `files` maps a role ('model', 'tokenizer') to a path; `options` are the backend's.

    `trial`: try what otherwise only requests use (a chat template), as an install does. `allowed_bytes`: private memory
    that the child may take beyond what it holds; 0: as much as there is. `by_board`: the device has no more than that,
    whatever the package states. `build`: compile the model where it must be, which takes minutes; else the load is
    refused with EngineMissing.
    """

    backend: str
    files: Mapping[str, str]
    options: Mapping[str, Any]
    task: TaskFields
    limits: StepLimits
    memory: LoadMemory | None = None
    trial: bool = False
    allowed_bytes: int = 0
    by_board: bool = False
    build: bool = True


class AttachAdapter(WorkerRequest, tag="attach"):
    """Make an adapter resident; `base_id` is the base that it was trained on."""

    name: str
    path: str
    base_id: str
    task: TaskFields


class DetachAdapter(WorkerRequest, tag="detach"):
    """Forget an adapter; an unknown name is no error."""

    name: str


class SubmitJobs(WorkerRequest, tag="submit"):
    """Hand over a micro-batch."""

    jobs: Sequence[JobWork]


class CancelJob(WorkerRequest, tag="cancel"):
    """Drop a job that has not finished."""

    id: str


class CompanyTexts(Struct, frozen=True):
    """Texts that share batches with measured ones, with an adapter or (None) without."""

    adapter: str | None
    texts: Sequence[Text]


class MeasureTexts(WorkerRequest, tag="measure"):
    """Ask for the raw outputs of texts, with an adapter or (None) without.

    Each text is computed in a step of its own, so that no limit of rows decides what shares its batch. With `company`
    the texts share their batches with these, as far as the limits allow.
    """

    adapter: str | None
    texts: Sequence[Text]
    company: Sequence[CompanyTexts] = ()


class SetStepLimits(WorkerRequest, tag="limits"):
    """Change the limits from the next step on."""

    limits: StepLimits


class ReadFootprint(WorkerRequest, tag="footprint"):
    """Ask for the bytes held."""


class ShrinkMemory(WorkerRequest, tag="shrink"):
    """Return freed memory to the system and tell the bytes held."""


class JudgeEngine(WorkerRequest, tag="judge"):
    """Say whether the golden probes of a model that was compiled here held: its engine is kept, or deleted."""

    passed: bool


class CloseWorker(WorkerRequest, tag="close"):
    """End the process."""


AnyRequest = (
    ProbeBackends
    | LoadModel
    | AttachAdapter
    | DetachAdapter
    | SubmitJobs
    | CancelJob
    | MeasureTexts
    | SetStepLimits
    | ReadFootprint
    | ShrinkMemory
    | JudgeEngine
    | CloseWorker
)


class RuntimeAvailable(Struct, frozen=True, tag="available", tag_field="state"):
    """What a runtime can do on this machine; `unchecked` says what could not be found out about it, if anything."""

    runtime: str
    version: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    adapters: bool
    mixed_adapters: bool
    streams: bool
    unchecked: str = ""


class RuntimeUnavailable(Struct, frozen=True, tag="unavailable", tag_field="state"):
    """Why a runtime cannot be used here, and what to do about it ('' where nothing is known). `crashed`: it is there
    and ended its process, hung or raised what nobody foresaw when it was asked."""

    reason: str
    remedy: str = ""
    crashed: bool = False


RuntimeReport = RuntimeAvailable | RuntimeUnavailable


class FootprintBytes(Struct, frozen=True):
    """Bytes that a session holds, by purpose; `device_bytes` of them are the board's and in no process's own figure."""

    weights_bytes: int
    adapters_bytes: int
    cache_bytes: int
    arena_bytes: int
    device_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.weights_bytes + self.adapters_bytes + self.cache_bytes + self.arena_bytes


class WorkerAnswer(Struct, tag_field="ev", omit_defaults=True, kw_only=True):
    """The answer to the request whose number it carries."""

    call: int | None = field(default=None, name="n")


class Accepted(WorkerAnswer, tag="ok"):
    """It was done, and there is nothing to tell."""


class CallRefused(WorkerAnswer, tag="refused"):
    """It was not done. `error` names the class of `base.errors`; the rest are its three parts."""

    error: str
    reason: str
    where: str | None = None
    remedy: str | None = None


class BackendsProbed(WorkerAnswer, tag="probed"):
    """Each asked backend by name."""

    backends: Mapping[str, RuntimeReport]


class ModelLoaded(WorkerAnswer, tag="loaded"):
    """A model serves. `sequences` and `context` are a generator's (0: an encoder); `load_ms` is the time it took.

    `unproven`: it was compiled on this device, and nobody has said `JudgeEngine` of the result yet. `computed_by`: for
    people, '' where there was no choice.
    """

    runtime: RuntimeAvailable
    footprint: FootprintBytes
    pid: int
    load_ms: float
    sequences: int = 0
    context: int = 0
    unproven: bool = False
    computed_by: str = ""


class AdapterAttached(WorkerAnswer, tag="attached"):
    """The bytes that an adapter takes, and the time that attaching it took."""

    size_bytes: int
    attach_ms: float


class TextsMeasured(WorkerAnswer, tag="measured"):
    """Raw outputs, one row per text; `logits` is None without a classifier."""

    features: Sequence[Sequence[float]]
    compute_ms: float
    logits: Sequence[Sequence[float]] | None = None


class FootprintRead(WorkerAnswer, tag="footprint"):
    """Bytes held by the session of the process `pid`."""

    footprint: FootprintBytes
    pid: int


class JobCancelled(WorkerAnswer, tag="cancelled"):
    """Whether the job was still inside; False: it has ended, and its event is under way or was heard."""

    cancelled: bool


class WorkerEvent(Struct, tag_field="ev", omit_defaults=True):
    """What a worker sends without having been asked."""


class GeneratedText(Struct, frozen=True, omit_defaults=True):
    """A generated answer's own part: the `text` that was not sent yet, and milliseconds. `tokens_per_s` is None where
    there is no second token to count it from."""

    text: str
    wait_ms: float
    prompt_ms: float
    tokens_per_s: float | None = None


class TextChunk(WorkerEvent, tag="chunk"):
    """A part of a streamed answer."""

    id: str
    text: str


class JobDone(WorkerEvent, tag="done"):
    """A job's results, one per text. `batch` is the number of rows that shared its step, of `steps` steps the largest;
    `wording` says per text of an encoder how the tokenizer took it."""

    id: str
    results: Sequence[Mapping[str, Any]]
    tokenize_ms: float
    compute_ms: float
    batch: int
    wording: Sequence[TextTokens] = ()
    generated: GeneratedText | None = None
    steps: int = 1


class JobFailed(WorkerEvent, tag="failed"):
    """A job without an answer. `costly`: its own grammar or schema took too much time or memory."""

    id: str
    status: int
    cause: Cause
    reason: str
    costly: bool = False


class GrammarCompiled(WorkerEvent, tag="compiled"):
    """A job's grammar was compiled: from now on the job holds a sequence, or waits for one."""

    id: str


class Heartbeat(WorkerEvent, tag="beat"):
    """The worker computes; sent between two steps where nothing else was for a second."""


class LoadProgress(WorkerEvent, tag="progress"):
    """A load that takes minutes goes on. `stage`: what it does; `share` (0 to 1): how much of that is done, None where
    the runtime does not tell; `expected_s`: what the whole took last time on this device."""

    stage: str
    share: float | None = None
    expected_s: float | None = None


AnyAnswer = (
    Accepted
    | CallRefused
    | BackendsProbed
    | ModelLoaded
    | AdapterAttached
    | TextsMeasured
    | FootprintRead
    | JobCancelled
)
AnyEvent = TextChunk | JobDone | JobFailed | GrammarCompiled | Heartbeat | LoadProgress


class WorkerListener(Protocol):
    """Called by the daemon's side of one worker for each event that the worker sends, and for its end."""

    def on_event(self, event: AnyEvent) -> None:
        """The worker sent an event about a job, or a heartbeat."""
        ...

    def on_death(self, death: WorkerDeath) -> None:
        """The worker has exited and was not asked to; called at most once, and nothing is called after it."""
        ...


class NoListener:
    """Ignores everything; for a worker that gets no jobs. Implements `WorkerListener`."""

    def on_event(self, event: AnyEvent) -> None:
        """Nothing happens."""

    def on_death(self, death: WorkerDeath) -> None:
        """Nothing happens."""
