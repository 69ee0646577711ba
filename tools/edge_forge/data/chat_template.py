"""Chat templates: jinja2 in its sandbox, with what the templates of the hub expect to find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError
from edge_forge.export.gguf.vocabulary import chat_template, special_tokens


class Template:
    """The chat template of a model folder."""

    def __init__(self, text: str, tokens: dict[str, str], where: str) -> None:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._where, self._tokens = where, tokens
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = self._refuse
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ConfigError(f"the chat template does not parse: {error}", where) from error

    def render(self, turns: Sequence[tuple[str, str]], ask: bool) -> str:
        """The text of (role, content) turns; `ask`: up to where the assistant's answer begins. Raises ConfigError."""
        from jinja2 import TemplateError

        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=ask, **self._tokens)
        except TemplateError as error:
            raise ConfigError(f"the chat template cannot render these messages: {error}", self._where) from error

    def _refuse(self, message: str) -> None:
        raise ConfigError(f"the chat template refuses the messages: {message}", self._where)


def open_template(folder: Path) -> Template | None:
    """The template of a model folder, None where it has none."""
    text = chat_template(folder)
    return None if text is None else Template(text, special_tokens(folder), str(folder))


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
