"""Write the sentences of home-slots: `python models/home-slots/make_data.py`.

Two sources, both written for this project. `said/*.txt` are sentences of home-intents with their spans marked:
"set the [kitchen](room) to [21 degrees](temperature)". The others are put together here from templates and values, and
the three parts share neither a template nor a value: who learned templates or lists of rooms by heart fails in the
test. Values of the test are held out of the other source, too: marked sentences with one of them are not trained on.

The same seed gives the same files, which are kept in the repository: `train` and `validation` of both sources, `test`
of templates alone and `said` of sentences alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SEED = 29
HERE = Path(__file__).parent
PARTS = ("train", "validation", "test")
ROWS = {"train": 1800, "validation": 120, "test": 300}
"""Sentences from templates."""
_MARKED = re.compile(r"\[([^\]]+)\]\((\w+)\)")
_GAP = re.compile(r"\{(\w+)\}")
_ONE_TIME = re.compile(r"\]\(time\)( (?:on |the )?)\[(?=[^\]]*\]\(time\))")
"""Between a time and its day, which are one span."""

LABELS = {
    "light": "device", "cover": "device", "machine": "device", "heater": "device", "door": "device",
    "player": "device", "alarm": "device", "room": "room", "floor": "room", "temperature": "temperature",
    "change": "temperature", "level": "level", "colour": "colour", "time": "time", "day": "time",
    "duration": "duration", "media": "media", "scene": "scene",
}  # fmt: skip
"""The label of what fills a gap of a template."""

VALUES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "light": {
        "train": (
            "light", "lights", "lamp", "lamps", "ceiling light", "floor lamp", "reading lamp", "spotlights",
            "bedside lamp", "fairy lights", "big light", "wall lights", "table lamp", "spots", "led strip",
            "strip light", "track lights", "candles", "bulb", "christmas lights", "mirror light", "counter lights",
            "salt lamp",
        ),
        "validation": ("desk lamp", "downlights"),
        "test": ("chandelier", "night light", "standing lamp", "string lights", "pendant lamps", "lantern"),
    },
    "cover": {
        "train": (
            "blinds", "blind", "curtains", "shutters", "shades", "awning", "roller blind", "drapes", "skylight",
            "window", "left curtain", "sheers", "fly screen", "blackout blinds", "velux", "roller",
        ),
        "validation": ("slats", "sunshade"),
        "test": ("roof blind", "venetians", "net curtains", "window shutter", "parasol"),
    },
    "machine": {
        "train": (
            "washing machine", "dishwasher", "fan", "vacuum", "robot", "oven", "kettle", "coffee machine", "sprinklers",
            "dryer", "humidifier", "extractor", "toaster", "mower", "deep fryer", "pool pump", "charger", "printer",
            "iron", "microwave", "freezer", "bread maker", "electric blanket", "hair dryer", "pressure cooker", "hob",
            "water heater", "cat feeder", "fish tank", "treadmill", "sewing machine", "dehumidifier", "cooker hood",
            "milk frother", "soda maker", "router", "lawn robot", "aquarium pump", "towel rail", "sauna", "grill",
        ),
        "validation": ("slow cooker", "hoover"),
        "test": ("rice cooker", "air purifier", "espresso maker", "ventilator", "garden pump", "ice maker"),
    },
    "heater": {
        "train": (
            "heating", "thermostat", "radiator", "underfloor heating", "ac", "air conditioning", "heater", "fireplace",
            "infrared panel", "oil heater", "split unit", "fan heater", "stove", "wall heater",
        ),
        "validation": ("boiler", "air con"),
        "test": ("heat pump", "convector", "electric stove", "cooling unit"),
    },
    "door": {
        "train": (
            "front door", "back door", "garage door", "side gate", "patio door", "gate", "door", "letter box",
            "fire exit", "shed door", "wine cabinet", "safe", "cellar hatch", "garden gate", "lift", "parcel locker",
            "barrier",
        ),
        "validation": ("terrace door", "balcony door"),
        "test": ("cat flap", "main entrance", "driveway gate", "bike locker", "basement hatch"),
    },
    "player": {
        "train": (
            "tv", "telly", "radio", "speaker", "stereo", "projector", "cd player", "boom box", "subwoofer", "jukebox",
            "big screen", "headphones", "amplifier", "gramophone", "tablet", "music box",
        ),
        "validation": ("sound bar", "hi-fi"),
        "test": ("record player", "soundbox", "smart display", "loudspeakers"),
    },
    "alarm": {
        "train": (
            "alarm", "burglar alarm", "security", "motion sensors", "siren", "cameras", "smoke detector",
            "door contacts", "window sensors", "security system", "night guard", "fence sensors",
        ),
        "validation": ("alarm system",),
        "test": ("intruder detection", "perimeter guard", "glass sensors"),
    },
    "room": {
        "train": (
            "kitchen", "bedroom", "living room", "bathroom", "hallway", "hall", "office", "cellar", "nursery",
            "guest room", "dining room", "garden", "balcony", "landing", "kids' room", "garage", "lounge", "workshop",
            "utility room", "laundry room", "den", "gym", "studio", "patio", "terrace", "shed", "greenhouse",
            "basement", "corridor", "toilet", "ensuite", "dressing room", "storage room", "boiler room",
            "reading corner", "stairwell", "driveway", "carport", "sun room", "media room", "hobby room",
            "master bedroom", "spare room", "entrance", "snug", "breakfast nook", "games room", "larder", "box room",
            "summer house", "stable", "barn", "chapel",
        ),
        "validation": ("study", "loft", "conservatory", "porch"),
        "test": (
            "attic", "pantry", "playroom", "library", "sewing room", "music room", "wine store", "veranda", "foyer",
        ),
    },
    "floor": {
        "train": (
            "upstairs", "downstairs", "on the ground floor", "on the second floor", "in the east wing", "on the deck",
            "in the front of the house", "on the lower level",
        ),
        "validation": ("on the first floor",),
        "test": ("on the top floor", "in the left wing", "on the mezzanine"),
    },
    "temperature": {
        "train": (
            "21 degrees", "19 degrees", "20", "22", "18 °C", "19.5 degrees", "twenty degrees", "twenty one",
            "eighteen degrees", "22.5", "16 degrees", "21 °C", "68 fahrenheit", "nineteen", "15 degrees", "17.5",
            "sixteen", "twenty two degrees", "20 °C", "18", "19", "21", "21.5 degrees", "70 fahrenheit", "22 °C", "16",
            "nineteen and a half", "minus 18 degrees", "fifteen degrees", "17 °C", "22 degrees", "eighteen",
        ),
        "validation": ("20.5 degrees", "seventeen degrees", "17", "23 °C"),
        "test": ("24 degrees", "18.5", "twenty three degrees", "14 °C", "25", "twenty two and a half", "71 fahrenheit"),
    },
    "change": {
        "train": (
            "two degrees", "a degree", "1 degree", "2 degrees", "a couple of degrees", "one degree", "3", "3 degrees",
            "1.5 degrees", "six degrees", "2", "two and a half degrees",
        ),
        "validation": ("half a degree", "three degrees"),
        "test": ("four degrees", "a degree and a half", "5 degrees", "a few degrees"),
    },
    "level": {
        "train": (
            "40 percent", "half", "50%", "a third", "ten percent", "full", "20 percent", "80 %", "thirty percent",
            "maximum", "a quarter", "7", "level 3", "seventy percent", "level two", "one third", "25 percent", "12 %",
            "ninety percent", "forty five percent", "100 percent", "95%", "30", "eight", "3", "level 6", "12",
            "two fifths", "55 percent", "65 %", "fifty percent", "1 percent", "full power", "step 4", "70",
        ),
        "validation": ("60%", "minimum", "15 percent", "level 9"),
        "test": ("35 percent", "two thirds", "eighty five percent", "three quarters", "5 %", "level 11", "90"),
    },
    "colour": {
        "train": (
            "red", "blue", "warm white", "green", "orange", "purple", "soft white", "amber", "yellow", "3000 kelvin",
            "teal", "magenta", "light blue", "daylight", "peach", "lavender", "gold", "2700 kelvin", "mint", "dark red",
            "rose", "cyan", "cool white", "sky blue", "olive", "silver", "brown", "rainbow", "apricot", "neutral white",
        ),
        "validation": ("pink", "cold white"),
        "test": ("turquoise", "crimson", "candle yellow", "6500 kelvin", "ivory", "dark violet"),
    },
    "time": {
        "train": (
            "7", "half past six", "8 pm", "seven in the morning", "6:30", "noon", "ten o'clock", "22:00", "five",
            "quarter to nine", "midnight", "six thirty", "9 am", "7:15", "18:30", "half past nine", "two", "eight",
            "quarter past seven", "1 pm", "ten to six", "twenty past four", "5 pm", "20:45", "twelve", "6", "11:10",
            "nine in the evening", "five in the afternoon", "three thirty", "8", "half eight", "06:05", "10 pm",
        ),
        "validation": ("19:15", "eight in the evening", "ten past four"),
        "test": ("quarter past eleven", "5:45", "three in the afternoon", "23:30", "twenty to one", "11 am", "4"),
    },
    "day": {
        "train": (
            "tonight", "tomorrow", "tomorrow morning", "on friday", "this evening", "at the weekend",
            "on monday at eight", "today", "on wednesday", "next week", "this morning", "on thursday morning",
            "every day", "on the 3rd of may", "every monday", "next month", "on friday evening", "tomorrow at six",
        ),
        "validation": ("on sunday", "this afternoon"),
        "test": ("the day after tomorrow", "on tuesday", "tomorrow night", "on saturday at ten", "next thursday"),
    },
    "duration": {
        "train": (
            "ten minutes", "an hour", "half an hour", "5 minutes", "20 min", "two hours", "15 minutes", "three minutes",
            "90 seconds", "forty minutes", "an hour and a half", "1 hour", "30 s", "a minute", "six minutes", "3 h",
            "a quarter of an hour", "eleven minutes", "50 min", "two days", "a week", "thirty seconds", "8 hours",
            "one hour and twenty minutes", "35 minutes", "2 min", "twenty minutes", "a couple of minutes", "1 h 20",
        ),
        "validation": ("25 minutes", "eight minutes", "2 h"),
        "test": (
            "seven minutes", "three quarters of an hour", "45 s", "12 min", "four hours", "an hour and ten minutes",
        ),
    },
    "media": {
        "train": (
            "jazz", "Mozart", "the news", "radio four", "abba", "my running playlist", "classic fm", "christmas songs",
            "the beatles", "rain sounds", "rock", "the football", "Queen", "bedtime stories", "Bach", "Chopin",
            "techno", "the archers", "some soul", "reggae", "white noise", "ocean waves", "my sunday mix",
            "the top forty", "bob dylan", "nina simone", "heavy metal", "ed sheeran", "the nutcracker",
            "winnie the pooh", "hip hop", "the sports channel", "star wars", "peppa pig", "the formula one race",
            "swing", "pink floyd", "bbc two", "the lion king", "salsa", "a meditation", "dancing queen",
            "yesterday by the beatles", "country music", "my gym playlist", "the evening news",
            "Vivaldi's four seasons", "thunderstorm sounds", "folk", "disco",
        ),
        "validation": ("vivaldi", "the cricket", "whale song"),
        "test": (
            "blues", "Debussy", "the weather channel", "the rolling stones", "birdsong", "my cooking playlist", "opera",
        ),
    },
    "scene": {
        "train": (
            "movie", "party", "reading", "dinner", "morning", "holiday", "romantic", "gaming", "yoga", "bedtime",
            "away", "good night", "cooking", "welcome home", "night", "focus", "study", "relax", "christmas",
            "birthday", "sleep", "guests", "work", "energy saving", "tv night", "lunch", "bath", "wake up", "eco",
            "sunday morning", "quiet",
        ),
        "validation": ("cleaning", "sunset"),
        "test": ("breakfast", "homework", "concert", "picnic", "workout"),
    },
}  # fmt: skip

TEMPLATES: Mapping[str, Sequence[str]] = {
    "train": (
        "set the {room} to {temperature}",
        "make it {temperature} in the {room}",
        "{temperature} in the {room} {day}",
        "heat the {room} to {temperature} by {time}",
        "turn the {heater} in the {room} down to {temperature}",
        "turn the {room} {heater} up by {change}",
        "{change} warmer in the {room}",
        "lower the {heater} by {change} {day}",
        "I want {temperature} {floor}",
        "put the {heater} on for {duration}",
        "{heater} off in the {room} at {time}",
        "is the {room} above {temperature}",
        "how warm is it in the {room}",
        "what's the humidity {floor}",
        "turn on the {light} in the {room}",
        "turn the {room} {light} off",
        "{light} on {floor}",
        "{room} {light} off in {duration}",
        "switch the {light} off at {time}",
        "dim the {room} {light} to {level}",
        "set the {light} to {level}",
        "bring the {light} in the {room} up to {level}",
        "make the {light} {colour}",
        "{colour} {light} in the {room}",
        "change the {room} {light} to {colour} at {level}",
        "I'd like {colour} in the {room}",
        "{colour} please",
        "can it be {colour} instead of {colour}",
        "colour of the {light} to {colour}",
        "the {light} in {colour}, and a bit lower",
        "go {colour} for the party",
        "leave the {light} on until {time}",
        "the {light} in the {room} for {duration}",
        "open the {cover} in the {room}",
        "{cover} down {floor}",
        "close the {room} {cover} to {level}",
        "raise the {cover} at {time} {day}",
        "put the {cover} of the {room} up by {level}",
        "{cover} {level} open",
        "can the {cover} go down {day}",
        "start the {machine}",
        "run the {machine} at {time}",
        "turn the {machine} off in {duration}",
        "switch the {machine} in the {room} on",
        "stop the {machine}",
        "let the {machine} run for {duration}",
        "the {machine} {floor} can go off",
        "send the {machine} to the {room} {day}",
        "set the {machine} to {level}",
        "did I leave the {machine} on",
        "how long does the {machine} need",
        "lock the {door}",
        "unlock the {door} at {time}",
        "is the {door} locked",
        "open the {door} for {duration}",
        "{door} shut {day}",
        "make sure that the {door} is closed by {time}",
        "arm the {alarm} at {time}",
        "turn the {alarm} off {floor}",
        "{alarm} on {day}",
        "disarm the {alarm} in the {room}",
        "keep the {alarm} off until {time}",
        "play {media} in the {room}",
        "play {media} on the {player}",
        "put {media} on",
        "I want to hear {media} at {time}",
        "let's have {media} {floor}",
        "turn the {player} down to {level}",
        "volume of the {room} {player} to {level}",
        "turn off the {player} in {duration}",
        "pause the {player}",
        "{player} off at {time}",
        "louder on the {player} in the {room}",
        "stop {media}",
        "not {media}, {media}",
        "something like {media} please",
        "set a timer for {duration}",
        "wake me at {time} {day}",
        "timer {duration}",
        "remind me in {duration}",
        "alarm clock for {time}",
        "make the timer {duration}",
        "remind me {day} at {time} to lock up",
        "turn on {scene} mode",
        "start the {scene} scene",
        "do the {scene} thing at {time}",
        "{scene} scene in the {room}",
        "activate {scene}",
        "we're ready for {scene}",
        "{scene} mode off",
        "turn on the {light} and close the {cover} in the {room}",
        "if nobody is in the {room}, turn the {light} off",
        "somebody should close the {door} before {time}",
        "it's stuffy in the {room}, get the {machine} going for {duration}",
        "I forgot the {machine} in the {room}, switch it off",
        "who turned the {heater} to {temperature}",
        "have {media} on in the {room} {day}",
        "we're watching {media}, so dim the {light} to {level}",
        "in {duration} the {cover} can come down",
        "check the {door} and the {machine}",
        "could we have it {colour} in the {room} {day}",
        "from {time} to {time} keep the {heater} at {temperature}",
        "every {light} but the one in the {room}",
        "the {player} is too loud for the {room}, make it {level}",
        "the kids are asleep in the {room}, so no {media} now",
        "until {time} nobody may open the {door}",
        "I'm in the {room} and need the {light}",
        "tell me when {duration} are over",
        "for {scene} I want the {light} at {level} and {colour}",
        "has the {machine} finished {floor}",
        "the {room} needs {change} more {day}",
        "{day} it should be {temperature} in the {room} by {time}",
        "no {alarm} in the {room} while the dog is there",
        "it is dark in the {room}",
        "air the {room} for {duration}",
        "{light} off, {player} off, {door} locked",
        "{heater} to {temperature} and {light} to {level}",
        "not the {room}, the {room}",
        "the {light}, not the {machine}",
        "good night", "thanks, that's all", "louder", "too dark in here", "I'm off", "stop", "skip this one",
        "a bit warmer", "next please", "we're home", "it's too bright", "that's enough",
        "somebody is at the door, let them in",
    ),
    "validation": (
        "get the {room} down to {temperature} {day}",
        "the {heater} should be {change} lower",
        "could the {light} in the {room} be {colour}",
        "take the {room} {light} to {level} for {duration}",
        "have the {cover} {floor} closed before {time}",
        "begin with the {machine} at {time}",
        "no more {machine} {day}",
        "see to it that the {door} stays shut for {duration}",
        "watch the {room} with the {alarm} from {time}",
        "find {media} for the {player}",
        "move {media} to the {room}",
        "the {player} at {level}, no louder",
        "count down {duration}",
        "get me up at {time}",
        "we'd like the {scene} lighting {day}",
        "still too cold",
        "I can't sleep like this",
    ),
    "test": (
        "warm the {room} up until it has {temperature}",
        "I'd be happier with {temperature} in our {room} from {time}",
        "knock {change} off the {heater} {day}",
        "the {heater} may take a break of {duration}",
        "why is the {room} at {temperature} when I asked for {temperature}",
        "we only need the {heater} {floor} {day}",
        "give the {light} a {colour} touch",
        "somebody left the {light} burning in the {room}, kill it",
        "no {light} after {time} please, not even in the {room}",
        "{light} down at {level} while the film runs",
        "fade the {light} {floor} to {level} over {duration}",
        "swap the {colour} for {colour} by the {light}",
        "the sun is coming round, {cover} at {level} in the {room}",
        "keep every {cover} shut {floor} until {time}",
        "let me look out, move the {cover}",
        "at {time} the {cover} should go up again",
        "get the {machine} going {day}, it's cheaper then",
        "another {duration} on the {machine} won't hurt",
        "has anybody switched the {machine} off {floor}",
        "I hear the {machine} in the {room}, end it",
        "nobody leaves by the {door} before {time}",
        "buzz the courier in, {door} for {duration}",
        "bolt both the {door} and the {door}",
        "while we're away {day} the {alarm} has to be active",
        "skip the {alarm} around the {room} for {duration}",
        "stick on {media} over by the {player}",
        "the guests in the {room} would love {media}",
        "{media} again {day}, same volume",
        "nothing but {media} from {time} on",
        "the {player} is deafening, {level} will do",
        "shift the sound from the {room} to the {room}",
        "the cake wants {duration}, tell me then",
        "I must be out of bed by {time} {day}",
        "ping me every {duration}",
        "add {duration} to the one that is running",
        "time for our {scene} setting",
        "switch over to {scene} once it's {time}",
        "everything as for {scene}, but the {light} at {level}",
        "first the {machine}, and in {duration} the {machine}",
        "did you hear me",
        "no, the other one",
        "never been so cold in all my life",
        "give it a rest",
    ),
}  # fmt: skip
"""A template without gaps has no span: silence must be learned, and measured, too."""

_BEFORE = ("hey, ", "ok, ", "um ", "right, ", "hi, ", "well ")
_AFTER = (" please", " pls", ", thanks", " ok?", "!")


class Marked(NamedTuple):
    """A sentence and its spans (start, end, label), in characters."""

    text: str
    spans: tuple[tuple[int, int, str], ...]

    @property
    def values(self) -> set[tuple[str, str]]:
        """(label, words) of its spans, lower case, without an article."""
        return {(label, value(self.text[start:end])) for start, end, label in self.spans}

    def as_row(self) -> dict[str, object]:
        """As a line of a recipe's data."""
        return {"text": self.text, "spans": [{"start": s, "end": e, "label": label} for s, e, label in self.spans]}


def value(words: str) -> str:
    """Words as they are compared: lower case and without 'the', 'a', 'on' or 'in' before them."""
    found = " ".join(words.casefold().split())
    while (shorter := re.sub(r"^(the|a|an|on|in|at) ", "", found)) != found:
        found = shorter
    return found


def bare(row: Marked) -> str:
    """A sentence as it is compared with others: lower case, without marks at its end."""
    return row.text.casefold().strip(".!? ")


def read_marked(line: str) -> Marked:
    """The sentence of a line with marks."""
    text, spans, last = "", [], 0
    for mark in _MARKED.finditer(line):
        text += line[last : mark.start()]
        spans.append((len(text), len(text) + len(mark[1]), mark[2]))
        text += mark[1]
        last = mark.end()
    return Marked(text + line[last:], tuple(spans))


def said(part: str) -> list[Marked]:
    """The sentences marked by hand, one on each line."""
    lines = (HERE / "said" / f"{part}.txt").read_text(encoding="utf-8").splitlines()
    return [read_marked(line) for line in lines]


def filled(draw: random.Random, part: str) -> Marked:
    """A template of a part with values of the same part; two gaps of one kind get different ones."""
    template, used = draw.choice(TEMPLATES[part]), set()

    def mark(gap: re.Match[str]) -> str:
        chosen = draw.choice([one for one in VALUES[gap[1]][part] if one not in used])
        used.add(chosen)
        # "on friday" and "upstairs" stand for a place or a time; the word before the name is not in its span.
        lead, name = re.match(r"((?:on|in|at|the) (?:the )?)?(.+)", chosen).groups()
        return f"{lead or ''}[{name}]({LABELS[gap[1]]})"

    line = _ONE_TIME.sub(r"\1", _GAP.sub(mark, template))
    if used and draw.random() < 0.25:
        line = draw.choice(_BEFORE) + line
    if used and draw.random() < 0.25:
        line += draw.choice(_AFTER)
    if draw.random() < 0.3 and line[0] != "[":
        line = line[0].upper() + line[1:]
    return read_marked(line)


def from_templates(draw: random.Random, part: str) -> list[Marked]:
    """So many different sentences of a part."""
    found: dict[str, Marked] = {}
    while len(found) < ROWS[part]:
        one = filled(draw, part)
        found.setdefault(" ".join(one.text.casefold().split()), one)
    return list(found.values())


def without(rows: Sequence[Marked], held: set[tuple[str, str]]) -> Iterator[Marked]:
    """The rows that have no value of `held`."""
    return (row for row in rows if not row.values & held)


def rows() -> dict[str, list[Marked]]:
    """The sentences of each file."""
    # A generator for each part: what is added to one leaves the others as they are.
    made = {part: from_templates(random.Random(f"{SEED} {part}"), part) for part in PARTS}
    held = {one for row in made["test"] for one in row.values}
    train = [*made["train"], *without(said("train"), held)]
    further = (*made["validation"], *without(said("validation"), held))
    learned = {bare(one) for one in train}
    validation = [one for one in further if bare(one) not in learned]
    for one in (train, validation):
        random.Random(SEED).shuffle(one)
    # A sentence of the test that a template happens to say is trained on, and would measure nothing.
    unseen = [one for one in said("test") if bare(one) not in learned]
    return {"train": train, "validation": validation, "test": made["test"], "said": unseen}


def main() -> None:
    """Write all files."""
    (HERE / "data").mkdir(exist_ok=True)
    for name, found in rows().items():
        lines = [json.dumps(one.as_row(), ensure_ascii=False) for one in found]
        (HERE / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
