"""A small data set in SQuAD's form, made by templates: notes about things in a house, and questions about them.

The test split has other names, things, values and phrasings than the training split, so that nothing of it can be
learned by heart.
"""

import json
import random
from pathlib import Path

NOTES = {
    "train": (
        "The {thing} in the {room} was bought by {who} in {year}.",
        "{who} paid {price} euros for the {thing}, which stands in the {room} since {year}.",
        "In {year} {who} put a {thing} into the {room}; it had cost {price} euros.",
    ),
    "test": (
        "Since {year} there is a {thing} in the {room}. {who} bought it for {price} euros.",
        "For the {room} {who} got a {thing} at {price} euros in {year}.",
    ),
}
ASKED = {
    "train": {
        "who": ("Who bought the {thing}?", "Whose purchase was the {thing}?"),
        "room": ("Where is the {thing}?", "In which room is the {thing}?"),
        "year": ("When was the {thing} bought?", "In what year did the {thing} come?"),
        "price": ("How much did the {thing} cost?", "What was the price of the {thing}?"),
    },
    "test": {
        "who": ("Which person bought the {thing}?",),
        "room": ("What room has the {thing}?",),
        "year": ("Since when is there a {thing}?",),
        "price": ("How many euros did the {thing} cost?",),
    },
}
VALUES = {
    "train": {
        "thing": ("kettle", "lamp", "heater", "fan", "toaster", "radio", "clock", "freezer", "mirror", "carpet"),
        "room": ("kitchen", "hall", "cellar", "bedroom", "office", "attic"),
        "who": ("Ana", "Boris", "Chen", "Dilara", "Emil", "Fatou", "Goran", "Hanna"),
    },
    "test": {
        "thing": ("oven", "vacuum", "piano", "washer", "ladder"),
        "room": ("garage", "bathroom", "library", "garden"),
        "who": ("Ines", "Jonas", "Kofi", "Lena"),
    },
}


def document(split: str, paragraphs: int, seed: int, unanswerable: bool = True) -> dict:
    """One article whose paragraphs hold notes about three things each, one question about each; with `unanswerable` a
    quarter of the questions is about a thing that the paragraph does not name."""
    drawn = random.Random(f"{split} {seed}")
    values = VALUES[split]
    return {
        "version": "v2.0" if unanswerable else "1.1",
        "data": [{
            "title": f"House {split}",
            "paragraphs": [_paragraph(drawn, split, values, number, unanswerable) for number in range(paragraphs)],
        }],
    }  # fmt: skip


def _paragraph(drawn, split, values, number, unanswerable):
    things = drawn.sample(values["thing"], 4)
    context, known = "", {}
    for thing in things[:3]:
        fact = {"thing": thing, "room": drawn.choice(values["room"]), "who": drawn.choice(values["who"]),
                "year": str(drawn.randrange(1970, 2026)), "price": str(drawn.randrange(11, 990))}  # fmt: skip
        note = drawn.choice(NOTES[split]) if split == "test" or drawn.random() < 0.7 else NOTES[split][1]
        place, text = {}, ""
        for piece in note.replace("{", "\0{").replace("}", "}\0").split("\0"):
            key = piece.strip("{}") if piece.startswith("{") else None
            if key:
                place[key] = (len(context) + len(text), fact[key])
            text += fact[key] if key else piece
        context += text + " "
        known[thing] = place
    questions = []
    for at, thing in enumerate(things[: 4 if unanswerable else 3]):
        asked = [key for key in ("who", "room", "year", "price") if key in known.get(thing, {"who": 0, "year": 0})]
        key = drawn.choice(asked)
        question = drawn.choice(ASKED[split][key]).format(thing=thing)
        found = known.get(thing, {}).get(key)
        answers = [] if found is None else [{"text": found[1], "answer_start": found[0]}]
        one = {"id": f"{split}-{number}-{at}", "question": question, "answers": answers}
        questions.append({**one, "is_impossible": not answers} if unanswerable else one)
    return {"context": context.strip(), "qas": questions}


def write(folder: Path, train: int = 120, test: int = 40, unanswerable: bool = True) -> None:
    """Write train.json, validation.json (of the training split's kind) and test.json."""
    for name, split, paragraphs, seed in (
        ("train", "train", train, 1),
        ("validation", "train", max(2, test // 2), 2),
        ("test", "test", test, 3),
    ):
        made = document(split, paragraphs, seed, unanswerable)
        (folder / f"{name}.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
