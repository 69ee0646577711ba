"""A smaller encoder: what stays of it, and that its folder computes what was cut in memory, for every family."""

import pytest
import torch

from edge_agent.base.errors import ConfigError
from edge_forge.models import base_check, bases, pruned, smaller
from edge_forge.models.encoder import open_encoder
from tests.support import tiny_encoders as tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
CUTTABLE = tuple(name for name in tiny.ENCODERS if name != "albert")
IDS = torch.arange(5, 29).reshape(2, 12)
MASK = torch.tensor([[1] * 12, [1] * 5 + [0] * 7])


@pytest.mark.parametrize(
    ("layers", "kept", "stay", "ends"),
    [
        (6, 3, (0, 2, 4), (1, 3, 5)),
        (12, 6, (0, 2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11)),
        (6, 4, (0, 1, 3, 4), (0, 2, 3, 5)),
        (6, 1, (0,), (5,)),
        (7, 6, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 6)),
    ],
)
def test_layers_stay_at_even_distances_and_stand_for_those_up_to_the_next(layers, kept, stay, ends):
    assert (smaller.spread(layers, kept), smaller.stood_for(layers, kept)) == (stay, ends)


def cut(base, out, layers):
    encoder = open_encoder(base)
    before = encoder.model.config.to_dict()
    small = smaller.keep_layers(encoder, smaller.spread(encoder.layers, layers))
    return small, smaller.write_proven(small, base, out, before, "compress.layers")


@pytest.mark.parametrize("family", CUTTABLE)
def test_the_folder_of_a_cut_encoder_is_a_base_that_computes_the_same(family, tmp_path):
    base = tiny.write(tmp_path / "base", family, num_hidden_layers=4)
    small, opened = cut(base, tmp_path / "small", 2)
    bases.check(tmp_path / "small")
    with torch.inference_mode():
        wanted, found = small.features(IDS, MASK), opened.features(IDS, MASK)
        whole = open_encoder(base).features(IDS, MASK)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-3)
    assert opened.layers == 2 and small.survey.linears == opened.survey.linears
    before, after = base_check.examine(base), base_check.examine(tmp_path / "small")
    assert (before["layers"], after["layers"]) == (4, 2)
    assert before["base_id"] != after["base_id"]
    assert {key: after[key] for key in ("positions", "width", "prompt")} == {
        key: before[key] for key in ("positions", "width", "prompt")
    }


def test_layers_that_alternate_keep_their_kind(tmp_path):
    base = tiny.write(tmp_path / "base", "modernbert", num_hidden_layers=6, global_attn_every_n_layers=3)
    config = open_encoder(base).model.config
    assert config.layer_types == ["full_attention", *["sliding_attention"] * 2] * 2
    _, opened = cut(base, tmp_path / "small", 4)
    assert opened.model.config.layer_types == [config.layer_types[index] for index in (0, 1, 3, 4)]


@pytest.mark.parametrize(("kept", "words"), [(4, "not less than the base's 4"), (9, "set 1 to 3, or 0 for all")])
def test_a_number_of_layers_that_cuts_nothing_is_refused(kept, words, tiny_base):
    with pytest.raises(ConfigError, match=words) as refused:
        smaller.foretell(tiny_base, smaller.Cut(kept, 0, 0), "compress")
    assert refused.value.where == "compress.layers"


def test_shared_layers_are_refused_by_name(tmp_path):
    base = tiny.write(tmp_path / "base", "albert")
    with pytest.raises(ConfigError, match="layers of albert share their weights"):
        smaller.foretell(base, smaller.Cut(1, 0, 0), "compress")


def test_a_cut_that_the_configuration_does_not_say_is_refused_by_name(tiny_base, tmp_path):
    encoder = open_encoder(tiny_base)
    before = encoder.model.config.to_dict()
    small = smaller.keep_layers(encoder, (0, 2))
    small.model.config.num_hidden_layers = 4
    with pytest.raises(ConfigError, match="the configuration of bert cannot say what is cut"):
        smaller.write_proven(small, tiny_base, tmp_path / "small", before, "compress.layers")


def test_what_a_cut_saves_is_foretold(tiny_base):
    found = smaller.foretell(tiny_base, smaller.Cut(2, 0, 0), "compress")
    assert found == {"layers": 4, "heads": 0, "neurons": 0, "parameters": 35776, "smaller": 18688}


HEADS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
NEURONS = (*HEADS, "mpnet", "eurobert", "deberta-v3")


def pruned_of(base, out, cut, scores=None):
    encoder = open_encoder(base)
    before = encoder.model.config.to_dict()
    of = smaller.shape_of(encoder, cut, "compress")
    small = smaller.cut_down(encoder, cut, of, scores, "compress")
    return small, smaller.write_proven(small, base, out, before, "compress")


@pytest.mark.parametrize("family", NEURONS)
def test_parts_of_no_effect_are_those_that_are_cut_and_the_answers_stay(family, tmp_path):
    base = tiny.write(tmp_path / "base", family)
    cut = smaller.Cut(0, 2 if family in HEADS else 0, 20)
    encoder = open_encoder(base)
    of = smaller.shape_of(encoder, cut, "compress")
    with torch.no_grad():  # heads 0 and 2, and every other neuron, hand on nothing
        for parts in pruned.layer_parts(encoder, "compress", heads=cut.heads > 0, neurons=True):
            encoder.model.get_submodule(parts.after_neurons).weight[:, ::2] = 0.0
            encoder.model.get_submodule(parts.after_neurons).weight[:, 41::2] = 0.0
            if cut.heads:
                encoder.model.get_submodule(parts.after_heads).weight.view(32, 4, 8)[:, ::2] = 0.0
    wanted = encoder.features(IDS, MASK).detach()

    def loss(batch):
        return encoder.features(IDS[batch], MASK[batch]).square().sum()

    scores = pruned.importance(encoder, of, [[0], [1]], loss, "compress")
    kept = pruned.chosen(scores, cut.heads, cut.neurons)
    assert all(one.neurons == tuple(range(1, 41, 2)) for one in kept)
    assert all(one.heads == ((1, 3) if cut.heads else ()) for one in kept)
    before = encoder.model.config.to_dict()
    small = smaller.cut_down(encoder, cut, of, scores, "compress")
    opened = smaller.write_proven(small, base, tmp_path / "small", before, "compress")
    bases.check(tmp_path / "small")
    assert torch.allclose(opened.features(IDS, MASK), wanted, atol=1e-4)
    assert smaller.parameters(opened) < smaller.parameters(open_encoder(base))
    assert base_check.examine(tmp_path / "small")["base_id"] != base_check.examine(base)["base_id"]


def test_importance_is_the_first_order_change_of_the_loss_per_row(tiny_base):
    encoder = open_encoder(tiny_base)
    of = smaller.shape_of(encoder, smaller.Cut(0, 2, 32), "compress")
    ids = IDS % 10

    def loss(batch):
        return encoder.features(ids[batch], MASK[batch]).square().sum()

    found = pruned.importance(encoder, of, [[0], [1]], loss, "compress")
    apart = [pruned.importance(encoder, of, [[row]], loss, "compress") for row in (0, 1)]
    together = pruned.importance(encoder, of, [[0, 1]], loss, "compress")
    last = [one[-1].heads for one in (found, together)]
    assert torch.allclose(found[-1].heads, apart[0][-1].heads + apart[1][-1].heads)
    assert torch.allclose(last[0], last[1], rtol=1e-4), "rows count apart however they are batched"
    dense = encoder.model.get_submodule("encoder.layer.3.attention.output.dense")
    step = 1e-2
    with torch.no_grad():
        changes = []
        for row in (0, 1):
            whole = loss([row])
            dense.weight.view(32, 4, 8)[:, 1] *= 1 - step
            changes.append(abs(float(whole - loss([row]))) / step)
            dense.weight.view(32, 4, 8)[:, 1] /= 1 - step
    assert float(found[-1].heads[1]) == pytest.approx(sum(changes), rel=0.1)


@pytest.mark.parametrize(
    ("family", "cut", "words"),
    [
        ("mpnet", (0, 2, 0), "mpnet: its heads are not four products of the text alone"),
        ("modernbert", (0, 2, 0), "modernbert: its heads are not four products"),
        ("modernbert", (0, 0, 20), "modernbert: its feed-forward part is one product of several"),
        ("eurobert", (0, 2, 0), "eurobert: its heads do not have a query, key and value each"),
        ("deberta-v3", (0, 2, 0), "deberta-v2: its heads are not four products"),
        ("albert", (0, 0, 20), "layers of albert share their weights"),
        ("bert", (0, 4, 0), "heads = 4 is not less than the 4 of a layer"),
        ("bert", (0, 0, 48), "feed_forward = 48 is not less than the 48 of a layer"),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name(family, cut, words, tmp_path):
    base = tiny.write(tmp_path / "base", family)
    with pytest.raises(ConfigError, match=words):
        smaller.foretell(base, smaller.Cut(*cut), "compress")


def test_a_pruned_encoder_is_pruned_again_and_loses_layers(tiny_base, tmp_path):
    pruned_of(tiny_base, tmp_path / "once", smaller.Cut(0, 3, 32))
    small, opened = pruned_of(tmp_path / "once", tmp_path / "twice", smaller.Cut(2, 1, 16))
    assert (opened.layers, smaller.shape_of(opened, smaller.Cut(0, 0, 1), "c").neurons) == (2, 16)
    assert torch.allclose(opened.features(IDS % 10, MASK), small.features(IDS % 10, MASK), atol=1e-5)


def test_weights_that_do_not_fit_the_heads_that_are_said_are_refused(tiny_base, tmp_path):
    pruned_of(tiny_base, tmp_path / "small", smaller.Cut(0, 2, 0))
    tiny.change_config(tmp_path / "small", kept_heads=3)
    with pytest.raises(ConfigError, match="tensors of another shape than its config"):
        open_encoder(tmp_path / "small")
    tiny.change_config(tmp_path / "small", kept_heads=None)
    with pytest.raises(ConfigError, match="tensors of another shape than its config"):
        open_encoder(tmp_path / "small")
