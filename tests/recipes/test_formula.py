"""Walks over formulas: what is read, in which order, and what a formula is made of."""

from __future__ import annotations

from dataclasses import replace

from weightsmith.recipes.resolution.formula import (
    Cast,
    Formula,
    Leaf,
    MeasuredLeaves,
    Merge,
    Same,
    Sum,
    distinct_leaves,
    first_leaf,
    formulas_in,
    merges_in,
    models_in,
)
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.place import Kind, Place

PLACE = Place("w", Kind.MLP_UP, 0, 4, "layers")


def merge(base: Formula | None, *experts: Formula, **more: object) -> Merge:
    labels = tuple(f"e{i}" for i in range(len(experts)))
    per_expert = ((),) * len(experts)
    made = Merge("ties", "paper", (), base, experts, per_expert, labels, "merge", PLACE, (2, 3), 0)
    return replace(made, **more)


BASE, A, B = Leaf("base", "w"), Leaf("a", "w"), Leaf("b", "w")


def test_leaves_come_in_the_order_of_reading_each_once() -> None:
    statistics = (MeasuredLeaves("fisher", (Leaf("fisher", "w"),), (2, 3), 1.0),)
    formula = merge(BASE, Cast(DType.BFLOAT16, A), BASE, B, statistics=statistics)
    assert distinct_leaves(formula) == (BASE, A, B, Leaf("fisher", "w"))
    assert distinct_leaves(Sum(((1.0, B), (-1.0, A), (0.5, B)))) == (B, A)
    assert distinct_leaves(merge(None, A, origin=BASE)) == (BASE, A)


def test_an_inner_merge_comes_before_the_one_that_uses_it() -> None:
    inner = merge(BASE, A, scope_id="inner")
    outer = merge(BASE, inner, B)
    assert list(merges_in(Sum(((1.0, outer),)))) == [inner, outer]
    assert list(formulas_in(outer)) == [BASE, BASE, A, inner, B, outer]


def test_the_models_of_a_formula_are_those_of_weights_and_not_of_statistics() -> None:
    statistics = (MeasuredLeaves("fisher", (Leaf("fisher", "w"),), (2, 3), 1.0),)
    formula = merge(BASE, Same((A, B)), statistics=statistics, origin=Leaf("origin", "w"))
    assert models_in(formula) == {"base", "a", "b", "origin"}


def test_a_merge_stands_for_its_first_expert_and_not_for_its_base() -> None:
    formula = Sum(((2.0, merge(BASE, Cast(DType.FLOAT16, Same((B, A))))), (1.0, A)))
    assert first_leaf(formula) == B


def test_formulas_that_differ_in_names_of_tensors_alone_are_alike() -> None:
    def named(name: str) -> Formula:
        place = replace(PLACE, name=name, layer=3)
        other = Cast(DType.BFLOAT16, Sum(((0.5, Leaf("b", name)), (0.5, Same((Leaf("a", name),))))))
        return merge(Leaf("base", name), Leaf("a", name), other, place=place)

    assert named("w").likeness == named("v").likeness
    others = [
        merge(BASE, A),
        merge(A, A),
        merge(None, A),
        merge(BASE, Cast(DType.FLOAT16, A)),
        merge(BASE, Sum(((0.5, A),))),
        merge(BASE, Sum(((0.25, A),))),
        merge(BASE, A, shape=(3, 2)),
        merge(BASE, A, place=replace(PLACE, layer=None)),
    ]
    assert len({formula.likeness for formula in others}) == len(others)
