"""The ONNX backend against numpy, and every adapter that it must refuse."""

import numpy as np
import onnx
import pytest

from edge_agent.backends.api import AdapterSource, Done, Failed, Limits, SessionJob
from edge_agent.backends.onnx import OnnxBackend
from edge_agent.base.errors import AdapterRefused, BackendError
from edge_forge.export.onnx.graph import save, set_metadata
from edge_forge.export.onnx.inject import inject_bank
from tests.support import small_graph as small

ROWS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9])
LIMITS = Limits(8, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(small.banked(tmp_path_factory.mktemp("graph") / "model.onnx"))


@pytest.fixture
def session(model):
    return OnnxBackend().load({"model": model}, {"max_rows": 8, "max_tokens": 16, "threads": 1})


def attach(session, tmp_path, name, tensors, **named):
    session.attach(AdapterSource(name, str(small.write_adapter(tmp_path / name, tensors, **named)), small.BASE_ID))


def run(session, jobs):
    for job in jobs:
        session.submit(job)
    return {event.job_id: event for event in session.step(LIMITS)}


def test_a_mixed_batch_equals_arithmetic_without_a_graph(session, tmp_path):
    tensors = {
        "full": small.adapter(1, labels=5),
        "low": small.adapter(2, rank=2),
        "one": small.adapter(3, modules=small.MODULES[2:3], rank=3),
        "head-only": small.adapter(4, modules=()),
        "mixed-ranks": {**small.adapter(5, rank=1), **small.adapter(6, modules=small.MODULES[:1], rank=4)},
    }
    for name, value in tensors.items():
        attach(session, tmp_path, name, value)
    for names in (["full"] * 4, [None] * 4, ["low", "one", None, "full"], ["mixed-ranks", "head-only", "full", "full"]):
        found = run(session, [SessionJob(str(place), name, [ROWS[place]], {}) for place, name in enumerate(names)])
        for place, name in enumerate(names):
            features, logits = small.reference([ROWS[place]], tensors.get(name))
            outputs = found[str(place)].outputs
            assert outputs["features"] == pytest.approx(features, abs=2e-5)
            if name is None:
                assert "logits" not in outputs
            else:
                assert outputs["logits"] == pytest.approx(logits, abs=1e-4)


def test_heads_of_tokens_and_of_texts_share_a_batch(session, tmp_path):
    texts = {"intent": small.adapter(1, labels=5), "mood": small.adapter(2, labels=2, rank=2)}
    words = {"slots": small.adapter(3, labels=7), "dates": small.adapter(4, labels=3, rank=1)}
    for name, value in texts.items():
        attach(session, tmp_path, name, value)
    for name, value in words.items():
        attach(session, tmp_path, name, value, of_tokens=True)
    for names in (["slots"] * 4, ["slots", "intent", None, "dates"], ["dates", "slots", "slots", "mood"]):
        found = run(session, [SessionJob(str(place), name, [ROWS[place]], {}) for place, name in enumerate(names)])
        for place, name in enumerate(names):
            outputs = found[str(place)].outputs
            features, logits = small.reference([ROWS[place]], {**texts, **words}.get(name))
            assert outputs["features"] == pytest.approx(features, abs=2e-5)
            if name in words:
                (wanted,) = small.token_reference([ROWS[place]], words[name])
                assert outputs["logits"][0].shape == (len(ROWS[place]), words[name]["head.bias"].size)
                assert outputs["logits"][0] == pytest.approx(wanted, abs=1e-4)
            elif name is not None:
                assert outputs["logits"] == pytest.approx(logits, abs=1e-4)
            else:
                assert "logits" not in outputs


def test_heads_of_tokens_take_memory_only_once_one_is_attached(session, tmp_path):
    attach(session, tmp_path, "intent", small.adapter(1))
    run(session, [SessionJob("a", "intent", [ROWS[0]], {}), SessionJob("b", None, [ROWS[1]], {})])
    before = session.footprint().adapters_bytes
    slots = small.adapter(2, labels=9)
    attach(session, tmp_path, "slots", slots, of_tokens=True)
    run(session, [SessionJob("a", "intent", [ROWS[0]], {}), SessionJob("b", "slots", [ROWS[1]], {})])
    head = (small.HIDDEN + 1) * 4
    # Its file, a head of texts that is one column of zeros, and a head of nine classes for each of eight positions.
    own = sum(value.nbytes for value in slots.values()) + head
    assert session.footprint().adapters_bytes - before == own + 8 * 9 * head


def test_what_labels_tokens_is_refused_where_a_graph_has_no_heads_for_them(tmp_path):
    graph = small.encoder()
    inject_bank(graph, small.MODULES, small.RANK, 8, of_tokens=False)
    save(graph, tmp_path / "model.onnx")
    old = OnnxBackend().load({"model": str(tmp_path / "model.onnx")}, {"max_rows": 8, "max_tokens": 16, "threads": 1})
    attach(old, tmp_path, "intent", small.adapter(1))
    with pytest.raises(AdapterRefused, match="'slots' labels tokens, and this graph has no heads for tokens"):
        attach(old, tmp_path, "slots", small.adapter(2), of_tokens=True)
    found = run(old, [SessionJob("1", "intent", [ROWS[0]], {})])["1"].outputs
    assert found["logits"] == pytest.approx(small.reference([ROWS[0]], small.adapter(1))[1], abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "why"), [(130, "130 classes of tokens, this model takes 1 to 129"), (0, "0 classes of tokens")]
)
def test_a_head_of_tokens_that_is_too_wide_is_refused(session, tmp_path, labels, why):
    with pytest.raises(AdapterRefused, match=why):
        attach(session, tmp_path, "slots", small.adapter(2, labels=labels), of_tokens=True)


def test_a_head_of_another_kind_is_refused(session, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(small.safetensors(small.adapter(1), {"format": "edge-adapter/1", "head": "pairs"}))
    with pytest.raises(AdapterRefused, match="its head is for 'pairs'"):
        session.attach(AdapterSource("a", str(path), small.BASE_ID))


def test_the_memory_of_heads_follows_the_labels_that_adapters_have(tmp_path):
    graph = small.encoder()
    inject_bank(graph, small.MODULES, small.RANK, 1024)
    save(graph, tmp_path / "model.onnx")
    session = OnnxBackend().load(
        {"model": str(tmp_path / "model.onnx")}, {"max_rows": 8, "max_tokens": 16, "threads": 1}
    )
    tensors = {"two": small.adapter(1, labels=2), "clinc": small.adapter(2, labels=151)}
    held = {}
    for name, value in tensors.items():
        attach(session, tmp_path, name, value)
        run(session, [SessionJob("a", name, [ROWS[0]], {}), SessionJob("b", None, [ROWS[1]], {})])
        held[name] = session.footprint().adapters_bytes
    head = (small.HIDDEN + 1) * 4
    # Each adapter's own head, and one for each of the bank's eight positions, as wide as the widest.
    assert held["clinc"] - held["two"] == sum(value.nbytes for value in tensors["clinc"].values()) + 8 * head * (
        151 - 2
    )
    found = run(session, [SessionJob(name, name, [ROWS[0]], {}) for name in tensors])
    for name, value in tensors.items():
        assert found[name].outputs["logits"] == pytest.approx(small.reference([ROWS[0]], value)[1], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer.0.key.A": None}, "only one half of layer.0.key"),
        ({"layer.0.key.B": np.zeros((4, 15), np.float32)}, r"\[16, r\] and \[r, 16\] are needed"),
        ({"layer.0.key.A": np.zeros((16, 3), np.float32)}, "layer.0.key has A"),
        (
            {"layer.0.key.A": np.zeros((16, 5), np.float32), "layer.0.key.B": np.zeros((5, 16), np.float32)},
            "rank 5.*the bank takes 4",
        ),
        ({"layer.9.key.A": np.zeros((16, 4), np.float32)}, "no place for"),
        ({"layer.0.key.A": np.full((16, 4), np.nan, np.float32)}, "layer.0.key.A has values that are not finite"),
        ({"layer.0.out.B": np.full((4, 16), np.inf, np.float32)}, "not finite"),
        ({"head.weight": None}, "no head.weight"),
        ({"head.bias": np.zeros(4, np.float32)}, r"\[16, labels\] is needed"),
        ({"head.weight": np.zeros((15, 3), np.float32)}, r"\[16, labels\] is needed"),
        ({"head.weight": np.zeros((16, 7), np.float32), "head.bias": np.zeros(7, np.float32)}, "7 labels.*1 to 6"),
        ({"head.weight": np.zeros((16, 0), np.float32), "head.bias": np.zeros(0, np.float32)}, "0 labels"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_and_the_session_goes_on(session, tmp_path, change, why):
    attach(session, tmp_path, "good", small.adapter(1))
    tensors = {name: value for name, value in {**small.adapter(2), **change}.items() if value is not None}
    with pytest.raises(AdapterRefused, match=why):
        attach(session, tmp_path, "bad", tensors)
    with pytest.raises(AdapterRefused, match="'bad' is not attached"):
        session.submit(SessionJob("1", "bad", [ROWS[0]], {}))
    outputs = run(session, [SessionJob("1", "good", [ROWS[0]], {})])["1"].outputs
    assert outputs["features"] == pytest.approx(small.reference(ROWS[:1], small.adapter(1))[0], abs=2e-5)


def test_a_refused_replacement_leaves_the_old_adapter(session, tmp_path):
    attach(session, tmp_path, "a", small.adapter(1))
    with pytest.raises(AdapterRefused):
        attach(session, tmp_path, "a", {})
    assert isinstance(run(session, [SessionJob("1", "a", [ROWS[0]], {})])["1"], Done)


def test_the_base_id_in_the_file_must_be_the_packages(session, tmp_path):
    with pytest.raises(AdapterRefused, match="the file says base sha256:cd"):
        attach(session, tmp_path, "a", small.adapter(1), base_id="sha256:cd")


def test_a_format_of_the_future_is_refused(session, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(small.safetensors(small.adapter(1), {"format": "edge-adapter/2"}))
    with pytest.raises(AdapterRefused, match="edge-adapter/2"):
        session.attach(AdapterSource("a", str(path), small.BASE_ID))


def test_an_adapter_in_use_by_a_queued_job_is_not_replaced(session, tmp_path):
    attach(session, tmp_path, "a", small.adapter(1))
    session.submit(SessionJob("1", "a", [ROWS[0]], {}))
    with pytest.raises(AdapterRefused, match="queued"):
        attach(session, tmp_path, "a", small.adapter(2))


def test_a_merged_graph_gives_logits_and_takes_no_adapter(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    from edge_forge.export.onnx.graph import save

    merged = small.encoder()
    merged.graph.initializer.append(numpy_helper.from_array(np.ones((16, 2), np.float32), "head"))
    merged.graph.node.append(helper.make_node("MatMul", ["features", "head"], ["logits"]))
    merged.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]))
    save(merged, tmp_path / "merged.onnx")
    session = OnnxBackend().load({"model": str(tmp_path / "merged.onnx")}, {"threads": 1})
    outputs = run(session, [SessionJob("1", None, list(ROWS), {})])["1"].outputs
    features = small.reference(ROWS)[0]
    assert outputs["features"] == pytest.approx(features, abs=1e-5)
    assert outputs["logits"] == pytest.approx(np.repeat(features.sum(1, keepdims=True), 2, 1), abs=1e-4)
    with pytest.raises(AdapterRefused, match="takes no adapters"):
        attach(session, tmp_path, "a", small.adapter(1))


def test_values_that_are_not_finite_fail_their_job_only(session, tmp_path):
    huge = small.adapter(1)
    huge["layer.0.out.B"] = np.full((4, 16), 3e38, np.float32)
    attach(session, tmp_path, "huge", huge)
    found = run(session, [SessionJob("1", "huge", [ROWS[0]], {}), SessionJob("2", None, [ROWS[1]], {})])
    assert isinstance(found["1"], Failed) and "not finite" in found["1"].reason
    assert found["2"].outputs["features"] == pytest.approx(small.reference(ROWS[1:2])[0], abs=1e-5)


def test_a_row_that_the_runtime_refuses_fails_alone(session, tmp_path):
    attach(session, tmp_path, "other", small.adapter(1))
    jobs = [
        SessionJob("1", None, [ROWS[0]], {}),
        SessionJob("2", None, [[small.VOCABULARY + 3]], {}),
        SessionJob("3", "other", [ROWS[2]], {}),
        SessionJob("4", None, [ROWS[1], [1, small.VOCABULARY]], {}),
    ]
    found = run(session, jobs)
    for refused in ("2", "4"):
        assert isinstance(found[refused], Failed) and "ONNX Runtime failed" in found[refused].reason
    assert found["1"].outputs["features"] == pytest.approx(small.reference(ROWS[:1])[0], abs=1e-5)
    expected = small.reference(ROWS[2:3], small.adapter(1))[0]
    assert found["3"].outputs["features"] == pytest.approx(expected, abs=2e-5)
    assert isinstance(run(session, [SessionJob("5", None, [ROWS[0]], {})])["5"], Done)


def test_an_id_beyond_the_table_that_the_graph_states_is_refused_at_submit(tmp_path):
    graph = small.encoder()
    set_metadata(graph, "edge.vocabulary", small.VOCABULARY)
    save(graph, tmp_path / "model.onnx")
    session = OnnxBackend().load({"model": str(tmp_path / "model.onnx")}, {"max_rows": 2, "max_tokens": 8})
    with pytest.raises(BackendError, match=f"gave id {small.VOCABULARY}, the model's table has {small.VOCABULARY}"):
        session.submit(SessionJob("1", None, [[1, small.VOCABULARY]], {}))
    assert session.step(LIMITS) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_rows": 0}, "max_rows"), ({"max_rows": -1}, "max_rows"), ({"max_tokens": True}, "max_tokens"),
        ({"threads": 100_000}, "threads"), ({"base_id": "sha256:00"}, "graph is of base"),
        ({"spinning": 1}, "spinning"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(model, options, why):
    with pytest.raises(BackendError, match=why):
        OnnxBackend().load({"model": model}, options)


def test_a_text_over_the_limit_is_refused_at_submit(session):
    with pytest.raises(BackendError, match="17 tokens, 1 to 16"):
        session.submit(SessionJob("1", None, [[1] * 17], {}))


@pytest.mark.parametrize("damage", ["no-bank-metadata", "other-version", "other-input"])
def test_a_graph_that_is_not_what_its_metadata_says_is_refused(tmp_path, model, damage):
    import onnx

    from edge_forge.export.onnx.graph import metadata, set_metadata

    graph = onnx.load(model)
    bank = metadata(graph, "edge.bank")
    if damage == "no-bank-metadata":
        del graph.metadata_props[:]
    elif damage == "other-version":
        set_metadata(graph, "edge.bank", {**bank, "version": 1})
    else:
        set_metadata(graph, "edge.bank", {**bank, "sites": bank["sites"][:1]})
    path = tmp_path / "damaged.onnx"
    onnx.save(graph, path)
    with pytest.raises(BackendError, match=r"inputs|version 1"):
        OnnxBackend().load({"model": str(path)}, {"threads": 1})


def test_no_copies_of_the_bank_are_bound(session, tmp_path):
    """A window of the bank, and an adapter alone, are the very memory that is kept."""
    attach(session, tmp_path, "a", small.adapter(1))
    attach(session, tmp_path, "b", small.adapter(2))
    bank = session._graph.adapters
    first, again = bank.bind(["a", "b"]).arrays, bank.bind(["b", "a"]).arrays
    assert all(np.shares_memory(first[name], again[name]) for name in first if first[name].size)
    assert all(array.flags.c_contiguous for array in first.values())
    assert all(bank.bind(["a"]).arrays[name] is bank.bind(["a", "a"]).arrays[name] for name in first)


def test_telemetry_is_off_before_the_import():
    import os

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("words", "exact"),
    [
        ({"avx2", "fma"}, "1"),
        ({"avx512f", "avx512bw"}, "1"),
        (set(), "1"),
        ({"avx2", "avx_vnni"}, None),
        ({"avx512f", "avx512_vnni"}, None),
    ],
)
def test_exact_int8_kernels_are_asked_for_where_the_fast_ones_saturate(monkeypatch, model, words, exact):
    monkeypatch.setattr("edge_agent.backends.onnx.cpu_words", lambda: frozenset(words))
    session = OnnxBackend().load({"model": model}, {"max_rows": 8, "max_tokens": 16, "threads": 1})
    found = session._graph._session.get_session_options()
    try:
        entry = found.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:
        entry = None
    assert entry == exact


def _without_logits(model):
    del model.graph.output[1]


def _behind_features(model, kind, values, shape, **attributes):
    """The graph with another node behind its features, which is shaped otherwise."""
    nodes = model.graph.node
    next(node for node in nodes if "features" in node.output).output[0] = "before"
    for node in nodes:
        node.input[:] = ["before" if name == "features" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "behind"))
    nodes.append(onnx.helper.make_node(kind, ["before", "behind"], ["features"], **attributes))
    output = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, shape)
    model.graph.output[0].CopyFrom(output)


def _flat(model):
    _behind_features(model, "ReduceSum", np.asarray([1], np.int64), ["batch"], keepdims=0)


def _of_unknown_width(model):
    _behind_features(model, "Compress", np.ones(small.HIDDEN, bool), ["batch", "width"], axis=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_logits, "has an adapter bank and no output 'logits'"),
        (_flat, r"output 'features' is tensor\(float\) of \['batch'\]"),
        (_of_unknown_width, r"output 'features' is tensor\(float\) of \['batch', 'width'\]"),
    ],
)
def test_outputs_that_are_no_rows_of_a_known_width_are_refused_at_the_load(tmp_path, change, says):
    """ONNX Runtime loads them; the first batch would end the worker."""
    model = onnx.load(small.banked(tmp_path / "model.onnx"))
    assert [output.name for output in model.graph.output] == ["features", "logits", "token_logits"]
    change(model)
    save(model, tmp_path / "changed.onnx")
    with pytest.raises(BackendError, match=says):
        OnnxBackend().load({"model": str(tmp_path / "changed.onnx")}, {"max_rows": 4, "max_tokens": 8, "threads": 1})
