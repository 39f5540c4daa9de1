"""Patterns mean what Python's `re` means by them, in bounded time."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.patterns import Allowance, PatternError, Patterns

# Regular expressions in adapters that are on the Hub, and the names of modules that they are asked about.
FROM_ADAPTERS = (
    r"^(?!.*visual).*(?:o_proj|up_proj|v_proj|down_proj|k_proj|q_proj|gate_proj).*",
    r"^(model(?=\.).*\.(k_proj|up_proj|v_proj|down_proj|gate_proj|o_proj|q_proj))$",
    r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*",
    r"(?!separable\d+).*conv_layer|.*to_q|.*to_v|transformer\.\d+\.1\.fn\.1|transformer\.\d+\.1\.fn\.4",
    r"(?!.*motion_modules).*?(to_k|to_q|to_v|to_out\.0)",
    r"(.*\.)?(language_model(?=\.).*up_proj)$",
    r"(.*\.)?(q_proj)$",
    r"(.*\.)?(model.layers.0.self_attn.q_proj)$",
    r"(.*\.)?(^layers\.([0-9]|1[0-5])\..*)$",
    r"(.*\.)?(layers\.(?:1\d|2[0-3])\..*(?<!k)_proj)$",
    r"(.*\.)?(a)|(b)$",
    r"(?i)Q_PROJ$",
)
MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.k_proj",
    "model.language_model.layers.3.mlp.up_proj",
    "model.visual.blocks.3.attn.qkv",
    "visual.q_proj",
    "model.embed_tokens",
    "lm_head",
    "layers.12.mlp.gate_proj",
    "up_blocks.1.attentions.0.to_q",
    "separable1.conv_layer",
    "transformer.5.1.fn.4",
    "up_blocks.1.motion_modules.0.to_q",
    "a",
    "x.b",
    "q_proj\n",
    "",
)

_ATOMS = st.sampled_from(
    [
        *"abc.",
        "[ab]",
        "[^a]",
        r"\w",
        r"\d",
        r"\.",
        "^",
        "$",
        r"\b",
        r"\B",
        r"\A",
        r"\Z",
        "[]a]",
        r"\x61",
        "é",
    ]
)


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{,2}", "{0,}"])
    groups = st.sampled_from(
        ["(%s)", "(?:%s)", "(?=%s)", "(?!%s)", "(?i:%s)", "(?P<n>%s)", "(?#c)%s"]
    )
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map("|".join),
        st.tuples(groups, inner).map(lambda pair: pair[0] % pair[1]),
        st.tuples(inner, repeats).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.tuples(st.sampled_from("ab."), st.sampled_from("ab")).map(
            lambda p: f"(?<={p[0]}{p[1]})"
        ),
        st.sampled_from("ab").map(lambda c: f"(?<!{c})"),
    )


@settings(max_examples=100)
@given(st.recursive(_ATOMS, _combined, max_leaves=8), st.text("abcA.é\n1", max_size=7))
def test_a_pattern_matches_the_texts_that_re_says(pattern: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            meant = re.compile(pattern)
        except re.error:
            with pytest.raises(PatternError, match="malformed"):
                Patterns([pattern])
            return
    compiled = Patterns([pattern])
    assert (compiled.at_beginning(text) == 0) is (meant.match(text) is not None)
    assert (compiled.found(text) == 0) is (meant.search(text) is not None)


@settings(max_examples=100)
@given(
    st.lists(st.recursive(_ATOMS, _combined, max_leaves=4), min_size=1, max_size=5),
    st.text("abcA.", max_size=7),
)
def test_the_first_of_several_patterns_between_others_is_found(
    patterns: list[str], text: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            meant = [re.compile(rf"(?:.*\.)?(?:{pattern})$") for pattern in patterns]
        except re.error:
            return
    expected = next((i for i, one in enumerate(meant) if one.match(text)), None)
    assert Patterns(patterns, before=r"(.*\.)?", behind="$").at_beginning(text) == expected


def test_patterns_for_each_of_many_modules_take_no_square_of_the_work() -> None:
    names = [f"model.layers.{i}.{m}_proj" for i in range(100) for m in "qkvo"]
    patterns = Patterns(names, Allowance(60_000, per_character=0), before=r"(.*\.)?", behind="$")
    assert [patterns.at_beginning(name) for name in names] == list(range(len(names)))


@pytest.mark.parametrize("pattern", FROM_ADAPTERS)
def test_patterns_of_adapters_that_are_in_use_match_what_they_match_in_python(pattern: str) -> None:
    compiled = Patterns([pattern])
    found = [name for name in MODULES if compiled.at_beginning(name) == 0]
    assert found == [name for name in MODULES if re.match(pattern, name)]
    assert 0 < len(found) < len(MODULES)


@pytest.mark.parametrize(
    "pattern",
    [
        "([a-z0-9_.]+)+!",
        "(a|a)*!",
        "(a*)*!",
        "(?:(?:a?){20}){20}!",
        "(?=(a+)+!)a",
        "(a|b|ab)*(?=!)",
        "(?:(?=a*)a)*!",
        "((a+)(b+)?)+$",
    ],
)
def test_what_python_tries_for_ever_is_answered_at_once(pattern: str) -> None:
    began = time.monotonic()
    assert Patterns([pattern]).at_beginning("a" * 2000 + "?") is None
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "refers back"),
        (r"(?P<n>a)(?P=n)", "back-reference"),
        (r"(a)?(?(1)b|c)", "condition on a group"),
        (r"(?x) a b", "flag 'x'"),
        ("a{1000}" * 10 + "(?:(?:(?:a{100}){100}){100}){100}", "more than 1000000"),
        ("(?:){99999999}", "more than 1000000"),
        ("(" * 60 + ")" * 60, "nested"),
        ("(" * 50_000, "nested"),
        (r"[\\]" + "(" * 60 + ")" * 60, "nested"),
        ("a" * 100_001, "more than 100000 characters"),
        ("a{99999999999999999999}", "malformed"),
        ("(", "malformed"),
        ("[" * 99_999, "malformed"),
    ],
)
def test_a_pattern_of_another_kind_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError, match=re.escape(reason)):
        Patterns([pattern])


def test_work_beyond_the_allowance_is_refused_whatever_the_pattern() -> None:
    # Every place looks ahead over all that follows: a square of the text's length.
    compiled = Patterns(["(?:(?=.*x$).)*!"], Allowance(steps=100_000, per_character=0))
    assert compiled.at_beginning("a" * 100) is None
    with pytest.raises(PatternError, match="too long"):
        compiled.at_beginning("ax" * 400)
    with pytest.raises(PatternError, match="name of 10001 characters"):
        compiled.at_beginning("a" * 10_001)


def test_parentheses_in_sets_and_behind_backslashes_are_no_nesting() -> None:
    compiled = Patterns([r"\(" * 60 + "[(]" * 60])
    assert compiled.at_beginning("(" * 120) == 0
