"""Every command on terminals of 60, 80, 100 and 140 columns: nothing is too wide, and names stand whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from weightsmith.cli.presenting import broken
from weightsmith.cli.text_tables import ShownInterval, TextTable, fitted

from .conftest import WIDTHS
from .workshop import LINES


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.command)
def test_a_command_fits_its_terminal_and_shows_names_whole(line, shown_at, workshop, monkeypatch):
    monkeypatch.chdir(workshop)
    words = [w for w in line.command.split() if w not in ("NAME", "--explain", "--recipe")]
    for columns in WIDTHS:
        # What is written has a name of its own for each width.
        out = f"at-{columns}-{line.command.replace(' ', '-')}"
        arguments = line.arguments.replace("OUT", f"../{out}").split()
        names = [name.replace("OUT", out) for name in line.names]
        shown_at(columns, [*words, *arguments], names)


def test_names_that_are_long_are_broken_behind_dots_and_never_squeezed(
    shown_at, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = "model.language_model.layers.3.mixture_of_experts.experts.17.gate_up_proj.weight"
    save_file({name: np.zeros((2, 2), np.float32)}, "one.safetensors")
    for columns in WIDTHS:
        lines = shown_at(columns, ["inspect", "one.safetensors", "--tensors"], ["float32"]).lines
        column = "".join(line.split(" ")[0] for line in lines[lines.index("Tensors") + 1 :])
        assert name in column


def test_a_league_on_a_narrow_terminal_is_a_table_without_intervals():
    rows = [
        ("task_arithmetic, tuned", "lambda=0.5", ShownInterval("0.78", "[0.74, 0.81]"), "0.4 s"),
        ("ties, default", "", ShownInterval("0.66", "[0.62, 0.7]"), "0.4 s"),
    ]
    table = TextTable("League", ("", "scale", "mean", "CPU"), rows, frozenset({2, 3}), spare=(3,))
    wide, narrow, narrowest = (fitted(table, width) for width in (80, 50, 42))
    assert wide.rows[0][2] == "0.78 [0.74, 0.81]"
    assert narrow.rows[0] == ("task_arithmetic, tuned", "lambda=0.5", "0.78", "0.4 s")
    assert narrowest.columns == (0, 1, 2)
    assert fitted(table, 30) is None


@given(
    st.lists(
        st.tuples(
            st.text("abc.", min_size=1, max_size=60),
            st.text("ab ", max_size=90),
            st.text("01", max_size=9),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(20, 160),
)
def test_a_table_that_fits_is_no_wider_than_its_terminal(rows, width):
    found = fitted(TextTable("T", ("name", "words", "number"), rows, frozenset({2})), width)
    if found is not None:
        assert sum(found.widths) + 2 * (len(found.widths) - 1) <= width
        # Numbers are never broken, and no column is squeezed to nothing.
        assert found.widths[-1] >= max(len(row[2]) for row in rows)
        assert found.widths[0] >= min(24, max(len(row[0]) for row in rows))


@pytest.mark.parametrize(
    ("line", "width", "lines"),
    [
        ("short", 10, ["short"]),
        ("one two three", 8, ["one two", "three"]),
        ("key   one two three", 14, ["key   one two", "      three"]),
        ("    indented formula here", 20, ["    indented formula", "      here"]),
        ("  f = a                   aside", 20, ["  f = a   aside"]),
        ("an/unbreakable/path/of/names then", 12, ["an/unbreakable/path/of/names", "then"]),
    ],
)
def test_a_sentence_is_broken_between_words(line, width, lines):
    assert broken(line, width).split("\n") == lines


def test_wide_characters_count_twice(shown_at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = {"\u5c64" * 20 + str(i): np.zeros(3, np.float32) for i in range(2)}
    save_file(tensors, "wide.safetensors")
    shown_at(60, ["inspect", "wide.safetensors", "--tensors"], ["\u5c64" * 20])
