"""What is put into messages is short, harmless and free of Python's words."""

from __future__ import annotations

import pytest

from weightsmith.errors import CheckpointError, Malformed
from weightsmith.wording import abridged, counted, fault, literal, shown


def test_long_text_is_shown_without_its_middle() -> None:
    assert shown("a" * 200 + "b") == repr("a" * 80 + "..." + "a" * 79 + "b")
    assert shown("a\x1b[1m") == r"'a\x1b[1m'"


def test_several_things_are_named_in_the_plural() -> None:
    assert [counted(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]
    assert counted(1234, "tensor") == "1,234 tensors"
    assert counted(2, "matrix", "matrices") == "2 matrices"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (-3, "-3"),
        ("a 'b'", "\"a 'b'\""),
        ([1, None, [2, [3]]], "[1, null, [2, [...]]]"),
        ({"a": {"b": 1}, "c": False}, "{a: {b: 1}, c: false}"),
        (list(range(9)), "[0, 1, 2, 3, ...]"),
        (10**400, "a whole number of 1329 bits"),
    ],
)
def test_values_are_written_as_yaml_has_them(value: object, written: str) -> None:
    assert literal(value) == written


def test_what_is_wrong_with_data_is_told_without_the_names_of_exceptions() -> None:
    assert fault(KeyError("inputs")) == "it lacks 'inputs'"
    assert fault(Malformed("its seal does not fit")) == "its seal does not fit"
    assert fault(CheckpointError("It is damaged.")) == "It is damaged"
    for other in (TypeError("'int' object"), AttributeError("x"), ValueError("invalid literal")):
        assert fault(other) == "an entry of it has another form than it should"


def test_only_the_lines_that_nobody_reads_are_abridged() -> None:
    message = f"a sentence\n{'x' * 5000}; do this"
    first, second = abridged(message).split("\n")
    assert first == "a sentence"
    assert len(second) < 1300
    assert second.startswith("xxx")
    assert second.endswith("x; do this")
