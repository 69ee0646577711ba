"""Write the texts of tiny-llama, home-commands and tickets: `python models/tiny-llama/make_data.py`.

Everything is put together here from our own words: ways to say a thing, rooms, devices, numbers, openings and asides.
The same seed gives the same files, which are kept in the repository. Some combinations of action, device and room are
only in the test files, so that a model that learned sentences by heart fails there; no test sentence is in any text
that a model is trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import phrases as p

SEED = 20
COMMANDS, TICKETS = 5500, 3000
HELD = 0.08
HERE = Path(__file__).parent


def main() -> None:
    """Write all files."""
    draw = random.Random(SEED)
    commands = split(
        draw,
        COMMANDS,
        lambda: command(draw),
        lambda answer: (answer.get("action"), answer.get("device"), answer.get("room")),
    )
    tickets = split(draw, TICKETS, lambda: ticket(draw), lambda answer: (answer["problem"], answer["place"]))
    for name, rows in (("home-commands", commands), ("tickets", tickets)):
        for part, found in rows.items():
            lines = [json.dumps({"prompt": asked, "completion": answer}, ensure_ascii=False) for asked, answer in found]
            (HERE.parent / name / "data" / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = list(base_texts(draw, commands["train"], tickets["train"]))
    draw.shuffle(texts)
    (HERE / "data" / "text.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def split(
    draw: random.Random, count: int, make: Callable[[], tuple[str, dict]], key: Callable[[dict], tuple]
) -> dict[str, list[tuple[str, str]]]:
    """Different sentences in three parts; a part of the keys is kept for the test."""
    rows: dict[str, tuple[str, dict]] = {}
    while len(rows) < count:
        asked, answer = make()
        rows.setdefault(" ".join(asked.casefold().split()), (asked, answer))
    keys = sorted({key(answer) for _, answer in rows.values()}, key=str)
    # Of what has no place there is nothing to combine.
    only_test = {one for one in keys if None not in one and draw.random() < HELD}
    found: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for asked, answer in rows.values():
        part = draw.choices(("train", "validation", "test"), (92, 4, 4))[0]
        if key(answer) in only_test:
            part = "test" if draw.random() < 0.4 else ""
        if part:
            found[part].append((asked, json.dumps(answer, ensure_ascii=False)))
    return found


def command(draw: random.Random) -> tuple[str, dict]:
    """A wish of somebody at home, and the command that it is."""
    makers = (
        _switch,
        _switch,
        _switch,
        _level,
        _temperature,
        _move,
        _lock,
        _timer,
        _media,
        _volume,
        _ask,
        _alarm,
        _scene,
        _nothing,
    )
    said, answer = draw.choice(makers)(draw)
    return _dressed(draw, said, answer["action"] != "none"), answer


def _dressed(draw: random.Random, said: str, wish: bool) -> str:
    """With an opening, a closing or an aside, and as people type."""
    if wish and draw.random() < 0.45:
        opening = draw.choice(p.OPENINGS)
        said = f"{opening} {said}"
    if draw.random() < 0.35:
        said = f"{said}{draw.choice(p.CLOSINGS)}"
    elif wish and draw.random() < 0.25:
        said = f"{draw.choice(p.ASIDES)} {said}"
    if draw.random() < 0.5:
        said = said[0].upper() + said[1:]
        said = said if said.endswith(("?", "!", ".")) else said + draw.choice((".", ".", "!", ""))
    return said


def _place(draw: random.Random, chance: float = 0.8) -> tuple[str, str | None]:
    if draw.random() > chance:
        return "", None
    room = draw.choice(p.ROOMS)
    return " " + draw.choice(p.PLACES.get(room, ("in the {}", "in the {}", "of the {}"))).format(room), room


def _with_room(action: str, device: str, room: str | None, **more: object) -> dict:
    return {"action": action, "device": device, **({"room": room} if room else {}), **more}


def _switch(draw: random.Random) -> tuple[str, dict]:
    device = draw.choice(tuple(p.SWITCHED))
    name, on = draw.choice(p.SWITCHED[device]), draw.random() < 0.5
    place, room = _place(draw)
    shape = draw.choice(p.ON if on else p.OFF)
    if room and draw.random() < 0.3:
        said = shape.format(thing=f"the {room} {name}")
    else:
        said = shape.format(thing=f"the {name}{place}")
    return said, _with_room("turn_on" if on else "turn_off", device, room)


def _level(draw: random.Random) -> tuple[str, dict]:
    device = draw.choice(("light", "blinds"))
    name = draw.choice(p.DIMMED[device])
    place, room = _place(draw)
    word, value = draw.choice(
        (*p.LEVELS, *((f"{n} percent", n) for n in range(5, 100, 5)), *((f"{n}%", n) for n in range(10, 100, 10)))
    )
    said = draw.choice(p.SET_LEVEL).format(thing=f"the {name}{place}", value=word)
    return said, _with_room("set_level", device, room, value=value)


def _temperature(draw: random.Random) -> tuple[str, dict]:
    place, room = _place(draw)
    value = draw.choice((16, 17, 18, 19, 20, 21, 22, 23, 24, 19.5, 20.5, 21.5))
    unit = draw.choice((" degrees", " degrees", "", "°", " C", " deg"))
    said = draw.choice(p.SET_TEMPERATURE).format(place=place, value=f"{value}{unit}")
    return " ".join(said.split()), _with_room("set_temperature", "heating", room, value=value)


def _move(draw: random.Random) -> tuple[str, dict]:
    device = draw.choice(tuple(p.MOVED))
    name, opens = draw.choice(p.MOVED[device]), draw.random() < 0.5
    place, room = _place(draw, 0.0 if device == "garage" else 0.75)
    said = draw.choice(p.OPEN if opens else p.CLOSE).format(thing=f"the {name}{place}")
    return said, _with_room("open" if opens else "close", device, room)


def _lock(draw: random.Random) -> tuple[str, dict]:
    name, device = draw.choice(tuple(p.DOORS.items()))
    locks = draw.random() < 0.5
    said = draw.choice(p.LOCK if locks else p.UNLOCK).format(thing=f"the {name}")
    return said, {"action": "lock" if locks else "unlock", "device": device}


def _timer(draw: random.Random) -> tuple[str, dict]:
    for_what = draw.choice(p.TIMED)
    minutes, words = draw.choice(p.DURATIONS)
    if draw.random() < 0.5:
        minutes = draw.randint(2, 59)
        words = f"{minutes} {draw.choice(('minutes', 'min', 'mins'))}"
    said = draw.choice(p.TIMER).format(time=words, what=for_what)
    return said, {"action": "timer", "minutes": minutes, "label": for_what}


def _media(draw: random.Random) -> tuple[str, dict]:
    place, room = _place(draw, 0.5)
    if draw.random() < 0.4:
        return draw.choice(p.PAUSE).format(place=place), _with_room("pause", "speaker", room)
    what = draw.choice(p.MUSIC)
    said = draw.choice(p.PLAY).format(what=what, place=place)
    return said, _with_room("play", "speaker", room, what=what)


def _volume(draw: random.Random) -> tuple[str, dict]:
    device = draw.choice(("speaker", "tv"))
    name = draw.choice(p.SOUND[device])
    place, room = _place(draw, 0.5)
    up = draw.random() < 0.5
    said = draw.choice(p.LOUDER if up else p.QUIETER).format(thing=f"the {name}{place}")
    return said, _with_room("volume_up" if up else "volume_down", device, room)


def _ask(draw: random.Random) -> tuple[str, dict]:
    what = draw.choice(tuple(p.ASK))
    place, room = _place(draw, 0.85)
    return draw.choice(p.ASK[what]).format(place=place), _with_room("query", what, room)


def _alarm(draw: random.Random) -> tuple[str, dict]:
    arm = draw.random() < 0.5
    return draw.choice(p.ARM if arm else p.DISARM), {"action": "arm" if arm else "disarm", "device": "alarm"}


def _scene(draw: random.Random) -> tuple[str, dict]:
    name = draw.choice(tuple(p.SCENES))
    return draw.choice(p.SCENES[name]), {"action": "scene", "name": name}


def _nothing(draw: random.Random) -> tuple[str, dict]:
    said = draw.choice(p.CHATTER).format(
        room=draw.choice(p.ROOMS), thing=draw.choice(p.THINGS), person=draw.choice(p.PEOPLE), day=draw.choice(p.DAYS)
    )
    return said, {"action": "none"}


def ticket(draw: random.Random) -> tuple[str, dict]:
    """A message to the caretaker, and the ticket that it becomes."""
    problem = draw.choice(tuple(p.PROBLEMS))
    trade, urgent = p.TRADES[problem]
    place = draw.choice(p.SITES)
    said = draw.choice(p.PROBLEMS[problem]).format(
        place=draw.choice(("in the {}", "in the {}", "at the {}")).format(place)
    )
    grave = draw.random() < 0.25
    if grave:
        said = f"{said}{draw.choice(p.GRAVE)}"
    flat = draw.randint(1, 60) if draw.random() < 0.5 else None
    if flat is not None:
        said = draw.choice(p.FLATS).format(said=said, flat=flat)
    if draw.random() < 0.4:
        said = f"{draw.choice(p.GREETINGS)} {said}"
    if draw.random() < 0.35:
        said = f"{said}{draw.choice(p.THANKS)}"
    if draw.random() < 0.5:
        said = said[0].upper() + said[1:]
        said = said if said.endswith(("?", "!", ".")) else said + "."
    answer = {"problem": problem, "place": place, "trade": trade, "urgency": "high" if grave or urgent else "normal"}
    return said, {**answer, **({"flat": flat} if flat is not None else {})}


def base_texts(draw: random.Random, commands: list[tuple[str, str]], tickets: list[tuple[str, str]]) -> Iterator[str]:
    """What the base reads: logs of a home and of a caretaker's desk, and prose about both."""
    for asked, answer in commands:
        yield draw.choice(p.LOGS).format(asked=asked, answer=answer)
    for asked, answer in tickets:
        yield draw.choice(p.DESK).format(asked=asked, answer=answer)
    yield from p.PROSE
    for _ in range(300):
        values = {
            "room": draw.choice(p.ROOMS),
            "thing": draw.choice(p.THINGS),
            "person": draw.choice(p.PEOPLE),
            "day": draw.choice(p.DAYS),
            "site": draw.choice(p.SITES),
            "n": draw.randint(2, 60),
        }
        yield " ".join(draw.sample([line.format(**values) for line in p.STORY], 3))


if __name__ == "__main__":
    main()
