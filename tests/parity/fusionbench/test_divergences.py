"""Where weightsmith differs from FusionBench 0.2.33 on purpose: the rows of docs/parity.md, both sides of them."""

from __future__ import annotations

import pytest
import torch

import weightsmith

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def merged(method, base, experts, preset="paper", **parameters):
    """One tensor through our method."""
    return weightsmith.merge_state_dicts(
        method,
        [{"w": e} for e in experts],
        base=None if base is None else {"w": base},
        parameters=parameters,
        preset=preset,
    )["w"]


def drawn(count, *shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_half_dtypes_are_computed_in_float32_and_rounded_once(bench):
    """FusionBench sums in the dtype of the weights."""
    inputs = [x.bfloat16() for x in drawn(5, 64, 64)]
    exact = torch.stack([x.double() for x in inputs]).mean(0).bfloat16()
    states = [{"w": x} for x in inputs]
    theirs = bench.average.simple_average(states)["w"]
    wrong = [float((x != exact).double().mean()) for x in (merged("soup", None, inputs), theirs)]
    assert wrong[0] < 0.004 < 0.1 < wrong[1]


def test_averaging_leaves_its_inputs_alone(bench, family, models):
    pool = family.named()
    bench.average.SimpleAverageAlgorithm().run(pool)
    assert models.farthest(family.states[0], pool["expert0"]) > 0.01
    before = family.states
    family.ours("soup", base=False)
    models.assert_close(before[0], family.states[0], 0.0)


def test_counters_stay_whole_numbers(bench):
    states = [{"count": torch.tensor(n)} for n in (10, 13)]
    with pytest.raises(RuntimeError, match="can't be cast"):
        bench.average.simple_average(states)
    ours = weightsmith.merge_state_dicts("task_arithmetic", states, base=states[1])
    assert torch.equal(ours["count"], torch.tensor(13))


def test_linear_interpolation_can_be_run(bench, family):
    pool = bench.Pool({"_pretrained_": family.base, "expert": family.experts[0]})
    with pytest.raises(AssertionError, match="exactly 2"):  # compares a list with the number 2
        bench.interpolation.LinearInterpolationAlgorithm(0.5).run(pool)
    assert torch.equal(merged("wise_ft", torch.zeros(3), [torch.ones(3)]), torch.full((3,), 0.5))


def test_ties_keeps_the_stated_count_and_takes_density_1(bench):
    tau = torch.arange(1.0, 11.0, dtype=torch.float64)
    zero = torch.zeros_like(tau)
    theirs = bench.ties_functions.ties_merging(tau[None], 0.2, "mean")
    assert int(theirs.count_nonzero()) == 3
    assert int(merged("ties", zero, [tau], density=0.2).count_nonzero()) == 2
    with pytest.raises(RuntimeError, match="out of range"):
        bench.ties_functions.ties_merging(tau[None], 1.0, "mean")
    assert torch.equal(merged("ties", zero, [tau], density=1.0), tau)


def test_ties_elects_nothing_where_task_vectors_cancel(bench):
    taus = torch.tensor([[3.0, 1.0, 2.0, 0.1], [-3.0, 1.0, 2.0, 0.2]], dtype=torch.float64)
    theirs = bench.ties_functions.ties_merging(taus, 0.75, "sum")
    assert float(theirs[0]) == 3.0  # the sign of the sum over the whole model
    zero = torch.zeros(4, dtype=torch.float64)
    ours = merged("ties", zero, list(taus), density=1.0, normalize="none")
    assert float(ours[0]) == 0.0
    ours = merged("ties", zero, list(taus), density=1.0, normalize="none", zero_sum="majority")
    assert float(ours[0]) == 3.0


def test_dare_that_drops_everything_gives_the_base(bench):
    tau = torch.nn.Parameter(torch.ones(5), requires_grad=False)
    bench.dare_functions.param_random_drop_(tau, 1.0, True)
    assert bool(tau.isnan().all())
    assert torch.equal(
        merged("dare_linear", torch.ones(5), [torch.rand(5)], density=0.0), torch.ones(5)
    )


def test_slerp_follows_the_arc_at_every_angle(bench):
    """FusionBench takes the straight line above a cosine of 0.9995, and for antipodes too."""
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    y = torch.tensor([1.0, 0.03], dtype=torch.float64)
    y = y / y.norm()
    for expert in (y, -y):
        theirs = bench.slerp.slerp(0.5, x, expert)
        ours = merged("slerp", x, [expert], t=0.5)
        assert float((theirs - (x + expert) / 2).abs().max()) < 1e-15
        assert abs(float(ours.norm()) - 1.0) < 1e-12
    preset = merged("slerp", x, [y], "mergekit", t=0.5)
    assert torch.equal(preset, (x + y) / 2)


def test_model_stock_of_small_task_vectors(bench):
    """FusionBench adds 1e-8 to the product of lengths: task vectors of 1e-5 count as if they were orthogonal."""
    base, direction, other = drawn(3, 6, 6)
    experts = [base + 1e-5 * direction, base + 1e-5 * (direction + 0.3 * other)]
    states = [{"w": x} for x in (*experts, base)]
    angle = bench.stock.compute_angle(*states)["w"]
    true = torch.rad2deg(
        torch.acos(
            torch.cosine_similarity(direction.view(-1), (direction + 0.3 * other).view(-1), 0)
        )
    )
    assert abs(angle - float(true)) > 5
    t = 2 * torch.cos(torch.deg2rad(true)) / (1 + torch.cos(torch.deg2rad(true)))
    expected = base + t * (sum(experts) / 2 - base)
    assert torch.allclose(merged("model_stock", base, experts), expected, rtol=0, atol=1e-10)


def test_model_stock_stays_between_base_and_mean(bench):
    base, tau = drawn(2, 5, 5)
    experts = [base + tau, base - 0.9 * tau]
    angle = bench.stock.compute_angle({"w": experts[0]}, {"w": experts[1]}, {"w": base})
    assert abs(bench.stock.compute_ratio(angle)["w"]) > 1e3  # -2 / 0 for opposite task vectors
    assert torch.equal(merged("model_stock", base, experts), base)


def test_tsv_m_of_more_experts_than_ranks(bench):
    """FusionBench keeps int(r / N) = 0 directions, so that such a matrix is not merged at all."""
    base, *taus = drawn(4, 2, 6)
    theirs = bench.tsv.compute_and_sum_svd_mem_reduction(
        [{"w": t} for t in taus], accelerator="cpu"
    )
    assert float(theirs["w"].abs().max()) == 0.0
    experts = [base + t for t in taus]
    assert float((merged("tsv_m", base, experts) - base).abs().max()) > 0.1
    assert torch.equal(merged("tsv_m", base, experts, "reference"), base)


def test_tsv_m_of_one_task_vector_given_twice(bench):
    """The collected directions are linearly dependent: FusionBench adds others, which come from rounding."""
    base, tau = drawn(2, 6, 8)
    experts = [base + tau, base + tau]
    ours = merged("tsv_m", base, experts)
    assert bool(ours.isfinite().all())
    u, s, v = torch.linalg.svd(tau, full_matrices=False)
    leading = (u[:, :3] * s[:3]) @ v[:3]
    inside = u[:, :3] @ (u[:, :3].T @ (ours - base))
    assert torch.allclose(inside, ours - base, atol=1e-10)  # no direction that the tasks lack
    theirs = bench.tsv.compute_and_sum_svd_mem_reduction(
        [{"w": tau.clone()} for _ in range(2)], accelerator="cpu"
    )["w"]
    outside = theirs - u[:, :3] @ (u[:, :3].T @ theirs)
    assert float(outside.norm()) > 0.1 * float(leading.norm())


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_isotropic_merging_leaves_untouched_directions_alone(bench, method):
    """Task vectors of rank 2: FusionBench gives every other direction the mean strength too."""
    base = drawn(1, 8, 8)[0]
    experts = [base + a @ b for a, b in zip(drawn(2, 8, 2), drawn(2, 2, 8, seed=4), strict=True)]
    taus = [{"w": e - base} for e in experts]
    extra = {"common_space_fraction": 0.5} if method == "iso_cts" else {}
    theirs = getattr(bench.iso, method)(taus, accelerator="cpu", **extra)["w"]
    ours = merged(method, base, experts) - base
    span = torch.linalg.svd(torch.cat([t["w"] for t in taus], 1))[0][:, :4]
    assert float((ours - span @ (span.T @ ours)).norm()) < 1e-10
    assert float((theirs - span @ (span.T @ theirs)).norm()) > 0.1 * float(theirs.norm())


def test_svc_leaves_tasks_out_that_do_not_respond(bench):
    """FusionBench counts them with alpha, so a task that changed nothing changes the calibration."""
    base, first, second = drawn(3, 6, 5)
    experts = [base + first, base + second]
    made = base + first + second
    results = []
    for tasks in (experts, [*experts, base]):
        calibrate = bench.svc_functions.subspace_consistency_spectral_calibration_accelerated
        theirs = calibrate(base, tasks, made, alpha=0.1)
        results.append((merged("svc", base, tasks, alpha=0.1), theirs))
    (ours, theirs), (ours_with, theirs_with) = results
    assert torch.allclose(ours, theirs, atol=1e-11)
    assert torch.allclose(ours_with, ours, atol=1e-11)
    assert float((theirs_with - theirs).norm()) > 0.1 * float((theirs - base).norm())


def test_opcm_shields_what_alpha_says():
    """FusionBench takes one direction less than the paper's r, and none for alpha = 1."""
    base, first, second = drawn(3, 5, 5)
    experts = [base + first, base + second]
    ours = merged("opcm", base, experts, alpha=1.0) - base
    # All of the first is shielded, so nothing of the second can come in: only the length changes.
    length = (first.norm() + second.norm()) / 2
    assert torch.allclose(ours, first * (length / first.norm()), atol=1e-10)
    theirs = merged("opcm", base, experts, "fusionbench", alpha=1.0) - base
    assert float((theirs - ours).norm()) > 0.1


def test_tall_masks_compare_task_vectors_with_task_vectors(bench, family, models):
    """FusionBench's algorithm hands task vectors to a function of weights: |theta_0 - tau| > lambda |tau_all - tau|."""
    with pytest.raises(TypeError, match="expected Parameter, got Tensor"):  # its own check of types
        bench.tall.TallMaskTaskArithmeticAlgorithm(0.4).run(family.pool(bench))
    base, taus = family.base_state, family.deltas
    together = {n: sum(tau[n] for tau in taus) for n in base}
    wrong = bench.tall.generate_task_masks(together, taus[0], base, 0.4)
    ours = family.ours("tall_masks", parameters={"task": "1", "mask_lambda": 0.4, "part": "mask"})
    gaps = {n: (together[n] - taus[0][n]).abs() * 0.4 for n in base}
    right = {n: (taus[0][n].abs() > gaps[n]).double() for n in base}
    models.assert_close(ours, right, 0.0)
    models.assert_close(
        wrong, {n: ((base[n] - taus[0][n]).abs() > gaps[n]).double() for n in base}, 0.0
    )
    differing = sum(int((ours[n] != wrong[n]).sum()) for n in base)
    assert differing > 0.05 * sum(t.numel() for t in base.values())


def test_emr_rescales_by_the_norm_over_the_model(bench, family):
    """FusionBench adds up the means of all tensors, so a bias weighs as much as a matrix."""
    with torch.no_grad():
        family.experts[0].norm.bias.mul_(20)
    unified, masks, scales = bench.emr.emr_merge(family.deltas)
    base, tau = family.base_state, family.deltas[0]
    true = sum(float(tau[n].abs().sum()) for n in base)
    theirs = sum(float((unified[n] * masks[n][0] * scales[0]).abs().sum()) for n in base)
    assert abs(theirs / true - 1.0) > 0.01
    ours = family.ours("emr", parameters={"task": "1"})
    own = sum(float((ours[n] - base[n]).abs().sum()) for n in base)
    assert abs(own / true - 1.0) < 1e-9


def test_wudi_of_a_task_that_changed_nothing(bench):
    base, tau = drawn(2, 6, 8)
    taus = [{"w": tau.clone()}, {"w": torch.zeros_like(tau)}]
    theirs = bench.wudi.wudi_merging(taus, accelerator="cpu", iter_num=2)["w"]
    assert bool(theirs.isnan().all())
    assert torch.allclose(merged("wudi", base, [base + tau, base]), base + tau, atol=1e-10)


def test_wudis_step_knows_nothing_of_the_scale_of_the_weights(bench):
    """Adam moves 1e-5 a step: small task vectors leave the minimum far behind, the closed form scales with them."""
    base, first, second = drawn(3, 6, 8)
    results = {}
    for scale in (1.0, 1e-4):
        taus = [{"w": scale * first}, {"w": scale * second}]
        results[scale] = bench.wudi.wudi_merging(taus, accelerator="cpu")["w"].detach() / scale
    assert float((results[1.0] - results[1e-4]).abs().max()) > 0.1
    zero = torch.zeros_like(base)
    ours = [merged("wudi", zero, [s * first, s * second]) / s for s in (1.0, 1e-4)]
    assert torch.allclose(*ours, atol=1e-9)


def test_regmean_of_inputs_that_were_never_seen(bench):
    """A dead input makes the sum of Gram matrices singular."""
    x = drawn(2, 4, 6)
    grams = []
    for own in drawn(2, 20, 6, seed=5):
        own[:, 2] = 0.0
        grams.append(own.T @ own)
    with pytest.raises(RuntimeError, match="singular"):
        bench.regmean.merging_with_regmean_weights({"w.weight": x}, [{"w": g} for g in grams])
    ours = weightsmith.merge_state_dicts(
        "regmean",
        [{"w": w} for w in x],
        statistics=[{"w": g} for g in grams],
        parameters={"alpha": 1.0},
    )["w"]
    assert torch.allclose(ours[:, 2], (x[0][:, 2] + x[1][:, 2]) / 2, atol=1e-12)


def test_small_fishers_are_not_drowned_in_a_constant(bench):
    x = drawn(2, 50)
    fishers = [torch.rand(50, dtype=torch.float64) * 1e-9 for _ in x]
    theirs = bench.fisher.merging_with_fisher_weights(
        {"w": x}, [{"w": f} for f in fishers], torch.ones(2) / 2
    )["w"]
    assert torch.allclose(theirs, sum(x) / 2, atol=0.01)
    ours = weightsmith.merge_state_dicts(
        "fisher", [{"w": w} for w in x], statistics=[{"w": f} for f in fishers]
    )["w"]
    scaled = [f / f.norm() for f in fishers]
    expected = (scaled[0] * x[0] + scaled[1] * x[1]) / (scaled[0] + scaled[1])
    assert torch.allclose(ours, expected, atol=1e-10)
