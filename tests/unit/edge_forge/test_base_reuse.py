"""A version of a base has one package: what computes the same is released again, anything else is not."""

import dataclasses
import json

import pytest

from edge_agent.bundle.layout import open_package
from edge_agent.bundle.statement import check_counter
from edge_agent.bundle.verify import load_trust, read_package, read_release
from edge_forge.package.base_reuse import released_again
from edge_forge.package.build import build
from edge_forge.package.keys import keygen, sign_package
from tests.support.packages import base_package, keys, model_source, release, trust

LATER = {"issued_at": "2026-09-01T00:00:00Z", "expires": "2026-12-01T00:00:00Z"}


def unsigned(folder, counter=1, **changed):
    """An unsigned package of the same base, later; `changed` fields of its source."""
    source = model_source(folder / "src")
    figures = [dataclasses.replace(one, peak_bytes=one.peak_bytes + 4096) for one in source.variants]
    source = dataclasses.replace(source, **{"variants": figures, **changed})
    statement = release("tiny", counter, **LATER)
    return build(folder / "new.tar", statement, source), statement


def statement_in(package):
    with open_package(package) as opened:
        found = read_release(opened, None, allow_unsigned=True).release
        read_package(opened, found)
        return found


def test_other_figures_and_other_last_digits_are_no_other_base(tmp_path):
    before = base_package(tmp_path)
    built, statement = unsigned(tmp_path)
    assert built.index_digest != statement_in(before).index.digest
    again = released_again(built, statement, [tmp_path / "absent.tar", before], trust())
    assert again.index_digest == statement_in(before).index.digest == statement_in(again.path).index.digest
    assert statement_in(again.path).expires == LATER["expires"]
    sign_package(again.path, [keys().release_key])
    check_counter(statement_in(again.path), 1, statement_in(before).index.digest)  # what a device asks


def test_of_several_the_one_that_was_issued_first_is_taken(tmp_path):
    first = base_package(tmp_path / "first", issued_at="2026-07-02T00:00:00Z")
    built, statement = unsigned(tmp_path)
    second = tmp_path / "a-second.tar"
    second.write_bytes(built.path.read_bytes())
    sign_package(second, [keys().release_key])
    again = released_again(built, statement, [second, first], trust())
    assert again.index_digest == statement_in(first).index.digest != statement_in(second).index.digest


@pytest.mark.parametrize("changed", ["weights", "tokenizer", "task", "base", "options", "fewer variants"])
def test_what_computes_something_else_is_a_package_of_its_own(tmp_path, changed):
    before = base_package(tmp_path)
    other = model_source(tmp_path / "other", seed=2)
    one = model_source(tmp_path / "src")
    tokenizer = tmp_path / "other-tokenizer.json"
    tokenizer.write_text(json.dumps({"version": "1.0", "model": {"unk_token": "?"}}))
    fields = {
        "weights": {"variants": other.variants},
        "tokenizer": {"tokenizer": tokenizer},
        "task": {"task": {"kind": "embed", "max_tokens": 33}},
        "base": {"base_id": "sha256:" + "0dd0" * 16},
        "options": {"variants": [dataclasses.replace(one.variants[0], options={"positions": 64}), *one.variants[1:]]},
        "fewer variants": {"variants": one.variants[:1]},
    }[changed]
    built, statement = unsigned(tmp_path, **fields)
    digest = built.index_digest
    assert released_again(built, statement, [before], trust()).index_digest == digest
    assert statement_in(built.path).index.digest == digest


def test_another_version_and_a_package_of_unknown_keys_are_not_taken(tmp_path):
    before = base_package(tmp_path)
    built, statement = unsigned(tmp_path, counter=2)
    assert released_again(built, statement, [before], trust()) == built
    built, statement = unsigned(tmp_path)
    stranger = load_trust(keygen(tmp_path / "stranger").root_file)
    assert released_again(built, statement, [before], stranger) == built


def test_a_language_model_of_longer_context_serves_who_wants_less_of_it(tmp_path):
    def made(name, tokens):
        source = model_source(tmp_path / name)
        return dataclasses.replace(source, task={"kind": "generate", "max_tokens": tokens})

    long = build(tmp_path / "long.tar", release("tiny"), made("long", 64), keys=[keys().release_key])
    short = build(tmp_path / "short.tar", release("tiny", **LATER), made("short", 32))
    again = released_again(short, release("tiny", **LATER), [long.path], trust())
    assert again.index_digest == long.index_digest
    longer = build(tmp_path / "longer.tar", release("tiny", **LATER), made("longer", 128))
    assert released_again(longer, release("tiny", **LATER), [long.path], trust()) == longer
