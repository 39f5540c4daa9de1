"""Pieces of the output: sizes, durations, plain tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.cli.terminal_text import counted, duration, harmless, percent
from weightsmith.cli.text_tables import TextTable, folded, plain_table
from weightsmith.tensors.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("256MB", 256 * 10**6),
        ("1GiB", 2**30),
        ("1.5 gib", 3 * 2**29),
        ("2k", 2000),
        ("7B", 7),
        ("123", 123),
        (99, 99),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read_in_both_systems(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1e6", "1 MB 2", "0", "0.2B", "1iB", "١MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="256MB"):
        parse_size(text)


@given(st.integers(1, 10**16))
def test_a_written_size_is_read_back_to_three_digits(nbytes):
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text


def test_counts_agree_with_their_nouns():
    assert [counted(n, "tensor") for n in (0, 1, 1234)] == [
        "0 tensors",
        "1 tensor",
        "1,234 tensors",
    ]


@given(st.text())
def test_harmless_text_is_printable_and_keeps_what_was_printable(text):
    shown = harmless(text)
    assert shown.isprintable()
    assert (shown == text) is text.isprintable()


def test_a_plain_table_aligns_and_trims():
    table = TextTable("T", ("a", "number"), [("x", "1"), ("long\x07", "20")], frozenset({1}))
    assert plain_table(table).splitlines() == [
        "T",
        "  a         number",
        "  x              1",
        "  long\\x07      20",
    ]


def test_a_table_without_column_names_has_no_head():
    assert plain_table(TextTable("T", ("", ""), [("x", "1")])).splitlines() == ["T", "  x  1"]


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("model.norm.weight", 20, ["model.norm.weight"]),
        ("model.layers.3.mlp.up_proj.weight", 24, ["model.layers.3.mlp.", "up_proj.weight"]),
        ("two words of a title that is long", 16, ["two words of a title that is long"]),
        ("averyveryverylongname", 16, ["averyveryverylongname"]),
    ],
)
def test_names_are_broken_behind_their_dots(name, width, lines):
    assert folded(name, width).split("\n") == lines


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (3e-7, "< 0.01 %"), (1e-4, "0.01 %"), (0.1234, "12.3 %"), (1.0, "100 %")],
)
def test_a_small_share_is_not_taken_for_nothing(share, text):
    assert percent(share) == text
