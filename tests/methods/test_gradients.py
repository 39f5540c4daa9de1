"""Gradients flow through the merges: those of finite differences, finite where there are none, or refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from weightsmith.errors import GradientError
from weightsmith.methods.parts import registry
from weightsmith.methods.parts.registry import REQUIRED, Base

SMOOTH = (
    "linear soup wise_ft expo ema lawa wma slerp nuslerp multislerp karcher model_stock task_arithmetic passthrough "
    "task_karcher geometric_median lines"
).split()
PIECEWISE = (
    "ties breadcrumbs breadcrumbs_ties dare_linear dare_ties della della_linear sce ram ramplus_tl nearswap "
    "trimmed_mean arcee_fusion truncate tsv_m tsv_c resm iso_c iso_cts opcm knots doge svc "
    "cabs subspace_boosting cart dc_merge ace orthomerge resmerge"
).split()
WAYS = {
    "nuslerp": [
        {},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "model_stock": [{}, {"filter_wise": True}],
    "lines": [{"alpha": 0.3}, {}],
}


def draw(n, shape=(3, 4)):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n + 1, *shape, generator=generator, dtype=torch.float64)
    return [(x + 2 * inputs[0]).requires_grad_() for x in inputs]


def call(merge, name, shared=None, preset=registry.PAPER):
    spec = registry.get(name)
    required = {k: 0.4 for k, d in spec.defaults(preset).items() if d is REQUIRED}
    has_base = spec.base is Base.REQUIRED

    def run(*inputs):
        base, experts = (inputs[0], inputs[1:]) if has_base else (None, inputs)
        return merge(
            name, base, list(experts), shared={**required, **(shared or {})}, preset=preset
        )

    n = min(max(spec.experts[0], 3), spec.experts[1] or 3)
    return run, n + has_base


@pytest.mark.parametrize(
    ("name", "shared"), [(n, w) for n in SMOOTH for w in WAYS.get(n, [{}])], ids=str
)
def test_gradients_are_those_of_finite_differences(merge, name, shared):
    run, count = call(merge, name, shared)
    inputs = draw(count - 1)[:count]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PIECEWISE)
def test_gradients_of_piecewise_methods_are_finite_and_reach_every_expert(merge, name):
    shared = (
        {"rank": 2}
        if name == "truncate"
        else {"density": 0.7}
        if name in ("dare_linear", "dare_ties")
        else None
    )
    run, count = call(merge, name, shared)
    inputs = draw(count - 1)[:count]
    run(*inputs).sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in inputs)
    assert sum(float(x.grad.abs().sum()) for x in inputs) > 0


# Every method in every way it knows --------------------------------------------------------------------------------

# Which tensors are matrices, what is written instead of a merge, and what other tests cover.
_NO_FORMULA = set(
    "others embeddings stacks kernels fused orientation exempt part exclude task previous by without_statistics".split()
)
# Full rank, and rank 2 as of merged adapters; 40 rows are enough for a sketch and for a Gram matrix to be chosen.
MATRICES = [((6, 9), None), ((8, 8), None), ((12, 8), 2), ((9, 13), 2)]
# Adam's derivative grows with its steps, so that 300 leave nothing to compare with.
FEW_STEPS = {"wudi": {"steps": 5}, "optmerge": {"steps": 5}, "doge": {"steps": 20}}
DESCENTS = [("doge", {"solver": "adam"}), ("wudi", {"solver": "adam"})]


def ways(name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Presets, and for every choice each value that is not the default."""
    spec = registry.get(name)
    for preset in (registry.PAPER, *spec.presets):
        yield preset, {}
    for key, parameter in spec.parameters.items():
        if key in _NO_FORMULA:
            continue
        if parameter.kind is str:
            for choice in parameter.choices:
                if choice != parameter.default:
                    yield registry.PAPER, {key: choice}
        elif parameter.kind is bool:
            yield registry.PAPER, {key: not parameter.default}


def counts(name: str, given: dict[str, object]) -> list[int]:
    low, high = registry.get(name).experts
    if given == {"merged": "first"}:
        low = 2
    return sorted({n for n in (1, 3) if low <= n <= (high or n)} or {low})


CASES = [
    (name, preset, given, count)
    for name in registry.names()
    for preset, given in ways(name)
    for count in counts(name, given)
]
# All directions have one strength there, also those that a task vector of low rank does not have.
WITHOUT_RANK = {("iso_c", "reference"), ("iso_cts", "reference")}


def factors(shape, rank, count, generator):
    """Task vectors, each one matrix or a product of two."""
    m, n = shape
    sizes = [[(m, n)] if rank is None else [(m, rank), (rank, n)]] * count
    scale = 0.1 if rank is None else 0.3
    return [
        [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in one]
        for one in sizes
    ]


def numbers(name, preset, given, count):
    spec = registry.get(name)
    found = {k: 0.4 for k, d in spec.defaults(preset).items() if d is REQUIRED}
    found |= {"alpha": 0.4} if name == "lines" and count == 1 else {}
    # mergekit's tolerance, where iterations stop, is as wide as that of the comparison.
    found |= {"tol": 1e-9} if name in ("karcher", "task_karcher") else {}
    is_descent = (name, given) in DESCENTS or spec.defaults(preset).get("solver") in (
        "adam",
        "descent",
    )
    if is_descent and "steps" in spec.parameters:
        found |= FEW_STEPS[name]
    return {**found, **given}


def merged_sum(merge, name, preset, given, leaves, direction, weights, step, dtype=torch.float64):
    """A weighted sum of the merge of base + factors, all moved by step * direction."""
    moved = [
        [x + step * d for x, d in zip(one, by, strict=True)]
        for one, by in zip(leaves, direction, strict=True)
    ]
    (base,), *tasks = moved
    experts = [base + (t[0] if len(t) == 1 else t[0] @ t[1]) for t in tasks]
    count = len(experts)
    has_base = registry.get(name).base is not Base.IGNORED
    found = merge(
        name,
        base.to(dtype) if has_base else None,
        [e.to(dtype) for e in experts],
        shared=numbers(name, preset, given, count),
        preset=preset,
        labels=tuple(f"m{i}" for i in range(count)),
    )
    return (found.double() * weights).sum()


@pytest.mark.parametrize(("name", "preset", "given", "count"), CASES, ids=str)
def test_gradients_are_those_of_finite_differences_along_what_keeps_the_rank(
    merge, name, preset, given, count
):
    for shape, rank in MATRICES:
        generator = torch.Generator().manual_seed(1)
        base = torch.randn(shape, generator=generator, dtype=torch.float64)
        leaves = [[base], *factors(shape, rank, count, generator)]
        direction = [
            [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in one]
            for one in leaves
        ]
        weights = torch.randn(shape, generator=generator, dtype=torch.float64)
        how = (merge, name, preset, given)
        points = [[x.clone().requires_grad_() for x in one] for one in leaves]
        flat = [x for one in points for x in one]
        total = merged_sum(*how, points, direction, weights, 0.0)
        if rank is not None and (name, preset) in WITHOUT_RANK:
            with pytest.raises(GradientError, match=r"'layer\.weight' has no gradient"):
                total.backward()
            continue
        gradients = torch.autograd.grad(total, flat, allow_unused=True)
        pairs = zip(gradients, [d for one in direction for d in one], strict=True)
        along = sum(float((g * d).sum()) for g, d in pairs if g is not None)
        # A rank or a threshold that a step passes spoils one of them.
        slopes = []
        for step in (1e-6, 1e-7, 1e-8):
            ahead, behind = (
                float(merged_sum(*how, leaves, direction, weights, s)) for s in (step, -step)
            )
            slopes.append((ahead - behind) / (2.0 * step))
        assert along == pytest.approx(min(slopes, key=lambda s: abs(s - along)), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("name", "preset", "given", "count"), CASES, ids=str)
def test_gradients_of_float32_are_finite_in_every_way(merge, name, preset, given, count):
    for shape, rank in MATRICES:
        generator = torch.Generator().manual_seed(1)
        base = torch.randn(shape, generator=generator, dtype=torch.float64)
        leaves = [[base], *factors(shape, rank, count, generator)]
        points = [[x.clone().requires_grad_() for x in one] for one in leaves]
        still = [[torch.zeros_like(x) for x in one] for one in leaves]
        how = (merge, name, preset, given)
        total = merged_sum(*how, points, still, torch.ones(shape), 0.0, torch.float32)
        total.backward()
        assert all(x.grad is None or x.grad.isfinite().all() for one in points for x in one)


SPECTRAL = [
    ("tsv_m", {}),
    ("tsv_m", {"rank_share": 1.0}),
    ("resm", {}),
    ("iso_c", {}),
    ("iso_cts", {}),
    ("opcm", {}),
    ("svc", {}),
    ("doge", {}),
    ("knots", {"density": 1.0}),
    ("wudi", {}),
    ("iwudi", {}),
    ("truncate", {"rank": 3}),
    ("truncate", {"rank": 3, "svd": "randomized"}),
    ("truncate", {"rank": 3, "svd": "gram"}),
    ("tsv_c", {"svd": "randomized"}),
    ("subspace_boosting", {"beta": 0.5}),
    ("cart", {"rank": 3}),
    ("truncate", {"nuclear_share": 0.4, "rescale": "nuclear"}),
    ("orthomerge", {"rows": "all"}),
]


@pytest.mark.parametrize(("shape", "rank"), [((32, 32), None), ((32, 32), 2), ((34, 40), 3)])
@pytest.mark.parametrize(("name", "given"), SPECTRAL, ids=str)
def test_gradients_of_larger_matrices_are_those_of_finite_differences(
    merge, name, given, shape, rank
):
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    count = registry.get(name).experts[1] or 3
    leaves = [[base], *factors(shape, rank, count, generator)]
    direction = [
        [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in one]
        for one in leaves
    ]
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    how = (merge, name, registry.PAPER, given)
    points = [[x.clone().requires_grad_() for x in one] for one in leaves]
    merged_sum(*how, points, direction, weights, 0.0).backward()
    pairs = zip(
        [x for one in points for x in one], [d for one in direction for d in one], strict=True
    )
    along = sum(float((x.grad * d).sum()) for x, d in pairs)
    step = 1e-6
    ahead, behind = (float(merged_sum(*how, leaves, direction, weights, s)) for s in (step, -step))
    assert along == pytest.approx((ahead - behind) / (2.0 * step), rel=1e-5)


def test_numbers_are_the_same_with_gradients_and_without(merge):
    base, *experts = (x.detach() for x in draw(3, (7, 9)))
    for name in ("iso_c", "iso_cts", "tsv_m", "opcm", "svc", "doge", "knots", "wudi", "pcb"):
        plain = merge(name, base, experts)
        wanted = merge(name, base, [e.clone().requires_grad_() for e in experts])
        assert torch.allclose(wanted, plain, rtol=1e-13, atol=1e-14)


# Where singular values are equal -----------------------------------------------------------------------------------


def orthonormal(m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(max(m, n), max(m, n), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0][:m, :n].contiguous()


@pytest.mark.parametrize("shape", [(5, 5), (7, 5), (5, 7)])
def test_the_isotropic_sum_of_an_orthonormal_task_has_its_gradient(merge, shape):
    """mean(S) U V^T at S = 1: half of what changes the task symmetrically is its strength's, all the rest its polar
    factor's, so that finite differences in a general direction tell."""
    task, base = orthonormal(*shape), torch.zeros(shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    direction, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    point = task.clone().requires_grad_()
    (merge("iso_c", base, [point]) * weights).sum().backward()
    step = 1e-6
    ahead, behind = (
        float((merge("iso_c", base, [task + s * direction]) * weights).sum()) for s in (step, -step)
    )
    assert float((point.grad * direction).sum()) == pytest.approx((ahead - behind) / (2.0 * step))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("truncate", {"rank": 2}),
        ("tsv_c", {"tasks": 2}),
        ("tsv_m", {"rank_share": 0.5}),
        ("opcm", {}),
        ("svc", {"alpha": 0.3}),
        ("knots", {"density": 1.0}),
        ("iso_cts", {}),
        ("optmerge", {"solver": "closed", "rank_share": 0.5}),
        ("doge", {}),
        ("swudi", {"rank_share": 0.3}),
    ],
    ids=str,
)
def test_a_choice_among_equal_directions_has_no_gradient(merge, name, given):
    """Everything that these methods do with the directions of an orthonormal matrix depends on LAPACK's choice."""
    count = registry.get(name).experts[1] or 2
    tasks = [orthonormal(6, 6).mul(2.0**i).requires_grad_() for i in range(count)]
    base = torch.zeros(6, 6, dtype=torch.float64)
    merged = merge(name, base, tasks, shared=given)
    with pytest.raises(GradientError, match=r"^The merge of 'layer\.weight' has no gradient .*\.$"):
        (merged * torch.arange(36.0, dtype=torch.float64).reshape(6, 6)).sum().backward()


def test_opcm_may_shield_directions_of_equal_values(merge):
    """Of the shielded ones only their span counts; those after them are told apart."""
    left, right = orthonormal(6, 6, 1), orthonormal(6, 6, 2)
    values = torch.tensor([3.0, 3.0, 3.0, 0.7, 0.5, 0.2], dtype=torch.float64)
    first, base = (left * values) @ right, torch.zeros(6, 6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    second, direction, weights = (
        torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    shared = {"alpha": 0.86}

    def total(first):
        return (merge("opcm", base, [first, second], shared=shared) * weights).sum()

    point = first.clone().requires_grad_()
    total(point).backward()
    step = 1e-6
    slope = float(total(first + step * direction) - total(first - step * direction)) / (2 * step)
    assert float((point.grad * direction).sum()) == pytest.approx(slope, rel=1e-6)


def test_conjugate_gradients_that_have_not_converged_have_no_gradient(merge):
    base, *experts = draw(3, (6, 9))
    merged = merge("doge", base, experts[:3], shared={"objective": "rows", "steps": 2})
    with pytest.raises(GradientError, match=r"raise `steps`"):
        merged.sum().backward()


# Degenerate points -------------------------------------------------------------------------------------------------

DEGENERATE = [
    (name, preset)
    for name in registry.names()
    for preset in [registry.PAPER, *registry.get(name).presets]
]


@pytest.mark.parametrize(("name", "preset"), DEGENERATE)
@pytest.mark.parametrize("where", ["zero", "equal", "antipodal"])
def test_gradients_are_finite_or_refused_at_degenerate_points(merge, name, preset, where):
    run, count = call(merge, name, preset=preset)
    point = torch.arange(1.0, 13, dtype=torch.float64).reshape(3, 4) * (where != "zero")
    signs = [-1.0 if where == "antipodal" and i % 2 else 1.0 for i in range(count)]
    inputs = [(point * s).clone().requires_grad_() for s in signs]
    merged = run(*inputs)
    if where == "antipodal" and (name, preset) in WITHOUT_RANK:
        with pytest.raises(GradientError, match=r"'layer\.weight'"):
            merged.sum().backward()
        return
    merged.sum().backward()
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in inputs)


STRUCTURES = {
    "copies": lambda a, _: [a, a, a],
    "a conflict": lambda a, b: [a, -a, b],
    "one task that changed nothing": lambda a, b: [a, 0.0 * a, b],
    "one task alone": lambda a, b: [0.0 * a, 0.0 * a, b],
    "a sum of two": lambda a, b: [a, b, a + b],
    "rows of their own": lambda a, b: [
        t * (torch.arange(9)[:, None] % 3 == i) for i, t in enumerate((a, b, a + b))
    ],
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "name", "tsv_m resm iso_c iso_cts opcm svc doge truncate wudi iwudi".split()
)
def test_dependent_tasks_have_the_gradient_along_what_keeps_them_dependent(merge, name, structure):
    generator = torch.Generator().manual_seed(4)
    base, first, second, *turns, weights = (
        0.1 * torch.randn(9, 7, generator=generator, dtype=torch.float64) for _ in range(6)
    )

    def total(a, b):
        tasks = STRUCTURES[structure](a, b)
        return (merge(name, base, [base + t for t in tasks]) * weights).sum()

    points = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    gradients = torch.autograd.grad(total(*points), points, allow_unused=True)
    along = sum(
        float((g * t).sum()) for g, t in zip(gradients, turns, strict=False) if g is not None
    )
    step = 1e-6
    ahead, behind = (
        float(total(first + s * turns[0], second + s * turns[1])) for s in (step, -step)
    )
    assert along == pytest.approx((ahead - behind) / (2.0 * step), rel=1e-5, abs=1e-8)
