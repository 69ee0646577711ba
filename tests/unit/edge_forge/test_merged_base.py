"""What was trained, as a base: the same features as the trained model, and nothing of it that a base does not have."""

import numpy as np
import pytest
import torch

from edge_forge.evaluate.predict import logits_of
from edge_forge.models import bases
from edge_forge.models.causal_lm import logits, open_model
from edge_forge.models.encoder import open_encoder
from edge_forge.train.lora import save_adapter
from edge_forge.train.merged_base import write_merged, write_merged_generator
from edge_forge.train.trained_encoder import open_trained
from tests.support import tiny_generators

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TEXTS = ["turn the lamp on", "lamp off", "the light on now"]


def features(encoder, base):
    return logits_of(encoder, base, (torch.zeros(encoder.width, 1), torch.zeros(1)), TEXTS, 16)[0]


def test_a_merged_base_computes_what_the_trained_model_does(tiny_base, tmp_path):
    name, generator = "encoder.layer.2.intermediate.dense", torch.Generator().manual_seed(3)
    a, b = torch.randn(32, 2, generator=generator), torch.randn(2, 64, generator=generator)
    head = {"head.weight": torch.eye(32)[:, :2].contiguous(), "head.bias": torch.zeros(2)}
    (tmp_path / "run").mkdir()
    save_adapter(tmp_path / "run" / "adapter.safetensors", {f"{name}.A": a, f"{name}.B": b, **head}, {"base_id": "x"})
    write_merged(tiny_base, tmp_path / "run", tmp_path / "base")
    bases.check(tmp_path / "base")
    made = features(open_encoder(tmp_path / "base"), tmp_path / "base")
    trained = features(open_trained(tiny_base, tmp_path / "run", merged=True)[0], tiny_base)
    assert made == pytest.approx(trained, abs=1e-6)
    assert np.abs(made - features(open_encoder(tiny_base), tiny_base)).max() > 0.01


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_generator_computes_what_base_and_adapter_do(tmp_path, tied):
    from peft import LoraConfig, get_peft_model

    base = tiny_generators.write(tmp_path / "source", tie_word_embeddings=tied)
    torch.manual_seed(5)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(open_model(base), config).save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    write_merged_generator(base, tmp_path / "peft", tmp_path / "base")
    rows = [[5, 6, 7, 8]]
    made, both, bare = (logits(open_model(*place), rows) for place in (
        (tmp_path / "base",), (base, tmp_path / "peft"), (base,)
    ))  # fmt: skip
    assert made == pytest.approx(both, abs=1e-4) and np.abs(made - bare).max() > 0.01
    names = ("tokenizer.json", "tokenizer_config.json", "config.json")
    assert all((tmp_path / "base" / name).read_bytes() == (base / name).read_bytes() for name in names)
