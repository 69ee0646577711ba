"""What a setting's value must satisfy beyond its type; written beside the field as `Annotated[type, rule]`.

The loader checks the rules; nobody else needs them. A rule says what it expects in words, for the error message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol


class Rule(Protocol):
    """A check of one value."""

    def accepts(self, value: Any) -> bool:
        """True when the value (already of the field's type) is allowed."""
        ...

    def expected(self) -> str:
        """What would be allowed, as the end of the sentence 'a value is needed that is ...'."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """A number from `low` to `high`, both included."""

    low: float
    high: float

    def accepts(self, value: Any) -> bool:
        """See `Rule.accepts`; NaN lies between nothing."""
        return bool(self.low <= value <= self.high)

    def expected(self) -> str:
        """See `Rule.expected`."""
        return f"from {self.low:g} to {self.high:.16g}"


@dataclass(frozen=True, slots=True)
class Matches:
    """A text (or every text of a list) that fits `pattern` from end to end; `words` explains the pattern."""

    pattern: str
    words: str

    def accepts(self, value: Any) -> bool:
        """See `Rule.accepts`."""
        texts = (value,) if isinstance(value, str) else value
        return all(re.fullmatch(self.pattern, text) is not None for text in texts)

    def expected(self) -> str:
        """See `Rule.expected`."""
        return self.words


@dataclass(frozen=True, slots=True)
class Example:
    """A value to show in the example file for a field that is unset by default; checks nothing."""

    value: str | int | float

    def accepts(self, value: Any) -> bool:
        """Everything is allowed."""
        del value
        return True

    def expected(self) -> str:
        """See `Rule.expected`."""
        return "anything"


NAME = Matches(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit"
)
"""Names that appear as one level of a topic: devices, pools, models."""
