"""Settings on the command line, for all recipes of a build or for one of them."""

import pytest

from edge_agent.base.errors import UsageError
from edge_forge.commands import overlay_of

NAMES = ("home", "desk")


def test_a_setting_is_for_all_recipes_or_for_the_named_one():
    given = ["train.seed=3", "home:train.epochs=4", "base.source=python:some-weights"]
    assert overlay_of("home", given, NAMES) == ["train.seed=3", "train.epochs=4", "base.source=python:some-weights"]
    assert overlay_of("desk", given, NAMES) == ["train.seed=3", "base.source=python:some-weights"]


def test_a_setting_for_an_unknown_recipe_is_refused():
    with pytest.raises(UsageError, match="hoem is none of the recipes"):
        overlay_of("home", ["hoem:train.epochs=4"], NAMES)
