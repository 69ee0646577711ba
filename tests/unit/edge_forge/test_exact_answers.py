"""Questions with one right answer: the sets that come with the forge, files of one's own, and what counts as right."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError
from edge_forge.data import knowledge_files
from edge_forge.data.chat_tokenizer import ChatTokenizer
from edge_forge.data.generator_rows import Turn
from edge_forge.evaluate import exact_answers, forgetting
from edge_forge.report import forgetting_report
from tests.support import tiny_generators


def lines(name):
    path = knowledge_files.exact_file(name, knowledge_files.Path())
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_answer_on_maths_is_that_of_its_expression():
    rows = lines("maths")
    assert len({row["prompt"] for row in rows}) == len(rows) == 40 + knowledge_files.SHOWN
    for row in rows:
        assert str(eval(row["check"])) == row["answer"], row


def test_every_answer_on_code_is_what_the_function_of_the_question_does():
    rows = lines("code")
    assert len({row["prompt"] for row in rows}) == len(rows) == 40 + knowledge_files.SHOWN
    for row in rows:
        program, call = row["check"]
        names = {}
        exec(program, names)
        value = eval(call, names)
        gap = "___" in row["prompt"]
        assert (program == row["prompt"].splitlines()[0].replace("___", row["answer"])) if gap else (
            row["prompt"].startswith(f"{program}\nWhat does {call} return")
        )  # fmt: skip
        assert value is True if gap else row["answer"] == (value if isinstance(value, str) else repr(value)), row


@pytest.mark.parametrize(
    ("said", "right"),
    [("5", True), (" 5.", True), ("'5'", True), ("5 6", False), ("15", False), ("", False), ("five", False)],
)
def test_an_answer_counts_by_its_text(said, right):
    assert exact_answers.same(said, "5") is right
    assert exact_answers.same("[1,  2]", "[1,2]") and not exact_answers.same("ON", "on")
    assert exact_answers.first_line("\n 7\nQuestion: and now?") == " 7"


def test_questions_stand_behind_those_that_are_shown():
    shown = [knowledge_files.ExactQuestion("1 + 1?", ("2", "two")), knowledge_files.ExactQuestion("2 + 2?", ("4",))]
    assert exact_answers.prompt(shown, "3 + 3?") == (
        "Question: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer: 4\n\nQuestion: 3 + 3?\nAnswer:"
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "answer": "b"}] * 3, "3 questions are too few"),
        ([{"prompt": "a", "answer": "b"}] * 4 + [{"prompt": "a"}], "own.jsonl:5: a question needs 'prompt'"),
        ([{"prompt": "a", "answer": []}], "own.jsonl:1: a question needs"),
        ([{"prompt": "a", "answer": ["b", " "]}], "and none empty"),
        ([{"prompt": "a", "answer": 3}], "a text or a list of texts"),
    ],
)
def test_a_file_that_asks_nothing_is_named_with_its_line(tmp_path, rows, said):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(ConfigError) as error:
        knowledge_files.exact_questions(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_a_file_of_another_kind_is_refused_with_the_sets_that_are_known(tmp_path):
    assert knowledge_files.exact_file("own.jsonl", tmp_path) == tmp_path / "own.jsonl"
    with pytest.raises(ConfigError, match="hold no questions") as error:
        knowledge_files.exact_questions(tmp_path / "sums")
    assert "maths or code" in str(error.value.remedy)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ChatTokenizer(tiny_generators.write(tmp_path_factory.mktemp("base")), "auto")


class Says:
    """A causal model that answers each prompt, known by its own ids, with given ids."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.told, self.prompts = tokenizer, answers, []

    def generate(self, input_ids, attention_mask, max_new_tokens, **_):
        rows = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            text = self.tokenizer.decode([one for one, held in zip(ids, mask, strict=True) if held])
            self.prompts.append(text)
            said = next((answer for key, answer in self.told.items() if f"{key}\nAnswer:" in text[-60:]), "no")
            own = [*self.tokenizer.ids(said), self.tokenizer.ends[0]]
            rows.append([*ids, *own, *[self.tokenizer.ends[0]] * (max_new_tokens - len(own))])
        return torch.tensor(rows)


ROWS = [knowledge_files.ExactQuestion(f"{one} + 1?", (str(one + 1),)) for one in range(1, 9)]


def test_shares_are_of_the_questions_that_were_asked_and_marks_say_which(tokenizer):
    model = Says(tokenizer, {"4 + 1?": "5", "5 + 1?": "6\nQuestion: more", "6 + 1?": "8"})
    marks = {}
    asked = forgetting.GeneratorQuestions([], [], 64, {"sums": ROWS}, 4096)
    assert not asked.none and forgetting.GeneratorQuestions([], [], 64).none
    assert forgetting.generator_scores(model, tokenizer, asked, marks) == {"exact sums": 0.4}
    assert marks == {"exact sums": [True, True, False, False, False]}
    assert all(text.count("Question:") == 4 for text in model.prompts), "three are shown in front of each"


def test_where_the_base_is_short_fewer_are_shown_and_one_that_fits_nowhere_is_refused(tokenizer):
    model = Says(tokenizer, {})
    row = (Turn("user", exact_answers.prompt(ROWS[:1], "8 + 1?")), Turn("assistant", "x"))
    exact_answers.marks(model, tokenizer, ROWS, tokenizer.encode(row).answer + 24)
    assert {text.count("Question:") for text in model.prompts} == {2}
    with pytest.raises(ConfigError, match="has room for"):
        exact_answers.marks(model, tokenizer, ROWS, 30)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=60))
def test_a_loss_has_an_interval_and_only_a_whole_one_is_beyond_a_threshold(pairs):
    before, after = ({"exact maths": list(marks)} for marks in zip(*pairs, strict=True))
    shares = [{name: sum(marks) / len(marks) for name, marks in one.items()} for one in (before, after)]
    kept = forgetting.exact_intervals(forgetting.compared(*shares), before, after)
    one = kept["exact maths"]
    assert one["rows"] == len(pairs) and one["lost_low"] - 1e-9 <= one["lost"] <= one["lost_high"] + 1e-9
    said = forgetting_report.beyond({"run": kept}, 0.05)
    assert bool(said) == (one["lost_low"] > 0.05)
    assert forgetting_report.title("exact maths") == "answers right of maths"
