"""ASWUDI's rules for the number of directions, against the formulas of its authors' code in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.methods.parts.spectral_ranks import RANK_RULES, EigenvalueSpectrum

LEVELS = {"cumulative": [0.5, 0.95], "loss_elbow": [0.3, 0.01], "wudi_risk": [3.0, 1.0, 0.01]}
CASES = [(rule, level) for rule in RANK_RULES for level in LEVELS.get(rule, [None])]


class Problem:
    """C, D and T_0 of task vectors, and the eigenvectors of C in falling order: all n of them, small ones included."""

    def __init__(self, tasks, start="sum"):
        squares = [float((t * t).sum()) for t in tasks]
        self.c = sum(t.T @ t / s for t, s in zip(tasks, squares, strict=True))
        self.d = sum(t @ t.T @ t / s for t, s in zip(tasks, squares, strict=True))
        self.start = sum(tasks) * {"sum": 1.0, "mean": 1.0 / len(tasks), "zero": 0.0}[start]
        values, vectors = np.linalg.eigh(self.c)
        self.values, self.vectors = np.maximum(values[::-1], 1e-30), vectors[:, ::-1]
        self.tasks = tasks

    def merged(self, kept):
        v = self.vectors[:, :kept]
        inside = (self.d @ v) / self.values[:kept] - self.start @ v
        return self.start + inside @ v.T

    def count(self, rule, level):
        """K as the authors' code has it (hard_threshold: as Gavish and Donoho's paper has it)."""
        values, (m, n) = self.values, self.start.shape
        y = np.sqrt(values)
        p = values / values.sum()
        fit = values**2 * ((self.start @ self.vectors) ** 2).sum(0)
        fit = fit + ((self.d @ self.vectors) ** 2).sum(0)
        fits = np.array([fit[k:].sum() for k in range(n + 1)])
        if rule == "root_participation":
            return math.ceil(y.sum() ** 2 / values.sum())
        if rule == "participation":
            return math.ceil(values.sum() ** 2 / (values**2).sum())
        if rule == "stable_rank":
            return math.ceil(np.linalg.norm(self.c) ** 2 / np.linalg.norm(self.c, 2) ** 2)
        if rule == "entropy":
            return math.ceil(math.exp(-(p * np.log(p)).sum()))
        if rule == "gavish_donoho":
            b = min(m, n) / max(m, n)
            mu = math.sqrt(2 + math.sqrt(3)) if b > 0.9999 else math.sqrt((1 - b) ** 2 + b)
            star = math.sqrt(2 * (b + 1) + 8 * b / ((b + 1) + math.sqrt(b * b + 14 * b + 1)))
            return int((y > star / mu * np.sort(y)[(n - 1) // 2]).sum())
        if rule == "hard_threshold":
            stacked = np.concatenate([t / np.linalg.norm(t) for t in self.tasks])
            b = min(stacked.shape) / max(stacked.shape)
            omega = 0.56 * b**3 - 0.95 * b**2 + 1.82 * b + 1.43
            sizes = np.linalg.svd(stacked, compute_uv=False)
            return int((sizes > omega * np.median(sizes)).sum())
        if rule == "cumulative":
            return int((np.cumsum(p) < level).sum()) + 1
        if rule == "loss_elbow":
            return int(np.nonzero(fits / fits[0] <= level)[0][0])
        norms = [(self.merged(k) ** 2).sum() for k in range(n + 1)]
        return int(np.argmin(fits + level * np.array(norms)))


def drawn(shape, decay, seed=0):
    rng = np.random.default_rng(seed)
    falling = (np.arange(shape[1]) + 1.0) ** -decay
    return [rng.standard_normal(shape) * falling for _ in range(3)]


def run(merge, tasks, rule, level=None, start="sum"):
    shared = {"rank_rule": rule, "level": level, "start": start}
    return merge("aswudi", np.zeros(tasks[0].shape), tasks, shared=shared)


@pytest.mark.parametrize(("rule", "level"), CASES)
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_rank_rules_are_those_of_the_authors_code(merge, rule, level, shape, decay):
    tasks = drawn(shape, decay)
    problem = Problem(tasks)
    kept = min(shape[1], max(1, problem.count(rule, level)))
    found = run(merge, tasks, rule, level)
    assert np.linalg.norm(found - problem.merged(kept)) < 1e-9 * np.linalg.norm(found)


@pytest.mark.parametrize(("rule", "level"), CASES)
def test_rank_rules_of_task_vectors_with_fewer_rows_than_inputs(merge, rule, level):
    """The eigenvectors of C are found from the rows of all tasks: C has eigenvalues that are 0, which count as 0."""
    tasks = drawn((4, 30), 0.5)
    problem = Problem(tasks)
    expected = problem.count(rule, level) if rule != "gavish_donoho" else 12
    found = run(merge, tasks, rule, level)
    difference = found - problem.merged(min(12, max(1, expected)))
    assert np.linalg.norm(difference) < 1e-8 * np.linalg.norm(found)


@pytest.mark.parametrize(("rule", "level"), [("loss_elbow", 0.3), ("wudi_risk", 0.02)])
def test_rules_by_loss_know_the_start(merge, rule, level):
    tasks = drawn((24, 16), 0.0)
    counts = {}
    for start in ("sum", "mean"):
        problem = Problem(tasks, start)
        counts[start] = max(1, problem.count(rule, level))
        found = run(merge, tasks, rule, level, start)
        np.testing.assert_allclose(found, problem.merged(counts[start]), atol=1e-9)
    assert counts["sum"] != counts["mean"]


def test_the_usual_levels_are_the_authors(merge):
    tasks = drawn((24, 16), 1.0)
    for rule, level in (("cumulative", 0.95), ("loss_elbow", 0.01), ("wudi_risk", 1.0)):
        np.testing.assert_array_equal(run(merge, tasks, rule), run(merge, tasks, rule, level))


def test_rank_rules_count_what_they_say():
    values = np.array([4.0, 1.0, 1.0, 0.25])
    starts, targets = np.array([0.5, 1.0, 2.0, 16.0]), np.array([8.0, 1.0, 0.0, 0.25])
    spectrum = EigenvalueSpectrum(values, 3, 6, 4, lambda: (starts, targets))
    # fit: 16, 2, 2, 1.25 and thus 21.25, 5.25, 3.25, 1.25, 0; norms: 19.5, 19.5, 19.5, 17.5, 5.5.
    expected = {
        ("root_participation", 0.0): 4,  # 4.5^2 / 6.25 = 3.24
        ("participation", 0.0): 3,  # 6.25^2 / 18.0625 = 2.16
        ("stable_rank", 0.0): 2,  # 18.0625 / 16 = 1.13
        ("entropy", 0.0): 3,  # exp(0.8813) = 2.66
        ("gavish_donoho", 0.0): 1,  # b = 1/2, omega = 1.979 / 0.866, median 0.5 of the six
        ("hard_threshold", 0.0): 0,  # b = 2/3, omega = 2.387, median 1
        ("cumulative", 0.8): 2,
        ("loss_elbow", 0.2): 2,
        ("loss_elbow", 0.0): 4,
        ("wudi_risk", 0.1): 4,
        ("wudi_risk", 0.0): 4,
    }
    for (rule, level), count in expected.items():
        assert RANK_RULES[rule](np, spectrum, level) == count, rule
    assert {rule for rule, _ in expected} == set(RANK_RULES)


def test_at_least_one_direction_moves(merge):
    """wudi_risk counts from 0: where the minimiser is long and the start is short, the start has the least risk."""
    tasks = drawn((24, 16), 0.0)
    problem = Problem(tasks, "zero")
    assert problem.count("wudi_risk", 100.0) == 0
    found = run(merge, tasks, "wudi_risk", 100.0, "zero")
    np.testing.assert_allclose(found, problem.merged(1), atol=1e-9)


@pytest.mark.parametrize("rule", ["cumulative", "loss_elbow"])
def test_a_level_that_is_a_share_lies_between_0_and_1(merge, rule):
    with pytest.raises(RecipeError, match=f"share with rank_rule {rule}"):
        run(merge, drawn((4, 3), 0.0), rule, 1.5)


@pytest.mark.parametrize("rule", list(RANK_RULES))
def test_every_rank_rule_keeps_the_loss_between_start_and_minimum(merge, rule):
    tasks = drawn((5, 12), 0.3)

    def loss(at):
        return sum((((at - t) @ t.T) ** 2).sum() / (t * t).sum() for t in tasks)

    minimiser = merge("wudi", np.zeros((5, 12)), tasks)
    assert loss(minimiser) - 1e-12 <= loss(run(merge, tasks, rule)) <= loss(sum(tasks))


def test_unknown_rank_rules_are_refused(merge):
    for rule in ("guess", "risk"):
        with pytest.raises(RecipeError, match="rank_rule"):
            run(merge, [np.ones((2, 2))], rule)
