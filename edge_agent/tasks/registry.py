"""Which task serves which kind of spec; a kind's modules are imported when one is asked for.

A file of its own because every task imports `api`, and this one leads to every task.
"""

from __future__ import annotations

from edge_agent.backends.api import Vocabulary
from edge_agent.base.errors import BackendError
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks.api import Task


def build(task: TaskFields, tokenizer_path: str | None, vocabulary: Vocabulary | None = None) -> Task:
    """The task that these fields describe. Raises BackendError for a kind that is not known."""
    if task.kind == "generate":
        from edge_agent.tasks.generate import Generate  # imported here: an encoder's worker does not need it

        return Generate(vocabulary)
    from edge_agent.tasks.encoders import Classify, Embed
    from edge_agent.tasks.tokens import open_tokenizer

    tokenizer = open_tokenizer(tokenizer_path, task.max_tokens, task.prompt)
    if task.kind == "classify":
        return Classify(tokenizer, task)
    if task.kind == "embed":
        return Embed(tokenizer)
    if task.kind == "slots":
        from edge_agent.tasks.slots import SlotFilling

        return SlotFilling(tokenizer, task)
    if task.kind == "answers":
        from edge_agent.tasks.extraction import ExtractAnswers

        return ExtractAnswers(tokenizer, task)
    raise BackendError(
        f"there is no task {task.kind!r}", "task", "there are: classify, slots, answers, embed, generate"
    )
