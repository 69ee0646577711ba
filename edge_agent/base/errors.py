"""Errors that tell the reader what is wrong, where, and what to do.

The tree (every leaf is a way an input or the world can be wrong):

    EdgeError
    ├── UsageError            the caller's command line or call is wrong
    ├── ConfigError           a settings file or variable is wrong (names file and key)
    ├── RequestError          a request cannot be served; carries the status of the reply and the cause
    ├── PackageError          a package is refused (format, digest, size, path, requirement)
    │   ├── SignatureError    unsigned, unknown key, bad signature, expired, replayed
    │   └── ProbeError        the package's golden probes fail on this device
    ├── StoreError            the store on disk cannot do what was asked (full, locked, read-only)
    ├── BackendError          a runtime refused a model, an adapter or a job
    │   ├── BackendMissing    the runtime is not installed; `remedy` says how to install it
    │   ├── AdapterRefused    an adapter does not fit this base or this runtime
    │   ├── MemoryRefused     a runtime got less memory than it asked for
    │   ├── EngineMissing     a model must be compiled for this device first, which takes minutes
    │   └── ProgramRefused      a request's grammar or schema costs more than the others can bear
    ├── WorkerError           a worker process died, hung or broke its protocol
    └── BrokerError           the MQTT broker refused or cannot be reached
"""

from __future__ import annotations

from edge_agent.base.causes import Cause

BRIEF_CHARACTERS = 80


def brief(value: object) -> str:
    """A value of a message or a file for a sentence about it: as Python writes it, and cut. Of a list or an object,
    which may be large and deep, the type alone."""
    if isinstance(value, (list, tuple, dict)):
        return "an object" if isinstance(value, dict) else "a list"
    shown = repr(value[:BRIEF_CHARACTERS] if isinstance(value, str) else value)
    cut = len(shown) > BRIEF_CHARACTERS or (isinstance(value, str) and len(value) > BRIEF_CHARACTERS)
    return f"{shown[:BRIEF_CHARACTERS]}..." if cut else shown


class EdgeError(Exception):
    """A problem with a name (`what`), a place (`where`) and a way out (`remedy`); `cause` is what code decides by: that
    of the class, unless one is given."""

    cause: Cause = Cause.INVALID

    def __init__(
        self, what: str, where: str | None = None, remedy: str | None = None, cause: Cause | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy
        if cause is not None:
            self.cause = cause

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.remedy is None else f"{text} ({self.remedy})"


class UsageError(EdgeError):
    """The command line or the call is wrong; exit code 2."""


class ConfigError(EdgeError):
    """A settings file or an environment variable is wrong."""


class RequestError(EdgeError):
    """A request cannot be served: the reply's `status`, the `cause` that code and telemetry go by, and the sentence."""

    def __init__(self, status: int, cause: Cause, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, cause=cause)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class PackageError(EdgeError):
    """A package is refused; nothing of it became active."""

    cause = Cause.PACKAGE_REFUSED


class SignatureError(PackageError):
    """A package is unsigned, signed by an unknown key, expired, or older than what was committed."""

    cause = Cause.SIGNATURE


class ProbeError(PackageError):
    """A package's golden probes do not hold on this device."""

    cause = Cause.PROBES_FAILED


class StoreError(EdgeError):
    """The store on disk cannot do what was asked."""

    cause = Cause.STORE


class BackendError(EdgeError):
    """A runtime refused a model, an adapter or a job."""

    cause = Cause.WORKER_FAILED


class BackendMissing(BackendError):
    """A runtime is not installed here."""


class AdapterRefused(BackendError):
    """An adapter does not fit the loaded base, or the runtime cannot take adapters."""

    cause = Cause.UNKNOWN_ADAPTER


class MemoryRefused(BackendError):
    """A runtime asked for memory and got none, by the bound of its process or because the board has no more.

    Requests that meet it are refused with `Cause.MEMORY`. It names no file: which model it was is said by who asked."""

    cause = Cause.MEMORY


class EngineMissing(BackendError):
    """A load that was not to compile the model found no engine for this device."""


class ProgramRefused(BackendError):
    """A request's grammar or schema costs more time or memory than the others on this worker can bear."""


class WorkerError(EdgeError):
    """A worker process died, hung, or broke its protocol."""

    cause = Cause.WORKER_FAILED


class BrokerError(EdgeError):
    """The MQTT broker refused the connection or cannot be reached."""
