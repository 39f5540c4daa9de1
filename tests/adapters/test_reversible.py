"""Reversible Model Merging: adapters rebuilt from a basis, what it costs and loses, and its file."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.deltas.changes import LowRankChange
from weightsmith.errors import CheckpointError, CompatibilityError, OutputError, UsageError
from weightsmith.lora.basis_files import open_basis, write_basis
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.lora.reversible import reversible_basis, together
from weightsmith.lora.storing import BASIS
from weightsmith.publishing.sealing import sealed, unsealed
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import parse_file

from .lora import SHAPES, adapter, assert_same, change, dense, regauged

FORMS = ["whole", "per_position"]
Q = "model.layers.0.self_attn.q_proj.weight"


def relatives(count, rank=4, spread=0.3):
    """Adapters that differ a little from one, as fine-tunes of one run do."""
    common = adapter(0, rank)
    found = []
    for i in range(count):
        rng = np.random.default_rng(i + 1)
        factors = {}
        for key, f in common.factors.items():
            c = f.change
            moved = LowRankChange(
                c.left + spread * rng.normal(size=c.left.shape),
                c.right + spread * rng.normal(size=c.right.shape),
            )
            factors[key] = Factors(f.target, moved, f.shape)
        found.append(LowRankAdapter(factors))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 5, 2)])
def test_with_all_directions_every_adapter_is_exact(form, ranks):
    adapters = [adapter(i, r, scale=1.0 + i) for i, r in enumerate(ranks)]
    for options in ({}, {"directions": len(ranks) - 1}, {"directions": 99}, {"error": 0.0}):
        basis = reversible_basis(adapters, ["a", "b", "c"], form=form, **options)
        for label, one in zip("abc", adapters, strict=True):
            assert_same(basis.recovered(label), dense(one), atol=1e-11)
        assert all(max(t.errors) < 1e-12 for t in basis.report)
        assert all(t.expected < 1e-12 for t in basis.report)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_lost_is_the_sum_of_the_discarded_eigenvalues(form):
    adapters = relatives(4)
    stacked = together([a.factors[Q].change for a in adapters])
    points = stacked.reshape(4, 1, -1) if form == "whole" else stacked
    previous = np.inf
    for p in range(4):
        basis = reversible_basis(adapters, directions=p, form=form)
        lost, kept_apart = 0.0, points - points.mean(axis=0)
        for position in range(points.shape[1]):
            gram = kept_apart[:, position] @ kept_apart[:, position].T
            lost += np.sort(np.linalg.eigvalsh(gram))[: 4 - p].sum()
        (fact,) = (t for t in basis.report if t.key == Q)
        expected = np.sqrt(max(lost, 0.0)) / np.linalg.norm(stacked)
        assert fact.expected == pytest.approx(expected, abs=1e-7)
        rebuilt = [basis.recovered(str(i + 1)).factors[Q].change for i in range(4)]
        off = [
            np.linalg.norm(np.concatenate([r.left, r.right.T]) - z)
            for r, z in zip(rebuilt, stacked, strict=True)
        ]
        assert np.linalg.norm(off) / np.linalg.norm(stacked) == pytest.approx(expected, abs=1e-7)
        for error, r, a in zip(fact.errors, rebuilt, adapters, strict=True):
            true = dense(a)[Q]
            assert error == pytest.approx(
                np.linalg.norm(dense(r) - true) / np.linalg.norm(true), abs=1e-9
            )
        assert fact.expected < previous
        previous = fact.expected


def test_the_cost_is_that_of_the_papers_formula():
    n, r, p = 5, 4, 2
    adapters = relatives(n, r)
    (fact,) = (
        t
        for t in reversible_basis(adapters, directions=p, form="per_position").report
        if t.key == Q
    )
    assert fact.ratio == pytest.approx((p * (r + n) + r) / (r * n))
    (fact,) = (t for t in reversible_basis(adapters, directions=p).report if t.key == Q)
    size = (12 + 10) * r
    assert fact.ratio == pytest.approx(((p + 1) * size + n * p) / (n * size))


@pytest.mark.parametrize("form", FORMS)
def test_copies_of_one_adapter_need_no_direction(form):
    one = adapter(5)
    basis = reversible_basis([one, regauged(one), regauged(one, 1)], form=form, error=1e-6)
    assert {t.directions for t in basis.report} == {0}
    for number in "123":
        assert_same(basis.recovered(number), dense(one), atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_no_result_depends_on_how_products_are_written(form):
    adapters = relatives(3)
    plain = reversible_basis(adapters, directions=1, form=form)
    others = [regauged(a, i) for i, a in enumerate(adapters)]
    again = reversible_basis(others, directions=1, form=form)
    for number in "123":
        assert_same(again.recovered(number), dense(plain.recovered(number)), atol=1e-7)


def test_factors_are_aligned_before_they_are_compared():
    # Without alignment the copies' factors differ by as much as their size.
    one = change(np.random.default_rng(6), rank=4)
    stacked = together([one, LowRankChange(-one.left[:, ::-1], -one.right[::-1])])
    assert np.allclose(stacked[0], stacked[1], atol=1e-12)
    left, right = stacked[0][:12], stacked[0][12:]
    assert np.allclose(left @ right.T, dense(one), atol=1e-12)


def test_an_error_takes_the_fewest_directions_that_keep_to_it():
    adapters = relatives(5)
    basis = reversible_basis(adapters, error=0.2)
    for fact in basis.report:
        assert max(fact.errors) <= 0.2
        fewer = reversible_basis(adapters, directions=fact.directions - 1)
        (other,) = (t for t in fewer.report if t.key == fact.key)
        assert max(other.errors) > 0.2


def test_adapters_may_change_different_tensors():
    a, b = adapter(7), adapter(8, shapes={Q: SHAPES[Q]})
    basis = reversible_basis([a, b], ["a", "b"])
    assert_same(basis.recovered("a"), dense(a), atol=1e-11)
    assert_same(basis.recovered("b"), dense(b), atol=1e-11)


def test_zeros_and_whole_tensors_are_kept():
    head = np.ones((3, 2), np.float32)
    zero = Factors(Q, LowRankChange(np.zeros((12, 2)), np.ones((2, 10))), SHAPES[Q])
    a = LowRankAdapter({Q: zero}, {"lm_head.weight": head}, {"norm.bias": head[0]})
    basis = reversible_basis([a, LowRankAdapter({Q: zero})])
    found = basis.recovered("1")
    assert not dense(found)[Q].any()
    assert np.array_equal(found.replaced["lm_head.weight"], head)
    assert np.array_equal(found.added["norm.bias"], head[0])
    assert not basis.recovered("2").replaced


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_a_file_gives_the_adapters_back(tmp_path, form, dtype):
    head = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    part = Factors("experts.down", change(np.random.default_rng(1)), (2, 12, 10), part=1)
    factors = {**adapter(9).factors, part.key: part}
    adapters = [
        LowRankAdapter(factors, {"lm_head.weight": head}, {}, "org/base", dtype),
        LowRankAdapter(adapter(10).factors, {}, {"x.bias": head[0]}, "org/base", dtype),
    ]
    basis = reversible_basis(adapters, ["chat", "code"], form=form)
    out = tmp_path / "basis.safetensors"
    write_basis(basis, out)
    read = open_basis(out)
    assert read.labels == ("chat", "code")
    digits = 1e-5 if dtype is DType.FLOAT32 else 0.1
    for label in read.labels:
        before, after = basis.recovered(label), read.recovered(label)
        assert_same(after, dense(before), atol=digits)
        assert after.base_reference == "org/base"
        assert after.dtype is dtype
        assert {k: (f.target, f.shape, f.part) for k, f in after.factors.items()} == {
            k: (f.target, f.shape, f.part) for k, f in before.factors.items()
        }
    assert np.array_equal(read.recovered("chat").replaced["lm_head.weight"], head)
    assert np.array_equal(read.recovered("code").added["x.bias"], head[0])
    with pytest.raises(OutputError, match="exists"):
        write_basis(basis, out)
    write_basis(basis, out, force=True)
    assert open_basis(out).labels == ("chat", "code")


def test_a_damaged_file_is_refused(tmp_path):
    out = tmp_path / "basis.safetensors"
    write_basis(reversible_basis(relatives(2)), out)
    whole = out.read_bytes()
    for place, said in ((len(whole) - 3, "digest"), (whole.index(b"schema") + 12, "seal")):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        out.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=said):
            open_basis(out)
    out.write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        open_basis(out)


def test_another_file_is_no_basis(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no basis of adapters"):
        open_basis(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=r"one \.safetensors file"):
        write_basis(reversible_basis(relatives(2)), tmp_path / "folder")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"directions": 1, "error": 0.1}, "not both"),
        ({"directions": -1}, "-1 directions"),
        ({"error": 1.0}, "error of 1"),
        ({"labels": ["a", "a"]}, "same label"),
    ],
)
def test_requests_without_a_meaning_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        reversible_basis(relatives(2), **options)


def test_one_adapter_other_bases_and_unknown_labels_are_refused():
    with pytest.raises(UsageError, match="two or more"):
        reversible_basis([adapter(0)])
    with pytest.raises(UsageError, match="no adapter '3'"):
        reversible_basis(relatives(2)).recovered("3")
    with pytest.raises(CompatibilityError, match="different bases"):
        reversible_basis([adapter(0, base_reference="x"), adapter(1, base_reference="y")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [5]}, "its 'labels' is no list of texts"),
        ({"form": "x"}, "there is no form 'x'"),
        ({"base": 5}, "its 'base' is no text"),
        ({"target": None}, "its 'target' is no text"),
        ({"kind": "x"}, "there is no kind 'x'"),
        ({"rank": -1}, "its 'rank' is no whole number"),
        ({"rank": True}, "its 'rank' is no whole number"),
        ({"shape": [12, 11]}, "do not fit together"),
        ({"matrix": ["12", 10]}, "no list of whole numbers"),
        ({"adapters": [[0], 1]}, "no list of whole numbers"),
        ({"part": 10**12}, "do not fit together|has no expert"),
        ({"part": [1]}, "its 'part' is no whole number"),
    ],
)
def test_a_header_that_says_what_no_basis_has_is_refused(tmp_path, change, said):
    from safetensors.numpy import load_file, save_file

    out = tmp_path / "basis.safetensors"
    write_basis(reversible_basis(relatives(2), ["chat", "code"]), out)
    metadata = parse_file(out).metadata
    header = {k: v for k, v in unsealed(metadata[BASIS].encode()).items() if k != "seal"}
    places = [header] if set(change) <= set(header) else list(header["tensors"].values())
    for place in places:
        place.update(change)
    save_file(load_file(out), out, metadata={**metadata, BASIS: sealed(header).decode()})
    with pytest.raises(CheckpointError, match=said):
        open_basis(out)
