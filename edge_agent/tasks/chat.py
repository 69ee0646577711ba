"""Check messages and render them to a prompt with the model's chat template (`bundle.chat_template`).

Apart from `generate`, whose subject is one prompt, because the host tool has the renderer but not these checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_agent.backends.api import Vocabulary
from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.bundle.chat_template import ChatTemplateError, TemplateRenderer

MESSAGES = 128
PROMPT_CHARS = 4 * MESSAGE_BYTES
DETAIL_CHARS = 160
ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """A model's chat template, which is compiled at the first request that has messages."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        source = vocabulary.chat_template
        self._renderer = None if source is None else TemplateRenderer(source, vocabulary.special_tokens, PROMPT_CHARS)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next answer. Raises RequestError 422, or 413 for one that is too long."""
        if self._renderer is None:
            raise RequestError(422, Cause.INVALID, "this model's package has no chat template; ask it by `prompt`")
        self._check(messages)
        try:
            return self._renderer.render(messages)
        except ChatTemplateError as error:
            raise _request_error(error) from error

    def _check(self, messages: Sequence[Mapping[str, str]]) -> None:
        if not 0 < len(messages) <= MESSAGES:
            raise RequestError(422, Cause.INVALID, f"messages: {len(messages)} given, 1 to {MESSAGES} are possible")
        for place, message in enumerate(messages):
            if message["role"] not in ROLES:
                raise RequestError(
                    422, Cause.INVALID, f"messages[{place}]: role {message['role']!r} is none of {ROLES}"
                )
            control = self._vocabulary.control_in(message["content"])
            if control is not None:
                # A written-out control token ends the turn; text after it could then claim any role.
                raise RequestError(
                    422, Cause.INVALID, f"messages[{place}]: it writes out the control token {control!r}"
                )


def _request_error(error: ChatTemplateError) -> RequestError:
    if error.fault == "too long":
        return RequestError(413, Cause.TOO_LARGE, f"the chat template makes {error.detail}")
    if error.fault == "refused":
        return RequestError(
            422, Cause.INVALID, f"the chat template refuses the messages: {error.detail[:DETAIL_CHARS]}"
        )
    text = f"{error.error_type}: {error.detail[:DETAIL_CHARS]}"
    return RequestError(422, Cause.INVALID, f"the chat template cannot make a prompt of these messages: {text}")
