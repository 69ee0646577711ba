"""What a model is for, as a pair of functions around a backend: texts to rows, outputs to results.

    task = build(spec, tokenizer_path)
    prepared = task.prepare(texts, params)          rows for the session; refuses bad parameters
    results = task.answer(outputs, prepared, params)    one plain map per text

A task knows no backend and no message format. It runs in the worker child; importable on Python 3.6.
"""

import abc
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from edge_agent.base.errors import BackendError, RequestError


class Prepared(NamedTuple):
    """Token ids per text, with how many tokens each text has in full and whether it was cut."""

    rows: List[List[int]]
    tokens: List[int]
    truncated: List[bool]


class Task(abc.ABC):
    """One kind of question."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def prepare(self, texts: Sequence[str], params: Mapping[str, Any]) -> Prepared:
        """Rows for a session. Raises RequestError 422 for an empty text or parameters that do not fit."""
        self.check(params)
        for place, text in enumerate(texts):
            if not text.strip():
                raise RequestError(422, "text {} is empty".format(place + 1) if len(texts) > 1 else "the text is empty")
        encoded = self._tokenizer.encode(texts)
        return Prepared(
            [one.ids for one in encoded], [one.tokens for one in encoded], [one.truncated for one in encoded]
        )

    @abc.abstractmethod
    def check(self, params: Mapping[str, Any]) -> None:
        """Raise RequestError 422 for a parameter that is unknown or out of range."""

    @abc.abstractmethod
    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> List[Dict[str, Any]]:
        """One result per text from the session's outputs."""


def build(spec: Mapping[str, Any], tokenizer_path: Optional[str]) -> Task:
    """The task of a spec (`bundle.catalog.TaskSpec` as a map). Raises BackendError for a kind that is not known."""
    from edge_agent.tasks.classify import Classify
    from edge_agent.tasks.embed import Embed
    from edge_agent.tasks.tokens import open_tokenizer

    tokenizer = open_tokenizer(tokenizer_path, int(spec["max_tokens"]))
    if spec["kind"] == "classify":
        return Classify(tokenizer, spec)
    if spec["kind"] == "embed":
        return Embed(tokenizer)
    raise BackendError("there is no task {!r}".format(spec["kind"]), "task", "there are: classify, embed")


def refuse_unknown(params: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise RequestError 422 that names the first parameter outside `known`."""
    for name in params:
        if name not in known:
            allowed = ", ".join(known) if known else "none"
            raise RequestError(422, "unknown parameter {!r}; this task takes: {}".format(name, allowed))
