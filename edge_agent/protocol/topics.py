"""The topic tree (docs/mqtt.md): which topics this device owns, subscribes to, and may answer on.

A topic is trusted for its place in the tree only. Whether a model or a command exists is for others to say.

`find_address` finds where the answer to a message goes before anything else about it is judged, so that a refusal
arrives too. MQTT 5 clients name it in the response topic, 3.1.1 clients as `reply_to` in the body. A topic outside the
allow-list gets nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import CLIENT_ID_BYTES, CORRELATION_BYTES, JSON_DEPTH, TOPIC_BYTES, TOPIC_LEVELS
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.json_guard import too_deep
from edge_agent.protocol.trace_context import TraceContext, trace_context

# Levels beside {dev} that mean something else: no device may be called so.
RESERVED = frozenset({"client", "pool", "group"})
# The last level of a topic for messages to oneself; '~' begins no name.
SELF = "~self"
# What a device, pool, model or adapter may be called: one topic level that needs no quoting anywhere.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")


@dataclass(frozen=True, slots=True)
class InferTarget:
    """A request to a model; `pool` is set when it came through a shared queue."""

    model: str
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class CancelTarget:
    """Withdraw a request."""


@dataclass(frozen=True, slots=True)
class CommandTarget:
    """An order to the device; `name` may be one that does not exist."""

    name: str


@dataclass(frozen=True, slots=True)
class DesiredTarget:
    """The declared state of the device, retained and versioned."""


Target = InferTarget | CancelTarget | CommandTarget | DesiredTarget


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic filter and its options. `replay` asks the broker for what it holds retained (MQTT 5 retain handling 0
    instead of 2); `keep_retain` asks it to show a publisher's retain flag, so that it can be refused at once."""

    topic_filter: str
    qos: int = 1
    replay: bool = False
    keep_retain: bool = True


@dataclass(frozen=True, slots=True)
class ReplyAllowed:
    """Answers may go there. `client` names the requester for deduplication."""

    client: str


@dataclass(frozen=True, slots=True)
class ReplyDenied:
    """Answers may not go there; `reason` says why, without quoting remote text."""

    reason: str


class Topics:
    """The topics of one device under one prefix. Raises ConfigError for names that cannot be topic levels."""

    def __init__(self, prefix: str, device: str, pools: tuple[str, ...] = ()) -> None:
        levels = prefix.split("/")
        if not all(NAME.fullmatch(level) for level in levels):
            raise ConfigError(f"topic prefix {prefix!r} is not made of plain levels", "mqtt.prefix", "such as edge/v1")
        for key, name in (("device.id", device), *(("mqtt.pools", pool) for pool in pools)):
            if not NAME.fullmatch(name) or name in RESERVED:
                remedy = "use letters, digits and . _ : @ -, at most 64, and none of " + ", ".join(sorted(RESERVED))
                raise ConfigError(f"{name!r} cannot be a level of a topic", key, remedy)
        self.prefix = prefix
        self.device = device
        self.pools = pools
        own = f"{prefix}/{device}"
        self.status = f"{own}/status"
        self.info = f"{own}/info"
        self.models = f"{own}/models"
        self.telemetry = f"{own}/telemetry"
        self.event = f"{own}/event"
        self.cancel = f"{own}/cancel"
        self.desired = f"{own}/desired"
        self.reported = f"{own}/reported"
        self.trace = f"{own}/trace"

    def infer(self, model: str) -> str:
        """Where requests to a model of this device go."""
        return f"{self.prefix}/{self.device}/infer/{model}"

    def command(self, name: str) -> str:
        """Where orders to this device go."""
        return f"{self.prefix}/{self.device}/cmd/{name}"

    def pool_infer(self, pool: str, model: str) -> str:
        """Where requests to any device of a pool go."""
        return f"{self.prefix}/pool/{pool}/infer/{model}"

    def client_reply(self, client: str, *levels: str) -> str:
        """A topic under which a client hears its answers."""
        return "/".join((self.prefix, "client", client, "reply", *levels))

    def self_checks(self) -> tuple[str, ...]:
        """Topics for a message to oneself, which shows that requests and orders arrive. No model or command can be
        called so."""
        return (self.infer(SELF), self.command(SELF))

    def is_self_check(self, topic: str) -> bool:
        """Whether a message on this topic is one to oneself."""
        return topic.endswith("/" + SELF) and topic in self.self_checks()

    def subscriptions(self) -> tuple[Subscription, ...]:
        """What the agent listens to. Commands and requests are never replayed; the desired state is."""
        own = f"{self.prefix}/{self.device}"
        heard = [Subscription(f"{own}/{tail}") for tail in ("infer/+", "cancel", "cmd/+")]
        heard.append(Subscription(self.desired, replay=True))
        heard.extend(Subscription(f"$share/{pool}/{self.prefix}/pool/{pool}/infer/+") for pool in self.pools)
        return tuple(heard)

    def parse(self, topic: str) -> Target | None:
        """What a message on this topic asks for; None for a topic that is not ours."""
        if not topic.startswith(self.prefix + "/"):
            return None
        match topic[len(self.prefix) + 1 :].split("/"):
            case [self.device, "infer", model] if model:
                return InferTarget(model)
            case [self.device, "cancel"]:
                return CancelTarget()
            case [self.device, "cmd", name] if name:
                return CommandTarget(name)
            case [self.device, "desired"]:
                return DesiredTarget()
            case ["pool", pool, "infer", model] if model and pool in self.pools:
                return InferTarget(model, pool)
        return None

    def reply_allowed(self, topic: str) -> ReplyAllowed | ReplyDenied:
        """Whether an answer may go to `topic`: `{prefix}/client/{client}/reply/#` or `{prefix}/{dev}/reply/#`.

        The agent may publish in places where its clients may not; without this check a client could make it
        speak there (confused deputy).
        """
        reason = _unfit(topic)
        if reason is not None:
            return ReplyDenied(reason)
        if topic.startswith(self.prefix + "/"):
            match topic[len(self.prefix) + 1 :].split("/"):
                case ["client", client, "reply", *_] if not client.startswith("~"):
                    if len(client.encode()) > CLIENT_ID_BYTES:
                        return ReplyDenied(f"its client level is longer than {CLIENT_ID_BYTES} bytes")
                    return ReplyAllowed(client)
                case [self.device, "reply", *levels]:
                    return ReplyAllowed("~" + (levels[0] if levels else ""))
        allowed = f"{self.prefix}/client/{{client}}/reply/# and {self.prefix}/{self.device}/reply/#"
        return ReplyDenied(f"answers go only to {allowed}")


def _unfit(topic: str) -> str | None:
    """Why a topic may not be published to at all, or None."""
    try:
        size_bytes = len(topic.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    if size_bytes > TOPIC_BYTES:
        return f"it is longer than {TOPIC_BYTES} bytes"
    if any(char in topic for char in "+#$"):
        return "it holds a wildcard or a $"
    # A broker hangs up on a topic with control characters or such as Unicode keeps free (MQTT 5, 1.5.4), or too deep:
    # from MQTT 3.1.1 the topic comes in the body, which no broker has looked into.
    if not topic.isprintable():
        return "it holds a control character or one that cannot be printed"
    levels = topic.split("/")
    if len(levels) > TOPIC_LEVELS:
        return f"it has more than {TOPIC_LEVELS} levels"
    if not all(levels):
        return "it has an empty level"
    return None


@dataclass(frozen=True, slots=True)
class ReplyAddress:
    """Where the answer to a request goes, already checked against the allow-list, and what it must carry.

    `protocol` is 'v5' (response topic and correlation data) or 'v311' (id and reply_to in the body). `qos` is that of
    the request, `trace` the trace that it belongs to.
    """

    topic: str
    request_id: str
    client: str
    correlation: bytes | None
    protocol: str
    qos: int = 1
    trace: TraceContext | None = None


class _Fields(Struct):
    """The part of any body that says where an answer goes, whatever else is wrong with it."""

    id: Raw | UnsetType = UNSET
    reply_to: Raw | UnsetType = UNSET


_fields = msgspec.json.Decoder(_Fields)
_string = msgspec.json.Decoder(str)


def find_address(inbound: Inbound, topics: Topics, max_bytes: int) -> ReplyAddress | ReplyDenied | None:
    """The checked reply address of a message, why it may not be used, or None where there is none."""
    fields = _lenient(inbound.payload, max_bytes)
    topic = inbound.response_topic or _text(fields.reply_to)
    if topic is None:
        return None
    allowed = topics.reply_allowed(topic)
    if isinstance(allowed, ReplyDenied):
        return allowed
    correlation = inbound.correlation
    if correlation is not None and not 0 < len(correlation) <= CORRELATION_BYTES:
        correlation = None
    request_id = _text(fields.id)
    if request_id is None or not fit_id(request_id):
        request_id = correlation_id(correlation) if correlation else _fresh_id(inbound, topic)
    protocol = "v5" if inbound.response_topic else "v311"
    trace = trace_context(inbound.user) if inbound.user else None
    return ReplyAddress(topic, request_id, allowed.client, correlation, protocol, inbound.qos, trace)


def correlation_id(correlation: bytes) -> str:
    """A request's id as text: its correlation data when that is printable ASCII without spaces, else in hex."""
    if all(0x21 <= byte <= 0x7E for byte in correlation):
        return correlation.decode("ascii")
    return correlation.hex()


def fit_id(request_id: str) -> bool:
    """Whether an id from a body may be used: not empty, printable, within the size of correlation data."""
    return request_id.isprintable() and 0 < len(request_id.encode()) <= CORRELATION_BYTES


def _lenient(payload: bytes, max_bytes: int) -> _Fields:
    if not payload or len(payload) > max_bytes or too_deep(payload, JSON_DEPTH):
        return _Fields()
    try:
        return _fields.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Fields()


def _text(raw: Raw | UnsetType) -> str | None:
    if isinstance(raw, UnsetType):
        return None
    try:
        return _string.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _fresh_id(inbound: Inbound, topic: str) -> str:
    """An id for a request without one: it can be answered, but not cancelled, and a repetition is not recognised."""
    seed = b"\0".join((topic.encode(), repr(inbound.received_s).encode(), inbound.payload))
    return "anon-" + hashlib.blake2b(seed, digest_size=8).hexdigest()


class RolloutTopics:
    """The topics of a rollout over the devices of one prefix (docs/fleet.md)."""

    def __init__(self, prefix: str) -> None:
        own = f"{prefix}/group/rollout"
        self.state = f"{own}/state"
        self.abort = f"{own}/abort"
        self.records = f"{own}/device/+"
        self._own = own

    def record(self, device: str) -> str:
        """Where it is kept what a device gets and what brings it back."""
        return f"{self._own}/device/{device}"

    def sync(self, client: str) -> str:
        """Where whoever carries it out sends one message to itself: what is retained came before it."""
        return f"{self._own}/sync/{client}"
