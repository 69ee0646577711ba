"""Render messages to a prompt with the Jinja chat template that a model carries.

The host tool trains with this renderer and the device serves with it, so both make the same prompt of the same
messages. Templates come in signed packages but are programs all the same. They run in jinja2's immutable sandbox: no
attribute that begins with an underscore, no change of a value, at most 100,000 items per `range`, no globals but those
below, and, where the caller sets it, a bound on the characters written. The run time is not bounded here: on the device
the supervisor ends a worker that is silent for `limits.WORKER_SILENCE_S`.

`jinja2` is imported when the first template is compiled, so that a worker without conversations never loads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edge_agent.base.errors import BackendMissing

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""The names of special tokens that a template may use. One that the model does not have is undefined, as in
transformers: `{{ unk_token }}` writes nothing."""

_KEPT_GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")
_INDENT_MAX = 8

Fault = Literal["syntax", "failed", "refused", "too long"]


class ChatTemplateError(Exception):
    """A template gives no prompt; the caller words it for its own reader.

    `fault`: it does not parse ('syntax'), it raised while it ran ('failed'), it called `raise_exception` ('refused'),
    or it wrote more than `max_chars` ('too long'). `detail` is what jinja2 or the template said, without a type;
    `error_type` is the name of the exception, empty for the last two.
    """

    def __init__(self, fault: Fault, detail: str, error_type: str = "") -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail
        self.error_type = error_type


class TemplateRenderer:
    """A model's chat template with its special tokens.

    `special_tokens` maps names of `SPECIAL_TOKENS` to texts; `max_chars` bounds a prompt (None: no bound).
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], max_chars: int | None = None) -> None:
        self._source = source
        self._special_tokens = {name: special_tokens[name] for name in SPECIAL_TOKENS if name in special_tokens}
        self._max_chars = max_chars
        self._compiled: Any = None

    def compile(self) -> None:
        """Parse the template, once. Raises ChatTemplateError 'syntax', BackendMissing without jinja2."""
        if self._compiled is not None:
            return
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise BackendMissing(
                "jinja2 is not installed", "tasks", "install edge-agent with its extra llamacpp"
            ) from error
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        kept = {name: environment.globals[name] for name in _KEPT_GLOBALS}
        environment.globals.clear()  # `lipsum` writes texts of any length, and no chat template needs it
        environment.globals.update(kept)
        environment.globals["raise_exception"] = _raise_exception
        # Jinja's own `tojson` writes for HTML: an apostrophe would reach the model as \u0027.
        environment.filters["tojson"] = _to_json
        try:
            self._compiled = environment.from_string(self._source)
        except _template_errors() as error:
            raise ChatTemplateError("syntax", str(error), type(error).__name__) from error

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of messages (`role`, `content`), with the opening of the next answer where it is asked for.

        Raises ChatTemplateError, BackendMissing.
        """
        self.compile()
        parts: list[str] = []
        size = 0
        try:
            for part in self._compiled.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            ):
                size += len(part)
                if self._max_chars is not None and size > self._max_chars:
                    raise ChatTemplateError("too long", f"more than {self._max_chars} characters")
                parts.append(part)
        except _template_errors() as error:
            raise ChatTemplateError("failed", str(error), type(error).__name__) from error
        return "".join(parts)


def _template_errors() -> tuple[type[Exception], ...]:
    """What a template can bring about while it is compiled or runs, jinja2's own errors included."""
    import jinja2

    builtin = (ArithmeticError, LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError)
    return (jinja2.TemplateError, *builtin)


def _to_json(value: Any, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= _INDENT_MAX:
        raise ValueError(f"tojson: an indent of {indent} is more than {_INDENT_MAX}")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(text: object) -> None:
    """Templates call it when messages do not fit them, for example when roles do not alternate."""
    raise ChatTemplateError("refused", str(text))
