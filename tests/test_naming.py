"""Tensor names taken apart, matched and ordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import RecipeError
from weightsmith.naming import (
    NamePieces,
    blocks_in,
    compile_glob,
    compile_regex,
    is_found,
    is_number,
    matching,
    natural_key,
    nearest,
    parse_name,
    split_name,
)


def test_a_name_in_a_stack_is_taken_apart_into_prefix_layer_expert_and_stem() -> None:
    name = "model.layers.12.block_sparse_moe.experts.3.w1.weight"
    assert parse_name(name, "model.layers") == NamePieces(
        "model.layers", 12, 3, "block_sparse_moe.experts.*.w1.weight"
    )


def test_a_name_outside_the_stack_has_no_layer() -> None:
    assert parse_name("model.norm.weight", "model.layers") == NamePieces(
        None, None, None, "model.norm.weight"
    )
    assert parse_name("model.layersx.1.weight", "model.layers").layer is None


def test_an_expert_number_may_be_part_of_a_field() -> None:
    pieces = parse_name("block.1.mlp.experts.expert_7.wi.weight", "block")
    assert (pieces.expert, pieces.stem) == (7, "mlp.experts.expert_*.wi.weight")


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("model.layers.12.mlp.weight", [("model.layers", 12, "mlp.weight")]),
        ("block.3.layer.1.bias", [("block", 3, "layer.1.bias"), ("block.3.layer", 1, "bias")]),
        ("h.2.experts.7.w1", [("h", 2, "experts.7.w1")]),
        ("0.1", [("", 0, "1"), ("0", 1, "")]),
        ("conv1.a2.100000.weight", []),
        ("layers.٣.weight", []),
    ],
)
def test_every_index_in_a_name_but_an_experts_may_be_a_block(
    name: str, blocks: list[tuple[str, int, str]]
) -> None:
    assert list(blocks_in(name)) == blocks


def test_a_stack_at_the_root_has_an_empty_prefix() -> None:
    assert parse_name("3.weight", "") == NamePieces("", 3, None, "weight")


def test_digits_of_other_scripts_are_not_layers() -> None:
    assert parse_name("layers.٣.weight", "layers").layer is None


def test_natural_order_puts_2_before_10() -> None:
    names = ["l.10.b", "l.2.b", "l.2.a", "l", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "l", "l.2.a", "l.2.b", "l.10.b"]


@given(st.lists(st.text(alphabet="ab.0123456789²١", max_size=8)))
def test_any_names_can_be_ordered(names: list[str]) -> None:
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


@given(st.text(max_size=12), st.none() | st.text(max_size=4))
def test_any_name_can_be_taken_apart(name: str, prefix: str | None) -> None:
    pieces = parse_name(name, prefix)
    assert (pieces.layer is None) == (pieces.prefix is None)
    assert split_name(name)


def test_globs_match_whole_names_case_and_dots_included() -> None:
    names = ["a.mlp.up.weight", "a.MLP.up.weight", "mlp.up.weight"]
    assert matching("*.mlp.*", names) == ["a.mlp.up.weight"]
    assert compile_glob("mlp.u?.[vw]eight").match("mlp.up.weight")
    assert not compile_glob("mlp").match("mlp.up")


def test_a_malformed_regex_is_refused_with_its_text() -> None:
    assert is_found(r"layers\.\d+", "model.layers.3")
    assert not is_found(r"^layers", "model.layers.3")
    with pytest.raises(RecipeError, match=r"'\(\['"):
        compile_regex("([")


def test_a_regex_that_takes_too_long_is_refused_while_it_is_asked() -> None:
    # Every character looks at all that follow.
    with pytest.raises(RecipeError, match="takes too long to match"):
        is_found("(?:(?=.*x$).)*!$", "ab" * 4_000)


def test_numbers_of_many_digits_are_no_layers_and_sort_behind_all_others() -> None:
    long = "9" * 5000
    assert parse_name(f"layers.{long}.weight", "layers").layer is None
    assert not is_number("100000")
    assert sorted([f"a{long}", "a10", "a9"], key=natural_key) == ["a9", "a10", f"a{long}"]


def test_the_nearest_candidate_is_offered_and_nothing_far_away() -> None:
    assert nearest("lamda", ["lambda", "weight"]) == "lambda"
    assert nearest("zzz", ["lambda", "weight"]) is None
