"""Where FusionBench 0.2.33 follows the papers, or where a preset follows FusionBench: the same numbers, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import weightsmith
from weightsmith.graph.backends.torch_interpreter import uniform_tile
from weightsmith.graph.random import stream_key

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def fabric_of(bench: Any) -> Any:
    return bench.Fabric(accelerator="cpu", devices=1)


def test_simple_average(bench, family, models):
    theirs = bench.average.SimpleAverageAlgorithm(inplace=False).run(family.named())
    models.assert_close(family.ours("soup", base=False), theirs)
    models.assert_close(family.ours("linear", base=False), theirs)


@pytest.mark.parametrize("normalize", [True, False])
def test_weighted_average(bench, family, models, normalize):
    weights = [0.5, 0.2, 0.1]
    algorithm = bench.weighted.WeightedAverageAlgorithm(normalize, weights, verbose=False)
    ours = family.ours(
        "linear",
        base=False,
        parameters={"normalize": normalize},
        per_expert=[{"weight": w} for w in weights],
    )
    models.assert_close(ours, algorithm.run(family.named()))


def test_task_arithmetic(bench, family, models):
    theirs = bench.arithmetic.TaskArithmeticAlgorithm(0.3).run(family.pool(bench))
    models.assert_close(family.ours("task_arithmetic", parameters={"weight": 0.3}), theirs)


@pytest.mark.parametrize("density", [0.2, 0.45])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_ties_with_the_count_that_fusionbench_keeps(bench, family, models, merge, density):
    """FusionBench keeps one element more than floor(density N), so its density is another one."""
    algorithm = bench.ties.TiesMergingAlgorithm(0.7, density, [], merge)
    count = sum(tensor.numel() for tensor in family.base_state.values())
    kept = (int(count * density) + 1 + 1e-6) / count
    ours = family.ours(
        "ties",
        parameters={
            "density": kept,
            "lambda": 0.7,
            "normalize": "absolute" if merge == "mean" else "none",
            "zero_sum": "majority",
        },
    )
    models.assert_close(ours, algorithm.run(family.pool(bench)))


@pytest.mark.parametrize("density", [0.2, 0.45])
def test_ties_as_configured(bench, family, models, density):
    ours = family.ours("ties", parameters={"density": density}, preset="fusionbench")
    theirs = bench.ties.TiesMergingAlgorithm(0.3, density, [], "sum").run(family.pool(bench))
    models.assert_close(ours, theirs)


@pytest.mark.parametrize(("merge", "agreeing"), [("mean", "mean"), ("max", "max")])
@pytest.mark.parametrize("density", [0.27, 0.45])
def test_ties_of_its_authors(bench, family, models, merge, agreeing, density):
    """FusionBench has their functions: what cancels takes the sign that most elements of the model have.

    (Where both signs have equally many, it takes those that are negative, by the last branch of a comparison.)
    """
    with torch.no_grad():
        for base, a, b, c in zip(
            *(m.parameters() for m in (family.base, *family.experts)), strict=True
        ):
            base.view(-1)[::3] = c.view(-1)[::3] = 0.0
            b.view(-1)[::3] = -a.view(-1)[::3]
    algorithm = bench.ties.TiesMergingAlgorithm(1.0, density, [], merge)
    parameters = {"density": density, "agreeing": agreeing}
    ours = family.ours("ties", parameters=parameters, preset="reference")
    models.assert_close(ours, algorithm.run(family.pool(bench)))


@pytest.mark.parametrize("implementation", ["accelerated", "original"])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_svc_of_task_arithmetic(bench, family, models, monkeypatch, alpha, implementation):
    monkeypatch.setenv("FUSION_BENCH_SVC_IMPL", implementation)
    algorithm = bench.svc.SingularValueCalibrationArithmeticTask(0.3, alpha)
    ours = family.ours("svc", parameters={"alpha": alpha}, preset="fusionbench")
    models.assert_close(ours, algorithm.run(family.pool(bench)), limit=1e-11)


def test_svc_of_another_merge(bench, family, models):
    made = bench.ties.TiesMergingAlgorithm(0.7, 0.2, [], "mean").run(family.pool(bench))
    uncalibrated = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    pool = family.pool(bench)  # another one, since TIES wrote its result on the base of the first
    pool.add_model("_merged_", made)
    theirs = bench.svc.SingularValueCalibration(0.1).run(pool)
    ours = weightsmith.merge_state_dicts(
        "svc",
        [uncalibrated, *family.states],
        base=family.base_state,
        parameters={"alpha": 0.1, "merged": "first"},
    )
    models.assert_close(ours, theirs, limit=1e-11)


@pytest.fixture
def same_numbers(monkeypatch, family):
    """FusionBench draws expert by expert and parameter by parameter, and drops where the number is <= sparsity."""
    names = [name for name, _ in family.base.named_parameters()]
    places = iter([(i, name) for i in range(len(family.experts)) for name in names])

    def drawn(parameter: torch.Tensor) -> torch.Tensor:
        expert, name = next(places)
        key = stream_key(0, f"expert-{expert}", name)
        noise = uniform_tile(key, 0, parameter.numel(), parameter.device)
        return 1.0 - noise.reshape(parameter.shape).to(parameter.dtype)

    monkeypatch.setattr(torch, "rand_like", drawn)


@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_when_both_draw_the_same_numbers(bench, family, models, rescale):
    algorithm = bench.dare.DareTaskArithmetic(0.4, 0.5, False, rescale)
    theirs = algorithm.run(family.pool(bench))
    parameters = {
        "weight": 0.4,
        "density": 0.5,
        "rescale": "probability" if rescale else "none",
    }
    models.assert_close(family.ours("dare_linear", parameters=parameters), theirs)


def test_dare_keeps_the_same_share_and_the_same_mean(bench):
    drop, size = 0.7, 200_000
    torch.manual_seed(3)
    delta = torch.randn(size, dtype=torch.float64) + 2.0
    theirs = torch.nn.Parameter(delta.clone(), requires_grad=False)
    bench.dare_functions.param_random_drop_(theirs, drop, True)
    ours = weightsmith.merge_state_dicts(
        "dare_linear",
        [{"w": delta}],
        base={"w": torch.zeros_like(delta)},
        parameters={"density": 1.0 - drop},
    )["w"]
    # Five standard deviations of a Bernoulli share, and of a mean whose variance is E[x^2] drop / keep.
    spread = (drop / (1.0 - drop) * float((delta * delta).mean()) / size) ** 0.5
    for merged in (theirs.data, ours):
        share = float((merged != 0).double().mean())
        assert abs(share - (1.0 - drop)) < 5 * (drop * (1.0 - drop) / size) ** 0.5
        assert abs(float(merged.mean() - delta.mean())) < 5 * spread
        assert torch.allclose(merged[merged != 0], delta[merged != 0] / (1.0 - drop))


def test_dare_without_dropping_is_task_arithmetic(bench, family, models):
    theirs = bench.dare.DareTaskArithmetic(0.4, 0.0, False, True).run(family.pool(bench))
    ours = family.ours("dare_linear", parameters={"weight": 0.4, "density": 1.0})
    models.assert_close(ours, theirs)


def test_magmax_with_ties(bench, family, models):
    with (
        torch.no_grad()
    ):  # the first two experts move some weights by the same amount, one up and one down
        for base, a, b in zip(
            *(m.parameters() for m in (family.base, *family.experts[:2])), strict=True
        ):
            a.view(-1)[::3] = base.view(-1)[::3] + 0.25
            b.view(-1)[::3] = base.view(-1)[::3] - 0.25
    theirs = bench.magmax.MagMaxAlgorithm(scaling_factor=0.5).run(family.pool(bench))
    models.assert_close(family.ours("magmax"), theirs)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(bench, family, models, t):
    theirs = bench.slerp.slerp_on_state_dicts(t, family.base_state, family.states[0])
    ours = weightsmith.merge_state_dicts(
        "slerp",
        family.states[:1],
        base=family.base_state,
        parameters={"t": t},
        preset="mergekit",  # a straight line above a cosine of 0.9995, as there
    )
    models.assert_close(ours, theirs)


@pytest.mark.parametrize("experts", [2, 3])
def test_model_stock(bench, models, experts):
    """FusionBench measures angles in float32, and adds 1e-8 twice, hence 1e-5."""
    family = models.Family(experts)
    theirs = bench.stock.ModelStock().run(family.pool(bench))
    parameters = {"mean": "angle", "bounded": False}
    models.assert_close(family.ours("model_stock", parameters=parameters), theirs, 1e-5)


def test_expo(bench, models):
    family = models.Family(1)
    theirs = bench.expo.ExPOAlgorithm(0.4).run(family.pool(bench))
    models.assert_close(family.ours("expo", parameters={"alpha": 0.4}), theirs)


@pytest.mark.parametrize("experts", [2, 3])
def test_tsv_m(bench, models, experts):
    family = models.Family(experts)
    merged = bench.tsv.compute_and_sum_svd_mem_reduction(family.deltas, accelerator="cpu")
    models.assert_close(family.ours("tsv_m"), family.added(merged), 1e-11)


def test_tsv_m_lossless(bench, models, monkeypatch):
    """FusionBench's lossless form collects singular vectors in the default dtype."""
    family = models.Family(2)
    monkeypatch.setattr(
        torch, "zeros", lambda *s, **k: torch.ones(*s, dtype=torch.float64, **k) * 0
    )
    merged = bench.tsv.compute_and_sum_svd_mem_reduction_lossless(family.deltas, "cpu")
    only = {n for n, t in family.base_state.items() if 2 * min(t.shape) <= max(t.shape)}
    ours = family.ours("tsv_m", preset="lossless")
    expected = family.added(merged)
    assert only
    for name in only:
        models.assert_close({name: ours[name]}, {name: expected[name]}, 1e-10)


def test_tsv_c(bench, models):
    family = models.Family(1)
    name = "encoder.0.weight"
    _, u, s, v = bench.tsv_c.compute_svd_and_compress(name, family.deltas[0][name], 0.5)
    ours = family.ours("tsv_c", parameters={"tasks": 2}, only=lambda n: n == name)
    models.assert_close(ours, {name: family.base_state[name] + (u * s) @ v})


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_iso_c(bench, family, models, preset):
    merged = bench.iso.iso_c(family.deltas, accelerator="cpu")
    theirs = family.added({name: delta * 1.5 for name, delta in merged.items()})
    ours = family.ours("iso_c", parameters={"lambda": 1.5}, preset=preset)
    models.assert_close(ours, theirs, 1e-11)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts(bench, models, share):
    family = models.Family(2)
    merged = bench.iso.iso_cts(family.deltas, share, accelerator="cpu")
    ours = family.ours("iso_cts", parameters={"common_share": share})
    models.assert_close(ours, family.added(merged), 1e-10)


# At an alpha of 1 its rank goes by whether a sum of singular values, rounded, is larger than itself.
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9, 0.99])
def test_opcm(bench, family, models, alpha):
    """It takes every `Linear` for a matrix, heads too, but no embedding, which all models share here."""
    algorithm = bench.opcm.OPCM(alpha, shuffle_order=False, save_on_every_step=False)
    algorithm.fabric = fabric_of(bench)
    algorithm.num_ray_actors = 0
    for model in (family.base, *family.experts):
        with torch.no_grad():
            model.embedding.weight.copy_(family.base.embedding.weight)
    theirs = models.state(algorithm.run(family.pool(bench)))
    ours = family.ours(
        "opcm", parameters={"alpha": alpha, "embeddings": "spectral"}, preset="fusionbench"
    )
    models.assert_close(ours, theirs, 1e-11)


def test_doge(bench, family, models):
    """400 steps of Adam in both: differences grow along the way."""
    only = {"encoder.0.weight", "encoder.2.weight"}
    algorithm = bench.doge.DOGE_TA_Algorithm(subspace=3, K=0.3, lamda=0.5)
    algorithm.fabric = fabric_of(bench)
    theirs = models.state(algorithm.run(family.pool(bench)))
    count = sum(family.base_state[name].numel() for name in only)
    ours = family.ours(
        "doge",
        only=lambda name: name in only,
        parameters={
            "eta": 0.5,
            "subspace": 3.0,
            "density": (int(count * 0.3) + 1 + 1e-6) / count,
        },
        preset="fusionbench",
    )
    models.assert_close(ours, {name: theirs[name] for name in only}, 1e-8)


@pytest.mark.parametrize("steps", [1, 300])
def test_wudi(bench, family, models, steps):
    merged = bench.wudi.wudi_merging(family.deltas, accelerator="cpu", iter_num=steps)
    parameters = {"steps": steps, "embeddings": "spectral"}
    ours = family.ours("wudi", parameters=parameters, preset="reference")
    models.assert_close(ours, family.added(merged), 1e-9)


def test_wudis_closed_form_has_no_larger_loss_than_fusionbenchs_descent(bench, family):
    name = "encoder.0.weight"
    deltas = [{name: delta[name]} for delta in family.deltas]
    theirs = bench.wudi.wudi_merging(deltas, accelerator="cpu", iter_num=2000)[name].detach()
    ours = family.ours("wudi", only=lambda n: n == name)[name] - family.base_state[name]

    def loss(vector: torch.Tensor) -> float:
        taus = [delta[name] for delta in deltas]
        return sum(float((((vector - t) @ t.T) ** 2).sum() / (t**2).sum()) for t in taus)

    assert loss(ours) < loss(theirs)


def test_knots_of_fusionbenchs_parts(bench, family, models):
    """Its alignment, its TIES on what comes out, and the way back: KnOTS-TIES of one matrix."""
    name = "encoder.2.weight"
    taus = [delta[name] for delta in family.deltas]
    left, values, rights = bench.knots.subspace_alignment(taus)
    images = torch.stack([(values[:, None] * right).reshape(-1) for right in rights])
    count = images.shape[1]
    merged = bench.ties_functions.ties_merging(images, 0.4, "mean").reshape(rights[0].shape)
    ours = family.ours(
        "knots",
        only=lambda n: n == name,
        parameters={"density": (int(count * 0.4) + 1 + 1e-6) / count},
    )
    models.assert_close(ours, {name: family.base_state[name] + left @ merged}, 1e-11)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_emr(bench, family, models, task):
    """Its rescalers are float32."""
    unified, masks, scales = bench.emr.emr_merge(family.deltas)
    theirs = family.added({n: unified[n] * masks[n][task] * scales[task] for n in unified})
    ours = family.ours("emr", parameters={"task": str(task + 1)}, preset="reference")
    models.assert_close(ours, theirs, 1e-6)


def flat(states: Any) -> torch.Tensor:
    return torch.stack([torch.cat([s[n].reshape(-1) for n in sorted(s)]) for s in states])


@pytest.mark.parametrize("factor", [0.2, 0.6, 1.0])
def test_tall_masks_of_flat_vectors(bench, family, models, factor):
    base = flat([family.base_state])[0]
    masks = bench.tall_functions.generate_task_masks(
        flat(family.deltas), flat(family.states), base, tall_mask_lambda=factor
    )
    for task in range(3):
        ours = family.ours("tall_masks", parameters={"task": str(task + 1), "mask_lambda": factor})
        theirs = base + masks[task] * flat(family.deltas).sum(0)
        models.assert_close({"all": flat([ours])[0]}, {"all": theirs})


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_consensus(bench, family, models, monkeypatch, k):
    base = flat([family.base_state])[0]
    masks = bench.tall_functions.generate_task_masks(
        flat(family.deltas), flat(family.states), base, tall_mask_lambda=0.5
    )
    named = {f"task{i}": {"all": mask} for i, mask in enumerate(masks)}
    monkeypatch.setattr(bench.tall_functions, "load_tall_mask", lambda *_: named)
    consensus = bench.tall_functions.construct_consensus_mask({"all": base}, k, None)
    ours = family.ours("consensus", parameters={"k": k, "mask_lambda": 0.5, "lambda": 0.3})
    theirs = base + 0.3 * consensus.double() * flat(family.deltas).sum(0)
    models.assert_close({"all": flat([ours])[0]}, {"all": theirs})


def gram(seed: int, inputs: int, samples: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    return drawn.T @ drawn / samples


@pytest.mark.parametrize("ratio", [0.1, 0.95, 1.0])
def test_regmean(bench, family, models, ratio):
    """Its factor of off-diagonal elements is rounded to float32, hence 1e-8."""
    modules = ("encoder.0", "encoder.2", "head")
    grams = [
        {
            m: gram(10 * i + k, family.base_state[f"{m}.weight"].shape[1])
            for k, m in enumerate(modules)
        }
        for i in range(3)
    ]
    values = {name: [s[name] for s in family.states] for name in family.base_state}
    theirs = bench.regmean.merging_with_regmean_weights(values, grams, ratio)
    ours = family.ours(
        "regmean",
        base=False,
        parameters={"alpha": ratio},
        statistics=[{f"{m}.weight": g for m, g in own.items()} for own in grams],
    )
    models.assert_close(ours, theirs, 1e-11 if ratio == 1.0 else 1e-8)


@pytest.mark.parametrize("size", [1.0, 1e-8])
@pytest.mark.parametrize("normalize", [True, False])
def test_fisher(bench, family, models, normalize, size):
    """FusionBench adds its constant to the Fishers and to the norms that they had before."""
    generator = torch.Generator().manual_seed(1)
    fishers = [
        {
            n: torch.rand(t.shape, generator=generator, dtype=t.dtype) * 4**i * size
            for n, t in s.items()
        }
        for i, s in enumerate(family.states)
    ]
    weights = [0.2, 0.5, 0.3]
    values = {name: [s[name] for s in family.states] for name in family.base_state}
    theirs = bench.fisher.merging_with_fisher_weights(
        values, fishers, torch.tensor(weights, dtype=torch.float64), normalize, 1e-6
    )
    ours = family.ours(
        "fisher",
        base=False,
        parameters={"normalize": "model" if normalize else "none"},
        per_expert=[{"weight": w} for w in weights],
        statistics=fishers,
        preset="mergelm",
    )
    models.assert_close(ours, theirs, 1e-12)
