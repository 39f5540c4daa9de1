"""`compare_checkpoints` against sums in exact or float64 arithmetic, computed here."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import CompatibilityError
from weightsmith.inspection.checkpoint_difference import compare_checkpoints
from weightsmith.inspection.measures import Measures, together

Q = "model.layers.{}.self_attn.q_proj.weight"


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(tensor):
    return tensor.double().numpy().reshape(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_measures_are_those_of_float64_arithmetic(checkpoint, dtype):
    a = normal(1, 300, 7, dtype=dtype)
    b = a.clone()
    b[::3] += normal(2, 100, 7, dtype=dtype)
    found = compare_checkpoints(checkpoint("a", {"w": a}), checkpoint("b", {"w": b})).total
    x, y = double(a), double(b)
    assert found.relative_delta == pytest.approx(
        np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-6
    )
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-6)
    assert found.changed == np.count_nonzero(x != y)
    assert found.largest == pytest.approx(np.abs(y - x).max(), rel=1e-6)


def test_groups_join_the_tensors_of_a_layer_and_role(checkpoint):
    a = {Q.format(i): normal(i, 4, 4) for i in range(3)} | {"model.norm.weight": normal(9, 4)}
    b = {n: t + 0.5 * (n == Q.format(1)) for n, t in a.items()}
    found = compare_checkpoints(checkpoint("a", a), checkpoint("b", b))
    assert [(g.block, g.layer, g.role) for g in found.groups] == [
        (None, None, "norm"),
        *(("model.layers", i, "attention.q") for i in range(3)),
    ]
    assert [g.measures.changed_share for g in found.groups] == [0, 0, 1, 0]
    expected = np.linalg.norm(double(b[Q.format(1)]) - double(a[Q.format(1)])) / np.linalg.norm(
        double(a[Q.format(1)])
    )
    assert found.groups[2].measures.relative_delta == pytest.approx(expected)


def test_layers_are_in_the_order_of_numbers_not_of_text(checkpoint):
    a = checkpoint("a", {Q.format(i): normal(i, 2, 2) for i in range(12)})
    assert [g.layer for g in compare_checkpoints(a, a).groups] == list(range(12))


def test_names_and_forms_that_differ_are_listed_and_not_measured(checkpoint):
    a = checkpoint(
        "a",
        {"both": normal(1, 4), "mine": normal(2, 4), "form": normal(3, 4), "type": normal(4, 4)},
    )
    b = checkpoint(
        "b",
        {
            "both": normal(1, 4),
            "yours": normal(2, 4),
            "form": normal(3, 2, 2),
            "type": normal(4, 4).double(),
        },
    )
    found = compare_checkpoints(a, b)
    assert found.missing == ("mine",)
    assert found.extra == ("yours",)
    assert [(m.name, m.a, m.b) for m in found.shapes] == [("form", "[4]", "[2, 2]")]
    assert [(m.name, m.a, m.b) for m in found.dtypes] == [("type", "float32", "float64")]
    assert {t.name: t.measures.changed for t in found.tensors} == {"both": 0, "type": 0}
    assert not found.identical


def test_identical_means_every_byte(checkpoint):
    plus, minus = torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])
    nan = torch.tensor([math.nan, 1.0])
    zeros = compare_checkpoints(checkpoint("p", {"w": plus}), checkpoint("m", {"w": minus}))
    assert not zeros.identical
    assert zeros.total.changed == 0
    nans = compare_checkpoints(checkpoint("n1", {"w": nan}), checkpoint("n2", {"w": nan.clone()}))
    assert nans.identical
    assert nans.total.changed == 0
    assert nans.total.other_bits == 0


def test_nan_against_a_number_is_a_change(checkpoint):
    a, b = torch.tensor([math.nan, 1.0, 2.0]), torch.tensor([5.0, 1.0, math.nan])
    assert (
        compare_checkpoints(checkpoint("a", {"w": a}), checkpoint("b", {"w": b})).total.changed == 2
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_and_bools_are_counted(checkpoint, dtype):
    a = torch.arange(10).remainder(2).to(dtype)
    b = a.clone()
    b[3] = 0
    b[4] = 1
    found = compare_checkpoints(checkpoint("a", {"w": a}), checkpoint("b", {"w": b}))
    assert found.total.changed == 2
    assert found.total.elements == 10
    assert not found.identical


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 5), (1, 1, 1, 3)])
def test_odd_shapes_compare(checkpoint, shape):
    a = checkpoint("a", {"w": torch.full(shape, 2.0)})
    b = checkpoint("b", {"w": torch.full(shape, 3.0)})
    found = compare_checkpoints(a, b)
    assert found.total.elements == found.total.changed == math.prod(shape)
    assert compare_checkpoints(a, a).identical


def test_with_a_base_the_changes_are_compared(checkpoint):
    base, u, v = normal(1, 50, 3), normal(2, 50, 3), normal(3, 50, 3)
    paths = [
        checkpoint(n, {"w": t, "i": torch.arange(3)})
        for n, t in (("c", base), ("a", base + u), ("b", base + v))
    ]
    found = compare_checkpoints(paths[1], paths[2], base=paths[0])
    x, y, z = double(base + u) - double(base), double(base + v) - double(base), double(base)
    m = next(t.measures for t in found.tensors if t.name == "w")
    assert m.delta_a == pytest.approx(np.linalg.norm(x) / np.linalg.norm(z), rel=1e-6)
    assert m.delta_b == pytest.approx(np.linalg.norm(y) / np.linalg.norm(z), rel=1e-6)
    assert m.delta_cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-5)
    assert found.not_in_base == ("i",)


def test_a_base_of_another_shape_is_refused(checkpoint):
    a, base = checkpoint("a", {"w": normal(1, 4)}), checkpoint("base", {"w": normal(1, 5)})
    with pytest.raises(CompatibilityError, match=r"'w'.*\[5\].*\[4\]"):
        compare_checkpoints(a, a, base=base)


def test_threads_do_not_change_a_bit(checkpoint):
    a = checkpoint("a", {f"w{i}": normal(i, 700, 501) for i in range(3)})
    b = checkpoint("b", {f"w{i}": normal(i + 10, 700, 501) for i in range(3)})
    assert compare_checkpoints(a, b, threads=1) == compare_checkpoints(a, b, threads=4)


def test_memory_does_not_grow_with_the_tensor(checkpoint):
    a = checkpoint("a", {"w": torch.zeros(4_000_000)})
    b = checkpoint("b", {"w": torch.ones(4_000_000)})
    compare_checkpoints(a, b, threads=1)
    tracemalloc.start()
    compare_checkpoints(a, b, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1000)), max_size=6), st.randoms())
def test_joining_does_not_depend_on_the_order(parts, random):
    measures = [
        Measures(tensors=1, elements=n, aa=x, dd=x / 3, changed=n, largest=x) for x, n in parts
    ]
    shuffled = measures[:]
    random.shuffle(shuffled)
    joined = together(measures)
    assert joined == together(shuffled)
    assert joined.elements == sum(n for _, n in parts)
    assert joined.largest == max((x for x, _ in parts), default=0)
