"""Progress for people: a line for each step, a moving bar on a terminal, plain lines elsewhere.

Steps take a `Progress` and never print. The commands print results (tables, JSON) to standard output; everything here
goes to standard error, so that `--json` stays parseable.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from edge_agent.base.terminal import control

_REDRAW_S = 0.1  # a terminal shows no more
_LINE_S = 15.0  # a log wants to know that work goes on, not every step of it
_QUIET_S = 8.0  # work that shows nothing for so long gets a line
_WIDTH = 28
_FORETELLS = 0.05  # of a smaller share done nothing is foretold: what starts up slowly makes it many times too long


class Bar:
    """Progress through `total` units of one piece of work. Made by `Progress.bar`, closed by `done`."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total = progress, what, max(1, total)
        self._count, self._note = 0, ""
        self._begun_s = self._shown_s = progress.clock()

    def advance(self, units: int = 1, note: str = "") -> None:
        """So many more units are done; `note` (such as the loss) replaces the one before."""
        self._count = min(self._total, self._count + units)
        self._note = note or self._note
        now_s = self._progress.clock()
        if now_s - self._shown_s >= (_REDRAW_S if self._progress.terminal else _LINE_S):
            self._shown_s = now_s
            self._progress.show(self._line(now_s), moving=True)

    def done(self, note: str = "") -> None:
        """The work is over; the last line stays."""
        self._note = note or self._note
        self._progress.show(self._line(self._progress.clock()), moving=False)

    def _line(self, now_s: float) -> str:
        share = self._count / self._total
        spent_s = now_s - self._begun_s
        left = f", {duration(spent_s / share - spent_s)} left" if _FORETELLS <= share < 1 else ""
        text = f"  {self._what} {share:.0%} in {duration(spent_s)}{left}"
        if self._progress.terminal:
            full = round(share * _WIDTH)
            text = f"  {self._what} [{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%} {duration(spent_s)}{left}"
        return f"{text}  {self._note}" if self._note else text


# What a phase of training does, for who waits for it.
_PHASES = {
    "start": "load the training libraries",
    "open": "open the base",
    "keep": "tokenise, and compute the frozen layers once",
    "measure": "measure which precision and how many threads are fastest here (up to a minute, more under load)",
    "train": "train",
    "save": "save",
}


_SCORES = (("validation_macro_f1", "macro-F1"), ("validation_loss", "validation loss"))


def _ignored(scores: Mapping[str, float]) -> None:
    """Nobody watches the scores."""


class Phases:
    """Turns reports (phase, share done 0..1; scores) of one long step into bars; the form that training reports in."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what
        self._bar: Bar | None = None
        self._phase, self._at = "", 0

    def __call__(self, phase: str, share: float) -> None:
        """`share` of `phase` is done; a new phase begins when the name changes."""
        if phase != self._phase:
            self.done()
            self._phase, self._at = phase, 0
            self._progress.say(f"  {self._what}: {_PHASES.get(phase, phase)}")
            self._bar = self._progress.bar(f"{self._what}: {phase}", 1000)
        at = round(share * 1000)
        if self._bar is not None and at > self._at:
            self._bar.advance(at - self._at)
            self._at = at

    def evaluated(self, scores: Mapping[str, float]) -> None:
        """The model at work was scored: shown beside its bar, and told to who watches the progress."""
        shown = [f"{name} {scores[key]:.3f}" for key, name in _SCORES if key in scores]
        if self._bar is not None:
            self._bar.advance(0, ", ".join(shown))
        self._progress.on_evaluation(scores)

    def done(self) -> None:
        """Close the open bar; a phase that never reported a share leaves no line."""
        if self._bar is not None and self._at:
            self._bar.done()
        self._bar = None


class Progress:
    """Where steps report to. `quiet` keeps only warnings. `on_evaluation` is told the scores of a training at work, and
    ends it by raising."""

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
        on_evaluation: Callable[[Mapping[str, float]], None] = _ignored,
    ) -> None:
        self.on_evaluation = on_evaluation
        self._stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.terminal = self._stream.isatty()
        self._quiet = quiet
        self._moving = False
        self._lock = threading.RLock()
        self.written_s = self.clock()

    @contextlib.contextmanager
    def working(self, what: str, usual_s: float | None = None) -> Iterator[None]:
        """Show a line at least every `_QUIET_S` seconds while `what` is at work; `usual_s` is what it took before."""
        ended = threading.Event()
        begun_s = self.clock()

        def watch() -> None:
            while not ended.wait(1.0):
                self.still_at_work(what, begun_s, usual_s)

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Tell no scores: those of a model that the one at work begins with (a teacher, a base) are not its own."""
        watcher, self.on_evaluation = self.on_evaluation, _ignored
        try:
            yield
        finally:
            self.on_evaluation = watcher

    def still_at_work(self, what: str, begun_s: float, usual_s: float | None) -> None:
        """A line on work that began at `begun_s`, if nothing was shown for `_QUIET_S` seconds."""
        now_s = self.clock()
        if now_s - self.written_s >= _QUIET_S:
            usual = f", {duration(usual_s)} the last time" if usual_s else ""
            self.show(f"  {what}: at work for {duration(now_s - begun_s)}{usual}", moving=True)

    def bar(self, what: str, total: int) -> Bar:
        """A bar over `total` units."""
        return Bar(self, what, total)

    def named(self, name: str) -> Progress:
        """The same output, each line beginning with `name`: for recipes that are built side by side."""
        return _NamedProgress(self, name)

    def say(self, text: str) -> None:
        """One line about what happens."""
        if not self._quiet:
            self.show(text, moving=False)

    def warn(self, text: str) -> None:
        """One line that the reader should act on."""
        self._write(f"warning: {text}", moving=False)

    def show(self, text: str, moving: bool) -> None:
        """Draw a line; on a terminal the next one replaces a moving one."""
        if not self._quiet:
            self._write(text, moving and self.terminal)

    def _write(self, text: str, moving: bool) -> None:
        with self._lock:  # a line of `working` comes from a thread of its own
            if self._moving:
                control(self._stream, "\r\x1b[K")
            self._stream.write(f"{text}{'' if moving else chr(10)}")
            self._stream.flush()
            self._moving = moving
            self.written_s = self.clock()


class _NamedProgress(Progress):
    """Writes by another one, which keeps the lock and knows whether a moving line is shown."""

    def __init__(self, of: Progress, name: str) -> None:
        super().__init__(of._stream, of.clock, of._quiet)
        self._of, self._name = of, name

    def _write(self, text: str, moving: bool) -> None:
        self._of._write(f"{self._name}: {text.lstrip()}", moving)
        self.written_s = self.clock()


def duration(seconds: float) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(size_bytes: float) -> str:
    """A size for people, in powers of 1024: 812 B, 3.1 MiB."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
