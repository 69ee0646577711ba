"""Bases: found in the order of the recipe, refused with a reason, and read from their listed files alone."""

import json
import struct

import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.models.bases import check, listed, only_listed, resolve

CONFIG = {"model_type": "bert", "hidden_size": 2, "num_hidden_layers": 1, "hidden_dropout_prob": 0.1}
TENSORS = {
    "embeddings.word_embeddings.weight": [1.0, 2.0],
    "encoder.layer.0.output.dense.weight": [3.0, 4.0],
    "pooler.dense.weight": [5.0, 6.0],
}


def safetensors(tensors, metadata=None):
    table, payload = {}, b""
    for name, values in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        table[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(payload), len(payload) + len(data)]}
        payload += data
    if metadata:
        table["__metadata__"] = metadata
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + payload


def base(folder, tensors=None, config=None, metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors(tensors or TENSORS, metadata))
    return folder


def test_the_first_usable_source_wins_and_the_others_are_told(tmp_path):
    base(tmp_path / "b")
    found = resolve(["./a", "b"], tmp_path)
    assert found.directory == (tmp_path / "b").resolve()
    assert found.source == "b"
    assert "no folder" in found.tried[0]


def test_a_failure_lists_every_attempt_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        resolve(["dir:gone", "./empty", "python:no-such-weights", "nobody/nothing-here", "hf:a b"], tmp_path)
    message = str(caught.value)
    parts = [
        "1) dir:gone: no folder",
        "2) ./empty: no config.json",
        "3) python:no-such-weights: no Python package",
        "4) nobody/nothing-here: not in the Hugging Face cache, and HF_HUB_OFFLINE",
        "5) hf:a b: it is neither",
    ]
    places = [message.index(part) for part in parts]
    assert places == sorted(places)


def test_an_installed_distribution_carries_a_base_and_is_not_imported(tmp_path, monkeypatch):
    base(tmp_path / "weights_pkg" / "model")
    (tmp_path / "weights_pkg" / "__init__.py").write_text("raise RuntimeError('imported')")
    info = tmp_path / "weights_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weights-pkg\nVersion: 1.0\n")
    (info / "RECORD").write_text("weights_pkg/__init__.py,,\nweights_pkg/model/config.json,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve(["python:weights-pkg"], tmp_path).directory == (tmp_path / "weights_pkg" / "model").resolve()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no object"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no transformer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights are ref"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model-q4.gguf"),
            "only model-q4.gguf: a base",
        ),
        (
            lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
            "an adapter; name the base",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "no whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99), "no whole safetensors file"),
        (lambda folder: write_header(folder, b"{{{{"), "its header is damaged"),
        (lambda folder: write_header(folder, b'[{"w": 1}]'), "its header is no JSON object"),
        (lambda folder: write_header(folder, b'{"w": [1]}'), "the entry of tensor 'w' is damaged"),
        (lambda folder: write_header(folder, b'{"w": {"dtype": "F32", "shape": [1]}}'), "'w' is damaged"),
        (lambda folder: write_header(folder, b'{"w": ' + b"[" * 100_000 + b"}"), "nests deeper|lists"),
        (lambda folder: (folder / "model.safetensors").write_bytes(safetensors(TENSORS)[:-1]), "cover"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json cannot be read"),
        (lambda folder: write_layers(folder, "num_hidden_layers"), "num_hidden_layers = 1000000000, at most 1,024"),
        (lambda folder: write_layers(folder, "n_layers"), "n_layers = 1000000000, at most 1,024"),
        (lambda folder: write_index(folder, ["model-1.safetensors"]), "no weight_map that names a file"),
        (lambda folder: write_index(folder, {"w": 3}), "no weight_map that names a file"),
        (lambda folder: write_index(folder, None), "no weight_map that names a file"),
    ],
)
def test_an_unusable_base_says_why(tmp_path, spoil, words):
    folder = base(tmp_path / "b")
    spoil(folder)
    with pytest.raises(ConfigError, match=words):
        check(folder)


def write_layers(folder, key):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", key: 10**9}))


def write_header(folder, header):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def write_index(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_outside_the_folder_are_refused(tmp_path):
    folder = base(tmp_path / "b")
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../x.safetensors"}}))
    with pytest.raises(ConfigError, match=r"'\.\./x\.safetensors', which is not in the folder"):
        check(folder)


def test_a_model_type_that_transformers_does_not_know_is_named(tmp_path):
    folder = base(tmp_path / "b", config={**CONFIG, "model_type": "abacus"})
    with pytest.raises(ConfigError, match=r"^transformers [\d.]+ has no model type 'abacus'"), only_listed(folder):
        pass


def test_a_base_is_a_list_of_files(tmp_path):
    folder = base(tmp_path / "b", config={**CONFIG, "auto_map": {"AutoModel": "code.Model"}})
    for name in ("adapter_config.json", "code.py", "pytorch_model.bin", "generation_config.json"):
        (folder / name).write_text("{}")
    assert [path.name for path in listed(folder)] == ["config.json", "tokenizer.json", "model.safetensors"]
    with only_listed(folder) as seen:
        assert sorted(path.name for path in seen.iterdir()) == ["config.json", "model.safetensors"]
        assert json.loads((seen / "config.json").read_text()) == CONFIG
        assert (seen / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not seen.exists()
