"""Passages and skills: cut at words, split by source, disjoint, exact."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.testbeds.data import skills
from weightsmith.testbeds.data.language_tasks import read_rows, text_of, write_rows
from weightsmith.testbeds.data.passages import (
    PASSAGE_BYTES,
    Domain,
    cut,
    manual,
    split_of,
    spread,
    standard_library,
    verse_key,
)

COUNTS = {"train": 400, "validation": 30, "test": 100}
CLOSING = dict(zip("([{<", ")]}>", strict=True))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=900))
def test_no_passage_is_too_long_and_none_has_a_word_that_the_text_lacks(text):
    words = set(text.split())
    for passage in cut(text):
        assert len(passage) >= 12
        assert len(passage.encode()) <= PASSAGE_BYTES
        assert set(passage.split()) <= words


def test_lines_stay_whole_and_long_lines_are_cut_between_words():
    code = "def one():\n    return 1\n"
    assert list(cut(code)) == ["def one():\n    return 1"]
    line = " ".join(["слово"] * 30)
    parts = list(cut(line))
    assert " ".join(parts) == line
    assert len(parts) == 3


def test_a_passage_of_two_splits_stays_in_the_test_alone():
    keys = {split: next(k for k in map(str, range(99)) if split_of(k) == split) for split in COUNTS}
    both = "the same passage in every one of the splits"

    def texts():
        for split, key in keys.items():
            yield key, f"{both}"
            yield key, f"only in {split}, and nowhere else"

    found = Domain("toy", texts).passages({"train": 9, "validation": 9, "test": 9})
    assert found["test"] == (both, "only in test, and nowhere else")
    assert found["validation"] == ("only in validation, and nowhere else",)
    assert found["train"] == ("only in train, and nowhere else",)


def test_splits_of_real_texts_share_no_passage_and_are_the_same_each_time():
    for domain in (manual("manual"), standard_library("python", ("argparse.py", "typing.py"))):
        found = domain.passages(COUNTS)
        assert [len(found[split]) for split in COUNTS] == [400, 30, 100]
        everything = [passage for split in COUNTS for passage in found[split]]
        assert len(set(everything)) == len(everything)
        assert domain.passages(COUNTS) == found


def test_the_key_of_a_verse_is_that_of_its_neighbours():
    assert verse_key("2:21") == verse_key("2:39") != verse_key("2:40")
    assert verse_key("2:1") != verse_key("3:1")


def test_passages_are_spread_over_the_whole_source():
    assert list(spread([str(k) for k in range(10)], 3)) == ["0", "3", "6"]
    assert list(spread(["a"], 3)) == ["a"]


def test_answers_are_right_and_no_prompt_is_in_two_splits():
    for skill in (skills.reverse(), skills.brackets(), skills.larger(), skills.last()):
        rows = skill.rows({"train": 300, "validation": 40, "test": 200}, seed=0)
        assert [len(rows[split]) for split in COUNTS] == [300, 40, 200]
        prompts = [row["prompt"] for split in rows.values() for row in split]
        assert len(set(prompts)) == len(prompts)
        for row in rows["test"]:
            asked = row["prompt"].removesuffix("=").split(" ", 1)[1]
            wanted = {
                "reverse": asked[::-1],
                "brackets": "".join(CLOSING[c] for c in asked[::-1] if c in CLOSING),
                "larger": str(max(map(int, re.findall(r"\d+", asked)), default=0)),
                "last": asked[-1],
            }[skill.name]
            assert text_of(row) == row["prompt"] + wanted


def test_every_length_of_a_skill_is_in_every_split():
    rows = skills.brackets().rows({"train": 2500, "validation": 240, "test": 1000}, seed=0)
    for split in rows.values():
        lengths = np.array([len(row["answer"]) for row in split])
        assert {4, 5, 6} == set(lengths.tolist())
        assert 0.3 < (lengths == 6).mean() < 0.8


def test_lines_on_disk_may_hold_any_character(tmp_path):
    rows = [{"text": "a b\x0bc\nd\x85e"}, {"text": "ы"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
