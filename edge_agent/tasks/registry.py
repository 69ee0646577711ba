"""Which task serves which kind of spec; a kind's modules are imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.backends.api import Vocabulary
from edge_agent.base.errors import BackendError
from edge_agent.tasks.api import Task


def build(spec: Mapping[str, Any], tokenizer_path: str | None, vocabulary: Vocabulary | None = None) -> Task:
    """The task of a spec (`bundle.catalog.TaskSpec` as a map). Raises BackendError for a kind that is not known."""
    if spec["kind"] == "generate":
        from edge_agent.tasks.generate import Generate  # needs what a classifier's worker may lack

        return Generate(vocabulary)
    from edge_agent.tasks.classify import Classify
    from edge_agent.tasks.embed import Embed
    from edge_agent.tasks.tokens import open_tokenizer

    tokenizer = open_tokenizer(tokenizer_path, int(spec["max_tokens"]))
    if spec["kind"] == "classify":
        return Classify(tokenizer, spec)
    if spec["kind"] == "embed":
        return Embed(tokenizer)
    raise BackendError(f"there is no task {spec['kind']!r}", "task", "there are: classify, embed, generate")
