"""Scores of an evaluation set by PyTorch (base and tuned model) and by llama.cpp (a file that devices get)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edge_forge.data.chat_tokenizer import ChatTokenizer, EncodedRow, pairs_within, to_score
from edge_forge.data.generator_rows import REJECTED, Row, chosen
from edge_forge.evaluate.generator_metrics import bounded, perplexity, score
from edge_forge.evaluate.paired import compare_losses
from edge_forge.evaluate.preferences import preferred

_SAMPLES = 8
Losses = Callable[[Sequence[EncodedRow]], list[float]]
Answer = Callable[[Sequence[Sequence[int]]], list[str]]


class EvaluationSet(NamedTuple):
    """The rows that scores are taken on, the longest row and the longest answer in tokens, and their tokenizer."""

    tokenizer: ChatTokenizer
    rows: Sequence[Row]
    max_tokens: int
    answer_tokens: int


def by_torch(evaluation_set: EvaluationSet, folder: Path, adapter: Path | None) -> dict[str, Any]:
    """{rows, tokens, perplexity (_low, _high), row_losses, answers?, row_matches?, samples?, preferences?} of a model
    folder, with a peft adapter or alone. `row_losses` holds (sum in nats, tokens) of each row, of preferences those of
    chosen answers; `row_matches` whether each answer is the wanted one.
    """
    from edge_forge.models.causal_lm import answers, losses, open_model

    model, tokenizer = open_model(folder, adapter), evaluation_set.tokenizer

    def answer(prompts: Sequence[Sequence[int]]) -> list[str]:
        return [tokenizer.decode(ids) for ids in answers(model, prompts, evaluation_set.answer_tokens, tokenizer.ends)]

    return _scored(evaluation_set, lambda rows: losses(model, rows), answer)


def by_llama(evaluation_set: EvaluationSet, model: Path, adapter: Path | None) -> dict[str, Any]:
    """The same of a GGUF file, with a GGUF adapter or alone."""
    from edge_forge.export.gguf import engine

    return _scored(
        evaluation_set,
        lambda rows: engine.losses(model, [row.ids for row in rows], [row.answer for row in rows], adapter),
        lambda prompts: engine.generate(model, prompts, evaluation_set.answer_tokens, adapter),
    )


def learned_by(evaluation_set: EvaluationSet, losses: Losses) -> float:
    """What a model has learned, without its answers: the perplexity of the rows, or of preferences the share of pairs
    whose chosen answer is likelier."""
    found = _likelihoods(evaluation_set, losses)[0]
    return float(found["preferences"]["preferred"] if "preferences" in found else found["perplexity"])


def _scored(evaluation_set: EvaluationSet, losses: Losses, answer: Answer) -> dict[str, Any]:
    found, rows, encoded = _likelihoods(evaluation_set, losses)
    if rows:
        said, wanted = answer([one.ids[: one.answer] for one in encoded]), [row[-1].text for row in rows]
        found["answers"] = score(said, wanted).as_dict()
        found["row_matches"] = [one.strip() == due.strip() for one, due in zip(said, wanted, strict=True)]
        found["samples"] = [[row[-2].text, row[-1].text, one] for row, one in zip(rows, said, strict=True)][:_SAMPLES]
    return found


def _perplexity(sums: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """With its interval by the rows: that of its ratio to a model that is sure of every token."""
    found = compare_losses([0.0] * len(sums), sums, counts)
    return {
        "perplexity": perplexity(sums, sum(counts)),
        "perplexity_low": found.ratio_low,
        "perplexity_high": found.ratio_high,
    }


def _likelihoods(
    evaluation_set: EvaluationSet, losses: Losses
) -> tuple[dict[str, Any], Sequence[Row], Sequence[EncodedRow]]:
    """(the scores by likelihood, the rows whose answers can be compared, all rows in tokens)."""
    tokenizer, asked, longest = evaluation_set.tokenizer, evaluation_set.rows, evaluation_set.max_tokens
    pairs = asked[0][-1].role == REJECTED
    kept, both = pairs_within(tokenizer, asked, longest) if pairs else (asked, [])
    rows, encoded = to_score(tokenizer, list(map(chosen, kept)), longest)
    counts = [len(row.ids) - max(row.answer, 1) for row in encoded]
    sums = [bounded(nats, count) for nats, count in zip(losses(encoded), counts, strict=True)]
    found: dict[str, Any] = {
        "rows": len(asked),
        "tokens": sum(counts),
        **_perplexity(sums, counts),
        "row_losses": [list(row) for row in zip(sums, counts, strict=True)],
    }
    if pairs:
        worse = [EncodedRow((*one.prompt, *one.rejected), (), len(one.prompt)) for one in both]
        bad = [bounded(nats, len(one.rejected)) for nats, one in zip(losses(worse), both, strict=True)]
        found["preferences"] = preferred(sums, bad)
    return found, rows, encoded
