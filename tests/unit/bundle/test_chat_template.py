"""The chat template renderer of host and device over the templates of several families."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime

import pytest

from edge_agent.bundle.chat_template import ChatTemplateError, TemplateRenderer
from tests.support.chat_templates import CHATML, DIALOGUE, FAMILIES, GEMMA, MISTRAL, Family


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


MOMENT = datetime(2031, 2, 3, 4, 5)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def as_transformers_renders(source: str, special_tokens: dict[str, str], ask: bool) -> str:
    found = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template(
        conversations=[DIALOGUE], chat_template=source, add_generation_prompt=ask, **special_tokens
    )
    rendered: str = found[0][0]
    return rendered


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize(
    "source",
    [
        *(family.source for family in FAMILIES.values()),
        GENERATION,
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{{ messages | tojson }}{{ messages | tojson(True) }}{{ messages | tojson(ensure_ascii=True, indent=2) }}",
        "{{ messages | tojson(sort_keys=True, separators=(',', ':')) }}{{ messages[0] | tojson(indent='\t') }}",
        "{{ tools is none }}{{ documents is none }}{% if not tools is defined %}undefined{% endif %}",
        "{% if tools is not none and messages[0].role == 'user' %}{{ tools | tojson }}{% endif %}{{ bos_token }}",
        "{%- macro turn(m) -%}<{{ m['role'] }}>{{ m['content'] | trim | replace('\\n', ' ') }}{%- endmacro -%}\n"
        "{%- for m in messages -%}{{ turn(m) }}{{- '' if loop.last else '|' -}}{%- endfor -%}",
        "{% set ns = namespace(found=false) %}{% for m in messages[::-1] %}{% if loop.index0 == 1 %}{% continue %}"
        "{% endif %}{% set ns.found = true %}{{ m.content.split('.')[-1].lstrip() ~ m.role.upper() }}{% endfor %}"
        "{{ ns.found }}{{ messages | map(attribute='role') | join(',') }}{{ '%s-%s' | format(1, 'a') }}",
    ],
)
def test_it_writes_what_transformers_writes(source: str, ask: bool) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    assert TemplateRenderer(source, tokens).render(DIALOGUE, ask) == as_transformers_renders(source, tokens, ask)


def test_the_date_is_the_renderers_own() -> None:
    plain = "{% set today = strftime_now('%Y-%m-%d') %}Today {{ today }}"
    guarded = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
    assert TemplateRenderer(plain, {}, now=lambda: MOMENT).render(DIALOGUE) == "Today 2031-02-03"
    assert TemplateRenderer(guarded, {}, now=lambda: MOMENT).render(DIALOGUE) == "03 Feb 2031"
    this_year = datetime.now().strftime("%Y")
    assert TemplateRenderer("{{ strftime_now('%Y') }}", {}).render(DIALOGUE) == this_year


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("{{ strftime_now('%9999999d') }}", "asks for a width"),
        ("{{ 'x' * 10 ** 9 }}", "repeated 1000000000 times"),
        ("{{ 10 ** 10 ** 9 }}", "too large"),
        ("{{ messages | tojson(indent=99) }}", "an indent of 99"),
        ("{{ messages | tojson(separators=('x' * 99, ':')) }}", "a separator"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 100000 items"),
    ],
)
def test_what_costs_without_bound_is_refused(source: str, detail: str) -> None:
    renderer = TemplateRenderer(source, {})
    for _ in range(2):  # a bound of one rendering, which the next one does not inherit
        with pytest.raises(ChatTemplateError, match=detail) as raised:
            renderer.render(DIALOGUE)
        assert raised.value.fault == "failed"
    assert TemplateRenderer("{{ range(3) | list }}{{ 'ab' * 3 }}{{ 2 ** 5 }}", {}).render([]) == "[0, 1, 2]ababab32"


@pytest.mark.parametrize(
    ("source", "roles"),
    [
        (CHATML.source, {"system", "user", "assistant"}),
        (MISTRAL.source, {"user", "assistant"}),
        (GEMMA.source, {"user", "assistant"}),
        (GENERATION, {"system", "user", "assistant"}),
    ],
)
def test_a_trial_says_which_roles_a_template_takes(source: str, roles: set[str]) -> None:
    assert TemplateRenderer(source, MISTRAL.special_tokens).try_out() == roles


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% if %}", "it does not parse: Expected an expression"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "without the message: the prompt lacks"),
        ("{{ strftime('%Y') }}{{ messages[0].content }}", "UndefinedError: 'strftime' is undefined"),
        (
            "{{ messages[0].content }}{{ raise_exception('tools are needed') }}",
            "refuses the messages: tools are needed",
        ),
        ("{{ messages[-1].content }}{% if messages | length > 2 %}{{ 1 // 0 }}{% endif %}", "ZeroDivisionError"),
        ("{{ messages[-1].content }}{% if messages[0].role == 'system' %}{{ nothing.x }}{% endif %}", "UndefinedError"),
        ("{{ messages[-1].content }}{% if not add_generation_prompt %}{{ nothing.x }}{% endif %}", "UndefinedError"),
    ],
)
def test_a_trial_finds_a_template_that_makes_no_prompt(source: str, says: str) -> None:
    with pytest.raises(ChatTemplateError) as raised:
        TemplateRenderer(source, {}).try_out()
    assert says in raised.value.sentence()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_places_of_the_contents_are_known(family: Family) -> None:
    found = TemplateRenderer(family.source, family.special_tokens).prompt(DIALOGUE)
    assert (found.text, found.unplaced) == (family.prompt, ())
    # Spaces at the ends belong to the template's text: it may take them off.
    assert [found.text[begin:end] for begin, end in found.spans] == [one["content"].strip() for one in DIALOGUE]


REASONING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_a_message_that_the_template_acts_on_has_no_place() -> None:
    answer = {"role": "assistant", "content": "<think>hm</think>\n\nYes."}
    found = TemplateRenderer(REASONING, {}).prompt([DIALOGUE[0], answer, DIALOGUE[2]])
    assert found.text == "[user] Is it's <b>5°</b>? [assistant]Yes.[user]And now?"
    assert [found.text[begin:end] for begin, end in found.spans] == ["Is it's <b>5°</b>?", "And now?"]
    assert found.unplaced == (1,)


def test_long_contents_of_spaces_cost_little() -> None:
    content = "a" + " " * 200_000 + "b"
    found = TemplateRenderer("{{ messages[0].content }}", {}).prompt([{"role": "user", "content": content}])
    assert found.spans == ((0, len(content)),)


def test_marks_are_found_wherever_a_template_keeps_them() -> None:
    """In text, constants, macros, blocks, dictionaries and special tokens; what a content writes is none of them."""
    template = (
        "{% macro turn(role, text) %}<a>{{ role }}{{ text }}{{ '<b>' }}{% endmacro %}{% set ns = namespace(x='<b>') %}"
        "{% set block %}<a>sys<b>{% endset %}{{ block }}{% for m in messages %}{% generation %}"
        "{{ turn(m.role, m.content) }}{% endgeneration %}{% endfor %}{{ ns.x + ('<a>' if true else '') }}"
        "{{ {'k': '<a>x'}['k'] }}{{ '<a>%s' % 'q' }}{{ bos_token ~ ['<a>', 'z']|join }}{{ '<b>'|trim }}"
    )
    renderer, marks = TemplateRenderer(template, {"bos_token": "<s>"}), frozenset({"<a>", "<b>", "<s>"})
    messages = [{"role": "user", "content": "hi <a>"}]
    text = renderer.render(messages)
    written = renderer.written(text, messages, True, marks)
    assert written is not None
    own = "".join(
        "#" if any(first <= at < end for first, end in written.items()) else one for at, one in enumerate(text)
    )
    assert own.replace("###", "#") == "#sys##userhi <a>####x#q##z#"
    looking = TemplateRenderer("{{ '<a>' in messages[0].content }}", {})
    assert looking.written("True", messages, True, marks) is None, "another prompt without the marks"
    assert renderer.written(text, messages, True, frozenset()) == {}
