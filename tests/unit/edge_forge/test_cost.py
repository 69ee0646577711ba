"""What a build will cost is said before its longest step, in figures that follow from recipe and host."""

import pytest

from edge_forge.plan.cost import TrainingWork, foretold, host_flops_per_s, training_flops
from edge_forge.progress import duration

WORK = TrainingWork(rows=1000, tokens=20_000, epochs=4, weights=10_000_000, frozen_share=0.0, base_bytes=90 * 2**20)


def test_products_count_each_weight_six_times_a_token_and_frozen_layers_once():
    assert training_flops(WORK) == 6 * 20_000 * 10_000_000 * 4
    half = training_flops(WORK._replace(frozen_share=0.5))
    assert half == 20_000 * 10_000_000 * (2 * 0.5 + 6 * 0.5 * 4)
    assert training_flops(WORK._replace(epochs=8)) == 2 * training_flops(WORK)


def test_the_line_names_what_is_trained_and_a_range():
    assert foretold(WORK, 1e11) == (  # 48 s of products
        "cost: 1000 texts of 20 tokens, at most 4 epochs: training takes about 19 s to 1 min 36 s at this host's "
        "present speed, the steps after it about 33 s more (base: 90.0 MiB)"
    )
    assert ", 1 epoch: training" in foretold(WORK._replace(epochs=1), 1e11)
    assert "about 3 min 12 s to 16 min 00 s" in foretold(WORK, 1e10)


def test_the_converter_for_litert_is_part_of_the_line_where_it_runs():
    assert foretold(WORK, 1e11, 4) == (
        f"{foretold(WORK, 1e11)}; LiteRT's converter about {duration(4 + 4 * 2.6e3 * WORK.base_bytes / 1e11)} "
        "for 4 lengths"
    )
    assert foretold(WORK, 1e11, 1).endswith(" for 1 length")


def test_the_speed_of_this_host_is_some_figure():
    assert host_flops_per_s() > 1e6


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_rows_and_few_are_no_error(tokens):
    assert "0 tokens" in foretold(WORK._replace(rows=10, tokens=tokens), 1e11)


def test_a_reference_is_counted_forward_alone_before_the_first_pass():
    """Two products a weight for each token of the rows of both splits, once, however many passes follow."""
    asked = WORK._replace(reference_passes=1.25)
    assert training_flops(asked) - training_flops(WORK) == 2 * 1.25 * 20_000 * 10_000_000
    assert training_flops(asked._replace(epochs=1)) == (6 + 2.5) * 20_000 * 10_000_000
