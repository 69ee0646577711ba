"""`python -m bench.heat_several`: several busy models on one board, with one duty cycle for all or one for each.

Every step of every model is simulated (`sim.several`) for 15 minutes in a room of 25 °C; all models always have work.
`work` is the throughput of all models (1: full speed) in the second half. One duty cycle for each model is what a
governor does that limits models instead of the board.
"""

from __future__ import annotations

from bench.heat import markdown
from sim.boards import BOARDS
from sim.several import ModelsOnBoard

BOARDS_SHOWN = ("pi-4", "pi-5-bare")
SECONDS = 900
MODELS = {
    "one encoder": [("a", False, 1.0)],
    "two encoders": [("a", False, 1.0), ("b", False, 3.0)],
    "one generator": [("g", True, 1.0)],
    "two generators": [("g", True, 1.0), ("h", True, 1.37)],
    "one of each": [("a", False, 1.0), ("g", True, 1.0)],
    "two of each": [("a", False, 1.0), ("b", False, 3.0), ("g", True, 1.0), ("h", True, 1.37)],
}
"""Name, whether it generates, length of its steps relative to the board model's."""


def main() -> int:
    """Print the table."""
    lines: list[tuple[str, ...]] = [
        ("board", "models", "hottest", "mean", "s >= soft", "work", "a pace each: hottest", "s >= soft")
    ]
    for key in BOARDS_SHOWN:
        board = BOARDS[key]
        for name, models in MODELS.items():
            cells = []
            for shared in (True, False):
                found = ModelsOnBoard(board, models, shared=shared).run(SECONDS)
                hot_s = str(int((found.die_c >= board.soft_c).sum()))
                half = found.die_c[SECONDS // 2 :].mean(), found.served[SECONDS // 2 :].mean()
                cells += [f"{found.die_c.max():.1f} °C", *([f"{half[0]:.1f} °C"] if shared else []), hot_s]
                cells += [f"{half[1]:.3f}"] if shared else []
            lines.append((key, name, *cells))
    print(markdown(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
