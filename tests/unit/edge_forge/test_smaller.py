"""A smaller encoder: what stays of it, and that its folder computes what was cut in memory, for every family."""

import pytest
import torch

from edge_agent.base.errors import ConfigError
from edge_forge.models import base_check, bases, smaller
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
        smaller.foretell(tiny_base, kept, "compress")
    assert refused.value.where == "compress.layers"


def test_shared_layers_are_refused_by_name(tmp_path):
    base = tiny.write(tmp_path / "base", "albert")
    with pytest.raises(ConfigError, match="layers of albert share their weights"):
        smaller.foretell(base, 1, "compress")


def test_a_cut_that_the_configuration_does_not_say_is_refused_by_name(tiny_base, tmp_path):
    encoder = open_encoder(tiny_base)
    before = encoder.model.config.to_dict()
    small = smaller.keep_layers(encoder, (0, 2))
    small.model.config.num_hidden_layers = 4
    with pytest.raises(ConfigError, match="the configuration of bert cannot say what is cut"):
        smaller.write_proven(small, tiny_base, tmp_path / "small", before, "compress.layers")


def test_what_a_cut_saves_is_foretold(tiny_base):
    assert smaller.foretell(tiny_base, 2, "compress") == {"layers": 4, "parameters": 35776, "smaller": 18688}
