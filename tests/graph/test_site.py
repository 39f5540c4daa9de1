"""What a method knows of a tensor, and what it calls its statistics."""

from __future__ import annotations

import pytest

from weightsmith.graph.graph import Scope, source, uniform
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.random import stream_key
from weightsmith.graph.site import Site, Statistic
from weightsmith.tensors.place import Place

SITE = Site(
    Place("layers.3.w", layer=3, stack="layers"),
    (4, 5, 6),
    seed=7,
    labels=("a", "b", "a"),
    merge="top",
)


@pytest.mark.parametrize(
    ("shape", "numel", "row"), [((), 1, 1), ((7,), 7, 7), ((4, 5, 6), 120, 6), ((3, 0), 0, 0)]
)
def test_a_site_knows_its_elements_and_the_length_of_a_row(
    shape: tuple[int, ...], numel: int, row: int
) -> None:
    site = Site(Place("w"), shape)
    assert (site.numel, site.row_length) == (numel, row)


def test_an_expert_is_told_by_its_label_and_by_its_place_where_the_label_is_not_its_own() -> None:
    assert [SITE.identity(i) for i in (None, 0, 1, 2, 3)] == ["", "a#0", "b", "a#2", "expert-3"]


def test_a_statistic_of_the_model_has_merge_name_expert_and_parameters() -> None:
    assert SITE.over_model("trim", 1, 0.5, "x") == ModelStatistic("top", "trim", "b", (0.5, "x"))
    assert SITE.over_model("trim") == ModelStatistic("top", "trim", "", ())


def test_a_scope_is_of_a_row_a_tensor_or_the_model() -> None:
    assert SITE.over("row", "trim", 1) is Scope.ROW
    assert SITE.over("tensor", "trim", 1) is Scope.TENSOR
    assert SITE.over("model", "trim", 1, 0.5) == SITE.over_model("trim", 1, 0.5)


@pytest.mark.parametrize("layer", [2, 3])
def test_a_statistic_of_a_layer_is_known_to_the_stack_and_made_of_that_layer(layer: int) -> None:
    found = SITE.over_layer(layer, "size", 1)
    assert found == ModelStatistic("top", "size", "b", (), ("layers", layer))
    assert found.counts is (layer == SITE.layer)


def test_random_numbers_depend_on_seed_label_and_tensor() -> None:
    for expert, label in [(0, "a"), (1, "b"), (3, "expert-3")]:
        found, wanted = SITE.uniform(expert), uniform(stream_key(7, label, "layers.3.w"))
        assert (found.op, found.attributes) == (wanted.op, wanted.attributes)


def test_the_value_of_a_statistic_is_its_first() -> None:
    assert Statistic("gradients", (source(1), source(2)), (4,)).value.attributes == (1,)
