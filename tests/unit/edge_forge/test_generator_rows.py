"""Rows of generators: what is read, what is refused and where, and how they become tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError
from edge_forge.data.chat_tokenizer import NOT_LEARNED, ChatTokenizer, EncodedRow, cut, pack, to_score
from edge_forge.data.generator_rows import REJECTED, Turn, chosen, load, read, rejected, with_places
from edge_forge.recipe.generator_recipe import GeneratorDataSection
from tests.support import chat_templates, tiny_generators

DIALOGUE = (Turn("user", "Turn on the lamp."), Turn("assistant", '{"state": "on"}'))


def written(folder, name, *lines):
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_three_kinds_are_told_apart(tmp_path):
    section = GeneratorDataSection(train="x")
    chat = written(
        tmp_path, "chat.jsonl", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    )
    pairs = written(tmp_path, "pairs.jsonl", {"prompt": "a", "completion": "b"}, "", {"prompt": "c", "completion": "d"})
    lines = written(tmp_path, "lines.jsonl", {"text": "one two"})
    texts = written(tmp_path, "texts.txt", "one", "two", "", "three", "", "", "four")
    assert list(read(chat, section)) == [(Turn("user", "a"), Turn("assistant", "b"))]
    assert [row[-1].text for row in read(pairs, section)] == ["b", "d"]
    assert list(read(lines, section)) == [(Turn("text", "one two"),)]
    assert [row[0].text for row in read(texts, section)] == ["one\ntwo", "three", "four"]


@pytest.mark.parametrize("wrong", [["human"], {"human": 1}, "x" * 5000, 7, None])
def test_a_speaker_or_role_of_another_type_is_refused_in_few_words(tmp_path, wrong):
    for name, row in {
        "shared": {"conversations": [{"from": wrong, "value": "a"}]},
        "chat": {"messages": [{"role": wrong, "content": "a"}]},
    }.items():
        path = written(tmp_path, f"{name}.jsonl", row)
        with pytest.raises(ConfigError, match=r"message 1 (is from|has the role) .*\(") as caught:
            list(read(path, GeneratorDataSection(train="x")))
        assert len(str(caught.value)) < 300


def test_half_of_a_surrogate_pair_in_the_input_of_an_alpaca_row_names_the_line(tmp_path):
    row = {"instruction": "Sort.", "input": "a", "output": "b"}
    path = written(tmp_path, "rows.jsonl", row, {**row, "input": "\ud83d"})
    with pytest.raises(ConfigError, match=r"rows.jsonl:2: 'input' holds .*half of a surrogate pair"):
        list(read(path, GeneratorDataSection(train="x")))


def test_published_forms_are_read_and_the_mapping_is_said(tmp_path):
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    written(tmp_path, "shared.jsonl", *[{"id": n, "conversations": talk} for n in range(2)])
    asked = {"instruction": "Sort.", "input": "b, a", "output": "a, b"}
    written(tmp_path, "alpaca.jsonl", asked, {"instruction": "Greet.", "input": "", "output": "Hello."})
    shared = load(GeneratorDataSection(train="shared.jsonl", validation="shared.jsonl"), tmp_path)
    assert shared.train[0] == (Turn("user", "a"), Turn("assistant", "b"))
    assert "read as ShareGPT: `conversations` are the messages" in shared.notes[0]
    alpaca = load(GeneratorDataSection(train="alpaca.jsonl"), tmp_path)
    rows = {*alpaca.train, *alpaca.validation}
    assert (Turn("user", "Sort.\n\nb, a"), Turn("assistant", "a, b")) in rows
    assert (Turn("user", "Greet."), Turn("assistant", "Hello.")) in rows
    assert "read as Alpaca: `instruction`" in alpaca.notes[0]
    robot = written(tmp_path, "bad.jsonl", {"conversations": [{"from": "tool", "value": "x"}]})
    with pytest.raises(ConfigError, match=r"bad.jsonl:1: message 1 is from 'tool' \(speakers are system, human"):
        list(read(robot, GeneratorDataSection(train="x")))


SYSTEM, ASKED = Turn("system", "Be brief."), (Turn("user", "a"), Turn("assistant", "b"))
TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
ROLES = ("user", "assistant")
BEFORE = [["hello", "hi"], ["how are you", "fine"]]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"conversations": TALK, "system": "Be brief."}, (SYSTEM, *ASKED)),
        ({"conversations": TALK, "system": ""}, ASKED),
        ({"instruction": "a", "output": "b", "system": "Be brief.", "history": None}, (SYSTEM, *ASKED)),
        ({"instruction": "a", "output": "b", "history": []}, ASKED),
        ({"instruction": "a", "output": "b", "history": BEFORE},
         (*(Turn(role, text) for two in BEFORE for role, text in zip(ROLES, two, strict=True)), *ASKED)),
    ],
)  # fmt: skip
def test_what_stands_beside_the_messages_of_a_published_row_is_a_part_of_the_dialogue(tmp_path, row, wanted):
    path = written(tmp_path, "rows.jsonl", row)
    assert list(read(path, GeneratorDataSection(train="x"))) == [wanted]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": [{"from": "system", "value": "x"}, *TALK], "system": "y"}, "keep one of them"),
        ({"conversations": TALK, "system": 3}, "'system' must be a text"),
        ({"instruction": "a", "output": "b", "history": "x"}, "turn 1 of 'history' is no"),
        ({"instruction": "a", "output": "b", "history": [["x", ""]]}, "turn 1 of 'history' is no"),
        ({"instruction": "a", "output": "b", "history": [["x", "\ud83d"]]}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_a_part_of_the_dialogue_is_refused_by_its_key(tmp_path, row, words):
    path = written(tmp_path, "rows.jsonl", row)
    with pytest.raises(ConfigError, match=rf"rows.jsonl:1.*{words}|{words}"):
        list(read(path, GeneratorDataSection(train="x")))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tools": [{"name": "lamp"}]}, "the row has 'tools', which is not taught here"),
        ({"answer": {"tool_calls": [{"function": {}}]}}, "message 2 has 'tool_calls', which is not taught"),
        ({"answer": {"reasoning_content": "hm"}}, "message 2 has 'reasoning_content'"),
        ({"answer": {"weight": 0}}, "message 2 has the weight 0: every answer is learned alike"),
        ({"answer": {"weight": None}}, None),
        ({"tools": [], "functions": "[]", "answer": {"weight": 1, "tool_calls": None, "name": "edge"}}, None),
    ],
)
@pytest.mark.parametrize("form", ["chat", "sharegpt"])
def test_what_stands_beside_contents_and_would_be_left_out_is_refused_by_its_key(tmp_path, row, says, form):
    more = {key: value for key, value in row.items() if key != "answer"}
    if form == "chat":
        messages = [
            {"role": "user", "content": "on"},
            {"role": "assistant", "content": "done", **row.get("answer", {})},
        ]
        found = {"messages": messages, **more}
    else:
        told = [{"from": "human", "value": "on"}, {"from": "gpt", "value": "done", **row.get("answer", {})}]
        found = {"conversations": told, **more}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(found) + "\n")
    if says is None:
        assert list(read(path, GeneratorDataSection(train="a.jsonl"))) == [
            (Turn("user", "on"), Turn("assistant", "done"))
        ]
        return
    with pytest.raises(ConfigError, match=f"a.jsonl:1: {says}"):
        list(read(path, GeneratorDataSection(train="a.jsonl")))


def test_a_json_list_says_how_to_write_lines(tmp_path):
    path = written(tmp_path, "alpaca.json", '[{"instruction": "a", "output": "b"}]')
    with pytest.raises(ConfigError, match=r"jq -c '\.\[\]'"):
        list(read(path, GeneratorDataSection(train="x")))


def test_half_of_a_surrogate_pair_names_the_line(tmp_path):
    path = written(tmp_path, "a.jsonl", {"prompt": "a", "completion": "b"}, '{"prompt":"a \\ud83d","completion":"b"}')
    with pytest.raises(ConfigError, match=r"a.jsonl:2: 'prompt' holds \\ud83d, half of a surrogate pair"):
        list(read(path, GeneratorDataSection(train="x")))


def test_a_blank_line_that_holds_a_space_separates_texts(tmp_path):
    path = written(tmp_path, "a.txt", "one", " ", "two\r", "\t", "three")
    assert [row[0].text for row in read(path, GeneratorDataSection(train="x"))] == ["one", "two", "three"]
    bad = written(tmp_path, "b.txt", "one", "", "two", "th\0ree")
    with pytest.raises(ConfigError, match=r"b.txt:3: the text holds a NUL"):
        list(read(bad, GeneratorDataSection(train="x")))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"messages": []}, "not empty"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 1 has the role 'robot'"),
        ({"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}]}, "'content'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "assistant's answer"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
            "message 2 is of the system",
        ),
        ("[1]", "no JSON object"),
        ("{", "no valid JSON"),
        ('{"messages": [], "messages": []}', "the key 'messages' stands twice"),
        ('{"messages": [{"role": "user", "content": "a", "role": "user"}]}', "the key 'role' stands twice"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, line, words):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = written(tmp_path, "bad.jsonl", good, line)
    with pytest.raises(ConfigError, match=words) as caught:
        list(read(path, GeneratorDataSection(train="x")))
    assert caught.value.where == f"{path}:2"


def test_files_of_another_kind_bytes_and_suffix_are_refused(tmp_path):
    pairs = written(tmp_path, "pairs.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"})
    written(tmp_path, "texts.txt", "one")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(ConfigError, match=r"kind of pairs\.jsonl"):
        load(GeneratorDataSection(train=pairs.name, validation="texts.txt"), tmp_path)
    with pytest.raises(ConfigError, match="not UTF-8"):
        list(read(tmp_path / "latin.jsonl", GeneratorDataSection(train="x")))
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read(written(tmp_path, "rows.parquet", "x"), GeneratorDataSection(train="x")))
    with pytest.raises(ConfigError, match="no rows"):
        list(read(written(tmp_path, "empty.jsonl", ""), GeneratorDataSection(train="x")))


def test_a_split_is_drawn_by_question_and_sharing_is_said(tmp_path):
    rows = [{"prompt": f"q{n % 30}", "completion": f"a{n}"} for n in range(60)]
    written(tmp_path, "train.jsonl", *rows)
    written(tmp_path, "test.jsonl", rows[0])
    found = load(GeneratorDataSection(train="train.jsonl", test="test.jsonl", validation_share=0.2), tmp_path)
    asked = [{row[0].text for row in split} for split in (found.train, found.validation)]
    assert not asked[0] & asked[1] and len(found.validation) == 12
    assert any("also in" in warning for warning in found.warnings)
    again = load(GeneratorDataSection(train="train.jsonl", test="test.jsonl", validation_share=0.2), tmp_path)
    assert again.validation == found.validation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("codec")
    tiny_generators.byte_level().save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": tiny_generators.TEMPLATE
    }))  # fmt: skip
    return place


def test_only_answers_are_learned(folder):
    tokenizer = ChatTokenizer(folder, "auto")
    found = tokenizer.encode(DIALOGUE)
    assert tokenizer.decode(found.ids[: found.answer]).endswith("assistant\n")
    assert set(found.labels[: found.answer]) == {NOT_LEARNED}
    assert found.labels[found.answer :] == found.ids[found.answer :]
    assert tokenizer.decode(found.ids[found.answer :]).strip() == DIALOGUE[-1].text
    assert tokenizer.ends[0] in found.ids[found.answer :]
    assert tokenizer.prompt(DIALOGUE) == "<|im_start|>user\nTurn on the lamp.<|im_end|>\n<|im_start|>assistant\n"
    longer = tokenizer.encode((*DIALOGUE, Turn("user", "and off"), Turn("assistant", "off")))
    learned = [one for one in longer.labels if one != NOT_LEARNED]
    assert learned == [*found.ids[found.answer :], *longer.ids[longer.answer :]]
    assert longer.ids[: len(found.ids)] == found.ids


JSON = chat_templates.Family(
    "{% for message in messages %}{{ message | tojson }}{{ message.content | tojson(indent=1) }}{% endfor %}", {}, ""
)


@pytest.mark.parametrize("family", [*chat_templates.FAMILIES.values(), JSON], ids=[*chat_templates.FAMILIES, "json"])
def test_a_device_makes_the_same_prompt_as_training(tmp_path, family):
    from edge_agent.bundle.prompt_tokens import TextEncoder
    from edge_agent.tasks.generate import ChatTemplate

    tokens = {"eos_token": "<|im_end|>", **family.special_tokens}
    library = tiny_generators.byte_level()
    library.add_special_tokens(list(tokens.values()))
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**tokens, "chat_template": family.source}))

    class Words:
        chat_template, special_tokens = family.source, tokens
        encoder = TextEncoder((), lambda text: [ord(one) for one in text])

    row = (*(Turn(one["role"], one["content"]) for one in chat_templates.DIALOGUE), Turn("assistant", "No."))
    prompt = ChatTokenizer(tmp_path, "auto").prompt(row)
    assert prompt == "".join(map(chr, ChatTemplate(Words()).tokens(chat_templates.DIALOGUE)))
    assert prompt == family.prompt or (family is JSON and "it's <b>5°</b>" in prompt)


def test_without_a_template_the_answer_follows_the_prompt(folder):
    tokenizer = ChatTokenizer(folder, "no")
    found = tokenizer.encode(DIALOGUE)
    assert tokenizer.decode(found.ids) == "Turn on the lamp." + DIALOGUE[-1].text
    assert found.ids[-1] == tokenizer.ends[0]
    with pytest.raises(ConfigError, match="several turns"):
        tokenizer.encode((*DIALOGUE, *DIALOGUE))


def test_a_template_that_rewrites_what_was_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    options = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = "{{ messages|length }}{{ messages[-1]['content'] }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**options, "chat_template": template}))
    with pytest.raises(ConfigError, match="changes what it wrote"):
        ChatTokenizer(tmp_path, "yes").encode(DIALOGUE)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**options, "chat_template": "{% if %}"}))
    with pytest.raises(ConfigError, match="does not parse"):
        ChatTokenizer(tmp_path, "yes")
    del options["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTokenizer(tmp_path, "yes")


ROWS = st.lists(st.integers(2, 40), min_size=1, max_size=40)


@given(ROWS, st.integers(16, 64), st.integers(0, 5))
def test_packing_keeps_every_token_once_and_no_row_sees_another(lengths, length, seed):
    rows = [EncodedRow(tuple(range(n)), tuple(range(n)), 0) for n in lengths]
    found = pack(rows, length, 99, seed)
    assert {len(row) for part in (found.ids, found.labels, found.places) for row in part} == {length}
    learned = sum(one != NOT_LEARNED for row in found.labels for one in row)
    # The first token of a row is learned from nothing before it, so it is not; a cut text repeats one token instead.
    assert learned == sum(n - 1 for n in lengths)
    for ids, labels, places in zip(found.ids, found.labels, found.places, strict=True):
        for at in range(length):
            assert places[at] == 0 or places[at] == places[at - 1] + 1
            assert labels[at] in (NOT_LEARNED, ids[at])
            assert places[at] or labels[at] == NOT_LEARNED


def test_dialogues_that_do_not_fit_are_left_out_and_counted():
    long, short = EncodedRow(tuple(range(30)), tuple(range(30)), 5), EncodedRow((1, 2, 3), (NOT_LEARNED, 2, 3), 1)
    assert pack([long, short], 16, 0, 1).left_out == 1
    with pytest.raises(ConfigError, match="no row fits into 16 tokens"):
        pack([long], 16, 0, 1)


@given(st.integers(2, 100), st.integers(2, 20))
def test_a_cut_text_predicts_every_token_once(size, length):
    parts = list(cut(EncodedRow(tuple(range(size)), tuple(range(size)), 0), length))
    assert [one for part in parts for one in part.ids[1:]] == list(range(1, size))
    assert all(2 <= len(part.ids) <= length for part in parts)


def test_what_is_scored_fits(folder):
    tokenizer = ChatTokenizer(folder, "auto")
    rows, encoded = to_score(tokenizer, [DIALOGUE, (Turn("user", "x" * 900), Turn("assistant", "y"))], 64)
    assert rows == [DIALOGUE] and len(encoded) == 1
    rows, encoded = to_score(tokenizer, [(Turn("text", "word " * 50),)], 32)
    assert rows == [] and len(encoded) > 1
    with pytest.raises(ConfigError, match="fits"):
        to_score(tokenizer, [DIALOGUE], 4)


ASK = {"role": "user", "content": "a"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("b", "c"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [ASK], "chosen": "b", "rejected": "c"},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "a", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD], "score_chosen": 8.5},
        {"prompt": "a", "chosen": [GOOD], "rejected": "c"},
    ],
)
def test_preferences_are_read_in_every_form_that_sets_are_published_in(tmp_path, row):
    path = written(tmp_path, "rows.jsonl", "", row)
    ((where, found),) = with_places(path, GeneratorDataSection(train="x"))
    assert where == f"{path}:2"
    assert found == (Turn("user", "a"), Turn("assistant", "b"), Turn(REJECTED, "c"))
    assert chosen(found) == (Turn("user", "a"), Turn("assistant", "b"))
    assert rejected(found) == (Turn("user", "a"), Turn("assistant", "c"))


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PAIR, "rejected": " b\n"}, "are equal, so nothing is preferred"),
        ({**PAIR, "rejected": ""}, "'rejected' must be a text, and not empty"),
        ({**PAIR, "chosen": " "}, "'chosen' must be a text, and not empty"),
        ({**PAIR, "prompt": "  "}, "'prompt' must be a text, and not empty"),
        ({**PAIR, "chosen": None}, "'chosen' must be a text, and not empty"),
        ({"prompt": "a", "chosen": "b"}, "no key 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "no key 'prompt'"),
        ({**PAIR, "chosen": "b\ud83d"}, "half of a surrogate pair"),
        ({**PAIR, "chosen": []}, "'chosen' must be a list of messages, and not empty"),
        ({**PAIR, "chosen": [ASK]}, "the last message of 'chosen' must be the assistant's"),
        ({**PAIR, "chosen": [{**ASK, "content": "other"}, GOOD]}, "'chosen' do not begin with the prompt"),
        ({"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "x"}, BAD]}, "answer different prompts"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt that is to be answered"),
        ({"messages": [ASK, GOOD], "chosen": "b", "rejected": "c"}, "no prompt that is to be answered"),
        ({"messages": [{"role": "robot", "content": "a"}], "chosen": "b", "rejected": "c"}, "has the role 'robot'"),
    ],
)
def test_a_preference_that_says_nothing_is_refused_with_its_line(tmp_path, row, said):
    path = written(tmp_path, "rows.jsonl", PAIR, row)
    with pytest.raises(ConfigError) as caught:
        list(read(path, GeneratorDataSection(train="x", format="preference")))
    assert said in str(caught.value) and f"{path}:2" in str(caught.value)


def test_preferences_with_one_question_stay_in_one_split(tmp_path):
    rows = [{**PAIR, "prompt": f"q{place % 5}", "rejected": f"c{place}"} for place in range(20)]
    written(tmp_path, "rows.jsonl", *rows)
    found = load(GeneratorDataSection(train="rows.jsonl", validation_share=0.4), tmp_path)
    asked = [{row[0].text for row in part} for part in (found.train, found.validation)]
    assert found.preferences and found.statistics["kind"] == "preferences" and not asked[0] & asked[1]
