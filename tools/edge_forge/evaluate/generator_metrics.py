"""Metrics of generated answers and of predicted tokens. `generator_scores` produces the answers and the losses.

Apart from `generator_scores`, so that a change there does not run the GGUF conversion again, which needs `perplexity`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edge_agent.base.errors import ConfigError

_WORST_NATS = 500.0


@dataclass(frozen=True)
class AnswerScores:
    """Scores of answers against references: exact match and ROUGE-L in 0..1, BLEU in 0..100 as it is usually given.

    `json_match` counts answers that are the same JSON value, whatever their spaces and order of keys; None where the
    references are no JSON.
    """

    rows: int
    exact_match: float
    bleu: float
    rouge_l: float
    json_match: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """The same as plain values."""
        return asdict(self)


def score(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """Scores of `answers`. BLEU is sacrebleu's corpus BLEU (13a), ROUGE-L the mean F1 of rouge-score without stemming.

    White space at both ends plays no part. Raises ConfigError when there is nothing to score.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    if not answers or len(answers) != len(references):
        raise ConfigError(f"{len(answers)} answers for {len(references)} references", "evaluation")
    pairs = [(answer.strip(), reference.strip()) for answer, reference in zip(answers, references, strict=True)]
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    wanted = [_json(reference) for _, reference in pairs]
    same = [due == _json(answer) for (answer, _), due in zip(pairs, wanted, strict=True)]
    return AnswerScores(
        rows=len(pairs),
        exact_match=sum(answer == reference for answer, reference in pairs) / len(pairs),
        bleu=float(BLEU(effective_order=False).corpus_score([a for a, _ in pairs], [[r for _, r in pairs]]).score),
        rouge_l=sum(rouge.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs) / len(pairs),
        json_match=None if any(due is None for due in wanted) else sum(same) / len(same),
    )


def bounded(nats: float, tokens: int) -> float:
    """The loss of a row, at most `_WORST_NATS` a token: one that is not finite would spoil every figure of the file."""
    worst = _WORST_NATS * tokens
    return float(nats) if nats < worst else worst  # NaN is not smaller, either


def perplexity(losses: Sequence[float], tokens: int) -> float:
    """exp of the mean -ln p per token; `losses` are sums in nats. Infinite where the model rules a token out."""
    if tokens <= 0:
        raise ConfigError("there is no token to score", "evaluation")
    mean = math.fsum(losses) / tokens
    return math.exp(mean) if mean < 700 else math.inf


def _json(text: str) -> object:
    try:
        found: object = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, (dict, list)) else None
