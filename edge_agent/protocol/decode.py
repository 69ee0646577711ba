"""Messages to values: the inbound half of the wire. Whatever arrives becomes a request or a refusal, never an error.

Order of the checks: retained, reply address, size, expiry, content type, UTF-8, depth, types, keys, fields. The reply
address comes first so that even a refusal reaches the one who asked; where it cannot be answered the refusal names
the event to report instead.

Nothing here knows which models exist, and nothing is queued: see `agent.intake`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from edge_agent.base import limits
from edge_agent.base.causes import Cause
from edge_agent.base.limits import PRIORITY_DEFAULT, PRIORITY_HIGHEST, PRIORITY_LOWEST
from edge_agent.base.texts import Text
from edge_agent.base.units import bytes_text
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.json_guard import quoted, repeated_key, too_deep
from edge_agent.protocol.messages import (
    ORDERS,
    CancelRequest,
    ChatMessage,
    Desired,
    InferRequest,
    InstallOrder,
    Order,
    TrialOrder,
)
from edge_agent.protocol.topics import (
    NAME,
    CancelTarget,
    CommandTarget,
    InferTarget,
    ReplyAddress,
    ReplyDenied,
    Topics,
    correlation_id,
    find_address,
    fit_id,
)
from edge_agent.protocol.trial_terms import trial_fault

FORMS = ("text", "texts", "prompt", "messages")
PARAMS = 16
# All values of all parameters, nested ones included: an empty list is three bytes on the wire and 64 in memory.
PARAM_VALUES = 1024
_URL = re.compile(r"https?://[^/@\s]+(/[!-~]*)?|oci://[^/@\s]+/[!-~]+", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PARAM_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class BadField(Exception):
    """A message is refused with `status`, for `cause`, with the sentence `reason`. Never leaves this package."""

    def __init__(self, status: int, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.cause = cause
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: by `form`, one of `FORMS`, as texts or pairs of texts, or as messages whose contents stand joined
    in `texts`."""

    form: str
    texts: tuple[Text, ...]
    messages: tuple[ChatMessage, ...] = ()


def check_question(body: InferRequest, max_texts: int, max_bytes: int) -> Question:
    """What a request asks: exactly one way to ask, nothing empty, nothing too long."""
    given = [name for name in FORMS if getattr(body, name) is not UNSET]
    if len(given) != 1:
        raise BadField(
            422, Cause.INVALID, f"give exactly one of {', '.join(FORMS)}; here: {', '.join(given) or 'none'}"
        )
    form = given[0]
    if body.stream and form in {"text", "texts"}:
        raise BadField(422, Cause.INVALID, "stream: only the answer to a prompt or to messages comes in parts")
    pairs = _pairs_of(body, form)
    if isinstance(body.messages, list):
        return _conversation(body.messages, max_texts, max_bytes)
    found = getattr(body, form)
    texts: tuple[str, ...] = tuple(found) if form == "texts" else (found,)
    if not texts:
        raise BadField(422, Cause.INVALID, "texts: the list is empty")
    if len(texts) > max_texts:
        raise BadField(413, Cause.TOO_LARGE, f"texts: {len(texts)} texts, at most {max_texts} in one request")
    for index, text in enumerate(texts):
        _check_text(f"texts[{index}]" if form == "texts" else form, text, max_bytes)
    if pairs is None:
        return Question(form, texts)
    if len(pairs) != len(texts):
        raise BadField(422, Cause.INVALID, f"text_pairs: {len(pairs)} texts for {len(texts)} in texts; each needs one")
    for index, text in enumerate(pairs):
        _check_text(f"text_pairs[{index}]" if form == "texts" else "text_pair", text, max_bytes)
    return Question(form, tuple(zip(texts, pairs, strict=True)))


def _pairs_of(body: InferRequest, form: str) -> tuple[str, ...] | None:
    """The second texts, None where there are none; refused where they do not stand beside their first ones."""
    one, several = body.text_pair, body.text_pairs
    given = "text_pairs" if one is UNSET else "text_pair"
    if one is UNSET and several is UNSET:
        return None
    if isinstance(one, str) and form == "text" and several is UNSET:
        return (one,)
    if isinstance(several, list) and form == "texts" and one is UNSET:
        return tuple(several)
    beside = "text" if given == "text_pair" else "texts"
    raise BadField(
        422, Cause.INVALID, f"{given} stands beside {beside}, and alone; here: {form}"
        + ("" if one is UNSET or several is UNSET else " with text_pairs, too")
    )  # fmt: skip


def _conversation(messages: list[ChatMessage], most: int, max_bytes: int) -> Question:
    if not messages:
        raise BadField(422, Cause.INVALID, "messages: the list is empty")
    if len(messages) > most:
        raise BadField(413, Cause.TOO_LARGE, f"messages: {len(messages)} messages, at most {most} in one request")
    for index, message in enumerate(messages):
        _check_text(f"messages[{index}].content", message.content, max_bytes)
    return Question("messages", ("\n".join(message.content for message in messages),), tuple(messages))


def _check_text(field: str, text: str, max_bytes: int) -> None:
    if not text.strip():
        raise BadField(422, Cause.INVALID, f"{field}: the text is empty")
    if len(text) > max_bytes or len(text.encode()) > max_bytes:
        raise BadField(413, Cause.TOO_LARGE, f"{field}: longer than {bytes_text(max_bytes)}")


def check_priority(priority: int | UnsetType) -> int:
    """0 (first) to 9 (last)."""
    if isinstance(priority, UnsetType):
        return PRIORITY_DEFAULT
    if not PRIORITY_HIGHEST <= priority <= PRIORITY_LOWEST:
        raise BadField(
            422, Cause.INVALID, f"priority: {quoted(str(priority), 20)} is not in {PRIORITY_HIGHEST}..{PRIORITY_LOWEST}"
        )
    return priority


def check_name(field: str, name: str) -> None:
    """A model or adapter name that no package could carry does not exist."""
    if not NAME.fullmatch(name):
        raise BadField(404, Cause.IMPOSSIBLE_NAME, f"no such {field}: {quoted(name, 80)}")


def check_params(params: Mapping[str, Any] | UnsetType) -> dict[str, Any]:
    """Parameters by plain name with plain values; what they mean is checked by the task that takes them."""
    if isinstance(params, UnsetType):
        return {}
    if len(params) > PARAMS:
        raise BadField(422, Cause.INVALID, f"params: {len(params)} parameters, at most {PARAMS}")
    for name, value in params.items():
        if not _PARAM_NAME.fullmatch(name):
            raise BadField(422, Cause.INVALID, f"params: {quoted(name, 40)} is not a parameter name")
        if not _plain(value):
            raise BadField(
                422,
                Cause.INVALID,
                f"params.{name}: a number, text, truth value, list or object of those is needed"
                " (null only inside of one)",
            )
    if _count(params) > PARAM_VALUES:
        raise BadField(422, Cause.INVALID, f"params: more than {PARAM_VALUES} values")
    return dict(params)


def check_deadline(field: str, seconds: float | UnsetType, max_s: float) -> float | None:
    """A deadline from a body in seconds, cut to the longest that is kept; None where none is given."""
    if isinstance(seconds, UnsetType):
        return None
    if not math.isfinite(seconds) or seconds < 0:
        raise BadField(422, Cause.INVALID, f"{field}: seconds from now are needed, not {seconds}")
    return min(seconds, max_s)


def _count(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, inner))


def _plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, list):
        return all(item is None or _plain(item) for item in value)
    if isinstance(value, dict):
        return all(item is None or _plain(item) for item in value.values())
    return isinstance(value, str)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one message may hold; settings may lower these, never raise them above base.limits."""

    message_bytes: int = limits.MESSAGE_BYTES
    texts: int = limits.TEXTS_PER_REQUEST
    text_bytes: int = limits.TEXT_BYTES
    deadline_default_s: float = limits.DEADLINE_DEFAULT_S
    deadline_max_s: float = limits.DEADLINE_MAX_S


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is well formed. `deadline_s` and `received_s` are monotonic; `form` is the field that it came in
    (`FORMS`). `params` are checked for names and plain types only."""

    id: str
    client: str
    model: str
    adapter: str | None
    form: str
    texts: tuple[Text, ...]
    priority: int
    params: dict[str, Any]
    deadline_s: float
    received_s: float
    reply: ReplyAddress
    pool: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    stream: bool = False

    @property
    def single(self) -> bool:
        """Whether one result is wanted, not a list."""
        return self.form != "texts"

    @property
    def reply_topic(self) -> str:
        """Where the answer goes."""
        return self.reply.topic

    @property
    def correlation(self) -> bytes | None:
        """The correlation data to send back."""
        return self.reply.correlation

    @property
    def protocol(self) -> str:
        """'v5' or 'v311': which form the client used."""
        return self.reply.protocol


@dataclass(frozen=True, slots=True)
class Cancel:
    """Request `id` is to be cancelled. `client` is None when the message does not say whose request it is."""

    id: str
    client: str | None
    reply: ReplyAddress | None


@dataclass(frozen=True, slots=True)
class Command:
    """An order to the device, its body by `name` one of `messages.ORDERS`. `reply` is None when no answer is wanted."""

    name: str
    id: str
    client: str | None
    body: Order
    deadline_s: float
    received_s: float
    reply: ReplyAddress | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message is not taken. Answer it at `reply` when there is one; report `event` when there is one.

    `remaining_s` is how long the answer is worth delivering.
    """

    status: int
    cause: Cause
    reason: str
    reply: ReplyAddress | None = None
    event: str | None = None
    remaining_s: float = limits.DEADLINE_DEFAULT_S


class _VersionOnly(msgspec.Struct):
    """The part of a desired state that names it, whatever else is wrong with it."""

    version: int | None = None


_B = TypeVar("_B", InferRequest, CancelRequest, Order, Desired)
_infer = msgspec.json.Decoder(InferRequest)
_cancel = msgspec.json.Decoder(CancelRequest)
_orders: dict[str, msgspec.json.Decoder[Any]] = {name: msgspec.json.Decoder(body) for name, body in ORDERS.items()}
_DEFAULT = Bounds()


@functools.cache
def _desired() -> msgspec.json.Decoder[Desired]:
    """Made when the first one comes: most devices get none, and a decoder costs memory."""
    return msgspec.json.Decoder(Desired)


def decode(
    inbound: Inbound, *, topics: Topics, now_s: float, bounds: Bounds = _DEFAULT
) -> Request | Cancel | Command | Refusal | None:
    """Any message by what its topic says; None for `desired` (see `decode_desired`) and for topics that are not ours.
    Never raises."""
    target = topics.parse(inbound.topic)
    if isinstance(target, InferTarget):
        return decode_request(inbound, topics=topics, now_s=now_s, bounds=bounds)
    if isinstance(target, CancelTarget):
        return decode_cancel(inbound, topics=topics, bounds=bounds)
    if isinstance(target, CommandTarget):
        return decode_command(inbound, topics=topics, now_s=now_s, bounds=bounds)
    return None


def decode_request(inbound: Inbound, *, topics: Topics, now_s: float, bounds: Bounds = _DEFAULT) -> Request | Refusal:
    """A message on an infer topic. Never raises."""
    target = topics.parse(inbound.topic)
    if not isinstance(target, InferTarget):
        return Refusal(404, Cause.UNKNOWN_TOPIC, "this topic takes no requests")
    address = _answerable(inbound, topics, bounds)
    if isinstance(address, Refusal):
        return address
    if address is None:
        reason = "a request needs a response topic (MQTT 5) or reply_to in the body (3.1.1)"
        return Refusal(400, Cause.MALFORMED, reason, event="request-unanswerable")
    try:
        body = _parse(inbound, _infer, bounds)
        check_name("model", target.model)
        if body.adapter is not None:
            check_name("adapter", body.adapter)
        received_s, deadline_s = _times(inbound, body.deadline_s, now_s, bounds)
        question = check_question(body, bounds.texts, bounds.text_bytes)
        return Request(
            id=address.request_id,
            client=address.client,
            model=target.model,
            adapter=body.adapter,
            form=question.form,
            texts=question.texts,
            priority=check_priority(body.priority),
            params=check_params(body.params),
            deadline_s=deadline_s,
            received_s=received_s,
            reply=address,
            pool=target.pool,
            messages=question.messages,
            stream=body.stream,
        )
    except BadField as error:
        return _refusal(error, inbound, address)


def decode_cancel(inbound: Inbound, *, topics: Topics, bounds: Bounds = _DEFAULT) -> Cancel | Refusal:
    """A message on the cancel topic: the id in the body, or the correlation data of the request. Never raises."""
    address = _answerable(inbound, topics, bounds)
    if isinstance(address, Refusal):
        return address
    try:
        body = _parse(inbound, _cancel, bounds) if inbound.payload else CancelRequest()
        if isinstance(body.id, str):
            request_id = body.id
        elif inbound.correlation:
            request_id = correlation_id(inbound.correlation)
        else:
            raise BadField(422, Cause.INVALID, 'a cancel names the request by {"id": ...} or by its correlation data')
        return Cancel(request_id, address.client if address else None, address)
    except BadField as error:
        return _refusal(error, inbound, address)


def decode_command(inbound: Inbound, *, topics: Topics, now_s: float, bounds: Bounds = _DEFAULT) -> Command | Refusal:
    """A message on a command topic. Without a reply address it is carried out unanswered. Never raises."""
    target = topics.parse(inbound.topic)
    address = _answerable(inbound, topics, bounds)
    if isinstance(address, Refusal):
        return address
    try:
        decoder = _orders.get(target.name) if isinstance(target, CommandTarget) else None
        if decoder is None or not isinstance(target, CommandTarget):
            raise BadField(404, Cause.UNKNOWN_COMMAND, f"no such command; there are: {', '.join(ORDERS)}")
        body: Order = _parse(inbound, decoder, bounds, empty=b"{}")
        for field in ("model", "adapter"):
            name = getattr(body, field, None)
            if name is not None:
                check_name(field, name)
        if isinstance(body, InstallOrder):
            _check_trial("trial", body.trial)
        received_s, deadline_s = _times(inbound, body.deadline_s, now_s, bounds)
        client = address.client if address else None
        return Command(
            target.name, address.request_id if address else "", client, body, deadline_s, received_s, address
        )
    except BadField as error:
        return _refusal(error, inbound, address)


@dataclass(frozen=True, slots=True)
class DesiredRefused:
    """A message on the desired topic that is not taken; `version` is None where it has none that can be read."""

    version: int | None
    reason: str


def decode_desired(inbound: Inbound, bounds: Bounds = _DEFAULT) -> Desired | DesiredRefused | None:
    """A message on the desired topic, retained or not; None for an empty one, which withdraws. Never raises."""
    if not inbound.payload:
        return None
    try:
        body = _parse(inbound, _desired(), bounds)
        _check_desired(body)
    except BadField as error:
        return DesiredRefused(_version_in(inbound.payload, bounds), error.reason)
    return body


def _version_in(payload: bytes, bounds: Bounds) -> int | None:
    """The version that a refused message names; None where none can be read, or one that no report can repeat: msgspec
    writes a number beyond 64 bits as a text."""
    if len(payload) > bounds.message_bytes or too_deep(payload, limits.JSON_DEPTH):
        return None
    try:
        version = msgspec.json.decode(payload, type=_VersionOnly).version
        return version if version is None or abs(version) < 2**53 else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _check_desired(body: Desired) -> None:
    """Raise BadField for a state that contradicts itself or that no device can reach."""
    if not 0 < body.version < 2**53:
        raise BadField(422, Cause.INVALID, "version: a whole number from 1 to 2^53 - 1 is needed")
    least_s, most_s = limits.DESIRED_LEAST_S, limits.DESIRED_LONGEST_S
    if not least_s <= body.policy.within_s <= most_s:
        raise BadField(422, Cause.INVALID, f"policy.within_s: {least_s:.0f} to {most_s:.0f} seconds are needed")
    _check_trial("policy.trial", body.policy.trial)
    if len(body.models) + sum(len(one.adapters) for one in body.models) > limits.DESIRED_ITEMS:
        raise BadField(413, Cause.TOO_LARGE, f"models: more than {limits.DESIRED_ITEMS} models and adapters")
    _check_sources(body)
    seen: set[tuple[str, str | None]] = set()
    for index, model in enumerate(body.models):
        where = f"models[{index}]"
        _check_named(f"{where}.model", model.model, seen, (model.model, None))
        _check_package(f"{where}.package", model.package)
        if model.package is None and model.adapters:
            raise BadField(422, Cause.INVALID, f"{where}: the model is to be removed, so it can have no adapters")
        for place, one in enumerate(model.adapters):
            inner = f"{where}.adapters[{place}]"
            _check_named(f"{inner}.adapter", one.adapter, seen, (model.model, one.adapter))
            _check_package(f"{inner}.package", one.package)


def _check_trial(field: str, trial: TrialOrder | UnsetType) -> None:
    if not isinstance(trial, UnsetType) and (wrong := trial_fault(trial)) is not None:
        raise BadField(422, Cause.INVALID, f"{field}.{wrong}")


def _check_sources(body: Desired) -> None:
    if len(body.sources) > limits.DESIRED_ITEMS:
        raise BadField(413, Cause.TOO_LARGE, f"sources: more than {limits.DESIRED_ITEMS}")
    for index, source in enumerate(body.sources):
        _check_package(f"sources[{index}].package", source.package)
        if len(source.url) > limits.TOPIC_BYTES or not _URL.fullmatch(source.url):
            needed = "http://HOST/PATH, https://HOST/PATH or oci://HOST/REPOSITORY is needed, without a password"
            text = f"sources[{index}].url: {needed}; here: {quoted(source.url, 80)}"
            raise BadField(422, Cause.INVALID, text)


def _check_named(field: str, name: str, seen: set[tuple[str, str | None]], key: tuple[str, str | None]) -> None:
    if not NAME.fullmatch(name):
        raise BadField(422, Cause.IMPOSSIBLE_NAME, f"{field}: {quoted(name, 80)} is no name that a package can have")
    if key in seen:
        raise BadField(422, Cause.INVALID, f"{field}: {quoted(name, 80)} is named twice")
    seen.add(key)


def _check_package(field: str, package: str | UnsetType | None) -> None:
    if isinstance(package, str) and not _DIGEST.fullmatch(package):
        text = f"{field}: sha256: and 64 digits from 0-9a-f are needed, the digest of the package's index; "
        raise BadField(422, Cause.INVALID, f"{text}here: {quoted(package, 80)}")


def _answerable(inbound: Inbound, topics: Topics, bounds: Bounds) -> ReplyAddress | Refusal | None:
    """The reply address, None where none is given, or a refusal that must not be answered."""
    if inbound.retained:
        reason = "a retained message on this topic is dropped: brokers replay them; publish without the retain flag"
        # An empty retained message is how the retained one is deleted: that is the remedy, not an incident.
        return Refusal(400, Cause.MALFORMED, reason, event="retained-dropped" if inbound.payload else None)
    address = find_address(inbound, topics, bounds.message_bytes)
    if isinstance(address, ReplyDenied):
        return Refusal(400, Cause.MALFORMED, f"the reply topic is refused: {address.reason}", event="reply-denied")
    return address


def _refusal(error: BadField, inbound: Inbound, address: ReplyAddress | None) -> Refusal:
    remaining_s = limits.DEADLINE_DEFAULT_S if inbound.expiry_s is None else max(1.0, inbound.expiry_s)
    event = None if address else "request-unanswerable"
    return Refusal(error.status, error.cause, error.reason, address, event, remaining_s)


def _parse(inbound: Inbound, decoder: msgspec.json.Decoder[_B], bounds: Bounds, empty: bytes = b"") -> _B:
    """The typed body; the checks that need no knowledge of its fields. Raises BadField."""
    payload = inbound.payload or empty
    if len(payload) > bounds.message_bytes:
        size, most = bytes_text(len(payload)), bytes_text(bounds.message_bytes)
        raise BadField(413, Cause.TOO_LARGE, f"the message has {size}, at most {most} are taken")
    _check_properties(inbound)
    try:
        payload.decode()
        if too_deep(payload, limits.JSON_DEPTH):
            raise BadField(400, Cause.MALFORMED, f"the JSON nests deeper than {limits.JSON_DEPTH} levels")
        body = decoder.decode(payload)
        repeated = repeated_key(payload)
    except UnicodeDecodeError as error:
        raise BadField(400, Cause.MALFORMED, f"the body is not UTF-8 (byte {error.start})") from None
    except msgspec.ValidationError as error:
        raise BadField(422, Cause.INVALID, quoted(str(error), 200)) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise BadField(400, Cause.MALFORMED, f"the body is not JSON: {quoted(str(error))}") from None
    if repeated is not None:
        raise BadField(400, Cause.MALFORMED, f"the key {quoted(repeated, 40)} stands twice in one object")
    if not isinstance(body, Desired) and isinstance(body.id, str) and not fit_id(body.id):
        raise BadField(422, Cause.INVALID, f"id: 1 to {limits.CORRELATION_BYTES} bytes of printable text are needed")
    return body


def _check_properties(inbound: Inbound) -> None:
    if inbound.expiry_s is not None and inbound.expiry_s <= 0:
        raise BadField(408, Cause.EXPIRED, "the request had expired when it arrived")
    if inbound.correlation is not None and len(inbound.correlation) > limits.CORRELATION_BYTES:
        raise BadField(400, Cause.MALFORMED, f"the correlation data is longer than {limits.CORRELATION_BYTES} bytes")
    if inbound.content_type is not None:
        kind = inbound.content_type.split(";", 1)[0].strip().lower()
        if kind != "application/json":
            raise BadField(
                415, Cause.MALFORMED, f"content type {quoted(inbound.content_type, 60)} is not application/json"
            )


def _times(inbound: Inbound, deadline_s: float | UnsetType, now_s: float, bounds: Bounds) -> tuple[float, float]:
    """(received, deadline), both monotonic: the earlier of message expiry and `deadline_s`, or the default."""
    received_s = now_s if inbound.received_s is None else inbound.received_s
    asked = check_deadline("deadline_s", deadline_s, bounds.deadline_max_s)
    spans = [span for span in (inbound.expiry_s, asked) if span is not None]
    due_s = received_s + min([*spans, bounds.deadline_max_s] if spans else [bounds.deadline_default_s])
    if due_s <= now_s:
        raise BadField(408, Cause.EXPIRED, "the deadline passed before the request could be read")
    return received_s, due_s
