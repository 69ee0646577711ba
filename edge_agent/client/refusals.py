"""What an answer with a status other than 200 becomes: an exception by its status word.

    RequestError               status, cause, reason, retry_after_s
    ├── InvalidRequest         400, 413, 415, 422: the request must be changed
    ├── UnknownName            404: no such device, model, adapter or order
    ├── DeadlineMissed         408: no answer in time
    ├── DeviceBusy             429: the queue is full; ask again after `retry_after_s`
    ├── RequestCancelled       499: this client, or another that knows its id, withdrew the request
    ├── WorkerFault            500: the worker failed
    └── DeviceUnavailable      503: too late, too hot, out of memory, stopping, or not there at all

`cause` is the word by which a program decides; a device whose answer has none, or one that this version does not know,
gets the plainest cause of its status.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.protocol.messages import CommandReply, Reply


class InvalidRequest(RequestError):
    """400, 413, 415, 422: the request is wrong, and will be refused again as it stands."""


class UnknownName(RequestError):
    """404: no such model, adapter or order."""


class DeadlineMissed(RequestError):
    """408: the deadline passed; where no answer came at all, the reason says what the device last said of itself."""


class DeviceBusy(RequestError):
    """429: the queue is full, or this client has its share of it."""


class RequestCancelled(RequestError):
    """499: the request was withdrawn."""


class WorkerFault(RequestError):
    """500: the worker failed over this request, or died."""


class DeviceUnavailable(RequestError):
    """503: the deadline cannot be met, the board is too hot or out of memory, or nobody is there who could answer."""


BY_STATUS: Mapping[int, tuple[type[RequestError], Cause]] = {
    400: (InvalidRequest, Cause.MALFORMED),
    404: (UnknownName, Cause.UNKNOWN_MODEL),
    408: (DeadlineMissed, Cause.EXPIRED),
    413: (InvalidRequest, Cause.TOO_LARGE),
    415: (InvalidRequest, Cause.MALFORMED),
    422: (InvalidRequest, Cause.INVALID),
    429: (DeviceBusy, Cause.QUEUE_FULL),
    499: (RequestCancelled, Cause.CANCELLED),
    500: (WorkerFault, Cause.WORKER_FAILED),
    503: (DeviceUnavailable, Cause.UNAVAILABLE),
}
"""The exception of a status, and the cause that is taken where an answer names none."""
OTHER = (DeviceUnavailable, Cause.UNAVAILABLE)
"""Of a status that this version does not know."""
WORDS: Mapping[str, Cause] = {cause.value: cause for cause in Cause}


def refusal_of(reply: Reply | CommandReply) -> RequestError:
    """The exception that a reply with a status other than 200 stands for."""
    kind, usual = BY_STATUS.get(reply.status, OTHER)
    cause = WORDS.get(reply.cause, usual) if isinstance(reply.cause, str) else usual
    reason = reply.reason if isinstance(reply.reason, str) else f"status {reply.status}, no reason given"
    retry_after_s = reply.retry_after_s if isinstance(reply.retry_after_s, float | int) else None
    return kind(reply.status, cause, reason, retry_after_s)
