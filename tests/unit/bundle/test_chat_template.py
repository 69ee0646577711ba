"""The chat template renderer of host and device over the templates of several families."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_agent.bundle.chat_template import ChatTemplateError, TemplateRenderer
from tests.support.chat_templates import DIALOGUE, FAMILIES, MISTRAL, Family


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_has_its_prompt(family: Family) -> None:
    assert TemplateRenderer(family.source, family.special_tokens).render(DIALOGUE) == family.prompt


@pytest.mark.parametrize("name", ["llama3", "chatml", "gemma"])
def test_the_next_answer_is_opened_only_where_asked(name: str) -> None:
    renderer = TemplateRenderer(FAMILIES[name].source, FAMILIES[name].special_tokens)
    shorter = renderer.render(DIALOGUE, add_generation_prompt=False)
    opened = renderer.render(DIALOGUE)
    assert opened.startswith(shorter)
    assert opened != shorter


def test_a_special_token_that_the_model_lacks_is_undefined() -> None:
    source = "{{ unk_token }}|{{ pad_token is defined }}|{{ additional }}"
    assert TemplateRenderer(source, {"additional": "never given"}).render(DIALOGUE) == "|False|"


def test_a_template_may_use_loop_controls_and_namespaces() -> None:
    source = (
        "{% set found = namespace(n=0) %}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\n"
        "    {% set found.n = found.n + 1 %}\n{% endfor %}{{ found.n }}"
    )
    assert TemplateRenderer(source, {}).render(DIALOGUE) == "2"


@pytest.mark.parametrize(
    ("source", "fault", "error_type", "detail"),
    [
        ("{% if %}", "syntax", "TemplateSyntaxError", "Expected an expression"),
        ("{{ messages | nothing }}", "syntax", "TemplateAssertionError", "No filter named 'nothing'"),
        ("{{ messages[7].content.nothing }}", "failed", "UndefinedError", "no element 7"),
        ("{{ ''.__class__ }}{{ ''.__class__.__mro__ }}", "failed", "SecurityError", "unsafe"),
        ("{{ messages.append(1) }}", "failed", "SecurityError", "unsafe|not safely callable"),
        ("{{ lipsum(n=5) }}", "failed", "UndefinedError", "'lipsum' is undefined"),
        ("{{ raise_exception('no system') }}", "refused", "", "no system"),
        ("{% for i in range(99) %}{{ 'x' * 100 }}{% endfor %}", "too long", "", "more than 1000 characters"),
    ],
)
def test_what_is_wrong_is_told_apart(source: str, fault: str, error_type: str, detail: str) -> None:
    with pytest.raises(ChatTemplateError, match=detail) as raised:
        TemplateRenderer(source, {}, max_chars=1000).render(DIALOGUE)
    assert (raised.value.fault, raised.value.error_type) == (fault, error_type)


def test_syntax_is_checked_without_messages() -> None:
    with pytest.raises(ChatTemplateError) as raised:
        TemplateRenderer("{% endfor %}", {}).compile()
    assert raised.value.fault == "syntax"


def test_roles_that_do_not_alternate_are_refused_by_the_template() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate") as raised:
        TemplateRenderer(MISTRAL.source, MISTRAL.special_tokens).render(DIALOGUE[1:])
    assert raised.value.fault == "refused"


def test_jinja_is_imported_with_the_first_prompt_only() -> None:
    code = (
        "import sys; from edge_agent.bundle.chat_template import TemplateRenderer\n"
        "renderer = TemplateRenderer('x', {})\nassert 'jinja2' not in sys.modules\n"
        "renderer.render([])\nassert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
