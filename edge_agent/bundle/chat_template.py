"""Render messages to a prompt with the Jinja chat template that a model carries.

The host tool trains with this renderer and the device serves with it, so both make the same prompt of the same
messages; it writes what `apply_chat_template` of transformers 5 writes. Templates come in signed packages but are
programs all the same. They run in jinja2's immutable sandbox: no attribute that begins with an underscore, no change of
a value, at most 100,000 items in the `range`s of a prompt, no text repeated to more than a million characters, no
globals but those below, and, where the caller sets it, a bound on the characters written. The run time is not bounded
here: on the device the supervisor ends a worker that is silent for `limits.WORKER_SILENCE_S`.

`TemplateRenderer.prompt` also says where the contents of the messages stand, and `written` where the template itself
writes given texts, so that what a message writes is never taken for what the template writes (`bundle.prompt_tokens`).
`try_out` says whether a template makes prompts at all.

`jinja2` is imported when the first template is compiled, so that a worker without conversations never loads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Literal, NamedTuple

from edge_agent.base.errors import BackendMissing

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""The names of special tokens that a template may use. One that the model does not have is undefined, as in
transformers: `{{ unk_token }}` writes nothing."""

_KEPT_GLOBALS = ("dict", "namespace", "cycler", "joiner")
_INDENT_MAX = 8
_SEPARATOR_CHARS = 8
_RANGE_ITEMS = 100_000
_REPEATED_CHARS = 1_000_000
_DATE_CHARS = 64
# strftime pads to any width that is asked for ("%9999999d").
_DATE_FORMAT = re.compile(r"(?:[^%]|%[-_0^#]?[A-Za-z%])*")
# Unicode's private planes: characters that no content and no template writes are found here.
_PRIVATE = range(0xF0000, 0x10FFFE)
_PRIVATE_ONE = re.compile(f"([{chr(_PRIVATE[0])}-{chr(_PRIVATE[-1])}])")

Message = Mapping[str, str]
Span = tuple[int, int]
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

    def sentence(self) -> str:
        """What is wrong, with the template's own words where it refuses."""
        said = {"syntax": "it does not parse", "refused": "it refuses the messages", "too long": "it writes too much"}
        return f"{said.get(self.fault, f'it fails with {self.error_type}')}: {self.detail}"


class Prompt(NamedTuple):
    """A rendered prompt: `spans` are the places [start, end) of the messages' contents, in order, and `owners` the
    numbers of these messages; `unplaced` are the numbers of messages whose place is unknown, since the template acts
    on what they hold or leaves them out; `written` maps starts to ends of the marks that the template itself writes,
    None where that is unknown."""

    text: str
    spans: tuple[Span, ...]
    owners: tuple[int, ...]
    unplaced: tuple[int, ...] = ()
    written: Mapping[int, int] | None = None


class TemplateRenderer:
    """A model's chat template with its special tokens.

    `special_tokens` maps names of `SPECIAL_TOKENS` to texts; `max_chars` bounds a prompt (None: no bound); `now` gives
    the time that `strftime_now` writes.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        max_chars: int | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._source = source
        self._special_tokens = {name: special_tokens[name] for name in SPECIAL_TOKENS if name in special_tokens}
        self._max_chars = max_chars
        self._now = now
        self._compiled: Any = None
        self._traced: tuple[Collection[str], Any, Mapping[str, str]] | None = None

    def compile(self) -> None:
        """Parse the template, once. Raises ChatTemplateError 'syntax', BackendMissing without jinja2."""
        if self._compiled is not None:
            return
        try:
            environment = _environment(self._now)
        except ImportError as error:
            raise BackendMissing(
                "jinja2 is not installed", "tasks", "install edge-agent with its extra llamacpp"
            ) from error
        try:
            self._compiled = environment.from_string(self._source)
        except _template_errors() as error:
            raise ChatTemplateError("syntax", str(error), type(error).__name__) from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt of messages (`role`, `content`), with the opening of the next answer where it is asked for.

        Raises ChatTemplateError, BackendMissing.
        """
        self.compile()
        return self._run(self._compiled, messages, add_generation_prompt, self._special_tokens)

    def _run(self, template: Any, messages: Sequence[Message], ask: bool, values: Mapping[str, str]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=ask,
                # As transformers calls it: templates ask whether they are none, not whether they are defined.
                tools=None,
                documents=None,
                range=_bounded_range(),
                **values,
            ):
                size += len(part)
                if self._max_chars is not None and size > self._max_chars:
                    raise ChatTemplateError("too long", f"more than {self._max_chars} characters")
                parts.append(part)
        except _template_errors() as error:
            raise ChatTemplateError("failed", str(error), type(error).__name__) from error
        return "".join(parts)

    def prompt(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """Like `render`, with the places of the contents: found by one or two more renderings, in which each content
        stands between two characters of its own that nobody else writes."""
        text = self.render(messages, add_generation_prompt)
        # The text too: a template that decodes escapes makes characters that no content shows.
        signs = _unused(2 * len(messages), self._source, text, *(message["content"] for message in messages))
        pairs = list(zip(signs[::2], signs[1::2], strict=True))

        def placed(numbers: Sequence[int]) -> _Placed | None:
            changed = [
                {**one, "content": _wrapped(one["content"], *pairs[at])} if at in numbers else one
                for at, one in enumerate(messages)
            ]
            try:
                return _places(self.render(changed, add_generation_prompt), pairs, text)
            except ChatTemplateError:
                return None

        filled = [at for at, message in enumerate(messages) if message["content"].strip()]
        found = placed(filled)
        if found is not None and not found.fits and found.whole:
            found = placed([at for at in filled if at in found.whole])
        if found is None or not found.fits:
            return Prompt(text, (), (), tuple(filled))
        return Prompt(text, found.spans, found.owners, tuple(at for at in filled if at not in found.whole))

    def written(
        self, text: str, messages: Sequence[Message], add_generation_prompt: bool, marks: Collection[str]
    ) -> Mapping[int, int] | None:
        """Where the template itself writes these marks in `text`, its prompt of the messages: start to end of each.

        Found by another rendering, in which a character that nobody else writes stands for each mark in the
        template's constants and among the special tokens. None where the prompt is another one then: a template that
        compares or splits contents by marks, or measures its own text. Marks that it puts together of pieces are not
        found.
        """
        if self._traced is None or self._traced[0] != marks:
            # Compiled once already, with constants in these places.
            self._traced = (marks, *_traced(_environment(self._now), self._source, marks))
        _, template, names = self._traced
        pattern = any_of(marks)
        if pattern is None:
            return {}
        held = {*names, *(mark for value in self._special_tokens.values() for mark in pattern.findall(value))}
        if not held:
            return {}
        signs = _unused(len(held), self._source, text, *(message["content"] for message in messages))
        by_mark = dict(zip(sorted(held), signs, strict=True))
        values = {
            name: pattern.sub(lambda match: by_mark[match[0]], value) for name, value in self._special_tokens.items()
        }
        values |= {name: by_mark[mark] for mark, name in names.items()}
        try:
            return _replaced(self._run(template, messages, add_generation_prompt, values), by_mark, text)
        except ChatTemplateError:
            return None

    def try_out(self) -> frozenset[str]:
        """Render the conversations that every template must take: one question, and a dialogue, each with and without
        a system message. Returns the roles that it takes; one that refuses system messages takes 'user', 'assistant'.

        Raises ChatTemplateError where the template cannot make a prompt, or writes no content.
        """
        system, *dialogue = trial_dialogue()
        for messages in (dialogue[:1], dialogue):
            if messages[-1]["content"] not in self.render(messages):
                # Templates of models that see pictures may read contents as lists of parts, and then write nothing.
                raise ChatTemplateError("failed", "the prompt lacks the question", "a prompt without the message")
        self.render(dialogue[:2], add_generation_prompt=False)
        try:
            self.render([system, *dialogue])
        except ChatTemplateError as error:
            if error.fault != "refused":
                raise
            return frozenset({"user", "assistant"})
        return frozenset({"system", "user", "assistant"})


def trial_dialogue() -> list[dict[str, str]]:
    """A system message, a question, an answer and a second question, of plain words."""
    words = (("system", "Be brief."), ("user", "Hello there"), ("assistant", "Good morning"), ("user", "And now"))
    return [{"role": role, "content": text} for role, text in words]


def _environment(now: Callable[[], datetime]) -> Any:
    """The sandbox. Raises ImportError without jinja2."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """`*` and `**` of whole numbers and texts, bounded."""
            _check_product(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
    )
    kept = {name: environment.globals[name] for name in _KEPT_GLOBALS}
    environment.globals.clear()  # `lipsum` writes texts of any length, and no chat template needs it
    own = {"raise_exception": _raise_exception, "strftime_now": lambda form: _date(now(), form)}
    environment.globals.update({**kept, **own})
    # Jinja's own `tojson` writes for HTML: an apostrophe would reach the model as \u0027.
    environment.filters["tojson"] = _to_json
    return environment


def _generation_tag() -> Any:
    """`{% generation %}`, which marks what a model learns: the block is rendered as it stands, in a scope of its own as
    transformers has it. Made here because its base class is jinja2's."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("as_it_stands"), [], [], body).set_lineno(line)

        def as_it_stands(self, caller: Callable[[], str]) -> str:
            return caller()

    return GenerationTag


def _template_errors() -> tuple[type[Exception], ...]:
    """What a template can bring about while it is compiled or runs, jinja2's own errors included."""
    import jinja2

    builtin = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, SyntaxError, RuntimeError)
    return (jinja2.TemplateError, MemoryError, *builtin)


def _bounded_range() -> Callable[..., range]:
    """`range` for one rendering: nested loops share its bound."""
    left = _RANGE_ITEMS

    def bounded(*arguments: int) -> range:
        nonlocal left
        found = range(*arguments)
        left -= len(found)
        if left < 0:
            raise OverflowError(f"its ranges have more than {_RANGE_ITEMS} items")
        return found

    return bounded


def _check_product(operator: str, left: Any, right: Any) -> None:
    if operator == "**":
        if not (abs(left) <= _REPEATED_CHARS and abs(right) <= 64):
            raise OverflowError(f"{left!r} ** {right!r} is too large")
        return
    for repeated, times in ((left, right), (right, left)):
        if hasattr(repeated, "__len__") and isinstance(times, int) and len(repeated) * times > _REPEATED_CHARS:
            raise OverflowError(f"something is repeated {times} times, beyond {_REPEATED_CHARS} characters")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON with the options that transformers' filter takes, in their order."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > _INDENT_MAX:
        raise ValueError(f"tojson: an indent of {indent} is more than {_INDENT_MAX}")
    pair: tuple[str, str] | None = None
    if separators is not None:
        item, key = separators
        if len(item) > _SEPARATOR_CHARS or len(key) > _SEPARATOR_CHARS:
            raise ValueError(f"tojson: a separator has more than {_SEPARATOR_CHARS} characters")
        pair = (item, key)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _date(now: datetime, form: object) -> str:
    wanted = str(form)
    if len(wanted) > _DATE_CHARS or not _DATE_FORMAT.fullmatch(wanted):
        raise ValueError(f"strftime_now: the format {wanted[:_DATE_CHARS]!r} is too long, or asks for a width")
    return now.strftime(wanted)


def _raise_exception(text: object) -> None:
    """Templates call it when messages do not fit them, for example when roles do not alternate."""
    raise ChatTemplateError("refused", str(text))


def any_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """Finds any of the texts; of those that begin at one place the longest."""
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _traced(environment: Any, source: str, marks: Collection[str]) -> tuple[Any, Mapping[str, str]]:
    """The template with variables in place of the marks in its constants; and the name of each mark's variable."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    pattern = any_of(marks)
    names: dict[str, str] = {}

    def pieces(text: str, line: int) -> Any:
        """The text as a concatenation of constants and variables; None where it has no mark."""
        if pattern is None or pattern.search(text) is None:
            return None
        parts: list[Any] = []
        done = 0
        for match in pattern.finditer(text):
            name = names.setdefault(match[0], f"edge_agent_mark_{len(names)}")
            parts += [nodes.Const(text[done : match.start()]), nodes.Name(name, "load")]
            done = match.end()
        return nodes.Concat([*parts, nodes.Const(text[done:])]).set_lineno(line)

    class Tracer(NodeTransformer):
        def visit_Const(self, node: Any) -> Any:  # noqa: N802 - jinja2 looks for this name
            return (pieces(node.value, node.lineno) if isinstance(node.value, str) else None) or node

        def visit_TemplateData(self, node: Any) -> Any:  # noqa: N802 - jinja2 looks for this name
            return pieces(node.data, node.lineno) or node

    tree = Tracer().visit(environment.parse(source))
    return environment.from_string(tree), names


def _replaced(traced: str, by_mark: Mapping[str, str], due: str) -> Mapping[int, int] | None:
    """Where in `due` marks stand that are single characters in `traced`; None where the texts differ in more."""
    marks = {sign: mark for mark, sign in by_mark.items()}
    found: dict[int, int] = {}
    parts: list[str] = []
    length = 0
    for part in _PRIVATE_ONE.split(traced):
        mark = marks.get(part)
        if mark is not None:
            found[length] = length + len(mark)
        parts.append(part if mark is None else mark)
        length += len(parts[-1])
    return found if "".join(parts) == due else None


def _unused(count: int, *texts: str) -> list[str]:
    """So many private characters that none of the texts holds."""
    held = set().union(*texts)
    return list(islice((chr(code) for code in _PRIVATE if chr(code) not in held), count))


def _wrapped(content: str, opening: str, closing: str) -> str:
    """The content between two characters; spaces at its ends stay outside, where a template's `trim` takes them."""
    core = content.strip()
    begin = len(content) - len(content.lstrip())
    return f"{content[:begin]}{opening}{core}{closing}{content[begin + len(core) :]}"


class _Placed(NamedTuple):
    """`spans` between pairs of characters, and `owners`, the numbers of the pairs; `whole`: the numbers of the pairs
    that were found, and only as pairs; `fits`: without the characters the text is the one that is due, and none stands
    alone."""

    spans: tuple[Span, ...]
    owners: tuple[int, ...]
    whole: frozenset[int]
    fits: bool


def _places(marked: str, pairs: Sequence[tuple[str, str]], due: str) -> _Placed:
    """What stands between pairs of characters."""
    signs = {sign: (number, sign == pair[0]) for number, pair in enumerate(pairs) for sign in pair}
    spans: list[Span] = []
    owners: list[int] = []
    broken: set[int] = set()
    parts: list[str] = []
    begun, begin, length = -1, 0, 0
    for part in _PRIVATE_ONE.split(marked):
        if part not in signs:
            parts.append(part)
            length += len(part)
            continue
        number, opens = signs[part]
        if opens:
            broken.add(begun)
            begun, begin = number, length
        elif begun == number:
            spans.append((begin, length))
            owners.append(number)
            begun = -1
        else:
            broken.add(number)
    broken = (broken | {begun}) - {-1}
    whole = frozenset(owners) - broken
    return _Placed(tuple(spans), tuple(owners), whole, not broken and "".join(parts) == due)
