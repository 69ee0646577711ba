"""Our readers beside the ones that count: what passes here is what protobuf, ONNX Runtime, llama.cpp, the safetensors
library and another reader of DSSE read, and where we refuse what they take, the sentence is one of those that are meant
(decision 0205). tokenizer.json has no second reader: device and host use the `tokenizers` library itself.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from random import Random
from typing import Any

from edge_agent.base import limits
from edge_agent.base.errors import PackageError
from edge_agent.bundle import gguf_header, onnx_graph, safetensors, sign
from edge_agent.bundle.statement import RELEASE_TYPE
from tests.fuzz import corpus, mutate
from tests.fuzz.runtimes import DIED, Reader
from tests.fuzz.target import Target, opened
from tests.support import packages as tiny

STRICTER = {
    "onnx": (
        "is no field of an ONNX",  # unknown fields and groups, other wire types, keys beyond 32 bits
        "is not UTF-8 text", "a text of its graph has", "lies in another file", "EPContext", "more than",
        "nests deeper",
    ),
    "gguf": (
        "goes on beyond", "tensors end at byte",  # it looks at tensors when it loads them
        "a text that is not UTF-8", "a name that is empty or holds NUL", "values before byte", "its alignment is",
        "are taken", "unknown type", "GGUF header is damaged (version",
    ),
    "safetensors": (
        "is no JSON object", "stands twice", "nests deeper", "objects and lists", "dimensions", "is damaged",
    ),
}  # fmt: skip
"""What we refuse and the runtime takes, by a part of the sentence."""


def _walked(data: bytes) -> str:
    """The sentence of the walk's refusal, '' where it passes."""
    try:
        with opened(data) as file:
            onnx_graph.check_graph(file, len(data), "model.onnx")
    except PackageError as error:
        return error.what
    return ""


def _parsed(data: bytes) -> Any:
    """The model as protobuf reads it, None where it does not."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(data)
    except DecodeError:
        return None


def _parts(message: Any) -> Sequence[Any]:
    """A message and all messages inside of it."""
    found = [message]
    for described, value in message.ListFields():
        if described.message_type is not None:
            for one in value if hasattr(value, "add") else [value]:
                found += _parts(one)
    return found


def _has_unknown(model: Any) -> bool:
    """Whether a part has fields that are none of ONNX's. A number that its enumeration does not have counts as one for
    protobuf; it is a field of ONNX all the same."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    for part in _parts(model):
        for one in UnknownFieldSet(part):
            known = part.DESCRIPTOR.fields_by_number.get(one.field_number)
            if known is None or known.enum_type is None or one.wire_type:
                return True
    return False


def graph_by_protobuf(data: bytes) -> None:
    """The walk and protobuf."""
    refused, model = _walked(data), _parsed(data)
    if not refused:
        assert model is not None, "the walk passes what protobuf cannot read"
        assert not _has_unknown(model), "the walk passes fields that are none of ONNX's"
        tensors = [part for part in _parts(model) if part.DESCRIPTOR.name == "TensorProto"]
        assert not any(one.external_data or one.data_location for one in tensors), "a tensor outside passes"
        nodes = [part for part in _parts(model) if part.DESCRIPTOR.name == "NodeProto"]
        assert len(nodes) <= limits.GRAPH_NODES and all(one.op_type != "EPContext" for one in nodes)
    elif "is no field of" in refused:
        assert model is None or _has_unknown(model), refused
    elif "does not end" in refused or "claims more bytes" in refused:
        assert model is None, refused
    elif "holds no ONNX graph" in refused:
        assert model is None or not (model.HasField("ir_version") and model.HasField("graph")), refused


@functools.cache
def _reader(kind: str) -> Reader:
    return Reader(kind)


def graph_by_runtime(data: bytes) -> None:
    """The walk and ONNX Runtime."""
    refused, read = _walked(data), _reader("onnx").ask(data)
    if read is None or read == DIED:
        return
    if refused:
        assert any(words in refused for words in STRICTER["onnx"]), f"ONNX Runtime loads it: {refused}"
        return
    assert "unreadable" not in read, read
    model = _parsed(data)
    inside = {one.name for one in model.graph.initializer} | {one.values.name for one in model.graph.sparse_initializer}
    assert read["inputs"] == [one.name for one in model.graph.input if one.name not in inside], read
    assert read["outputs"] == [one.name for one in model.graph.output], read
    assert read["metadata"] == {one.key: one.value for one in model.metadata_props}, read


def gguf_by_llama(data: bytes) -> None:
    """The table of a GGUF file and ggml's."""
    try:
        with opened(data) as file:
            table = gguf_header.read_table(file, "model.gguf")
    except PackageError as error:
        read = _reader("gguf").ask(data)
        meant = any(words in error.what for words in STRICTER["gguf"])
        assert meant or read is None or read == DIED, f"llama.cpp takes it: {error.what}"
        return
    read = _reader("gguf").ask(data)
    assert read is not None, "llama.cpp refuses it"
    assert read != DIED, "llama.cpp ends its process"
    assert read["keys"] == len(table.keys), read
    assert read["tensors"] == {name: one.size_bytes for name, one in table.tensors.items()}, read


def safetensors_by_library(data: bytes) -> None:
    """The table of a safetensors file and the library's."""
    from safetensors import SafetensorError, deserialize

    try:
        read = {name: (one["shape"], bytes(one["data"])) for name, one in deserialize(data)}
    except SafetensorError:
        read = None
    try:
        head = safetensors.read_safetensors(io.BytesIO(data), len(data), "m", limits.SAFETENSORS_HEADER_BYTES)
    except PackageError as error:
        meant = any(words in error.what for words in STRICTER["safetensors"])
        assert meant or read is None, f"the library takes it: {error.what}"
        return
    assert read is not None, "the library refuses it"
    assert read == {name: (list(one.shape), data[one.begin : one.end]) for name, one in head.tensors.items()}


@functools.cache
def _key() -> sign.PrivateKey:
    return sign.PrivateKey.load(tiny.keys().release_key)


def envelope_by_library(data: bytes) -> None:
    """An envelope by securesystemslib: it verifies what we sign, and counts the signers that we count."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    key = SSlibKey(_key().keyid, "ed25519", "ed25519", {"public": _key().public_hex})
    made = Envelope.from_dict(json.loads(sign.wrap(RELEASE_TYPE, data, [_key()])))
    assert made.payload == data and made.pae() == sign.pae(RELEASE_TYPE, data)
    made.verify([key], 1)
    try:
        envelope, payload = sign.unwrap(data, RELEASE_TYPE, "envelope")
        signers = sign.valid_signers(envelope, payload, {_key().keyid: _key().public_hex}, "envelope")
    except PackageError:
        return
    named = [one.keyid for one in envelope.signatures]
    if len(set(named)) < len(named):  # securesystemslib refuses a key that signed twice; for us it counts once
        return
    read = Envelope.from_dict(json.loads(data))
    assert read.payload == payload
    try:
        verified = set(read.verify([key], 1))
    except VerificationError:
        verified = set()
    assert verified == signers


def with_external_data() -> list[bytes]:
    """Graphs, each once more with its tensors outside."""
    found = []
    for model in corpus.small_models():
        found.append(model.SerializeToString())
        for part in _parts(model):
            if part.DESCRIPTOR.name == "TensorProto":
                part.data_location = 1
                part.external_data.add(key="location", value="0123")
        found.append(model.SerializeToString())
    return found


def _resigned(data: bytes, chance: Random) -> bytes:
    """The envelope changed, or its payload changed and signed again."""
    if chance.random() < 0.5:
        return mutate.by_json(data, chance)
    try:
        payload = corpus.json_payload(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return mutate.by_json(data, chance)
    return sign.wrap(RELEASE_TYPE, mutate.by_json(payload, chance), [_key()] * chance.randrange(1, 3))


START_S = 600
"""A runtime's process is started within an input, the first (empty) one or the one after a death. Its imports took more
than 30 s of wall-clock time on a busy machine, which libFuzzer reported as a hang of the empty input."""
TARGETS = {
    "onnx-protobuf": Target(graph_by_protobuf, (), with_external_data, mutate.by_protobuf),
    "onnx-runtime": Target(
        graph_by_runtime, (), with_external_data, mutate.by_protobuf, size_bytes=8 * limits.KIB, hang_s=START_S
    ),
    "gguf-llama": Target(gguf_by_llama, (), corpus.ggufs, mutate.by_gguf, hang_s=START_S),
    "safetensors-library": Target(
        safetensors_by_library, (), lambda: [*corpus.safetensors(), *corpus.attachable()], mutate.by_safetensors
    ),
    "dsse-library": Target(envelope_by_library, (), corpus.envelopes, _resigned),
}
