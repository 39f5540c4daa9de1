"""Which layers follow which, told from headers."""

from __future__ import annotations

import pytest

from weightsmith.recipes.resolution.boundary_findings import (
    layer_boundaries,
    layer_origins,
    repeated_layers,
)

STACK = "model.layers"


def sliced(*ranges, method="passthrough"):
    lines = [f"weightsmith: 1\nmerge_method: {method}\nslices:"]
    for sources in ranges:
        written = [f"{{model: {m}, layer_range: [{a}, {b}]}}" for m, a, b in sources]
        lines.append(f"  - {{sources: [{', '.join(written)}]}}")
    return "\n".join(lines) + "\n"


def origins(solved):
    found = layer_origins(solved.resolved.outputs, solved.resolved.checkpoints)
    return [(o.checkpoint, o.layer) for o in found[STACK]]


@pytest.fixture
def two(make):
    make("a", layers=6)
    make("b", layers=6)


@pytest.mark.usefixtures("two")
def test_depth_upscaling_has_one_seam_and_repeats_the_middle(solve):
    solved = solve(sliced([("a", 0, 4)], [("a", 2, 6)]))
    assert origins(solved) == [("a", i) for i in (0, 1, 2, 3, 2, 3, 4, 5)]
    found = layer_origins(solved.resolved.outputs, solved.resolved.checkpoints)
    (boundary,) = layer_boundaries(found)
    assert (boundary.after, boundary.left.layer, boundary.right.layer) == (3, 3, 2)
    assert [o.layer for o in repeated_layers(found[STACK])] == [2, 3]
    note = solved.found("note")["seams"]
    assert "'model.layers' has 8 layers" in note
    assert (
        "with 1 layer boundary: after layer 3, layer 3 of 'a' is followed by layer 2 of 'a'" in note
    )
    assert "layers 2-3 of 'a' used more than once" in note
    parameters = sum(int(np_prod(o.shape)) for o in solved.outputs.values())
    assert f"({parameters:,} parameters in all)" in note


def np_prod(shape):
    product = 1
    for size in shape:
        product *= size
    return product


@pytest.mark.usefixtures("two")
def test_a_plain_merge_and_a_whole_stack_have_none(solve):
    text = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\n"
    assert "seams" not in solve(text).found("note")
    assert "seams" not in solve(sliced([("a", 0, 2)], [("a", 2, 6)])).found("note")


@pytest.mark.usefixtures("two")
def test_leaving_layers_out_and_changing_models_are_seams_too(solve):
    note = solve(sliced([("a", 0, 2)], [("a", 4, 6)])).found("note")["seams"]
    assert "layer 1 of 'a' is followed by layer 4 of 'a'" in note
    note = solve(sliced([("a", 0, 3)], [("b", 3, 6)])).found("note")["seams"]
    assert "layer 2 of 'a' is followed by layer 3 of 'b'" in note


@pytest.mark.usefixtures("two")
def test_merged_layers_count_as_their_first_source(solve):
    solved = solve(sliced([("a", 0, 2), ("b", 4, 6)], [("b", 2, 6), ("a", 0, 4)], method="linear"))
    assert origins(solved) == [("a", 0), ("a", 1), ("b", 2), ("b", 3), ("b", 4), ("b", 5)]


@pytest.mark.usefixtures("two")
def test_many_seams_are_counted_and_the_first_are_listed(solve):
    note = solve(sliced(*[[("a", i, i + 1)] for i in (0, 0, 1, 1, 2, 2, 3)])).found("note")["seams"]
    assert "with 3 layer boundaries" in note
    note = solve(sliced(*[[("a", 5 - i, 6 - i)] for i in range(6)])).found("note")["seams"]
    assert "with 5 layer boundaries" in note
    assert note.count("is followed by") == 4
    assert "and 1 more" in note
