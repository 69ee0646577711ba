import json

import numpy as np
import pytest
import torch

from edge_agent.base.errors import ConfigError
from edge_forge.models import encoder
from edge_forge.train import frozen_states as features
from edge_forge.train import lora as adapters
from edge_forge.train.methods import METHODS
from edge_forge.train.settings import settings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TOKENS = (np.array([2, 4, 6, 7, 3]), np.array([2, 5, 3]))


def last(model, **inputs):
    with torch.inference_mode():
        return model(**inputs).last_hidden_state


def test_a_cut_encoder_continues_where_the_frozen_part_ended(tiny_base, tmp_path):
    whole, cut = encoder.open_encoder(tiny_base), encoder.open_encoder(tiny_base)
    ids, mask = features.padded(TOKENS)
    expected = last(whole.model, input_ids=ids, attention_mask=mask)
    rows = features.TokenizedRows(TOKENS, np.array([0, 1]), 0)
    kept = features.keep_states(cut, 2, rows, tmp_path)
    encoder.cut_below(cut, 2)
    states, kept_mask = kept.read([0, 1])
    found = last(cut.model, inputs_embeds=states, attention_mask=kept_mask)
    assert torch.equal(mask, kept_mask)
    inside = mask.bool()
    # The states are kept as float16: 11 bits.
    assert (found - expected)[inside].abs().max() < 5e-3
    with pytest.raises(ConfigError, match="token ids"):
        last(cut.model, input_ids=ids, attention_mask=mask)


def test_a_cut_encoder_keeps_the_names_and_frees_the_rest(tiny_base):
    whole, cut = encoder.open_encoder(tiny_base), encoder.open_encoder(tiny_base)
    encoder.cut_below(cut, 3)
    names = {name for name, _ in cut.model.named_parameters()}
    assert names == {name for name, _ in whole.model.named_parameters() if name.startswith("encoder.layer.3.")}
    assert all(value.is_contiguous() for value in cut.model.parameters())


@pytest.mark.parametrize(
    ("targets", "first", "count"),
    [(("all",), 0, 24), (("all",), 3, 6), (("qkv",), 2, 6), (("attention",), 0, 16), (("mlp",), 0, 8),
     (("query", "value"), 0, 8), (("attention.output.dense",), 1, 3), (("qkv", "attention"), 0, 16)],
)  # fmt: skip
def test_targets_select_linears_by_group_or_by_the_end_of_a_name(tiny_base, targets, first, count):
    names = encoder.target_names(encoder.open_encoder(tiny_base), targets, first)
    assert len(names) == len(set(names)) == count
    assert all(int(name.split(".")[2]) >= first for name in names)


def test_a_target_without_a_module_is_named(tiny_base):
    with pytest.raises(ConfigError, match=r"names 'q_proj'.*no linear"):
        encoder.target_names(encoder.open_encoder(tiny_base), ("mlp", "q_proj"), 0)


@pytest.mark.parametrize(("given", "found"), [(0, 0), (5, 5), (-1, 5), (-6, 0)])
def test_first_layer_counts_from_either_end(given, found):
    assert encoder.resolve_layer(given, 6) == found


@pytest.mark.parametrize("given", [6, -7])
def test_a_first_layer_outside_the_base_is_named(given):
    with pytest.raises(ConfigError, match=f"first_layer = {given}"):
        encoder.resolve_layer(given, 6)


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be opened"):
        encoder.open_encoder(tmp_path)


def gradients(model, ids, mask):
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=mask).last_hidden_state
    (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return out.detach(), found


def adapted(tiny_base, method="lora", **values):
    opened = encoder.open_encoder(tiny_base)
    given = settings(method, values={"rank": 3, **values})
    model = METHODS[method].apply(opened.model, encoder.target_names(opened, given.targets, 1), given, None)
    torch.manual_seed(8)
    for name, value in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    return opened, model


def test_computing_in_place_gives_pefts_values_and_gradients(tiny_base):
    opened, model = adapted(tiny_base, alpha=5.0)
    ids, mask = features.padded(TOKENS)
    expected, slopes = gradients(opened.model, ids, mask)
    assert adapters.compute_in_place(model) == 18
    found, ours = gradients(opened.model, ids, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert slopes.keys() == ours.keys() and slopes
    for name, value in slopes.items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-4, msg=name)
    adapters.compute_plainly(model)
    torch.testing.assert_close(gradients(opened.model, ids, mask)[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("merged", [False, True])
def test_the_device_form_gives_what_was_trained(tiny_base, tmp_path, method, merged):
    opened, model = adapted(tiny_base, method, alpha=3.0)
    ids, mask = features.padded(TOKENS)
    expected = last(opened.model, input_ids=ids, attention_mask=mask)
    head = torch.nn.Linear(32, 2)
    path = tmp_path / "adapter.safetensors"
    adapters.save_adapter(path, adapters.device_tensors(METHODS[method].pairs(model), head), {"base_id": "sha256:00"})
    tensors = adapters.load_adapter(path)
    assert tensors["encoder.layer.2.intermediate.dense.A"].shape == (32, 3)
    assert tensors["encoder.layer.2.intermediate.dense.B"].shape == (3, 64)
    assert tensors["head.weight"].shape == (32, 2) and tensors["head.bias"].shape == (2,)
    again = encoder.open_encoder(tiny_base)
    adapters.apply_adapter(again, tensors, merged)
    found = last(again.model, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)
    plain = last(encoder.open_encoder(tiny_base).model, input_ids=ids, attention_mask=mask)
    assert (found - plain).abs().max() > 1e-2, "an adapter without effect would pass otherwise"


def test_equal_adapters_are_equal_bytes(tmp_path):
    metadata = {name: name * 3 for name in ("base_id", "rank", "alpha", "rslora", "labels")}
    tensors = {name: torch.arange(4.0).reshape(2, 2) for name in ("a.A", "a.B", "head.weight")}
    files = set()
    for number in range(16):  # safetensors orders its metadata anew for every file
        given = tensors if number % 2 else dict(reversed(tensors.items()))
        adapters.save_adapter(tmp_path / "adapter.safetensors", given, metadata)
        files.add((tmp_path / "adapter.safetensors").read_bytes())
    assert len(files) == 1
    found = adapters.load_adapter(tmp_path / "adapter.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tensors.items()) and len(found) == 3


def test_pefts_form_names_no_folder_and_sorts_its_targets(tiny_base, tmp_path):
    _, model = adapted(tiny_base)
    adapters.save_peft(model, tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    targets = json.loads(text)["target_modules"]
    assert str(tiny_base) not in text and targets == sorted(targets) and len(targets) > 3
    assert not (tmp_path / "README.md").exists()


def test_an_adapter_of_another_base_is_refused(tiny_base):
    opened = encoder.open_encoder(tiny_base)
    with pytest.raises(ConfigError, match="no place in the base"):
        pair = {
            "encoder.layer.9.output.dense.A": torch.zeros(64, 2),
            "encoder.layer.9.output.dense.B": torch.zeros(2, 32),
        }
        adapters.apply_adapter(opened, pair, merged=True)
    with pytest.raises(ConfigError, match="other shapes"):
        pair = {
            "encoder.layer.1.output.dense.A": torch.zeros(63, 2),
            "encoder.layer.1.output.dense.B": torch.zeros(2, 32),
        }
        adapters.apply_adapter(opened, pair, merged=True)


def test_a_file_that_is_no_adapter_is_named(tmp_path):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="cannot be read"):
        adapters.load_adapter(path)
