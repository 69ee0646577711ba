"""The interface of a backend: all that a runtime must offer.

Encoders and generators have the same shape, a loop that steps. One step of an encoder answers one micro-batch;
one step of a generator decodes one token for every active sequence. The worker child drives it:

    backend.probe()                      -> Capabilities | Unavailable
    session = backend.load(files, options)
    session.attach(AdapterSource(...))   unmerged LoRA, resident beside others
    session.submit(SessionJob(...))      any number; jobs of one batch may use different adapters (mixed_adapters)
    session.step(Limits(...))            -> [Chunk | Done | ...], empty where no job got further
    session.finish(job_id)               end a streamed answer now; interrupt(job_id): end the running step early
    session.close()

A backend never starts threads that outlive `close`, never prints, and raises only the errors of `base.errors`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.bundle.prompt_tokens import TextEncoder


class Capabilities(NamedTuple):
    """What a runtime can do on this machine; `unchecked` names what could not be checked, '' if nothing.

    What holds for a runtime on every machine is in `base.runtimes`.
    """

    runtime: str
    version: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    adapters: bool
    mixed_adapters: bool
    streams: bool
    unchecked: str = ""


class Unavailable(NamedTuple):
    """Why a runtime cannot be used here, and what to do about it."""

    reason: str
    remedy: str


class AdapterSource(NamedTuple):
    """An adapter to make resident: `path` is a safetensors (or GGUF) file, `base_id` the base it was trained on."""

    name: str
    path: str
    base_id: str


class SessionJob(NamedTuple):
    """One request's rows. `rows` are token ids, one list per text; `params` are the task's settings for the session.

    `client`: who sent it; a cached prefix is reused for the same client only. A generator continues the one row of a
    job whose params have `max_tokens`; for any other job it computes features.
    """

    job_id: str
    adapter: str | None
    rows: Sequence[Sequence[int]]
    params: Mapping[str, Any]
    client: str = ""


class Limits(NamedTuple):
    """The governor's limits of a step. `max_rows` bounds a micro-batch, or the active sequences. `decode_threads`: a
    generator's threads while it processes no prompt, at most `threads`; 0: as the session's options say."""

    max_rows: int
    threads: int
    decode_threads: int = 0


class Done(NamedTuple):
    """A finished job. `outputs` maps a name to an array whose first axis is the job's rows.

    Encoders give 'features' [rows, hidden] and, where a head applies, 'logits' [rows, labels], or a list with
    [its tokens, classes] of each row.
    `compute_s` is the step's duration, `batch_rows` the rows that shared it; of a job that took several steps their sum
    and the largest, and `steps` says how many. A generator's 'features' are the logits
    of the next token (`feature_ids`); what it generated came in chunks, and `outputs` are the figures of `Generated`.
    """

    job_id: str
    outputs: Mapping[str, Any]
    compute_s: float
    batch_rows: int
    steps: int = 1


class Chunk(NamedTuple):
    """A part of a streamed answer: the token ids decoded since the last chunk.

    `logprobs` are the natural logarithms of their probabilities, one each where the job asked for them, else empty.
    """

    job_id: str
    tokens: Sequence[int]
    logprobs: Sequence[float]


class Generated(NamedTuple):
    """The figures of a generated answer, by name in `Done.outputs`.

    `finish` is 'stop' or 'length'; `cached_tokens` are those of the prompt that need not be computed again; `wait_s`
    runs from submission to a free sequence, `prompt_s` from there to the first token, `decode_s` from the first to the
    last.
    """

    finish: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    wait_s: float
    prompt_s: float
    decode_s: float


class Failed(NamedTuple):
    """A job that this runtime cannot answer; the session stays usable.

    `refused`: its own parameters cannot be followed, which is no fault of the runtime; `costly`: its grammar or schema
    took too much time or memory; `short_of_memory`: the runtime got less memory than it asked for.
    """

    job_id: str
    reason: str
    costly: bool = False
    refused: bool = False
    short_of_memory: bool = False


class GrammarReady(NamedTuple):
    """A job's grammar was compiled. Until then the job holds none of the sequences."""

    job_id: str


Event = Chunk | Done | Failed | GrammarReady


class Footprint(NamedTuple):
    """Bytes by purpose: measured, or computed where the runtime does not tell. `device_bytes` of them are memory of the
    board that a GPU holds, which no process's own figure contains."""

    weights_bytes: int
    adapters_bytes: int
    cache_bytes: int
    arena_bytes: int
    device_bytes: int = 0


class LoadStage(NamedTuple):
    """How far a load is that takes minutes; see `worker_messages.LoadProgress`."""

    stage: str
    share: float | None = None
    expected_s: float | None = None


class Vocabulary(abc.ABC):
    """The tokenizer in a model's own file."""

    context: int
    """Tokens of one sequence, prompt and answer together."""
    chat_template: str | None
    """The Jinja template that renders messages to a prompt; None where the file has none."""
    special_tokens: Mapping[str, str]
    """Texts by name (`bos_token`, `eos_token`, `unk_token`, `pad_token`) of the special tokens that the model has."""

    @property
    @abc.abstractmethod
    def encoder(self) -> TextEncoder:
        """Texts to token ids, by the added tokens and the rules of the file."""

    def encode(self, text: str, begin: bool) -> list[int]:
        """Token ids of a text; control tokens written out in it are encoded as such. `begin`: put bos first, if the
        model wants it and the text does not begin with it."""
        return self.encoder.encode(text, begin)

    @abc.abstractmethod
    def piece(self, token: int) -> bytes:
        """The bytes of a token, perhaps a part of a character; empty for a control token."""


class Session(abc.ABC):
    """A loaded model. One thread uses it; only `interrupt` may be called from another one."""

    sequences = 0
    """A generator's number of sequences decoded at once; 0: an encoder, which answers a batch per step."""
    context = 0
    """Tokens of each sequence, prompt and answer together; 0: an encoder."""

    computed_by = ""
    """For people: whether GPU or processor computes, and why not the GPU; '' where there was no choice."""

    @property
    def unproven(self) -> bool:
        """Whether the model was compiled on this device and `judge` was not called for the result yet."""
        return False

    def judge(self, passed: bool) -> None:
        """Keep what was compiled, since its golden probes held, or delete it; this session stays as it is."""
        return

    def vocabulary(self) -> Vocabulary | None:
        """The model's own tokenizer, or None where its package brings one."""
        return None

    def finish(self, job_id: str) -> Done | None:
        """End a streamed job now, with its figures; None when it is not in a sequence. No event follows."""
        return None

    def interrupt(self, job_id: str) -> bool:
        """End the running step early if it processes that job's prompt; True if so. Callable from any thread."""
        return False

    @abc.abstractmethod
    def attach(self, adapter: AdapterSource) -> int:
        """Make an adapter resident without reloading the model; returns its bytes. Raises AdapterRefused."""

    @abc.abstractmethod
    def detach(self, name: str) -> None:
        """Forget an adapter; unknown names are no error. Never called while one of its jobs is queued."""

    @abc.abstractmethod
    def submit(self, job: SessionJob) -> None:
        """Queue a job. Raises AdapterRefused (adapter not attached) or BackendError (rows that can never run)."""

    @abc.abstractmethod
    def step(self, limits: Limits) -> list[Event]:
        """Do one unit of work and return its events; empty where no job is inside or none got further."""

    @abc.abstractmethod
    def cancel(self, job_id: str) -> bool:
        """Drop a job that has not finished; True when it was still here. No event follows for it."""

    @abc.abstractmethod
    def footprint(self) -> Footprint:
        """Bytes held by this session."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything; the session is unusable afterwards."""


class Backend(abc.ABC):
    """A runtime as a plug-in, declared by an entry point of the group `edge_agent.backends`."""

    @abc.abstractmethod
    def probe(self) -> Capabilities | Unavailable:
        """What the runtime can do here; Unavailable where it is not installed. Raises nothing for that."""

    def watch(self, tell: Callable[[LoadStage], None]) -> None:
        """Have later loads call `tell`, from the loading thread and at most about once a second. Of use for backends
        that compile a model on the device; the others tell nothing."""
        return

    @abc.abstractmethod
    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """Load a model. `files` maps a role ('model', 'tokenizer', ...) to a path.

        Every backend takes the options `max_rows` and `max_tokens` (the largest shape) and `base_id` ('' where it does
        not matter); the rest are its own.

        Raises BackendMissing, or BackendError for a file it cannot use or an option it does not know.
        """


FEATURES_MAX = 1024


def feature_ids(vocabulary_size: int) -> range:
    """The token ids whose logits are a generator's features: 0, s, 2s, ..., s = max(1, size // 1024), at most 1024."""
    stride = max(1, vocabulary_size // FEATURES_MAX)
    return range(0, vocabulary_size, stride)[:FEATURES_MAX]


def checked_options(options: Mapping[str, Any], defaults: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """Defaults overlaid with `options`; an unknown option or a value of another type is a BackendError."""
    from edge_agent.base.errors import BackendError

    merged = dict(defaults)
    for key in options:
        if key not in defaults:
            known = ", ".join(sorted(defaults))
            raise BackendError(f"unknown option {key!r}", backend, f"known options: {known}")
        value, default = options[key], defaults[key]
        if (
            default is not None
            and (not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool))
            and not (isinstance(default, float) and isinstance(value, int))
        ):
            raise BackendError(f"option {key!r} is {value!r}, a {type(default).__name__} is needed", backend)
        merged[key] = value
    return merged


def check_ranges(options: Mapping[str, Any], ranges: Mapping[str, tuple[int, int]], backend: str) -> None:
    """Raises BackendError for an option that is no whole number of its range; both ends belong to it."""
    from edge_agent.base.errors import BackendError, brief

    for name, (lowest, highest) in ranges.items():
        value = options[name]
        if isinstance(value, bool) or not lowest <= value <= highest:
            raise BackendError(f"option {name!r} is {brief(value)}, {lowest} to {highest} are possible", backend)


def model_file(files: Mapping[str, str], backend: str) -> str:
    """The path of the role 'model'. Raises BackendError where none is given."""
    from edge_agent.base.errors import BackendError

    if "model" not in files:
        raise BackendError("no file with the role 'model' is given", backend)
    return files["model"]
