"""Why a request was refused and why a worker ended, as values that code decides by and telemetry counts.

The sentence that accompanies a cause is for people. Code never reads it: it carries names that clients choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """Why a request was not answered with 200. For the words in telemetry's `refusal_reasons` see `telemetry_word`."""

    CLIENT_SHARE = "client-share"
    """The client holds its share of the queue; the places left are kept for other clients."""
    QUEUE_FULL = "queue-full"
    DEADLINE = "deadline"
    """Refused on arrival: the predicted end lies after the deadline."""
    OVERTAKEN = "overtaken"
    """Refused while it waited: more urgent requests arrived, and its deadline can no longer be met."""
    HEAT = "heat"
    MEMORY = "memory"
    QUARANTINED = "quarantined"
    UNKNOWN_MODEL = "unknown-model"
    """No model of this name is installed."""
    MODEL_REMOVED = "model-removed"
    """The model was removed while the request waited."""
    UNKNOWN_ADAPTER = "unknown-adapter"
    """The model has no such adapter, or the runtime refuses it."""
    IMPOSSIBLE_NAME = "impossible-name"
    """The name given for a model or an adapter is one that no package can have."""
    UNKNOWN_COMMAND = "unknown-command"
    UNKNOWN_TOPIC = "unknown-topic"
    """The message came to a topic that takes no requests."""
    MALFORMED = "malformed"
    INVALID = "invalid"
    WRONG_FORM = "wrong-form"
    """A text for a generator, or a prompt or messages for an encoder."""
    TEXT_PAIR = "text-pair"
    """One text for a task that takes pairs, or a pair for one that takes one text."""
    TOO_LARGE = "too-large"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    WORKER_DIED = "worker-died"
    WORKER_FAILED = "worker-failed"
    """The worker is alive and could not answer this request, or the model could not be loaded."""
    UNAVAILABLE = "unavailable"
    """Anything else that ends with 503."""
    # Of orders, and of commands on the device: see OF_ORDERS.
    BUSY = "busy"
    """Another order, or another command on the device, is changing the store."""
    PACKAGE_REFUSED = "package-refused"
    """The package is no package, is damaged, or does not fit this device."""
    SIGNATURE = "signature"
    """Unsigned, signed by an unknown key, expired, older than what was committed, or of another line."""
    NO_TRUST_ROOT = "no-trust-root"
    """There is no trust root on the device, so no signature can be checked; it can be put there later."""
    PROBES_FAILED = "probes-failed"
    """The model's golden probes do not hold on this device."""
    DISK_FULL = "disk-full"
    SOURCE = "source"
    """The package is not where it was said to be: no such file, a server that does not give it, or a file or a server
    that gives something else under its name."""
    STORE = "store"
    """The store on the disk cannot do what was asked: read-only, damaged, or the command on it failed."""
    NO_EARLIER_VERSION = "no-earlier-version"
    AGENT_ERROR = "agent-error"
    """An error of the agent itself; its journal has the details."""


OF_ORDERS = frozenset(
    {
        Cause.BUSY,
        Cause.PACKAGE_REFUSED,
        Cause.SIGNATURE,
        Cause.NO_TRUST_ROOT,
        Cause.PROBES_FAILED,
        Cause.DISK_FULL,
        Cause.SOURCE,
        Cause.STORE,
        Cause.NO_EARLIER_VERSION,
        Cause.AGENT_ERROR,
    }
)
"""Causes that no request is refused for, so telemetry never counts them."""

COUNTED_AS: Mapping[Cause, Cause] = {
    Cause.MODEL_REMOVED: Cause.UNKNOWN_ADAPTER,
    Cause.IMPOSSIBLE_NAME: Cause.UNKNOWN_ADAPTER,
    Cause.UNKNOWN_COMMAND: Cause.UNKNOWN_ADAPTER,
    Cause.UNKNOWN_TOPIC: Cause.UNKNOWN_ADAPTER,
    Cause.WRONG_FORM: Cause.INVALID,
    Cause.TEXT_PAIR: Cause.INVALID,
}
"""The causes that telemetry counts under the word of another one: the published list of words has none for them."""


def telemetry_word(cause: Cause) -> str:
    """The word under which telemetry's `refusal_reasons` counts a cause; docs/mqtt.md lists the words."""
    return COUNTED_AS.get(cause, cause).value


@dataclass(frozen=True, slots=True)
class Closure:
    """Why no request is admitted at the moment: the cause for code, the sentence for people."""

    cause: Cause
    reason: str


class DeathCause(Enum):
    """How a worker process ended without having been asked to."""

    SIGNALLED_FROM_OUTSIDE = "signalled-from-outside"
    """SIGKILL or SIGTERM, from a person or another program. The requests inside are not to blame."""
    OUT_OF_MEMORY = "out-of-memory"
    """SIGKILL, and the kernel counted a process that it killed for lack of memory. The requests are not to blame."""
    CRASHED = "crashed"
    """Any other signal or a non-zero exit status: what it computed may be to blame."""
    HUNG = "hung"
    """The daemon ended it because it sent nothing for too long while it held requests."""
    CHANNEL_BROKEN = "channel-broken"
    """Its channel closed or carried something that is not a message."""


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """The end of a worker process: the cause for code, the sentence for people."""

    cause: DeathCause
    reason: str
