"""Scores of answers and of tokens, against numbers worked out by hand."""

import math

import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.evaluate.generator_metrics import perplexity, score


def test_answers_by_hand():
    found = score(["turn the lamp on", " off\n", "a b"], ["turn the lamp on", "off", "a b c d"])
    assert found.exact_match == pytest.approx(2 / 3)
    # ROUGE-L of "a b" to "a b c d": precision 1, recall 1/2, F1 2/3.
    assert found.rouge_l == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert 0 < found.bleu < 100 and found.json_match is None
    assert score(["a b c d e"], ["a b c d e"]).bleu == pytest.approx(100.0)


def test_json_is_compared_by_value():
    found = score(['{"b": 2, "a": 1}', '{"a": 1'], ['{"a": 1, "b": 2}', '{"a": 1}'])
    assert (found.exact_match, found.json_match) == (0.0, 0.5)


def test_perplexity():
    assert perplexity([math.log(2.0) * 3, math.log(8.0)], 4) == pytest.approx(2 ** (6 / 4))
    assert perplexity([1e6], 1) == math.inf
    for losses, tokens in (([], 0), ([1.0], 0)):
        with pytest.raises(ConfigError):
            perplexity(losses, tokens)
    with pytest.raises(ConfigError):
        score([], [])
