"""The bodies of all messages, as types: the JSON on the wire is exactly these fields (docs/asyncapi.yaml).

What comes in is strict: an unknown field is refused by name, no type is guessed. What goes out says null where a
value does not exist and leaves out only what its comment calls optional.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from edge_agent.protocol.telemetry_parts import Canary, ModelTelemetry

# ---- in ------------------------------------------------------------------------------------------------------------


class ChatMessage(Struct, forbid_unknown_fields=True, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class InferRequest(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A request to a model. Exactly one of text, texts (encoders), prompt, messages (generators).

    Where the model takes pairs, `text_pair` stands beside text, `text_pairs` (as many) beside texts.

    `stream` asks a generator for its answer in parts. `deadline_s` counts from arrival.

    `id` and `reply_to` stand in for correlation data and response topic where the client speaks MQTT 3.1.1.
    """

    text: str | UnsetType = UNSET
    texts: list[str] | UnsetType = UNSET
    text_pair: str | UnsetType = UNSET
    text_pairs: list[str] | UnsetType = UNSET
    prompt: str | UnsetType = UNSET
    messages: list[ChatMessage] | UnsetType = UNSET
    adapter: str | None = None
    priority: int | UnsetType = UNSET
    params: dict[str, Any] | UnsetType = UNSET
    stream: bool = False
    id: str | UnsetType = UNSET
    reply_to: str | UnsetType = UNSET
    deadline_s: float | UnsetType = UNSET


class CancelRequest(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Withdraw a request by its id. `reply_to` (or the response topic) says whose request it is."""

    id: str | UnsetType = UNSET
    reply_to: str | UnsetType = UNSET


class Order(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True, kw_only=True):
    """What every command body may carry: the 3.1.1 stand-ins of `InferRequest`."""

    id: str | UnsetType = UNSET
    reply_to: str | UnsetType = UNSET
    deadline_s: float | UnsetType = UNSET


class TrialOrder(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """The terms on which a new version is tried on requests beside the version before, which answers them meanwhile
    (docs/desired.md).

    `shadow`: the new version gets copies; `share`: it also answers this `share` of the requests. `turns`: where memory
    does not hold both, they are loaded in turns. `least`, `most`: requests before the first judgement and at the end;
    `within_s`: running seconds. `agreement`: the least share of equal answers; `failures`: the most share of requests
    that it fails; `slower`: the most times as long, `joules` (left out: not judged) as much energy; `temperature_c`
    (left out: not judged): the temperature that the board may be above after 5 % of its requests; `confidence_drop`:
    the most by which the top score falls. `otherwise`: what is done where nothing was sure by the end.
    """

    mode: Literal["shadow", "share"] = "shadow"
    share: float = 0.1
    turns: bool = True
    least: int = 50
    most: int = 2000
    within_s: float = 86400.0
    agreement: float = 0.9
    failures: float = 0.05
    slower: float = 1.5
    confidence_drop: float = 0.1
    joules: float | None = None
    temperature_c: float | None = None
    otherwise: Literal["promote", "return"] = "return"


class InstallOrder(Order, frozen=True, kw_only=True):
    """Install a package that already lies in the device's incoming folder, by file name; with `trial` it answers only
    after a trial."""

    package: str
    trial: TrialOrder | UnsetType = UNSET


class ModelOrder(Order, frozen=True, kw_only=True):
    """load, unload, rollback, promote: about one model."""

    model: str


class RemoveOrder(Order, frozen=True, kw_only=True):
    """Remove a model, or only one adapter of it."""

    model: str
    adapter: str | None = None


class AdapterOrder(Order, frozen=True, kw_only=True):
    """attach, detach: about one adapter of a model."""

    model: str
    adapter: str


class DiagOrder(Order, frozen=True, kw_only=True):
    """Ask for a self-check; carries nothing."""


ORDERS: dict[str, type[Order]] = {
    "install": InstallOrder,
    "remove": RemoveOrder,
    "load": ModelOrder,
    "unload": ModelOrder,
    "attach": AdapterOrder,
    "detach": AdapterOrder,
    "rollback": ModelOrder,
    "promote": ModelOrder,
    "diag": DiagOrder,
}

# ---- in: the desired state -----------------------------------------------------------------------------------------


class DesiredAdapter(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An adapter of a model, by the digest of the index of the package that brings it; null: it is not to be there."""

    adapter: str
    package: str | None


class DesiredModel(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """A model by its package in the same way; without `package` the model is left as it is, only its adapters are
    named."""

    model: str
    package: str | UnsetType | None = UNSET
    adapters: list[DesiredAdapter] = msgspec.field(default_factory=list)


class DesiredSource(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where the package with this digest can be fetched from, by http, https or oci (a registry); several for one are
    tried in turn."""

    package: str
    url: str


class DesiredPolicy(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """How the state is reached: in so many seconds of the daemon's running time, after which what is still pending is
    refused; what is installed and not named stays, or is removed. With `trial` each new version of a model that is on
    the device answers only after a trial."""

    within_s: float = 86400.0
    others: Literal["keep", "remove"] = "keep"
    trial: TrialOrder | UnsetType = UNSET


class Desired(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True):
    """What the device is to hold (retained). Only a version above every earlier one is taken (docs/desired.md)."""

    version: int
    models: list[DesiredModel]
    sources: list[DesiredSource] = msgspec.field(default_factory=list)
    policy: DesiredPolicy = DesiredPolicy()


# ---- out: answers --------------------------------------------------------------------------------------------------


class Timing(Struct, frozen=True):
    """Where the time of a request went, in milliseconds; total runs from arrival to the reply's encoding.

    A generator's also says how long its prompt took, when its first token was there (from arrival), and how fast the
    others came; the last is left out where there is no second token.
    """

    queue_ms: float
    tokenize_ms: float
    compute_ms: float
    total_ms: float
    prompt_ms: float | UnsetType = UNSET
    first_token_ms: float | UnsetType = UNSET
    tokens_per_s: float | UnsetType = UNSET


class Usage(Struct, frozen=True):
    """Tokens of a generated answer; `cached_tokens` of the prompt were known already and cost nothing."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Energy(Struct, frozen=True):
    """Energy of this request. `joules` is null when `method` names no way to know it on this board."""

    joules: float | None
    method: str


class Reply(Struct, frozen=True, kw_only=True):
    """The one answer to a request. `status` is 200 or says why there is no `result` (docs/mqtt.md); `reason`,
    `cause` and `retry_after_s` are there only when they say something: the sentence for people, the word that code
    goes by (`base.causes.Cause`; more words may come), and when to ask again. `merged` names the merged model that
    answered for the adapter, where the device chose it."""

    id: str
    status: int
    reason: str | UnsetType = UNSET
    cause: str | UnsetType = UNSET
    retry_after_s: float | UnsetType = UNSET
    model: str | None = None
    adapter: str | None = None
    merged: str | UnsetType = UNSET
    variant: str | None = None
    result: Any = None
    timing: Timing | None = None
    batch: int | None = None
    energy: Energy | None = None
    temperature_c: float | None = None


class TokenLogprob(Struct, frozen=True, kw_only=True):
    """A token of a generated answer: its bytes as far as they stand in the text (perhaps a part of a character), these
    as text, and the natural logarithm of its probability."""

    id: int
    token: str
    bytes: list[int]
    logprob: float


class StreamChunk(Struct, frozen=True, kw_only=True):
    """A part of a streamed answer, `seq` from 0 without gaps; the last one is `done` and carries what follows `done`.

    `finish_reason`: 'stop' (the model's end, or a stop string), 'length' (max_tokens), 'deadline'. A stream that cannot
    be brought to its end ends with a Reply instead, which says why.
    """

    id: str
    seq: int
    text: str
    done: bool
    model: str | UnsetType = UNSET
    adapter: str | UnsetType | None = UNSET
    merged: str | UnsetType = UNSET
    variant: str | UnsetType | None = UNSET
    finish_reason: str | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
    timing: Timing | UnsetType = UNSET
    batch: int | UnsetType = UNSET
    energy: Energy | UnsetType = UNSET
    temperature_c: float | UnsetType | None = UNSET
    seed: int | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class CommandReply(Struct, frozen=True, kw_only=True):
    """The answer to a command; `cause` as in `Reply`."""

    id: str
    status: int
    reason: str | UnsetType = UNSET
    cause: str | UnsetType = UNSET
    retry_after_s: float | UnsetType = UNSET
    result: Any = None


# ---- out: traces ---------------------------------------------------------------------------------------------------


class RequestTrace(Struct, frozen=True, kw_only=True):
    """Where the time of one request went, for a collector of spans; only of requests that named a sampled trace, where
    the setting asks for it. `traceparent` and `tracestate` are the request's: its span is the parent. `ts` is the wall
    clock when the request was closed, `total_ms` the time from its arrival to then. The other times are null where the
    request did not come so far. `cause` as in `Reply`; `operation` is the task of the model that answered, or generate;
    `chat` tells messages from a prompt.
    """

    traceparent: str
    tracestate: str | UnsetType = UNSET
    id: str
    ts: float
    status: int
    cause: str | UnsetType = UNSET
    model: str
    adapter: str | None = None
    merged: str | UnsetType = UNSET
    variant: str | None = None
    operation: str | None = None
    chat: bool = False
    total_ms: float
    queue_ms: float | None = None
    tokenize_ms: float | None = None
    compute_ms: float | None = None
    first_token_ms: float | UnsetType = UNSET
    batch: int | None = None
    joules: float | None = None
    prompt_tokens: int | UnsetType = UNSET
    completion_tokens: int | UnsetType = UNSET
    finish_reason: str | UnsetType = UNSET


# ---- out: state ----------------------------------------------------------------------------------------------------

State = Literal["starting", "online", "degraded", "offline"]
Severity = Literal["info", "warning", "error"]
EVENT_KINDS = (
    "throttled",
    "evicted",
    "worker-died",
    "worker-hung",
    "load-failed",
    "quarantined",
    "quarantine-lifted",
    "memory-pressure",
    "variant-changed",
    "clock-refused",
    "clock-held",
    "command-failed",
    "verify-failed",
    "rolled-back",
    "sensor-lost",
    "sensors-disagree",
    "installed",
    "retained-dropped",
    "reply-denied",
    "request-unanswerable",
    "answer-dropped",
    "not-sendable",
    "stream-stopped",
    "context-shrunk",
    "engine-build",
    "broker",
    "state-folder",
    "store-damaged",
    "removed",
    "desired",
    "trial-started",
    "trial-ended",
)


class Status(Struct, frozen=True, kw_only=True):
    """Whether the agent is there (retained; the last will says offline). Older than two heartbeats means lost."""

    state: State
    boot_id: str
    seq: int
    ts: float
    heartbeat_s: float
    reason: str


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened, kept through restarts until the broker has it. (boot_id, seq) makes it unique."""

    kind: str
    ts: float
    boot_id: str
    seq: int
    severity: Severity
    message: str
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Runtime(Struct, frozen=True, kw_only=True):
    """A backend as found on this device; `reason` says why it cannot be used, or else what could not be found out."""

    name: str
    version: str | None
    devices: list[str]
    reason: str | None = None


class Info(Struct, frozen=True, kw_only=True):
    """What this device is (retained)."""

    schema: str
    agent: str
    device: str
    boot_id: str
    ts: float
    board: str
    python: str
    runtimes: list[Runtime]
    limits: dict[str, float]


class AdapterEntry(Struct, frozen=True, kw_only=True):
    """An adapter as installed. `rank` 0: a classifier's head alone. `pairs`: it is asked with text and text_pair.
    `task` is its own, which need not be the model's."""

    name: str
    digest: str
    version: int
    rank: int
    resident: bool
    labels: list[str]
    pairs: bool = False
    task: str = ""


class VariantEntry(Struct, frozen=True, kw_only=True):
    """A way to run a model; accuracy is the host's, on the recipe's test set."""

    digest: str
    runtime: str
    dtype: str
    size_bytes: int
    accuracy: float | None = None


class EngineBuild(Struct, frozen=True, kw_only=True):
    """A chosen variant that does not answer yet, because its engine is built for this device: what it does now
    (`stage`), the share of that (0 to 1) where the runtime tells, seconds since the begin, and what the last build here
    took in all. `answered_by` is the variant that answers meanwhile, None where nothing does; `reason` says why, or why
    a build failed, which is tried again in `again_s` seconds (stage 'put off')."""

    stage: str
    share: float | None
    elapsed_s: float
    expected_s: float | None
    answered_by: str | None = None
    reason: str | None = None
    again_s: float | None = None


class ModelEntry(Struct, frozen=True, kw_only=True):
    """A model as installed; `variant` is the digest of the chosen one, `footprint_bytes` is measured while resident, a
    resident generator has `sequences` of so many tokens of `context`. `building` is there while a variant is compiled
    or was put off; `variant` is then the one that answers. `computed_by` says what a GPU computes of it, or why it does
    not; null where there was no choice. `pairs`: without an adapter it is asked with text and text_pair."""

    name: str
    version: int
    base_id: str
    task: str
    labels: list[str]
    resident: bool
    variant: str
    variants: list[VariantEntry]
    adapters: list[AdapterEntry]
    footprint_bytes: int | None = None
    reason: str | None = None
    context: int | None = None
    sequences: int | None = None
    building: EngineBuild | None = None
    computed_by: str | None = None
    pairs: bool = False


class Models(Struct, frozen=True, kw_only=True):
    """All that can be asked on this device (retained)."""

    ts: float
    boot_id: str
    seq: int
    models: list[ModelEntry]


class FetchProgress(Struct, frozen=True, kw_only=True):
    """How much of a package was fetched by the attempt under way, of what had to be fetched."""

    fetched_bytes: int
    total_bytes: int


class ReportedItem(Struct, frozen=True, kw_only=True):
    """How far one thing is that `desired` names: `adapter` null is the model itself, `package` null asks for removal.

    `since` is the wall clock when the state began. `reason` and `cause` say why it was refused or rolled back, or what
    the last attempt met; `next` what happens next, and `until` when it has ended at the latest if the device runs, both
    while it is pending; `progress` how far its download is, while one is under way.
    """

    model: str
    adapter: str | None
    package: str | None
    state: Literal["pending", "applied", "refused", "rolled-back"]
    since: float
    attempts: int = 0
    reason: str | None = None
    cause: str | None = None
    next: str | None = None
    until: float | None = None
    progress: FetchProgress | None = None


class InstalledEntry(Struct, frozen=True, kw_only=True):
    """What the store holds: the package that a model, or an adapter of it, came from."""

    model: str
    adapter: str | None
    package: str


class NotTaken(Struct, frozen=True, kw_only=True):
    """The last message on `desired` that was not taken, and why; `version` null where none could be read."""

    version: int | None
    reason: str


class ReportedTrial(Struct, frozen=True, kw_only=True):
    """The trial of a version on requests, for each model the last one: `running` (the version before answers; `reason`:
    what it waits for), `promoted` or `returned` (`reason`: the verdict with its figures; `sure` false: time or requests
    ran out, and `otherwise` decided). `figures`: what was compared so far, null where there is nothing."""

    model: str
    version: int
    package: str
    state: Literal["running", "promoted", "returned"]
    since: float
    spent_s: float
    sure: bool | None = None
    reason: str | None = None
    figures: dict[str, float | None] = msgspec.field(default_factory=dict)


class Reported(Struct, frozen=True, kw_only=True):
    """How far the device is with its desired state (retained). `version` and `state` are null before the first one.
    `installed` is null where the store cannot be read, and where the message would be too large. `withdrawn`: the
    version was deleted at the broker since, and the device knows it."""

    ts: float
    boot_id: str
    seq: int
    version: int | None
    state: Literal["pending", "applied", "refused", "rolled-back"] | None
    items: list[ReportedItem]
    installed: list[InstalledEntry] | None
    not_taken: NotTaken | None = None
    withdrawn: bool = False
    trials: list[ReportedTrial] = msgspec.field(default_factory=list)


class Measured(Struct, frozen=True, kw_only=True):
    """A sensor's value with unit and source, or null with the reason for having none."""

    value: float | None
    unit: str
    source: str
    reason: str | None = None


class Telemetry(Struct, frozen=True, kw_only=True):
    """The last interval in figures. `refusals` counts by status word, `refusal_reasons` by what they were
    about; `expired` had no answer; `dropped`: messages that were not sent or not read, by cause (docs/mqtt.md);
    `sensors` is by reading key; `canaries` is by model.

    `memory`: stage of shortage, bytes available and to stay free, bytes promised and not taken yet, and by model what
    was promised, is held, and of that is mapped from files.
    """

    boot_id: str
    seq: int
    ts: float
    interval_s: float
    uptime_s: float
    models: dict[str, ModelTelemetry]
    refusals: dict[str, int]
    queue_jobs: int
    sensors: dict[str, Measured]
    energy: Energy
    rss_bytes: int | None
    governor: dict[str, Any]
    memory: dict[str, Any]
    events_waiting: int
    events_lost: int
    refusal_reasons: dict[str, int] = msgspec.field(default_factory=dict)
    expired: int = 0
    duplicates: int = 0
    canaries: dict[str, Canary] = msgspec.field(default_factory=dict)
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
