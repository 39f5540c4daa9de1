"""Diagnostics of interference on changes that are planted."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.comparison.diagnostics import DIAGNOSTICS, diagnose, singular_interference
from weightsmith.comparison.validated import VALIDITY, Validity
from weightsmith.errors import CompatibilityError, UsageError

NAME = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture
def folders(tmp_path, generator):
    base = {NAME.format(i): generator.normal(size=(20, 30)).astype(np.float32) for i in (0, 1)}

    def save(name, *changes):
        (tmp_path / name).mkdir()
        tensors = {key: base[key] + change for key, change in zip(base, changes, strict=True)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
        return tmp_path / name

    zero = np.zeros((20, 30), np.float32)
    return save, save("base", zero, zero), base, zero


def change(generator, scale=1e-2):
    return (scale * generator.normal(size=(20, 30))).astype(np.float32)


def test_every_diagnostic_is_measured_of_every_merge(folders, generator):
    save, base, _, _ = folders
    experts = [save(name, change(generator), change(generator)) for name in "abc"]
    values = diagnose(base, experts).values
    assert tuple(values) == DIAGNOSTICS
    assert all(np.isfinite(value) for value in values.values())
    assert values["sign_conflict"] == pytest.approx(0.5, abs=0.03)
    assert abs(values["delta_cosine"]) < 0.08
    assert abs(values["cancellation"]) < 0.15


def test_equal_experts_agree_in_everything(folders, generator):
    save, base, _, _ = folders
    own = change(generator), change(generator)
    values = diagnose(base, [save("a", *own), save("b", *own)]).values
    assert values["sign_conflict"] == 0
    assert values["distance"] == 0
    assert values["delta_cosine"] == pytest.approx(1)
    assert values["subspace_overlap"] == pytest.approx(1)
    assert values["cancellation"] == pytest.approx(-1)
    assert values["norm_imbalance"] == 1


def test_opposite_experts_cancel(folders, generator):
    save, base, _, _ = folders
    own = change(generator), change(generator)
    values = diagnose(base, [save("a", *own), save("b", *(-part for part in own))]).values
    assert values["sign_conflict"] == pytest.approx(1, abs=0.01)
    assert values["cancellation"] == pytest.approx(1, abs=1e-3)
    assert values["delta_alignment"] == pytest.approx(1, abs=1e-3)


def test_norms_are_those_of_the_whole_model(folders, generator):
    save, base, tensors, _ = folders
    small, large = change(generator), change(generator, 3e-2)
    a, b = save("a", small, small), save("b", large, large)
    values = diagnose(base, [a, b]).values
    origin = np.sqrt(sum((t.astype(float) ** 2).sum() for t in tensors.values()))
    norms = [np.sqrt(2 * (part.astype(float) ** 2).sum()) for part in (small, large)]
    assert values["relative_delta"] == pytest.approx(np.mean(norms) / origin, rel=1e-4)
    assert values["norm_imbalance"] == pytest.approx(norms[1] / norms[0], rel=1e-4)


def test_experts_in_orthogonal_subspaces_do_not_interfere(folders, generator):
    save, base, _, _ = folders
    left = np.linalg.qr(generator.normal(size=(20, 4)))[0]
    right = np.linalg.qr(generator.normal(size=(30, 4)))[0]
    first = (left[:, :2] @ right[:, :2].T).astype(np.float32)
    second = (left[:, 2:] @ right[:, 2:].T).astype(np.float32)
    values = diagnose(base, [save("a", first, first), save("b", second, second)]).values
    assert values["subspace_overlap"] == pytest.approx(0, abs=1e-6)
    assert values["singular_interference"] == pytest.approx(0, abs=1e-5)


def test_singular_interference_is_its_formula(generator):
    triples = [
        (u[:, :2], s[:2], v[:2])
        for u, s, v in (np.linalg.svd(generator.normal(size=(6, 5))) for _ in range(2))
    ]
    left = np.hstack([t[0] for t in triples])
    values = np.concatenate([t[1] for t in triples])
    right = np.vstack([t[2] for t in triples]).T
    between = (left.T @ left - np.eye(4)) @ np.diag(values) @ (right.T @ right - np.eye(4))
    expected = np.abs(between).sum() / values.sum()
    assert singular_interference(triples) == pytest.approx(expected)


def test_an_expert_that_changed_nothing_leaves_what_it_has_no_number_for_undefined(
    folders, generator
):
    save, base, _, zero = folders
    same, other = save("a", zero, zero), save("b", change(generator), change(generator))
    values = diagnose(base, [same, other]).values
    assert values["norm_imbalance"] is None
    assert values["delta_cosine"] is None
    assert values["singular_interference"] is None
    assert values["cancellation"] == 0


def test_one_expert_has_nothing_to_interfere_with(folders, generator):
    save, base, _, _ = folders
    with pytest.raises(UsageError, match="at least two"):
        diagnose(base, [save("a", change(generator), change(generator))])


def test_experts_of_another_model_are_refused(folders, tmp_path):
    _, base, _, _ = folders
    (tmp_path / "other").mkdir()
    save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / "other/model.safetensors")
    with pytest.raises(CompatibilityError, match="No tensor"):
        diagnose(base, [tmp_path / "other"] * 2)


def test_the_study_has_a_number_for_every_diagnostic():
    assert set(VALIDITY) == set(DIAGNOSTICS)
    assert all(v.low <= v.correlation <= v.high for v in VALIDITY.values())


@pytest.mark.parametrize(
    ("low", "high", "predicts"), [(0.1, 0.9, True), (-0.9, -0.1, True), (-0.1, 0.9, False)]
)
def test_a_diagnostic_predicts_where_its_interval_excludes_zero(low, high, predicts):
    assert Validity((low + high) / 2, low, high).predicts is predicts
