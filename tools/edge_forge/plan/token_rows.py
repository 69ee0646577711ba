"""The rows of tasks whose tokens have logits, as a device reads them: of slots by words, of answers by windows.

A file of its own because training, exports and the report of a classifier's plan share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_forge.data import answer_rows

if TYPE_CHECKING:
    from edge_forge.evaluate.paired import PairedScores
    from edge_forge.plan.classifier_training import ClassifierTraining
    from edge_forge.train.window_rows import WindowForm, WindowRows
    from edge_forge.train.word_rows import WordRows


class TokenRows:
    """Rows by words or windows, and their scores, of the recipe of one training."""

    def __init__(self, training: ClassifierTraining) -> None:
        self._training = training
        self._recipe = training.recipe

    @property
    def _tokenizer(self) -> Path:
        return self._training.at_hand.base.directory / "tokenizer.json"

    @property
    def settings(self) -> dict[str, int]:
        """What of the task decides on answers, beside `max_tokens`; empty for other tasks."""
        task = self._recipe.task
        return {"overlap": task.window_overlap, "answer_tokens": task.answer_tokens} if self._recipe.answers else {}

    @property
    def _form(self) -> WindowForm:
        from edge_forge.train.window_rows import WindowForm

        return WindowForm(self._recipe.task.max_tokens, self._recipe.task.window_overlap, self._training.prompt)

    def words(self, split: str) -> WordRows:
        """A split of slots by words, as a device splits its texts."""
        from edge_forge.train.word_rows import WordRows

        data, bounds = self._training.data, (self._recipe.task.max_tokens, self._training.prompt)
        return WordRows.read(self._tokenizer, data.splits[split], data.labels, bounds)

    def windows(self, split: str) -> WindowRows:
        """A split of answers by windows, as a device reads its questions. Rows without an answer teach a model that
        there may be none. Raises ConfigError for a question or a context that no device takes."""
        from edge_forge.train.window_rows import WindowRows

        data = self._training.data
        known = answer_rows.NO_ANSWER in data.labels
        most = self._recipe.task.answer_tokens
        return WindowRows.read(self._tokenizer, data.splits[split], self._form, most, known)

    def scored(self, split: str, of_tokens: Sequence[Any]) -> tuple[Any, Mapping[str, Any]]:
        """The logits that a split is scored by, out of those of all tokens of its rows, and the scores."""
        from edge_forge.evaluate import answer_scores, span_scores

        if self._recipe.answers:
            windows = self.windows(split)
            logits = windows.of_positions(of_tokens)
            return logits, answer_scores.evaluate(logits, windows)
        words = self.words(split)
        logits = words.of_words(of_tokens)
        return logits, span_scores.evaluate(logits, words)

    def compared(
        self, own: tuple[Any, Any], split: str, further: tuple[Any, Any] | None, others: Sequence[str]
    ) -> PairedScores:
        """A variant beside its reference, by the logits of both of a split; `further` are those of the split `others`
        names, which count for agreement."""
        from edge_forge.evaluate import answer_scores, span_scores

        if self._recipe.answers:
            more = None if further is None else (*further, self.windows(others[0]))
            return answer_scores.compare(*own, self.windows(split), more)
        further_words = None if further is None else (*further, self.words(others[0]))
        return span_scores.compare(*own, self.words(split), further_words)

    def answered(self, logits_file: Path, split: str) -> tuple[str, list[list[float]]]:
        """Of answers: a character for each question, '1' where it is answered exactly, and bins of calibration."""
        import numpy

        from edge_forge.evaluate import answer_scores

        logits, windows = numpy.load(logits_file), self.windows(split)
        right = "".join("01"[one] for one in answer_scores.right(logits, windows))
        return right, answer_scores.bins_of(logits, windows)

    def window_lengths(self, inputs: Mapping[str, str]) -> Mapping[str, Any]:
        """`token_lengths` of answers, whose rows are windows and are not cut; `several` of the training `questions`
        have more than one."""

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.train.window_rows import each_question

            asked = each_question(self._tokenizer, self._training.data.train, self._form)
            counts = [[len(window.ids) for window in windows] for _, windows in asked]
            lengths = sorted(length for of_one in counts for length in of_one)
            return {
                "rows": len(lengths), "cut": 0, "kept": sum(lengths), "p95": lengths[len(lengths) * 95 // 100],
                "max": lengths[-1], "questions": len(counts), "several": sum(len(of_one) > 1 for of_one in counts),
            }  # fmt: skip

        most, steps = self._recipe.task.max_tokens, self._training.steps
        settings = {"max_tokens": most, "prompt": self._training.prompt, **self.settings}
        facts = steps.run("windows", inputs, settings, work, "count windows").facts
        if facts["several"]:
            steps.progress.say(
                f"{facts['several']} of {facts['questions']} training questions are read in several windows of "
                f"max_tokens = {most}: {facts['rows']} rows in all"
            )
        return facts

    def warnings(self) -> Iterator[str]:
        """Sentences on gold spans that no answer can give. Raises ConfigError as `windows`."""
        if self._recipe.slots:
            yield from self._spans_beside_words()
        if self._recipe.answers:
            yield from self._answers_out_of_reach()

    def _spans_beside_words(self) -> Iterator[str]:
        """Words have labels, and parts of words have none."""
        found = self.words("train")
        beside, spans = found.beside_words, sum(map(len, found.gold))
        if beside:
            place, _, start, end = beside[0]
            text = str(self._training.data.train[place].text)
            yield (
                f"{len(beside)} of {spans} training spans begin or end within a word of the base's tokenizer, or lie "
                f"beyond max_tokens, such as {text[start:end][:40]!r} in {text[:60]!r}: whole words are answered"
            )

    def _answers_out_of_reach(self) -> Iterator[str]:
        for split in ("validation", "test"):
            rows = self._training.data.splits[split]
            found = self.windows(split) if rows else None
            if found is not None and found.unreachable:
                question = answer_rows.question_of(rows[found.unreachable[0]])[0]
                yield (
                    f"{len(found.unreachable)} of {len(found.gold)} {split} questions have answers of more than "
                    f"task.answer_tokens = {self._recipe.task.answer_tokens} tokens, or that no window holds whole, "
                    f"such as that to {question[:60]!r}: they are answered in part, or not"
                )
