"""Golden values of the mask methods, worked out here in float64 from the papers' formulas, and their special cases."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError


def draw(n, shape=(5, 8), seed=0, size=0.1):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    return base, [
        base + size * rng.normal(size=shape) * (rng.random(shape) < 0.8) for _ in range(n)
    ]


def deltas_of(base, experts):
    return np.stack([e - base for e in experts])


def model_of(n, sizes=((4, 6), (9,), (3, 5)), seed=0):
    """Several tensors of one model: {name: (base, experts, facts)}."""
    return {f"t{i}": (*draw(n, s, seed + i), {}) for i, s in enumerate(sizes)}


def flat_deltas(model):
    """(experts, elements of all tensors): the model as the authors' code sees it."""
    return np.concatenate(
        [deltas_of(b, e).reshape(len(e), -1) for b, e, _ in model.values()], axis=1
    )


def flat_change(model, merged):
    return np.concatenate([(merged[k] - b).reshape(-1) for k, (b, _, _) in model.items()])


# TALL masks and Consensus ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_tall_masks_golden(merge, lam):
    base, experts = draw(4)
    taus = deltas_of(base, experts)
    for t in range(4):
        others = sum(taus[s] for s in range(4) if s != t)
        mask = np.abs(taus[t]) > lam * np.abs(others)
        shared = {"task": str(t + 1), "mask_lambda": lam}
        merged = merge("tall_masks", base, experts, shared=shared)
        np.testing.assert_allclose(merged, base + mask * taus.sum(0), rtol=1e-12, atol=1e-15)


def test_tall_masks_compare_task_vectors_not_weights(merge):
    # FusionBench passes task vectors where weights are expected: |theta_0 - tau_t| against lambda |tau - tau_t|.
    base, experts = draw(3, size=0.01)
    taus = deltas_of(base, experts)
    wrong = np.abs(base - taus[0]) > 0.4 * np.abs(taus.sum(0) - taus[0])
    right = np.abs(taus[0]) > 0.4 * np.abs(taus.sum(0) - taus[0])
    assert (wrong != right).any()
    mask = merge("tall_masks", base, experts, shared={"part": "mask"})
    np.testing.assert_array_equal(mask, right)


def test_lambda_zero_selects_what_the_task_changed_and_larger_lambdas_nest(merge):
    base, experts = draw(3)
    taus = deltas_of(base, experts)
    masks = [
        merge("tall_masks", base, experts, shared={"part": "mask", "mask_lambda": lam, "task": "2"})
        for lam in (0.0, 0.2, 0.5, 1.0, 3.0)
    ]
    np.testing.assert_array_equal(masks[0], taus[1] != 0)
    for larger, smaller in zip(masks[1:], masks, strict=False):
        assert (larger <= smaller).all()


def test_lambda_one_is_the_elementwise_optimum(merge):
    base, experts = draw(5)
    taus = deltas_of(base, experts)
    mask = merge("tall_masks", base, experts, shared={"part": "mask", "mask_lambda": 1.0})
    best = np.minimum(np.abs(taus.sum(0) - taus[0]), np.abs(taus[0]))
    np.testing.assert_allclose(np.abs(mask * taus.sum(0) - taus[0]), best, atol=1e-12)


def test_disjoint_supports_and_one_expert_are_recovered(merge):
    rng = np.random.default_rng(0)
    base = np.round(rng.normal(size=(6, 7)) * 64) / 64
    owner = rng.integers(0, 3, size=base.shape)
    change = np.round(rng.normal(size=base.shape) * 64) / 64
    experts = [base + change * (owner == t) for t in range(3)]
    for t in range(3):
        merged = merge("tall_masks", base, experts, shared={"task": str(t + 1)})
        np.testing.assert_array_equal(merged, experts[t])
    np.testing.assert_array_equal(merge("tall_masks", base, experts[:1]), experts[0])
    np.testing.assert_array_equal(merge("emr", base, experts[:1]), experts[0])


def test_tall_masks_on_the_ties_vector_and_by_magnitude(merge_model):
    model = model_of(3)
    taus = flat_deltas(model)
    k = int(0.5 * taus.shape[1])
    trimmed = np.stack([np.where(np.abs(t) >= np.sort(np.abs(t))[-k], t, 0) for t in taus])
    elected = np.sign(trimmed.sum(0))
    ties = np.where(np.sign(trimmed) == elected, trimmed, 0).sum(0)
    shared = {"vector": "ties", "density": 0.5, "mask_lambda": 0.5, "task": "2"}
    merged = flat_change(model, merge_model("tall_masks", model, shared=shared))
    mask = np.abs(taus[1]) > 0.5 * np.abs(ties - taus[1])
    np.testing.assert_allclose(merged, mask * ties, atol=1e-12)
    top = np.abs(taus[1]) >= np.sort(np.abs(taus[1]))[-int(0.1 * taus.shape[1])]
    by_size = flat_change(
        model, merge_model("tall_masks", model, shared={"task": "2"}, preset="magnitude")
    )
    np.testing.assert_allclose(by_size, top * taus.sum(0), atol=1e-12)


def test_a_mask_of_all_magnitudes_is_what_the_task_changed(merge):
    base, experts = draw(3)
    shared = {"part": "mask", "task": "2", "masks": "magnitude", "mask_density": 1.0}
    changed = deltas_of(base, experts)[1] != 0.0
    assert 0 < changed.sum() < changed.size
    np.testing.assert_array_equal(merge("tall_masks", base, experts, shared=shared), changed)


@pytest.mark.parametrize("method", ["tall_masks", "emr"])
def test_tasks_go_by_label_or_number(merge, method):
    base, experts = draw(3)
    labels = ("math", "3", "code")
    for task, number in (("math", 1), ("code", 3), ("2", 2)):
        by_label = merge(method, base, experts, shared={"task": task}, labels=labels)
        by_number = merge(method, base, experts, shared={"task": str(number)})
        np.testing.assert_array_equal(by_label, by_number)
    # A label goes before a number that looks like it.
    np.testing.assert_array_equal(
        merge(method, base, experts, shared={"task": "3"}, labels=labels),
        merge(method, base, experts, shared={"task": 2}),
    )
    for wrong in ("0", "4", "prose", "-1"):
        with pytest.raises(RecipeError, match="has no task"):
            merge(method, base, experts, shared={"task": wrong})


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_consensus_golden(merge, k, scale):
    base, experts = draw(4)
    taus = deltas_of(base, experts)
    users = sum(np.abs(t) > 0.4 * np.abs(taus.sum(0) - t) for t in taus)
    merged = merge("consensus", base, experts, shared={"k": k, "lambda": scale})
    np.testing.assert_allclose(merged, base + scale * (users >= k) * taus.sum(0), atol=1e-12)


def test_consensus_is_task_arithmetic_at_0_and_the_base_beyond_n_and_takes_a_lambda_per_task(merge):
    base, experts = draw(3)
    zero = merge("consensus", base, experts, shared={"k": 0})
    np.testing.assert_array_equal(zero, merge("task_arithmetic", base, experts))
    np.testing.assert_array_equal(merge("consensus", base, experts, shared={"k": 4}), base)
    taus = deltas_of(base, experts)
    lambdas = [0.1, 0.5, 2.0]
    users = sum(
        np.abs(t) > lam * np.abs(taus.sum(0) - t) for t, lam in zip(taus, lambdas, strict=True)
    )
    merged = merge("consensus", base, experts, per_expert=[{"mask_lambda": lam} for lam in lambdas])
    np.testing.assert_allclose(merged, base + (users >= 2) * taus.sum(0), atol=1e-12)


# EMR ------------------------------------------------------------------------------------------------------------


def emr_golden(taus, sizes, rescale, zero_sign):
    mean = taus.mean(0)
    gamma = np.where(mean > 0, 1.0, np.where(mean < 0, -1.0, zero_sign))
    united = gamma * np.max(np.where(np.sign(taus) == gamma, np.abs(taus), 0), axis=0)
    masks = taus * united > 0
    edges = np.cumsum(sizes)[:-1]

    def weigh(x):
        return sum(p.mean() for p in np.split(x, edges)) if rescale == "mean" else x.sum()

    lambdas = [
        1.0 if rescale == "none" else weigh(np.abs(t)) / weigh(np.abs(m * united))
        for t, m in zip(taus, masks, strict=True)
    ]
    return [lam * m * united for lam, m in zip(lambdas, masks, strict=True)]


@pytest.mark.parametrize(
    ("how", "rescale", "zero_sign"),
    [
        ({}, "norm", 0.0),
        ({"preset": "reference"}, "mean", -1.0),
        ({"shared": {"rescale": "none"}}, "none", 0.0),
    ],
)
def test_emr_golden(merge_model, how, rescale, zero_sign):
    model = model_of(4)
    taus = flat_deltas(model)
    sizes = [b.size for b, _, _ in model.values()]
    wanted = emr_golden(taus, sizes, rescale, zero_sign)
    for t in range(4):
        shared = {**how.get("shared", {}), "task": str(t + 1)}
        merged = merge_model("emr", model, shared=shared, preset=how.get("preset", "paper"))
        np.testing.assert_allclose(flat_change(model, merged), wanted[t], rtol=1e-6, atol=1e-12)


def test_emr_keeps_the_l1_norm_of_the_whole_model_where_the_mean_of_means_does_not(merge_model):
    # The authors' code lets a bias of 3 elements weigh as much as a matrix of 400.
    model = model_of(3, sizes=((20, 20), (3,)))
    base, experts, facts = model["t1"]
    model["t1"] = (base, [base + 50 * (e - base) for e in experts], facts)
    norm = np.abs(flat_deltas(model)[0]).sum()
    ours = np.abs(flat_change(model, merge_model("emr", model))).sum()
    theirs = np.abs(flat_change(model, merge_model("emr", model, preset="reference"))).sum()
    np.testing.assert_allclose(ours, norm, rtol=1e-9)
    assert abs(theirs / norm - 1) > 0.01


@pytest.mark.parametrize(("rescale", "is_scaled"), [("norm", True), ("none", False)])
def test_parts_of_emr_make_the_whole(merge, rescale, is_scaled):
    """theta_0 + lambda_t M_t tau_uni, each from its formula."""
    base, experts = draw(3)
    taus = deltas_of(base, experts)
    united = emr_golden(taus[:, None].reshape(3, -1), [base.size], "none", 0.0)[1]
    shared = {"task": "2", "rescale": rescale}
    mask = merge("emr", base, experts, shared={**shared, "part": "mask"})
    np.testing.assert_array_equal(mask.reshape(-1), united != 0.0)
    scale = abs(taus[1]).sum() / abs(united).sum() if is_scaled else 1.0
    found = merge("emr", base, experts, shared={**shared, "part": "scale"})
    np.testing.assert_allclose(found, np.full(base.shape, scale), rtol=1e-12)
    whole = merge("emr", base, experts, shared=shared)
    np.testing.assert_allclose(whole, base + scale * united.reshape(base.shape), atol=1e-12)


def test_emr_signs_and_magnitudes(merge):
    base, experts = draw(5)
    taus = deltas_of(base, experts)
    united = merge("emr", base, experts, shared={"part": "shared"})
    for t in range(5):
        change = merge("emr", base, experts, shared={"task": str(t + 1)}) - base
        nonzero = change != 0
        np.testing.assert_array_equal(np.sign(change)[nonzero], np.sign(taus[t])[nonzero])
        agrees = taus[t] * united > 0
        assert (np.abs(united)[agrees] >= np.abs(taus[t])[agrees] - 1e-15).all()


def test_emr_where_everything_cancels_or_opposes_is_finite(merge):
    base = np.zeros(4)
    one = np.array([1.0, -2.0, 3.0, 0.0])
    np.testing.assert_array_equal(merge("emr", base, [one, -one]), base)
    opposed = merge("emr", base, [3 * one, -one], shared={"task": "2"})
    np.testing.assert_array_equal(opposed, base)
    same = merge("emr", base, [one, one, one])
    np.testing.assert_array_equal(same, one)


# MagMax ---------------------------------------------------------------------------------------------------------


def test_magmax_golden_and_the_last_of_equals(merge):
    base, experts = draw(4)
    taus = deltas_of(base, experts)
    chosen = np.take_along_axis(taus, np.abs(taus).argmax(0)[None], 0)[0]
    np.testing.assert_allclose(merge("magmax", base, experts), base + 0.5 * chosen, atol=1e-15)
    base = np.zeros(3)
    pair = [np.array([1.0, -2.0, 0.0]), np.array([-1.0, 1.0, 0.0])]
    merged = merge("magmax", base, pair, shared={"lambda": 1.0})
    np.testing.assert_array_equal(merged, [-1.0, -2.0, 0.0])


# Localize-and-Stitch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_localize_and_stitch_golden_over_the_whole_model(merge_model, density):
    model = model_of(3)
    taus = flat_deltas(model)
    k = int(density * taus.shape[1])
    masks = np.zeros_like(taus)
    for mask, tau in zip(masks, taus, strict=True):
        mask[np.argsort(-np.abs(tau), kind="stable")[:k]] = 1
    masks *= taus != 0
    shares = masks / np.maximum(masks.sum(0), 1)
    merged = merge_model("localize_and_stitch", model, shared={"density": density})
    np.testing.assert_allclose(flat_change(model, merged), (shares * taus).sum(0), atol=1e-12)


def test_localize_and_stitch_at_density_1_is_the_average_and_disjoint_regions_are_copied(merge):
    base, experts = draw(3)
    whole = merge("localize_and_stitch", base, experts, shared={"density": 1.0})
    np.testing.assert_allclose(whole, np.mean(experts, 0), atol=1e-12)
    base = np.zeros(6)
    first, second = np.array([1.0, 2, 0, 0, 0, 0]), np.array([0.0, 0, 0, 3, 4, 0])
    merged = merge("localize_and_stitch", base, [first, second], shared={"density": 0.4})
    np.testing.assert_array_equal(merged, first + second)


def test_parts_of_localize_and_stitch_make_the_whole(merge):
    base, experts = draw(3)
    taus = deltas_of(base, experts)
    masks = [abs(t) >= np.sort(abs(t).ravel())[-12] for t in taus]  # 0.3 of 40
    shared = {"density": 0.3, "lambda": 0.5}
    mask = merge("localize_and_stitch", base, experts, shared={**shared, "part": "mask", "task": 2})
    np.testing.assert_array_equal(mask, masks[1])
    stitched = sum(m * t for m, t in zip(masks, taus, strict=True)) / np.maximum(sum(masks), 1)
    found = merge("localize_and_stitch", base, experts, shared={**shared, "part": "shared"})
    np.testing.assert_allclose(found, 0.5 * stitched, atol=1e-12)
    whole = merge("localize_and_stitch", base, experts, shared={**shared, "task": "2"})
    np.testing.assert_allclose(whole, base + 0.5 * masks[1] * stitched, atol=1e-12)


def test_localize_and_stitch_takes_exactly_k_of_equal_changes(merge):
    base, expert = np.zeros(10), np.ones(10)
    merged = merge("localize_and_stitch", base, [expert], shared={"density": 0.3})
    assert np.isin(merged, (0.0, 1.0)).all()
    assert merged.sum() == 3


def test_excluded_roles_stay_at_the_base_and_shift_nothing(merge_model):
    # The authors' code leaves tensors out on one side only of its flattening, which shifts all later masks.
    plain = model_of(2)
    embedding = (*draw(2, (50,), 9, size=5.0), {"role": "embedding"})
    zero = (np.zeros(4), [np.zeros(4), np.zeros(4)], {})
    how = {"shared": {"density": 0.2}, "preset": "language_models"}
    wanted = merge_model("localize_and_stitch", plain, **how)
    with_it = {"a": embedding, "t0": plain["t0"], "t1": plain["t1"], "t2": plain["t2"]}
    merged = merge_model("localize_and_stitch", with_it, **how)
    np.testing.assert_array_equal(merged["a"], embedding[0])
    for name in plain:
        np.testing.assert_array_equal(merged[name], wanted[name])
    attention = (*draw(2, (4,), 3), {"role": "attention.q"})
    family = merge_model(
        "localize_and_stitch", {"q": attention, "z": zero}, shared={"exclude": "attention, norm"}
    )
    np.testing.assert_array_equal(family["q"], attention[0])
    with pytest.raises(RecipeError, match=r"'embed'.*no role"):
        merge_model("localize_and_stitch", plain, shared={"exclude": "embed"})


# PCB ------------------------------------------------------------------------------------------------------------


def norm(x):
    return (x - x.min()) / (x.max() - x.min())


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def pcb_paper(taus, r, lambdas):
    n, d = taus.shape
    scores = []
    for i in range(n):
        within = softmax(n * norm(taus[i] * taus[i]))
        between = sum(softmax(norm(taus[i] * taus[j])) for j in range(n))
        score = within * between
        kept = np.zeros(d)
        kept[np.argsort(-score, kind="stable")[: int(r * d)]] = 1
        scores.append(norm(kept * score))
    scores = np.stack(scores)
    weight = scores.sum(0)
    return (scores * lambdas[:, None] * taus).sum(0) / np.where(weight == 0, 1, weight)


def pcb_code(taus, r, form, q):
    """The authors' three files, from their description: flat vectors of the whole model, rows are tasks."""
    n, d = taus.shape
    ordered = np.sort(np.abs(taus), axis=1)
    low, high = ordered[:, [int(d * q)]], ordered[:, [int(d * (1 - q) - 1)]]
    size = np.clip(np.abs(taus), low, high)
    clipped = np.sign(taus) * size
    norms = np.stack([norm(s) for s in size])
    signed = np.sign(taus) * norms
    between = {
        "pcb-merging": lambda i: np.tanh(taus[i] * taus.sum(0)),
        "pcb": lambda i: np.tanh(taus[i] * signed.sum(0)),
        "pcb_es": lambda i: sum(np.tanh(signed[i] * signed[j]) for j in range(n)),
    }[form]
    scales = []
    for i in range(n):
        score = np.exp(n * norms[i] ** 2) * between(i)
        threshold = np.sort(score)[int(d * (1 - r))]
        scales.append(norm(np.maximum(score, threshold)))
    scales = np.stack(scales)
    return (scales * clipped).sum(0) / np.maximum(scales.sum(0), 1e-12)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_pcb_golden(merge_model, density, n):
    model = model_of(n)
    lambdas = np.linspace(0.5, 1.5, n)
    wanted = pcb_paper(flat_deltas(model), density, lambdas)
    how = {"shared": {"density": density}, "per_expert": [{"weight": w} for w in lambdas]}
    merged = flat_change(model, merge_model("pcb", model, **how))
    np.testing.assert_allclose(merged, wanted, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("form", ["pcb-merging", "pcb", "pcb_es"])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("q", [0.0, 0.1])
def test_pcb_variants_of_the_code_golden(merge_model, form, density, q):
    # Densities above one half reach scores below zero, where tasks oppose each other.
    model = model_of(3)
    wanted = pcb_code(flat_deltas(model), density, form, q)
    shared = {"density": density, "clamp": q}
    merged = flat_change(model, merge_model("pcb", model, shared=shared, preset=form))
    np.testing.assert_allclose(merged, wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("preset", ["paper", "pcb-merging", "pcb", "pcb_es"])
def test_pcb_of_one_expert_keeps_it_where_it_is_kept(merge, preset):
    base, experts = draw(1)
    shared = {"density": 0.4, "clamp": 0.0}
    change = merge("pcb", base, experts, shared=shared, preset=preset) - base
    tau = experts[0] - base
    kept = change != 0
    assert 0 < kept.sum() <= int(0.4 * tau.size)
    np.testing.assert_allclose(change[kept], tau[kept], rtol=1e-9)


@pytest.mark.parametrize("preset", ["paper", "pcb-merging", "pcb", "pcb_es"])
def test_pcb_is_a_convex_combination_of_its_task_vectors(merge, preset):
    base, experts = draw(4)
    taus = deltas_of(base, experts)
    change = merge("pcb", base, experts, shared={"density": 0.7}, preset=preset) - base
    low, high = np.minimum(taus.min(0), 0), np.maximum(taus.max(0), 0)
    assert ((change >= low - 1e-12) & (change <= high + 1e-12)).all()


@pytest.mark.parametrize("preset", ["paper", "pcb-merging", "pcb", "pcb_es"])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_pcb_of_constant_task_vectors_is_finite(merge, preset, density):
    # Norm of a constant is 0 / 0 in the authors' code.
    base = np.zeros((4, 5))
    shared = {"density": density}
    for experts in (
        [np.ones((4, 5))] * 3,
        [np.zeros((4, 5))] * 2,
        [np.ones((4, 5)), -np.ones((4, 5))],
    ):
        merged = merge("pcb", base, experts, shared=shared, preset=preset)
        assert np.isfinite(merged).all()
        assert np.abs(merged).max() <= 1.0


@pytest.mark.parametrize("preset", ["pcb-merging", "pcb"])
def test_pcb_of_many_tasks_does_not_overflow(merge, preset):
    # exp(N) leaves float32 at 89 tasks.
    base, experts = draw(100, (6, 6))
    base = base.astype(np.float32)
    single = [e.astype(np.float32) for e in experts]
    merged = merge("pcb", base, single, shared={"density": 0.5}, preset=preset)
    assert np.isfinite(merged).all()
    assert (merged != base).any()


# DARE and DELLA: exact division by the probability ---------------------------------------------------------------


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_divides_what_it_keeps_by_the_density_exactly(merge, density):
    base = np.zeros((30, 40), np.float32)
    expert = np.random.default_rng(0).normal(size=base.shape).astype(np.float32)
    merged = merge("dare_linear", base, [expert], shared={"density": density})
    kept = merged != 0
    np.testing.assert_array_equal(merged[kept], (expert / np.float32(density))[kept])
    spread = 4 * np.sqrt(density * (1 - density) * base.size)
    assert abs(kept.sum() - density * base.size) < spread
    # mergekit's L1 ratio is another number.
    restored = merge("dare_linear", base, [expert], shared={"density": density, "rescale": "l1"})
    assert not np.allclose(restored[kept], merged[kept])


def test_dare_without_survivors_is_the_base_and_no_nan(merge):
    base, experts = draw(2)
    for method in ("dare_linear", "dare_ties"):
        np.testing.assert_array_equal(merge(method, base, experts, shared={"density": 0.0}), base)


@pytest.mark.parametrize("rescale", ["probability", "none"])
def test_della_divides_every_survivor_by_its_own_probability_exactly(merge, rescale):
    base = np.zeros((20, 50))
    expert = np.random.default_rng(0).normal(size=base.shape)
    shared = {"density": 0.6, "epsilon": 0.2, "rescale": rescale}
    merged = merge("della_linear", base, [expert], shared=shared)
    ranks = np.abs(expert).argsort(1).argsort(1)
    q = 0.4 + 0.4 * ranks / 49
    kept = merged != 0
    wanted = expert / q if rescale == "probability" else expert
    np.testing.assert_allclose(merged[kept], wanted[kept], rtol=1e-12)
    assert 0.5 < kept.mean() < 0.7
