"""Messages to a prompt by the chat template that a model carries: Jinja, in a sandbox that lets nothing be changed.

The template is part of a signed package, but it is a program all the same: it sees the messages and three texts, cannot
reach attributes that begin with an underscore, loops over at most 100,000 items at once, and what it writes is bounded.
One that never ends keeps the worker silent and is ended with it (limits.WORKER_SILENCE_S).
"""

import json
from typing import Any, List, Mapping, Optional, Sequence

from edge_agent.backends.api import Vocabulary
from edge_agent.base.errors import BackendMissing, RequestError
from edge_agent.base.limits import MESSAGE_BYTES

MESSAGES = 128
PROMPT_CHARS = 4 * MESSAGE_BYTES
GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")
INDENT = 8
ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """A model's template; compiled when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._compiled: Any = None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next answer. Raises RequestError 422 that says what cannot be."""
        if self._vocabulary.chat_template is None:
            raise RequestError(422, "this model's package has no chat template; ask it by `prompt`")
        self._check(messages)
        import jinja2

        parts: List[str] = []
        size = 0
        try:
            if self._compiled is None:
                self._compiled = _compile(self._vocabulary.chat_template)
            for part in self._compiled.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=self._vocabulary.bos,
                eos_token=self._vocabulary.eos,
            ):
                size += len(part)
                if size > PROMPT_CHARS:
                    raise RequestError(413, "the chat template makes more than {} characters".format(PROMPT_CHARS))
                parts.append(part)
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            RecursionError,
            MemoryError,
        ) as error:
            text = "{}: {}".format(type(error).__name__, str(error)[:160])
            raise RequestError(
                422, "the chat template cannot make a prompt of these messages: {}".format(text)
            ) from error
        return "".join(parts)

    def _check(self, messages: Sequence[Mapping[str, str]]) -> None:
        if not 0 < len(messages) <= MESSAGES:
            raise RequestError(422, "messages: {} given, 1 to {} are possible".format(len(messages), MESSAGES))
        for place, message in enumerate(messages):
            if message["role"] not in ROLES:
                raise RequestError(422, "messages[{}]: role {!r} is none of {}".format(place, message["role"], ROLES))
            control = self._vocabulary.control_in(message["content"])
            if control is not None:
                # It would end the turn and begin another one in a role of the writer's choice.
                raise RequestError(422, "messages[{}]: it writes out the control token {!r}".format(place, control))


def _compile(source: str) -> Any:
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise BackendMissing(
            "jinja2 is not installed", "tasks", "install edge-agent with its extra llamacpp"
        ) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    kept = {name: environment.globals[name] for name in GLOBALS}
    environment.globals.clear()  # `lipsum` writes texts to order, and no chat template needs it
    environment.globals.update(kept)
    environment.globals["raise_exception"] = _refuse
    # Jinja's own writes for HTML: an apostrophe would reach the model as \u0027.
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


def _to_json(value: Any, indent: Optional[int] = None) -> str:
    if indent is not None and not 0 <= indent <= INDENT:
        raise ValueError("tojson: an indent of {} is more than {}".format(indent, INDENT))
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(text: str) -> None:
    """What templates call when messages do not fit them."""
    raise RequestError(422, "the chat template refuses the messages: {}".format(str(text)[:160]))
