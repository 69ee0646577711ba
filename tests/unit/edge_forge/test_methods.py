"""Training methods: what each can be shipped as, and that nothing outside their registry asks for a name."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import edge_forge
from edge_agent.base.errors import ConfigError
from edge_forge.models import encoder
from edge_forge.train import bottleneck, methods
from edge_forge.train import lora as adapters
from edge_forge.train import lora_kin as kin
from edge_forge.train.lint import lint
from edge_forge.train.methods import ADAPTER, BASE, FULL, LORA, MERGED, METHODS, OWN_GRAPH
from edge_forge.train.settings import settings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ROOT = Path(edge_forge.__file__).parent


def test_an_adapter_is_no_base_and_full_weights_are_no_adapter():
    forms = {
        name: {form for form in (ADAPTER, MERGED, BASE) if one.exportable_to(form)} for name, one in METHODS.items()
    }
    attached, whole = {ADAPTER, MERGED}, {MERGED, BASE}
    assert forms == {
        "lora": attached, "full": whole, "head": attached, "half": whole, "rslora": attached, "lora+": attached,
        "adalora": attached, "pissa": attached, "dora": whole, "bottleneck": set(),
    }  # fmt: skip
    assert METHODS["bottleneck"].exportable_to(OWN_GRAPH)


def test_an_unknown_method_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"t.name: method = 'qlora' is not known .use one of lora, full, head, half"):
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


def test_half_fine_tuning_leaves_what_is_below_the_upper_half(tiny_base):
    opened = encoder.open_encoder(tiny_base)
    model = METHODS["half"].apply(opened.model, encoder.below_names(opened, 2), settings("half"), None)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning and all(name.startswith(("encoder.layer.2.", "encoder.layer.3.")) for name in learning)


def test_the_difference_of_pissa_to_the_base_is_what_it_computes(tiny_base):
    opened, plain = encoder.open_encoder(tiny_base), encoder.open_encoder(tiny_base)
    names = encoder.target_names(opened, ("all",), 1)
    method = METHODS["pissa"]
    model = method.apply(opened.model, names, settings("pissa", values={"rank": 3}), None)
    assert method.pairs(model) == {}, "before training it is the base"
    weights = {name: module.base_layer.weight.detach() for name, module in adapters.adapted_modules(model).items()}
    torch.manual_seed(8)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value.add_(0.1 * torch.randn(value.shape))
    for name, (a, b) in method.pairs(model).items():
        module = adapters.adapted_modules(model)[name]
        trained = weights[name] + module.scaling["default"] * (
            module.lora_B["default"].weight.detach() @ module.lora_A["default"].weight.detach()
        )
        assert len(a) == method.bank_rank(3) == 6
        torch.testing.assert_close(
            plain.model.get_submodule(name).weight.detach() + b @ a, trained, atol=1e-5, rtol=1e-4
        )


def test_adalora_keeps_half_of_its_ranks_and_drops_the_rest_from_the_adapter(tiny_base):
    opened = encoder.open_encoder(tiny_base)
    names = encoder.target_names(opened, ("all",), 2)
    method = METHODS["adalora"]
    model = method.apply(opened.model, names, settings("adalora", values={"rank": 4}), None)
    schedule, steps = method.companion(model), 20
    learning = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.02)
    schedule.on_train_begin(None, SimpleNamespace(max_steps=steps), None)
    before = kin.penalty(model).item()
    for step in range(steps):
        opened.model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.square().sum().backward()
        schedule.on_pre_optimizer_step(None, None, None)
        optimizer.step()
        schedule.on_optimizer_step(None, SimpleNamespace(global_step=step), None)
        optimizer.zero_grad()
    pairs = method.pairs(model)
    assert sum(len(a) for a, _ in pairs.values()) == 2 * len(names)
    assert kin.penalty(model).item() < before, "A and B are drawn to orthogonal ones"
    layer = dict(model.base_model.model.named_modules())[next(iter(pairs))]
    a, b = next(iter(pairs.values()))
    torch.testing.assert_close(b @ a, layer.get_delta_weight("default").detach(), atol=1e-6, rtol=1e-4)


def test_bottlenecks_begin_as_the_base_and_are_read_back_as_they_were(tiny_base):
    opened = encoder.open_encoder(tiny_base)
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64)
    plain = opened.features(ids, mask)
    names = encoder.sublayer_ends(opened, 2)
    assert names == [f"encoder.layer.{n}.{part}" for n in (2, 3) for part in ("attention.output.dense", "output.dense")]
    model = METHODS["bottleneck"].apply(opened.model, names, settings("bottleneck", values={"rank": 3}), None)
    torch.testing.assert_close(opened.features(ids, mask), plain, atol=0, rtol=0)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(".down." in name or ".up." in name or ".LayerNorm." in name for name in learning) and len(learning) == 24
    torch.manual_seed(8)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.3 * torch.randn(value.shape))
    again = encoder.open_encoder(tiny_base)
    tensors = bottleneck.trained_tensors(model)
    bottleneck.load_bottlenecks(again.model, {**tensors, "head.bias": torch.zeros(2)})
    torch.testing.assert_close(again.features(ids, mask), opened.features(ids, mask), atol=0, rtol=0)
    assert (again.features(ids, mask) - plain).abs().max() > 0.01
    with pytest.raises(ConfigError, match="no place in the base"):
        bottleneck.load_bottlenecks(again.model, {"encoder.layer.9.output.dense.down.weight": torch.zeros(3, 32)})


def test_pairs_of_unequal_rank_become_one_plain_lora_for_peft(tmp_path, tiny_base):
    from peft import PeftModel

    opened = encoder.open_encoder(tiny_base)
    names = encoder.target_names(opened, ("qkv",), 3)
    torch.manual_seed(8)
    pairs = {name: (torch.randn(rank, 32), torch.randn(32, rank)) for rank, name in enumerate(names, 1)}
    adapters.save_as_lora(pairs, tmp_path, None)
    weights = {name: opened.model.get_submodule(name).weight.detach().clone() for name in names}
    merged = PeftModel.from_pretrained(opened.model, tmp_path).merge_and_unload()
    for name, (a, b) in pairs.items():
        torch.testing.assert_close(merged.get_submodule(name).weight, weights[name] + b @ a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        ("lora", {}, []),
        ("full", {}, []),
        ("lora", {"learning_rate": 2e-5}, ["a 50th of what LoRA usually wants: 0.001 .about ten times full"]),
        ("full", {"learning_rate": 1e-3}, ["10 times what full fine-tuning usually wants: 0.0001$"]),
        ("lora", {"targets": ("attention",)}, ["targets = attention leaves linear layers out"]),
        ("lora", {"rank": 1}, ["rank = 1 holds about 1 KiB, the training labels tell up to 4 KiB: take rank 4"]),
        ("full", {"targets": ("attention",), "rank": 1}, []),
    ],
)
def test_what_is_unlike_what_is_known_to_work_is_said(method, values, said):
    given = settings(method, values=values)
    found = lint(METHODS[method], given, settings(method).learning_rate, bits=4 * 8192.0, weights_a_rank=4096)
    assert len(found) == len(said)
    assert all(re.search(pattern, sentence) for pattern, sentence in zip(said, found, strict=True))
