"""What a base still knows after it was tuned: the same questions before and after, none of them of the tuned task.

Of encoders: how well cosines of sentence features follow people's scores (Spearman, as STS-B is scored), and linear
probes of earlier tasks. Of generators: perplexity on a text, the share of pairs in which the good sentence is likelier
(BLiMP, Warstadt et al. 2020), and how many questions with one right answer are answered so (`exact_answers`). The
questions come from files that the user names, or, of maths and code, with the forge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from edge_agent.base.texts import Text
from edge_forge.data.knowledge_files import AlikePair, ExactQuestion, SentencePair

if TYPE_CHECKING:
    from edge_forge.data.chat_tokenizer import ChatTokenizer
    from edge_forge.data.generator_rows import Row
    from edge_forge.models.encoder import Encoder

SIMILARITY, PROBE, PERPLEXITY, PAIRS, EXACT = "similarity", "probe ", "perplexity", "pairs", "exact "
_TOKENS = 128
_PROBE_STEPS = 500


class LabelledTask(NamedTuple):
    """An earlier task: (text or pair, label) rows to fit a probe on, and rows to score it on."""

    train: Sequence[tuple[Text, str]]
    measured: Sequence[tuple[Text, str]]


class EncoderQuestions(NamedTuple):
    """What is asked of an encoder; either may be empty."""

    similarity: Sequence[AlikePair]
    earlier: Mapping[str, LabelledTask]


class GeneratorQuestions(NamedTuple):
    """What is asked of a generator, each may be empty; texts are cut into parts of `max_tokens`. `exact` are sets of
    questions by name, which with an answer take at most `longest` tokens."""

    texts: Sequence[Row]
    pairs: Sequence[SentencePair]
    max_tokens: int
    exact: Mapping[str, Sequence[ExactQuestion]] = MappingProxyType({})
    longest: int = 0

    @property
    def none(self) -> bool:
        """Whether nothing is asked."""
        return not (self.texts or self.pairs or self.exact)


Asked = TypeVar("Asked", EncoderQuestions, GeneratorQuestions)


@dataclass(frozen=True)
class Questions(Generic[Asked]):
    """What a recipe asks, and the digests of the files that it comes from."""

    named: Asked
    digests: Mapping[str, str]


def lost(name: str, before: float, after: float) -> float:
    """How much of a score is gone: the fall of a share or correlation, the rise of a perplexity as a share of it."""
    return after / before - 1.0 if name == PERPLEXITY else before - after


def compared(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """{before, after, lost} of every question."""
    return {
        name: {"before": before[name], "after": after[name], "lost": lost(name, before[name], after[name])}
        for name in before
    }


def encoder_scores(encoder: Encoder, base_dir: Path, asked: EncoderQuestions) -> dict[str, float]:
    """Scores of an encoder by question: `similarity` in -1..1, `probe NAME` in 0..1."""
    found = {}
    if asked.similarity:
        texts = [text for pair in asked.similarity for text in (pair.one, pair.other)]
        features = _features(encoder, base_dir, texts)
        found[SIMILARITY] = similarity(features[::2], features[1::2], [pair.score for pair in asked.similarity])
    for name, task in asked.earlier.items():
        parts = [
            (_features(encoder, base_dir, [text for text, _ in rows]), [label for _, label in rows]) for rows in task
        ]
        found[f"{PROBE}{name}"] = probe_accuracy(*parts)
    return found


def similarity(one: Any, other: Any, scores: Sequence[float]) -> float:
    """Spearman's correlation of the cosines of rows [n, width] with `scores`; 0 where all cosines are equal."""
    import numpy as np
    from scipy.stats import spearmanr

    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(axis=1) / np.maximum(lengths, 1e-12)
    if float(np.ptp(cosines)) < 1e-9:  # a correlation with what does not vary is not defined
        return 0.0
    found = float(spearmanr(cosines, scores).statistic)
    return found if math.isfinite(found) else 0.0


def probe_accuracy(train: tuple[Any, Sequence[str]], measured: tuple[Any, Sequence[str]]) -> float:
    """Accuracy on `measured` of a logistic regression on (features [n, width], labels), standardised by `train`."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features, labels = train
    mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    probe = LogisticRegression(max_iter=_PROBE_STEPS)
    with warnings.catch_warnings():
        # A probe that has not settled after so many steps scores the same to the third digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((features - mean) / deviation, list(labels))
    right = probe.predict((measured[0] - mean) / deviation) == np.asarray(list(measured[1]))
    return float(right.mean())


def _features(encoder: Encoder, base_dir: Path, texts: Sequence[Text]) -> Any:
    """Features [texts, width] by the base's own pooling, as its embeddings are."""
    import torch

    from edge_forge.evaluate.predict import logits_of

    nothing = torch.zeros(encoder.width, 1), torch.zeros(1)
    return logits_of(encoder, base_dir, nothing, texts, min(_TOKENS, encoder.positions))[0]


def exact_intervals(
    kept: Mapping[str, Mapping[str, float]],
    before: Mapping[str, Sequence[bool]],
    after: Mapping[str, Sequence[bool]],
) -> dict[str, dict[str, float]]:
    """`kept` (`compared`), where sets of questions also have `rows` and the interval of what is lost (Tango's, by the
    questions that one of the two alone answers): a few dozen questions tell a loss of some points from none only so."""
    from edge_forge.evaluate.paired import difference_interval

    found = {name: dict(one) for name, one in kept.items()}
    for name, marks in before.items():
        gone = sum(one and not other for one, other in zip(marks, after[name], strict=True))
        won = sum(other and not one for one, other in zip(marks, after[name], strict=True))
        interval = difference_interval(len(marks), gone, won)
        found[name] |= {"rows": len(marks), "lost_low": interval.low, "lost_high": interval.high}
    return found


def generator_scores(
    model: Any, tokenizer: ChatTokenizer, asked: GeneratorQuestions, marks: dict[str, list[bool]] | None = None
) -> dict[str, float]:
    """Scores of a causal model by question: `perplexity` of the texts, `pairs` and `exact NAME` in 0..1. `marks` is
    given whether each question of a set is answered rightly."""
    from edge_forge.data.chat_tokenizer import to_score
    from edge_forge.evaluate.generator_metrics import bounded, perplexity
    from edge_forge.models.causal_lm import losses

    found = {}
    if asked.texts:
        _, parts = to_score(tokenizer, asked.texts, asked.max_tokens)
        parts = [part for part in parts if len(part.ids) > 1]
        counts = [len(part.ids) - 1 for part in parts]
        found[PERPLEXITY] = perplexity(list(map(bounded, losses(model, parts), counts)), sum(counts))
    if asked.pairs:
        good, bad = (_losses(model, tokenizer, texts) for texts in zip(*asked.pairs, strict=True))
        found[PAIRS] = sum(one < other for one, other in zip(good, bad, strict=True)) / len(good)
    if asked.exact:
        from edge_forge.evaluate import exact_answers

        for name, questions in asked.exact.items():
            own = exact_answers.marks(model, tokenizer, questions, asked.longest)
            found[f"{EXACT}{name}"] = sum(own) / len(own)
            if marks is not None:
                marks[f"{EXACT}{name}"] = own
    return found


def _losses(model: Any, tokenizer: ChatTokenizer, texts: Sequence[str]) -> list[float]:
    """-ln p of each whole sentence, its first token included and no end asked for: behind the tokenizer's own first
    token, or where it has none behind the token that ends a text (as EleutherAI's evaluation harness does)."""
    from edge_forge.models.causal_lm import sentence_losses

    rows = []
    for text in texts:
        ids = tokenizer.ids(text, begins=True)
        rows.append(ids if ids != tokenizer.ids(text) else (tokenizer.ends[0], *ids))
    return sentence_losses(model, rows)
