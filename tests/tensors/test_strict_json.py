"""JSON from strangers gives a value or one clear reason."""

from __future__ import annotations

import pytest

from weightsmith.errors import CheckpointError, Malformed
from weightsmith.tensors.files.strict_json import (
    loads_json,
    optional_text_in,
    parse_json,
    text_in,
    texts_in,
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is not JSON at its character 0 (Expecting value)"),
        (b'{"a": 1,}', "it is not JSON at its character 8"),
        (b"\xff", "it is not UTF-8 at its byte 0"),
        (b"9" * 5000, "it has a number of thousands of digits"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
@pytest.mark.parametrize("strictly", [False, True])
def test_what_is_no_json_has_a_reason_without_pythons_words(
    data: bytes, reason: str, strictly: bool
) -> None:
    with pytest.raises(Malformed) as caught:
        loads_json(data, strictly=strictly)
    assert str(caught.value).startswith(reason)


def test_strictness_refuses_what_readers_understand_differently() -> None:
    assert loads_json(b'{"a": 1, "a": 2}') == {"a": 2}
    assert loads_json(b"\xef\xbb\xbf[Infinity]") == [float("inf")]
    for data in (b'{"a": 1, "a": 2}', b"[NaN]", b"[-0]"):
        with pytest.raises(CheckpointError, match=r"'x': the header is refused because .*fetch"):
            parse_json(data, "'x': the header")


def test_fields_of_records_are_texts_or_the_record_is_malformed() -> None:
    facts = {"a": "x", "b": None, "c": {"k": "v"}, "d": 5}
    assert text_in(facts, "a") == "x"
    assert optional_text_in(facts, "b") is None
    assert texts_in(facts, "c") == {"k": "v"}
    assert texts_in(facts, "none") == {}
    for read, key in ((text_in, "d"), (text_in, "e"), (texts_in, "d"), (optional_text_in, "d")):
        with pytest.raises(Malformed, match=f"'{key}'"):
            read(facts, key)
    with pytest.raises(Malformed, match="no JSON object"):
        text_in([], "a")
