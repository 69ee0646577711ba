"""Training methods: what each can be shipped as, and that nothing outside their registry asks for a name."""

import ast
from pathlib import Path

import pytest
import torch

import edge_forge
from edge_agent.base.errors import ConfigError
from edge_forge.models import encoder
from edge_forge.train import methods
from edge_forge.train.methods import ADAPTER, BASE, FULL, LORA, MERGED, METHODS
from edge_forge.train.settings import settings

ROOT = Path(edge_forge.__file__).parent


def test_an_adapter_is_no_base_and_full_weights_are_no_adapter():
    forms = {
        name: {form for form in (ADAPTER, MERGED, BASE) if one.exportable_to(form)} for name, one in METHODS.items()
    }
    assert forms == {"lora": {ADAPTER, MERGED}, "full": {MERGED, BASE}}


def test_an_unknown_method_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"t.name: method = 'qlora' is not known .use one of lora, full."):
        methods.method("qlora", "t")


def test_full_training_leaves_only_the_pooler_frozen(tiny_base):
    model = encoder.open_encoder(tiny_base).model
    assert FULL.apply(model, (), settings("full"), None) is model is FULL.merge(model)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen and all(name.startswith("pooler.") for name in frozen)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_merged_adapter_computes_what_the_attached_one_does(tiny_base):
    opened = encoder.open_encoder(tiny_base)
    names = encoder.target_names(opened, ("all",), 0)
    plain = set(opened.model.state_dict())
    model = LORA.apply(opened.model, names, settings("lora", values={"rank": 3}), None)
    torch.manual_seed(8)
    for name, value in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        attached = model(input_ids=ids).last_hidden_state
        merged = LORA.merge(model)
        folded = merged(input_ids=ids).last_hidden_state
    torch.testing.assert_close(folded, attached, atol=1e-5, rtol=1e-5)
    assert set(merged.state_dict()) == plain


def test_no_module_compares_the_name_of_a_method():
    found = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [one for side in (node.left, *node.comparators) for one in ast.walk(side)]
                if any(isinstance(one, ast.Constant) and one.value in METHODS for one in sides):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
