"""The backend seam: all that a runtime must offer, on one page.

Encoders and generators have the same shape, a loop that steps. One step of an encoder answers one micro-batch;
one step of a generator decodes one token for every active sequence. The worker child drives it:

    backend.probe()                      -> Capabilities | Unavailable
    session = backend.load(files, options)
    session.attach(AdapterSource(...))   unmerged LoRA, resident beside others
    session.submit(Job(...))             any number; each row may use another adapter where mixed_adapters
    session.step(Limits(...))            -> [Chunk | Done | Failed], empty when nothing came of it
    session.close()

A backend never starts threads that outlive `close`, never prints, and raises only the errors of `base.errors`.
Importable on Python 3.6 (a JetPack 4 board runs its TensorRT child in the system Python): hence the old syntax.
"""

import abc
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union


class Capabilities(NamedTuple):
    """What a runtime can do on this machine."""

    runtime: str
    version: str
    devices: Tuple[str, ...]
    dtypes: Tuple[str, ...]
    adapters: bool
    mixed_adapters: bool
    streams: bool


class Unavailable(NamedTuple):
    """Why a runtime cannot be used here, and what to do about it."""

    reason: str
    remedy: str


class AdapterSource(NamedTuple):
    """An adapter to make resident: `path` is a safetensors (or GGUF) file, `base_id` the base it was trained on."""

    name: str
    path: str
    base_id: str


class Job(NamedTuple):
    """One request's rows. `rows` are token ids, one list per text; `params` are the task's checked parameters."""

    job_id: str
    adapter: Optional[str]
    rows: Sequence[Sequence[int]]
    params: Mapping[str, Any]


class Limits(NamedTuple):
    """What the governor grants a step. `max_rows` bounds a micro-batch or the active sequences."""

    max_rows: int
    threads: int


class Done(NamedTuple):
    """A finished job. `outputs` maps a name to an array whose first axis is the job's rows.

    Encoders give 'features' [rows, hidden] and, where a head applies, 'logits' [rows, labels].
    `compute_s` is the step's duration, `batch_rows` the rows that shared it.
    """

    job_id: str
    outputs: Mapping[str, Any]
    compute_s: float
    batch_rows: int


class Chunk(NamedTuple):
    """A part of a streamed answer: the token ids decoded since the last chunk."""

    job_id: str
    tokens: Sequence[int]


class Failed(NamedTuple):
    """A job that this runtime cannot answer; the session stays usable."""

    job_id: str
    reason: str


Event = Union[Chunk, Done, Failed]


class Footprint(NamedTuple):
    """Measured or, where the runtime does not tell, computed bytes by purpose."""

    weights_bytes: int
    adapters_bytes: int
    cache_bytes: int
    arena_bytes: int


class Session(abc.ABC):
    """A loaded model. Used by one thread only."""

    @abc.abstractmethod
    def attach(self, adapter: AdapterSource) -> int:
        """Make an adapter resident without reloading the model; returns its bytes. Raises AdapterRefused."""

    @abc.abstractmethod
    def detach(self, name: str) -> None:
        """Forget an adapter; unknown names are no error. Never called while one of its jobs is queued."""

    @abc.abstractmethod
    def submit(self, job: Job) -> None:
        """Queue a job. Raises AdapterRefused (adapter not attached) or BackendError (rows that can never run)."""

    @abc.abstractmethod
    def step(self, limits: Limits) -> List[Event]:
        """Do one unit of work and report what came of it: nothing where no job is queued, or none got anywhere."""

    @abc.abstractmethod
    def cancel(self, job_id: str) -> bool:
        """Drop a job that has not finished; True when it was still here. No event follows for it."""

    @abc.abstractmethod
    def footprint(self) -> Footprint:
        """Bytes held by this session."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give everything back; the session is unusable afterwards."""


class Backend(abc.ABC):
    """A runtime, as a plug-in. Named by an `edge_agent.backends` entry point."""

    @abc.abstractmethod
    def probe(self) -> Union[Capabilities, Unavailable]:
        """Say what the runtime can do here; never raises because it is absent."""

    @abc.abstractmethod
    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """Load a model. `files` maps a role ('model', 'tokenizer', ...) to a path.

        Every backend takes the options `max_rows` and `max_tokens` (the largest shape) and `base_id` ('' where it does
        not matter); the rest are its own.

        Raises BackendMissing, or BackendError for a file it cannot use or an option it does not know.
        """


def checked_options(options: Mapping[str, Any], defaults: Mapping[str, Any], backend: str) -> Dict[str, Any]:
    """Defaults overlaid with `options`; an unknown option or a value of another type is a BackendError."""
    from edge_agent.base.errors import BackendError

    merged = dict(defaults)
    for key in options:
        if key not in defaults:
            raise BackendError(
                "unknown option {!r}".format(key),
                backend,
                "known options: {}".format(", ".join(sorted(defaults))),
            )
        value, default = options[key], defaults[key]
        if (
            default is not None
            and (not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool))
            and not (isinstance(default, float) and isinstance(value, int))
        ):
            raise BackendError(
                "option {!r} is {!r}, a {} is needed".format(key, value, type(default).__name__), backend
            )
        merged[key] = value
    return merged
