"""Real inputs to start from, made by the project's own writers and by the libraries whose files it reads: nothing
binary is kept in the repository. Each function's result is small (some kilobytes) and made once per process."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from edge_agent.bundle import jsonio
from edge_agent.bundle.layout import blob_name
from edge_agent.bundle.manifest import MODEL_FILE, PROBES_FILE
from edge_agent.bundle.statement import RELEASE_FILE
from tests.support import gguf_bytes, hostile, small_graph
from tests.support import packages as tiny
from tests.support.chat_templates import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
FLOAT = TensorProto.FLOAT


@functools.cache
def _packages() -> tuple[bytes, ...]:
    """A base package of two variants and an adapter package, as tars."""
    with tempfile.TemporaryDirectory(prefix="edge-fuzz-") as folder:
        base = tiny.base_package(Path(folder))
        return base.read_bytes(), tiny.adapter_package(Path(folder), base).read_bytes()


@functools.cache
def _parts() -> tuple[Mapping[str, bytes], ...]:
    """The files of both packages by name."""
    found = []
    for data in _packages():
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            file.write(data)
            file.flush()
            found.append(hostile.read_parts(Path(file.name)))
    return tuple(found)


def tars() -> list[bytes]:
    """Whole packages."""
    return list(_packages())


def envelopes() -> list[bytes]:
    """Signed statements and a signed root file."""
    return [*(parts[RELEASE_FILE] for parts in _parts()), tiny.trust().data]


def statements() -> list[bytes]:
    """What they sign."""
    return [json_payload(data) for data in envelopes()[:2]]


def json_payload(data: bytes) -> bytes:
    """The payload of an envelope."""
    from base64 import b64decode

    return b64decode(json.loads(data)["payload"])


def documents() -> list[bytes]:
    """Index, then in the order of reading each manifest with the documents that it points to, one per line."""
    found = []
    for parts in _parts():
        index = parts["index.json"]
        lines = [index]
        for entry in json.loads(index)["manifests"]:
            raw = parts[blob_name(entry["digest"])]
            manifest = json.loads(raw)
            if "subject" in manifest:
                inner = parts[blob_name(manifest["config"]["digest"])]
            else:
                inner = parts[blob_name(hostile.Forge.layer(manifest, MODEL_FILE)["digest"])]
            lines += [raw, inner]
        found.append(b"\n".join(lines))
    return found


def probe_files() -> list[bytes]:
    """Golden probes of a model and of an adapter."""
    found = []
    for parts in _parts():
        entry = json.loads(parts["index.json"])["manifests"][0]
        manifest = json.loads(parts[blob_name(entry["digest"])])
        found.append(parts[blob_name(hostile.Forge.layer(manifest, PROBES_FILE)["digest"])])
    return found


@functools.cache
def graphs() -> tuple[bytes, ...]:
    """A small encoder with its adapter bank, and graphs with subgraphs, functions, sparse tensors, training."""
    with tempfile.TemporaryDirectory(prefix="edge-fuzz-") as folder:
        banked = small_graph.banked(Path(folder) / "model.onnx").read_bytes()
    return (banked, *(model.SerializeToString() for model in small_models()))


def small_models() -> list[onnx.ModelProto]:
    """Graphs of one or two nodes, each with another way to hold a tensor: initializer, attribute, subgraph, sparse
    tensor, function of a domain of its own, training graph. ONNX Runtime loads all of them."""
    tensor = helper.make_tensor("w", FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    packed = TensorProto(name="w", data_type=FLOAT, dims=[4], raw_data=struct.pack("<4f", 1, 2, 3, 4))
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=packed)], "inner", [], _values("z"))
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [1], [2])
    values = helper.make_tensor("w", FLOAT, [1], [3.0])
    sparse = helper.make_sparse_tensor(values, indices, [4])
    graphs = [
        helper.make_graph([add], "g", _values("x"), _values("y"), [tensor]),
        helper.make_graph([constant, add], "g", _values("x"), _values("y")),
        helper.make_graph([choice], "g", [condition], _values("y")),
        helper.make_graph([add], "g", _values("x"), _values("y"), sparse_initializer=[sparse]),
    ]
    models = [_model(graph) for graph in graphs]
    own = helper.make_node("F", ["x"], ["y"], domain="own")
    function = helper.make_function(
        "own", "F", ["x"], ["y"], [helper.make_node("Constant", [], ["w"], value=packed), add], [_opset("", 18)]
    )
    models.append(_model(helper.make_graph([own], "g", _values("x"), _values("y")), [function]))
    training = onnx.TrainingInfoProto(initialization=graphs[0], algorithm=graphs[1])
    training.initialization_binding.add(key="w", value="y")
    models.append(_model(graphs[0]))
    models[-1].training_info.append(training)
    models[0].metadata_props.add(key="edge.bank", value="{}")
    return models


def _values(*names: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, FLOAT, [4]) for name in names]


def _opset(domain: str, version: int) -> onnx.OperatorSetIdProto:
    return helper.make_opsetid(domain, version)


def _model(graph: onnx.GraphProto, functions: Iterable[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    opsets = [_opset("", 18), _opset("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9)


@functools.cache
def bank_specs() -> tuple[bytes, ...]:
    """The description of an adapter bank that a graph carries."""
    model = onnx.load_model_from_string(graphs()[0])
    return tuple(one.value.encode() for one in model.metadata_props if one.key == "edge.bank")


def ggufs() -> list[bytes]:
    """A model's header with its keys and tensors, with typed keys of every kind, and an adapter."""
    rich = {
        **gguf_bytes.LLAMA,
        "llama.attention.head_count": [4, 4],
        "tokenizer.ggml.bos_token_id": 1,
        "general.alignment": 32,
        "edge.base_id": tiny.BASE_ID,
        "edge.tokenizer.lstrip": [1, 2],
        "tokenizer.ggml.scores": [0.5, 0.25, 0.125],
    }
    return [
        gguf_bytes.gguf_bytes(gguf_bytes.LLAMA, gguf_bytes.WEIGHTS),
        gguf_bytes.gguf_bytes(rich, gguf_bytes.WEIGHTS),
        gguf_bytes.adapter_bytes(base_id=tiny.BASE_ID),
    ]


def safetensors() -> list[bytes]:
    """Adapters of classifiers."""
    shapes = {"layer.0.query.A": (8, 4), "layer.0.query.B": (4, 8), "head.weight": (8, 2), "head.bias": (2,)}
    said = {"format": "edge-adapter/1", "base_id": tiny.BASE_ID, "rank": "4"}
    plain = small_graph.safetensors(small_graph.adapter(1))
    return [tiny.safetensors_bytes(shapes, said), plain, small_graph.safetensors({})]


def attachable() -> list[bytes]:
    """An adapter of the small encoder."""
    said = {"format": "edge-adapter/1", "base_id": small_graph.BASE_ID}
    return [small_graph.safetensors(small_graph.adapter(1), said)]


@functools.cache
def tokenizers() -> tuple[bytes, ...]:
    """tokenizer.json of each kind of vocabulary, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    words = ["turn on the light", "it is cold in here", "schöne grüße, 5° 🚀", "the lights on"] * 4
    word = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    word.normalizer = normalizers.BertNormalizer()
    word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    word.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special))
    word.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    bpe = Tokenizer(models.BPE(unk_token=None, fuse_unk=False))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=80, special_tokens=["<s>"], show_progress=False))
    uni = Tokenizer(models.Unigram())
    uni.pre_tokenizer = pre_tokenizers.Metaspace()
    uni.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    uni.train_from_iterator(words, trainers.UnigramTrainer(vocab_size=50, special_tokens=["<unk>"], unk_token="<unk>"))
    level = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "light": 2}, unk_token="[UNK]"))
    level.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return tuple(one.to_str().encode() for one in (word, bpe, uni, level))


def recipes() -> list[bytes]:
    """The recipes of the repository's models."""
    return [path.read_bytes() for path in sorted((ROOT / "models").glob("*/recipe.toml"))]


def classifier_tables() -> list[bytes]:
    """Rows for classifiers behind a line that names the format."""
    return [
        b"tsv\ntext\tlabel\nturn on the light\tlight\nit is cold\theat\n",
        b'csv\ntext,label\n"turn on, please",light\nit is cold,heat\n',
        b"csv\ntext;label\nturn on;light\n",
        b'jsonl\n{"text": "turn on", "label": "light"}\n{"text": "cold", "label": 3}\n',
        b"tsv\n" + "text\tlabel\ncafé\tbar\n".encode("utf-16"),
    ]


def generator_tables() -> list[bytes]:
    """Rows for generators behind a line that names the format."""
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    shared = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    alpaca = {"instruction": "say", "input": "x", "output": "y"}
    rows = {"chat": chat, "completion": {"prompt": "a", "completion": "b"}, "text": {"text": "a b c"},
            "sharegpt": shared, "alpaca": alpaca, "": chat}  # fmt: skip
    found = [f"{name}\n{json.dumps(row)}\n{json.dumps(row)}\n".encode() for name, row in rows.items()]
    return [*found, b"lines\nOne text\nof two lines.\n\nAnother.\n"]


def templates() -> list[bytes]:
    """Chat templates of model families."""
    return [family.source.encode() for family in FAMILIES.values()]


def settings() -> list[bytes]:
    """The example of the settings file, all of it active, and a short file."""
    from edge_agent.config.example import example_toml

    short = b'[device]\nid = "pi"\n[mqtt]\nhost = "broker"\nport = 8883\n[limits]\ndeadline_default_s = 5\n'
    return [example_toml(active=True).encode(), short]


def records() -> list[bytes]:
    """A state file's body: one installed version of one model."""
    digest = tiny.BASE_ID
    version = {
        "version": 1, "package": digest, "line": "tiny/stable", "counter": 1, "chosen": digest,
        "variants": [{"digest": digest, "size": 5}], "installed_at_s": 1.5, "choice": "fastest",
        "adapters": [{"name": "intents", "manifest": {"digest": digest, "size": 3}, "counter": 1, "package": digest}],
        "measured": {"load_s": 1.0, "latency_ms": 2.0}, "offered": {digest: {"latency_ms": 2.0}},
    }  # fmt: skip
    models = {"tiny": {"current": version, "last_version": 1}}
    committed = {"tiny/stable": {"counter": 1, "index": digest}}
    return [jsonio.encode({"schema": 1, "models": models, "committed": committed})]
