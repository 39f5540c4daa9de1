"""What was parsed of equal bytes is shared, within bounds."""

from __future__ import annotations

import pytest

from weightsmith.tensors.files.parsed_once import ParsedOnce


def parsed(kept: ParsedOnce[str], data: bytes, asked: list[bytes]) -> str:
    def parse() -> str:
        asked.append(data)
        return data.decode()

    return kept.of(data, parse)


def test_equal_bytes_are_parsed_once() -> None:
    kept: ParsedOnce[str] = ParsedOnce(most_bytes=100)
    asked: list[bytes] = []
    assert [parsed(kept, b"ab", asked) for _ in range(3)] == ["ab"] * 3
    assert parsed(kept, b"ba", asked) == "ba"
    assert asked == [b"ab", b"ba"]


def test_what_was_asked_for_longest_ago_is_let_go_first() -> None:
    kept: ParsedOnce[str] = ParsedOnce(most_bytes=6)
    asked: list[bytes] = []
    for data in (b"aaa", b"bbb", b"aaa", b"ccc", b"aaa", b"bbb"):
        parsed(kept, data, asked)
    assert asked == [b"aaa", b"bbb", b"ccc", b"bbb"]


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    kept: ParsedOnce[str] = ParsedOnce(most_bytes=3)
    asked: list[bytes] = []
    for data in (b"aaa", b"long", b"aaa", b"long"):
        assert parsed(kept, data, asked) == data.decode()
    assert asked == [b"aaa", b"long", b"long"]


def test_bytes_that_were_refused_are_refused_again() -> None:
    kept: ParsedOnce[str] = ParsedOnce(most_bytes=100)

    def refuse() -> str:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            kept.of(b"ab", refuse)
    assert parsed(kept, b"ab", []) == "ab"
