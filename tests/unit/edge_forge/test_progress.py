"""Progress: bars on a terminal, a line now and then elsewhere; the clock is ours."""

import io
import threading

import pytest

from edge_forge.progress import Phases, Progress, duration, size


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_few_lines():
    clock, out = Clock(), io.StringIO()
    bar = Progress(out, clock).bar("train", 100)
    for _ in range(100):
        clock.now_s += 0.4
        bar.advance(note="loss 0.5")
    bar.done()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "  train 38% in 15 s, 25 s left  loss 0.5"
    assert lines[-1] == "  train 100% in 40 s  loss 0.5"


def test_nothing_is_foretold_of_a_start():
    clock, out = Clock(), io.StringIO()
    bar = Progress(out, clock).bar("train", 100)
    clock.now_s += 30
    bar.advance(2)
    clock.now_s += 30
    bar.advance(3)
    assert out.getvalue().splitlines() == ["  train 2% in 30 s", "  train 5% in 1 min 00 s, 19 min 00 s left"]


def test_a_terminal_gets_one_moving_line():
    clock, out = Clock(), Terminal()
    progress = Progress(out, clock)
    bar = progress.bar("train", 4)
    for _ in range(4):
        clock.now_s += 1.0
        bar.advance()
    progress.say("done")
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().endswith("100% 4.0 s\r\x1b[Kdone\n")


def test_quiet_keeps_warnings():
    out = io.StringIO()
    progress = Progress(out, Clock(), quiet=True)
    progress.say("x")
    progress.bar("y", 1).done()
    progress.warn("twins")
    assert out.getvalue() == "warning: twins\n"


def test_phases_become_bars_and_silent_ones_leave_no_line():
    clock, out = Clock(), io.StringIO()
    phases = Phases(Progress(out, clock), "train")
    phases("open", 0.0)
    phases("train", 0.0)
    clock.now_s += 20
    phases("train", 0.5)
    phases("train", 1.0)
    phases("save", 0.0)
    phases.done()
    assert out.getvalue().splitlines() == [
        "  train: open the base",
        "  train: train",
        "  train: train 50% in 20 s, 20 s left",
        "  train: train 100% in 20 s",
        "  train: save",
    ]


def test_scores_stand_beside_the_bar_and_are_told():
    clock, out, told = Clock(), io.StringIO(), []
    phases = Phases(Progress(out, clock, on_evaluation=told.append), "train")
    phases("train", 0.0)
    scores = {"epoch": 1.0, "validation_loss": 0.25, "validation_macro_f1": 0.5}
    phases.evaluated(scores)
    clock.now_s += 20
    phases("train", 0.5)
    phases.done()
    assert told == [scores]
    line = "  train: train 50% in 20 s, 20 s left  macro-F1 0.500, validation loss 0.250"
    assert out.getvalue().splitlines()[1] == line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7810, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(812, "812 B"), (3_251_000, "3.1 MiB"), (5 << 40, "5120.0 GiB")])
def test_sizes(count, text):
    assert size(count) == text


def test_work_that_shows_nothing_gets_a_line_with_its_usual_time():
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, clock)
    for clock.now_s in (7.9, 9.0, 12.0, 17.5):
        progress.still_at_work("measure", 0.0, 80.0)
    assert out.getvalue().splitlines() == [
        "  measure: at work for 9.0 s, 1 min 20 s the last time",
        "  measure: at work for 18 s, 1 min 20 s the last time",
    ]


def test_the_watch_ends_with_the_work():
    progress = Progress(io.StringIO(), Clock())
    with pytest.raises(ValueError, match="broken"), progress.working("train"):
        assert any(thread.name == "progress" for thread in threading.enumerate())
        raise ValueError("broken")
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_lines_of_recipes_that_are_built_side_by_side_say_whose_they_are():
    out = Terminal()
    progress = Progress(out, Clock())
    one, other = progress.named("one"), progress.named("other")
    bar = one.bar("train", 2)
    bar.done()
    other.warn("too long")
    progress.say("done")
    assert out.getvalue().splitlines()[0].startswith("one: train [")
    assert "other: warning: too long\n" in out.getvalue() and out.getvalue().endswith("done\n")


def test_a_moving_line_of_one_recipe_is_replaced_by_the_line_of_another():
    clock, out = Clock(), Terminal()
    progress = Progress(out, clock)
    bar = progress.named("one").bar("train", 4)
    clock.now_s += 1.0
    bar.advance()
    progress.named("other").say("sign")
    assert out.getvalue().endswith("\r\x1b[Kother: sign\n")
