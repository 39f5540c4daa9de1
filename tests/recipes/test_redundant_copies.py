"""Tied models some of which store a copy of their table as head."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import CompatibilityError
from weightsmith.recipes.resolution.formula import Leaf, Merge

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = "merge_method: linear\nmodels: [{model: copy}, {model: absent}]\nparameters: {weight: 1}\n"
NATIVE = "weightsmith: 1\n" + BOTH
SLICES = (
    "weightsmith: 1\nmerge_method: linear\nparameters: {weight: 1}\n"
    "slices: [{sources: [{model: copy, layer_range: [0, 2]}, {model: absent, layer_range: [0, 2]}]}]\n"
)
EXPRESSION = "weightsmith: 1\nexpression: 0.5 * a + 0.5 * b\ncheckpoints: {a: copy, b: absent}\n"


@pytest.fixture
def pair(make):
    """`copy` stores its table as head too, `absent` stores no head; both are tied."""
    values = np.ones((6, 4), np.float32)
    make("copy", 2, extra={TABLE: values, HEAD: values}, config={"tie_word_embeddings": True})
    make("absent", 2, head=False)


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    "text", [NATIVE, BOTH, SLICES, EXPRESSION], ids=["native", "mergekit", "slices", "expression"]
)
@pytest.mark.parametrize(
    "more", ["", "base_model: absent\n", "base_model: copy\n"], ids=["", "absent", "copy"]
)
def test_a_copy_of_the_table_is_no_missing_tensor(solve, text, more):
    solved = solve(text + more)
    assert not solved.found()
    assert TABLE in solved.outputs
    assert HEAD not in solved.outputs


@pytest.mark.usefixtures("pair")
def test_a_copy_is_not_written_from_one_model_alone_where_missing_tensors_are_skipped(solve):
    assert HEAD not in solve(NATIVE + "missing: skip\n").outputs


def test_a_head_that_differs_is_still_missing_elsewhere(make, solve):
    make("copy", 2), make("absent", 2, head=False, config={"architectures": ["LlamaModel"]})
    assert "missing-tensor" in solve(NATIVE).found()


@pytest.mark.usefixtures("pair")
def test_a_model_is_untied_though_nothing_else_is_untied(solve):
    solved = solve(NATIVE + "untie: always\n")
    assert not solved.found()
    head = solved.formula(HEAD)
    assert isinstance(head, Merge)
    assert head.experts == (Leaf("copy", HEAD), Leaf("absent", HEAD))
    alone = solve(
        "weightsmith: 1\nmerge_method: passthrough\nmodels: [{model: absent}]\nuntie: always\n"
    )
    assert alone.formula(HEAD) == Leaf("absent", HEAD)


def test_a_head_whose_name_nobody_knows_is_not_written(make, solve):
    table = np.ones((6, 4), np.float32)
    make(
        "odd",
        extra={"strange.embed_tokens.weight": table},
        only_extra=True,
        config={"tie_word_embeddings": True},
    )
    with pytest.raises(CompatibilityError, match="not known here"):
        solve("weightsmith: 1\nmerge_method: passthrough\nmodels: [{model: odd}]\nuntie: always\n")
