"""What a device reads: packages, weight files, tokenizers, templates, MQTT messages, frames of its workers, settings,
and its own files after a power cut."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import math
import signal
import tempfile
from datetime import datetime
from pathlib import Path
from random import Random
from types import FrameType

import msgspec

from edge_agent import __version__
from edge_agent.app import top
from edge_agent.backends import adapter_bank
from edge_agent.backends.api import AdapterSource
from edge_agent.backends.llamacpp import ecma_pattern, json_schema
from edge_agent.base import errors, limits
from edge_agent.base.causes import Cause
from edge_agent.bundle import (
    gguf_header,
    gguf_memory,
    jsonio,
    onnx_graph,
    probes,
    sign,
    statement,
    tarform,
    trust,
    weight_files,
)
from edge_agent.bundle.chat_template import ChatTemplateError, TemplateRenderer
from edge_agent.bundle.contents import read_contents
from edge_agent.bundle.manifest import AdapterConfig, Descriptor, Index, TaskDoc
from edge_agent.bundle.prompt_tokens import AddedToken, CannotEncode, ChatEncoder, TextEncoder
from edge_agent.bundle.safetensors import read_safetensors
from edge_agent.bundle.statement import RELEASE_FILE, RELEASE_TYPE, Release
from edge_agent.client import request_client
from edge_agent.config import load as settings_file
from edge_agent.mqtt import packets, spool
from edge_agent.protocol.decode import Cancel, Command, Refusal, Request, decode
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.messages import ORDERS, Reply, StreamChunk
from edge_agent.protocol.topics import Topics
from edge_agent.protocol.worker_messages import (
    BackendsProbed,
    CallRefused,
    CancelJob,
    CompanyTexts,
    FootprintBytes,
    FootprintRead,
    JobDone,
    JobFailed,
    JobWork,
    LoadModel,
    MeasureTexts,
    RuntimeUnavailable,
    StepLimits,
    SubmitJobs,
    TaskFields,
    TextChunk,
    TextsMeasured,
)
from edge_agent.store import state_file
from edge_agent.tasks import generate, tokens
from edge_agent.worker import wire
from tests.fuzz import corpus, mutate
from tests.fuzz.target import Target, opened, placed
from tests.support import packages as tiny
from tests.support import small_graph

_NOW = statement.Now(tiny.WALL_S, True)


def envelope(data: bytes) -> None:
    """A signed envelope: a root file, and a release by the keys of a root that is trusted."""
    if trust.ROOT_TYPE.encode() in data:
        trust.Trust.from_operator(data)
        return
    found, payload = sign.unwrap(data, RELEASE_TYPE, RELEASE_FILE)
    tiny.trust().check_release(found, payload, RELEASE_FILE)


def release(data: bytes) -> None:
    """The statement that was signed, and its rules."""
    found = jsonio.decode(data, Release, RELEASE_FILE, limits.STATEMENT_BYTES)
    statement.check_time(found, _NOW)
    statement.check_agent(found, __version__)
    statement.check_counter(found, 1, found.index.digest)


def documents(data: bytes) -> None:
    """Index, manifests and what they point to: one document per line, in the order of reading."""
    index, *lines = data.split(b"\n")
    left = iter(lines)

    def fetch(found: Descriptor, limit_bytes: int) -> bytes:
        line = next(left, None)
        if line is None or len(line) > limit_bytes:
            raise errors.PackageError("it is missing", found.digest)
        return line

    contents = read_contents(jsonio.decode(index, Index, "index.json"), fetch)
    for digest, one in contents.descriptors().items():
        assert digest == one.digest
    for item in contents.adapters:
        item.config.task.spec()


def probe_file(data: bytes) -> None:
    """Golden probes, judged by outputs of the right shape and by their own."""
    found = jsonio.decode(data, probes.ProbeFile, "probes")
    problem = probes.problem_of(found, adapter=any(one.min_effect is not None for one in found.expected.values()))
    if problem is not None:
        raise errors.PackageError(problem)
    for name, due in found.expected.items():
        right = probes.ProbeOutputs(due.features, due.logits)
        measured = probes.ProbeOutputs(due.features, due.logits, company=right)
        probes.judge(found, name, measured, right)
        other = probes.ProbeOutputs([[0.5]] * len(found.texts), None)
        assert probes.judge(found, name, other).reason


def tar(data: bytes) -> None:
    """The container; what is taken is written back to the same bytes."""
    members = tarform.read_members(io.BytesIO(data), len(data), "package")
    again = b"".join(
        tarform.header(one.name, one.size) + data[one.offset : one.offset + one.size] + bytes(tarform.padding(one.size))
        for one in members
    )
    assert again + tarform.END == data


def graph(data: bytes) -> None:
    """The walk over an ONNX graph."""
    with opened(data) as file:
        onnx_graph.check_graph(file, len(data), "model.onnx")


def gguf(data: bytes) -> None:
    """A model's or an adapter's GGUF, and the memory that a model would take: never negative, never a fraction."""
    with opened(data) as file:
        head = gguf_header.header_of(file, "model.gguf")
    if head.adapter_type is None:
        demand = gguf_memory.Demand(head.context_length)
        parts = gguf_memory.need(head, demand)
        assert all(isinstance(part, int) and part >= 0 for part in parts), parts
        gguf_memory.fitted(head, demand, 1e9)
        gguf_memory.arithmetic(head, demand)
        gguf_memory.advice(head, demand, 1e9)


def safetensors(data: bytes) -> None:
    """Any safetensors file; the tensors lie inside of it."""
    head = read_safetensors(io.BytesIO(data), len(data), "model.safetensors", limits.SAFETENSORS_HEADER_BYTES)
    assert all(8 <= one.begin <= one.end <= len(data) for one in head.tensors.values())


_ADAPTER = AdapterConfig(
    schema=1,
    name="a",
    base_id=tiny.BASE_ID,
    rank=4,
    alpha=8.0,
    targets=("q",),
    dtype="float32",
    task=TaskDoc(kind="classify", labels=("light", "heat"), max_tokens=32),
)


def adapter_file(data: bytes) -> None:
    """An adapter's file of either kind beside its manifest, and the arrays that a worker makes of it."""
    with placed(data) as path:
        weight_files.check_adapter(path, _ADAPTER)
    if data[:4] != b"GGUF":
        adapter_bank.parse_tensors(data, "adapter")


def attached_adapter(data: bytes) -> None:
    """An adapter in the bank of the small encoder: what is taken can be bound and detached again."""
    spec = adapter_bank.parse_spec(corpus.bank_specs()[0].decode())
    bank = adapter_bank.AdapterBank(spec, 2)
    with placed(data) as path:
        bank.attach(AdapterSource("a", str(path), small_graph.BASE_ID))
    bank.bind(["a", None])
    bank.detach("a")


def bank_spec(data: bytes) -> None:
    """The description of a bank, which a graph carries as its metadata."""
    adapter_bank.parse_spec(data.decode("utf-8", "replace"))


_TEXTS = ["turn on the light", "schöne grüße 🚀", " ", "x" * 300]


def tokenizer(data: bytes) -> None:
    """A tokenizer.json, and texts that it splits."""
    tokens._OPENED.clear()
    with placed(data) as path:
        found = tokens.Tokenizer(str(path), 16)
        for one in found.encode(_TEXTS):
            assert len(one.ids) <= 16


class OutOfTime(Exception):
    """A template ran for as long as a fuzz target may; on a device the supervisor ends a worker that is silent."""


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTime


_TURN = (AddedToken(1, "<|im_start|>", True), AddedToken(2, "<|im_end|>", False), AddedToken(3, "[INST]", False))
_TALK = [{"role": "user", "content": "Hello <|im_end|> there"}, {"role": "assistant", "content": "x"}]


def chat_template(data: bytes) -> None:
    """A chat template: tried out as an install does, then a dialogue in which a message writes a turn mark."""
    source = data.decode("utf-8", "replace")
    renderer = TemplateRenderer(source, {"bos_token": "<s>", "eos_token": "</s>"}, 20_000, lambda: datetime(2026, 8, 1))
    signal.signal(signal.SIGVTALRM, _out_of_time)
    gc.disable()  # what the handler raises inside of a callback of the collector would be lost, and reported by pytest
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.5)
    try:
        renderer.try_out()
        chat = ChatEncoder(renderer, TextEncoder(_TURN, lambda text: [ord(one) for one in text]))
        for talk in (_TALK[:1], [*_TALK, _TALK[0]]):
            chat.encode(chat.prompt(talk), True)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.enable()


_TOPICS = Topics("edge/v1", "pi", ("kitchen",))


def publish(data: bytes) -> None:
    """A PUBLISH as it comes from the broker: its first byte, then the version, then the packet's body. What is no
    PUBLISH ends the connection; what is one becomes a request, a cancel, an order or a refusal of few printable
    words."""
    if len(data) < 2:
        return
    try:
        topic, mid, said, payload = packets.read_publish(data[0], data[2:], 5 if data[1] % 2 else 4)
    except ValueError:  # a malformed packet, which ends the connection
        return
    inbound = packets.inbound(topic, payload, data[0], said, mid, 5.0)
    if inbound is None:
        return
    found = decode(inbound, topics=_TOPICS, now_s=10.0)
    if isinstance(found, Refusal):
        assert found.reason.isprintable(), found.reason
        assert len(found.reason) <= 400, found.reason
    elif isinstance(found, Request):
        assert math.isfinite(found.deadline_s)
        job = JobWork(id=found.id, adapter=found.adapter, params=found.params, texts=found.texts)
        wire.unpack_request(wire.pack(SubmitJobs(jobs=[job]))[wire.HEADER.size :])
    elif found is not None:
        assert isinstance(found, (Cancel, Command))
    if found is not None and found.reply is not None:
        assert _TOPICS.reply_allowed(found.reply.topic)


def published() -> list[bytes]:
    """Requests of each form, each order, a cancel; of both versions of MQTT."""
    bodies: dict[str, object] = {
        _TOPICS.infer("tiny"): {"text": "turn on the light", "adapter": "intents", "deadline_s": 2.5, "priority": 3},
        _TOPICS.pool_infer("kitchen", "tiny"): {"texts": ["a", "b"], "id": "1"},
        _TOPICS.infer("talker"): {"messages": [{"role": "user", "content": "hi"}], "stream": True,
                                  "params": {"stop": ["x"], "json_schema": {"type": "object"}, "top_k": 3}},
        _TOPICS.infer("writer"): {"prompt": "a", "reply_to": _TOPICS.client_reply("me"), "id": "abc"},
        "edge/v1/pi/cancel": {"id": "abc"},
    }  # fmt: skip
    orders = {"install": {"package": "a.tar"}, "attach": {"model": "m", "adapter": "a"}, "diag": {}}
    orders["detach"] = orders["attach"]
    bodies |= {_TOPICS.command(name): orders.get(name, {"model": "m"}) for name in ORDERS}
    found = []
    for topic, body in bodies.items():
        raw = json.dumps(body).encode()
        message = Outbound(
            topic, raw, response_topic=_TOPICS.client_reply("me"), correlation=b"abc", expiry_s=9, user={"a": "b"}
        )
        name = len(topic).to_bytes(2, "big") + topic.encode()
        found += [b"\x32\x01" + name + b"\0\1" + packets.pack(message) + raw, b"\x30\x00" + name + raw]
    return found


def answer(data: bytes) -> None:
    """What `infer` and `top` read, where anybody may have published: an answer, a part of one, a report."""
    request_client._id_of(Inbound("edge/v1/client/me/reply", data))
    for kind in top.KINDS:
        if top.is_report(kind, data):
            json.loads(data)
    request_client._part(data)


def answered() -> list[bytes]:
    """A reply and a part of a stream, and a status."""
    reply = Reply(id="1", status=200, model="m", result={"labels": [{"label": "on", "score": 0.5}]}, temperature_c=50.0)
    chunk = StreamChunk(id="1", seq=0, text="é", done=False)
    return [msgspec.json.encode(reply), msgspec.json.encode(chunk)]


def _changed_publish(data: bytes, chance: Random) -> bytes:
    """The body as JSON, its properties and topic as bytes."""
    at = data.find(b"{", 2)
    if at < 0 or chance.randrange(4) == 0:
        return mutate.by_bytes(data, chance)
    return data[:at] + mutate.by_json(data[at:], chance)


def sampling(data: bytes) -> None:
    """The parameters of a generator's request, its schema made ready for llguidance, its pattern for Rust."""
    try:
        params = msgspec.json.decode(data)
    except ValueError:
        return
    if not isinstance(params, dict):
        return
    found = generate.read_sampling_params(params, 4096).session
    if "json_schema" in found:
        json_schema.prepared(found["json_schema"])
    if "regex" in found:
        ecma_pattern.rust_pattern(found["regex"])


def sampled() -> list[bytes]:
    """Parameters with schemas of most keywords, a pattern, a grammar."""
    schema = {
        "type": "object", "required": ["a"], "additionalProperties": False, "$defs": {"x": {"enum": ["a", 1, None]}},
        "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"type": "string", "pattern": "^[a-c]{1,3}(x|y)?$"},
                       "c": {"type": "number", "minimum": 0.1, "exclusiveMaximum": 5, "multipleOf": 0.5},
                       "d": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
                       "e": {"anyOf": [{"const": "x"}, {"format": "date"}], "not": {"type": "null"}}},
        "patternProperties": {"^x": {"type": "boolean"}}, "if": {"required": ["b"]}, "then": {"minProperties": 2},
    }  # fmt: skip
    found: list[dict[str, object]] = [
        {"json_schema": schema, "temperature": 0.5, "seed": 3, "stop": "x", "max_tokens": 9},
        {"regex": r"(?:a|\d{2,5}|[^\w\s]+|\u0041)*?\.\x41", "logprobs": True},
        {"grammar": "root ::= [a-z]+", "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1},
        {"json_schema": True},
    ]
    return [json.dumps(one).encode() for one in found]


def to_worker(data: bytes) -> None:
    """A frame's body that a worker reads."""
    wire.unpack_request(data)


def from_worker(data: bytes) -> None:
    """A frame's body that the daemon reads."""
    wire.unpack_answer(data)


def requests() -> list[bytes]:
    """Requests to a worker."""
    task = TaskFields("classify", ("a", "b"), 32, 0.0, None)
    load = LoadModel(backend="onnx", files={"model": "x"}, options={"a": 1}, task=task, limits=StepLimits(8, 2), call=3)
    jobs = SubmitJobs(jobs=[JobWork(id="1", adapter=None, params={"a": [1, 2.5]}, texts=("x",))])
    measure = MeasureTexts(call=2, adapter="a", texts=["x"], company=[CompanyTexts("b", ("y",))])
    return [wire.pack(one)[wire.HEADER.size :] for one in (load, jobs, measure, CancelJob(id="1"))]


def answers() -> list[bytes]:
    """Answers and events of a worker."""
    footprint = FootprintBytes(1, 2, 3, 4)
    found = (
        CallRefused(error="BackendError", reason="no", call=2),
        BackendsProbed(backends={"onnx": RuntimeUnavailable("missing")}, call=1),
        TextsMeasured(features=[[0.5, 1.5]], compute_ms=2.0, logits=[[0.1]], call=4),
        FootprintRead(footprint=footprint, pid=3, call=5),
        JobDone("1", [{"label": "a", "score": 0.5}], 0.1, 0.2, 1, [(3, 1, None)]),
        JobFailed("1", 422, Cause.INVALID, "bad"),
        TextChunk("1", "x"),
    )
    return [wire.pack(one)[wire.HEADER.size :] for one in found]


def settings(data: bytes) -> None:
    """A settings file, with every problem and with the settings shown."""
    with placed(data) as path:
        found, problems = settings_file.check(path, {})
    settings_file.as_table(found)
    if problems:
        raise problems[0]


def record(data: bytes) -> None:
    """The store's state file with a right checksum, and as it is."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / state_file.RECORD_FILE
        for body in (data, data + b"\n" + hashlib.sha256(data).hexdigest().encode() + b"\n"):
            path.write_bytes(body)
            try:
                found = state_file.StateFile(Path(folder)).read()
            except errors.StoreError:
                if body is not data:
                    raise
                continue
            assert all(version.manifests() for version in found.versions())


def segment(data: bytes) -> None:
    """A segment of the spool and its mark, as a power cut may leave them: what can be read is sent, the rest is cut."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder)
        (path / "acked").write_bytes(data[:12])
        (path / "events-0.log").write_bytes(data[12:])
        found = spool.Spool(path)
        while (oldest := found.oldest()) is not None:
            found.pop(oldest[0])
        found.append(Outbound("edge/v1/pi/event", b"{}", keep="disk"))
        assert found.oldest() is not None
        found.close()


def segments() -> list[bytes]:
    """A spool of three events."""
    with tempfile.TemporaryDirectory() as folder:
        made = spool.Spool(Path(folder))
        for number in range(3):
            made.append(Outbound("edge/v1/pi/event", json.dumps({"seq": number}).encode(), user={"a": "b"}))
        made.pop(0)
        made.close()
        mark = (Path(folder) / "acked").read_bytes()
        return [mark + next(iter(sorted(Path(folder).glob("events-*.log")))).read_bytes()]


_JINJA = mutate.by_text(
    "{%", "%}", "{{", "}}", "{% for m in messages %}", "{% endfor %}", "{% if loop.first %}", "{% else %}",
    "{% endif %}", "{% set x = 1 %}", "{% macro f(a) %}", "{% endmacro %}", "{% break %}", "{% generation %}",
    "{% endgeneration %}",
    "| trim", "| tojson", "| join(',')", "| map(attribute='x')", "| sort", "| batch(3)", "| groupby('role')", "| int",
    "| format(1)", "'%s' % x", "~", "*", "**", "[::-1]", "[99]", ".x", "(1)", "range(9999)", "namespace()", "bos_token",
    "strftime_now('%Y')", "raise_exception('no')", "messages", "m.content", "m['role']", "add_generation_prompt",
    "is defined", "'<|im_start|>'", "<|im_end|>", "is sameas", "not", "in", "1e999", "0", "'a'", "| indent(9)",
    "| center(99999)", "| wordwrap(1)", "| urlize", "| xmlattr", "| pprint", "| attr('x')", "{% filter upper %}", "{#",
    "{% call f(1) %}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% block b %}", "{{ self }}",
    "{% with x = 1 %}",
)  # fmt: skip
TOML = (
    "[", "]", "[[a]]", "=", '"', "'''", "{", "}", ",", "\n", "#", "1e999", "-1", "nan", "inf", "true", "0x7f",
    "99999999999999999999", "[[", "[[[[[[[[", ".", '""', "\\u0000", "1979-05-27T07:32:00Z", "[]", "{}", "[1, 'a']",
    "a.b.c = 1", "${HOME}", "${X:-}", "\0", "\ud800", "é",
)  # fmt: skip
"""Words of a TOML document, right ones and wrong ones."""
_PACKAGE = (errors.PackageError,)

TARGETS = {
    "envelope": Target(envelope, _PACKAGE, corpus.envelopes, mutate.by_json),
    "statement": Target(release, _PACKAGE, corpus.statements, mutate.by_json),
    "manifest": Target(documents, _PACKAGE, corpus.documents, mutate.then_bytes(mutate.by_json_lines)),
    "probes": Target(probe_file, _PACKAGE, corpus.probe_files, mutate.by_json),
    "tar": Target(tar, _PACKAGE, corpus.tars, mutate.by_tar),
    "onnx": Target(graph, _PACKAGE, corpus.graphs, mutate.by_protobuf),
    "gguf": Target(gguf, _PACKAGE, corpus.ggufs, mutate.by_gguf),
    "safetensors": Target(safetensors, _PACKAGE, corpus.safetensors, mutate.by_safetensors),
    "adapter": Target(
        adapter_file, (*_PACKAGE, errors.AdapterRefused), lambda: [*corpus.safetensors()[:1], corpus.ggufs()[2]],
        mutate.by_safetensors,
    ),
    "attach": Target(attached_adapter, (errors.BackendError,), corpus.attachable, mutate.by_safetensors),
    "bank": Target(bank_spec, (errors.BackendError,), corpus.bank_specs, mutate.by_json),
    # A panic of the library resolves the names of its stack, once, in 73 MiB.
    "tokenizer": Target(
        tokenizer, (errors.BackendError,), corpus.tokenizers, mutate.by_json, memory_bytes=192 * limits.MIB
    ),
    "template": Target(
        chat_template, (ChatTemplateError, CannotEncode, OutOfTime), corpus.templates, _JINJA, size_bytes=8 * limits.KIB
    ),
    "mqtt": Target(publish, (), published, _changed_publish, size_bytes=limits.MESSAGE_BYTES),
    "answer": Target(answer, (errors.RequestError,), answered, mutate.by_json),
    "params": Target(
        sampling, (errors.RequestError, json_schema.SchemaRefused, ecma_pattern.PatternRefused),
        sampled, mutate.by_json,
    ),
    "to-worker": Target(to_worker, (errors.WorkerError,), requests, mutate.by_msgpack),
    "from-worker": Target(from_worker, (errors.WorkerError,), answers, mutate.by_msgpack),
    "settings": Target(settings, (errors.ConfigError,), corpus.settings, mutate.by_text(*TOML)),
    "record": Target(record, (errors.StoreError,), corpus.records, mutate.by_json),
    "spool": Target(segment, (), segments, mutate.by_bytes),
}  # fmt: skip
