from dataclasses import fields

import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.train.settings import NAMES, PRESETS, REPORTERS, TrainSettings, check, replaced, settings


def test_every_preset_is_valid_and_says_what_it_is():
    for (name, method), made in PRESETS.items():
        check(made, "test")
        assert (made.preset, made.method) == (name, method)
    assert NAMES == ("A", "B", "best")


def test_the_presets_hold_the_sources_values():
    # A: the article on full fine-tuning against LoRA at the edge; B: the paper on fine-tuning with LoRA.
    a_full, a_lora, b_lora = settings("full", "A"), settings("lora", "A"), settings("lora", "B")
    assert 5e-6 <= a_full.learning_rate <= 5e-5 and 32 <= a_full.batch_size <= 64 and 3 <= a_full.epochs <= 5
    assert 8 <= a_lora.rank <= 16 and 3e-5 <= a_lora.learning_rate <= 1e-4
    assert 64 <= a_lora.batch_size <= 128 and 3 <= a_lora.epochs <= 4
    assert (b_lora.rank, b_lora.learning_rate, b_lora.batch_size) == (8, 2e-5, 16)
    assert b_lora.early_stopping_patience > 0


def test_values_are_set_over_a_preset():
    made = settings("lora", "B", {"rank": 4, "targets": ["qkv", "mlp"], "learning_rate": 1})
    assert (made.rank, made.targets, made.learning_rate, made.batch_size) == (4, ("qkv", "mlp"), 1.0, 16)


def test_method_and_preset_may_come_from_the_values():
    assert settings(values={"method": "full", "preset": "A"}) == PRESETS["A", "full"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rat": 1e-4}, "unknown key 'learning_rat'"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast' must be a number"),
        ({"learning_rate": float("nan")}, "learning_rate = nan must be a number"),
        ({"weight_decay": float("inf")}, "weight_decay = inf must be a number"),
        ({"alpha": float("inf")}, "alpha = inf must be a number"),
        ({"consistency": 10**400}, "consistency = 10* must be a number"),
        ({"learning_rate": 0}, "learning_rate = 0.0 must be above 0"),
        ({"epochs": 2.5}, "epochs = 2.5 must be a number"),
        ({"epochs": True}, "epochs = True must be a number"),
        ({"epochs": 0}, "epochs = 0 must be from 1"),
        ({"targets": []}, "targets is empty"),
        ({"targets": [1]}, "targets = .* must be a list of strings"),
        ({"precision": "fp64"}, "precision = 'fp64' is not known"),
        ({"schedule": "steep"}, "schedule = 'steep' is not known"),
        ({"dropout": 1.0}, "dropout = 1.0 must be at least 0 and below 1"),
        ({"seed": -1}, "seed = -1 must be from 0"),
        ({"method": "prompt"}, "method = 'prompt' is not known"),
        ({"preset": "C"}, "preset = 'C' is not known"),
    ],
)
def test_a_bad_value_names_key_and_place(values, said):
    with pytest.raises(ConfigError, match=said) as caught:
        settings(values=values, where="recipe.toml [train]")
    assert caught.value.where.startswith("recipe.toml [train].")


def test_every_number_has_a_range_and_every_choice_a_list():
    for field in fields(TrainSettings):
        if field.type in ("float", "int"):
            if field.name == "first_layer":  # checked against the base's layers
                continue
            with pytest.raises(ConfigError, match=field.name):
                replaced(TrainSettings(), {field.name: -5}, "test")
        elif field.type == "str" and field.name != "preset":
            with pytest.raises(ConfigError, match=field.name):
                replaced(TrainSettings(), {field.name: "no such thing"}, "test")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", "report_to names 'tensorbord'"),
        ("mlflow", "'mlflow', which is not installed (pip install mlflow)"),
    ],
)
def test_who_is_reported_to_is_known_and_installed_before_the_training(monkeypatch, name, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigError) as error:
        settings(values={"report_to": name}, where="train")
    shown = f"{error.value.what} ({error.value.remedy})"
    assert said in shown and "train.report_to" in str(error.value)


def test_the_names_of_reporters_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(REPORTERS) <= set(INTEGRATION_TO_CALLBACK)
