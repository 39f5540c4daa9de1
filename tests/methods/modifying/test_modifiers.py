"""Modifiers: each against its formula, and what they turn methods into."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError, UsageError
from weightsmith.graph.backends.torch_memory import evaluate
from weightsmith.graph.graph import source
from weightsmith.graph.site import Site
from weightsmith.methods.parts import modifiers, registry
from weightsmith.methods.parts.registry import REQUIRED, Base
from weightsmith.tensors.place import Place


def draw(n, shape=(6, 7), seed=0, *, dyadic=False):
    rng = np.random.default_rng(seed)
    base, *experts = rng.normal(size=(n + 1, *shape))
    experts = [base + (i + 1) * 0.3 * e for i, e in enumerate(experts)]
    if dyadic:
        base, *experts = (np.round(x * 64) / 64 for x in (base, *experts))
    return base, experts


def modified(name, base, experts, **parameters):
    """What a modifier makes of each expert."""
    spec = modifiers.get(name)
    inputs = [torch.from_numpy(np.array(x)) for x in ([] if base is None else [base]) + experts]
    nodes = [source(i) for i in range(len(inputs))]
    site = Site(
        Place("w"), tuple(inputs[0].shape), labels=tuple(f"m{i}" for i in range(len(experts)))
    )
    origin = None if base is None else nodes[0]
    changed = spec.build(parameters).modify(origin, nodes[-len(experts) :], site)
    return [evaluate(value, inputs).numpy() for value in changed]


def merged(method, base, experts, *, modify=(), **how):
    """One tensor through the public function."""
    states = [{"w": torch.from_numpy(np.array(e))} for e in experts]
    origin = None if base is None else {"w": torch.from_numpy(np.array(base))}
    labels = tuple(f"m{i}" for i in range(len(experts)))
    made = weightsmith.merge_state_dicts(
        method, states, base=origin, modify=modify, labels=labels, **how
    )
    return made["w"].numpy()


# The registry -----------------------------------------------------------------------------------------------------


def test_names_of_methods_and_modifiers_are_distinct():
    assert not set(modifiers.names()) & set(registry.names())


@pytest.mark.parametrize("name", modifiers.names())
def test_a_modifier_is_documented(name):
    spec = modifiers.get(name)
    assert spec.title
    assert any(c.isdigit() for c in spec.paper)
    assert "=" in spec.doc
    assert all(p.doc and not p.per_expert for p in spec.parameters.values())
    for key, parameter in spec.parameters.items():
        if parameter.default is not REQUIRED:
            parameter.check(parameter.default, key)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("clips", "no modifier called 'clips'; did you mean clip?"),
        ("ties", "ties is a merge method; known modifiers are clip"),
        ("qqqqqq", "no modifier called 'qqqqqq'; known are clip"),
    ],
)
def test_an_unknown_modifier_is_refused_with_a_hint(name, sentence):
    with pytest.raises(RecipeError, match=sentence):
        modifiers.get(name)


def test_wrong_parameters_are_refused():
    with pytest.raises(RecipeError, match="modifier clip has no parameter 'limits'; it has limit"):
        modifiers.get("clip").build({"limits": 1})
    with pytest.raises(RecipeError, match="modifier sparsify needs the parameter 'density'"):
        modifiers.get("sparsify").build({})
    with pytest.raises(RecipeError, match="density must lie in"):
        modifiers.get("sparsify").build({"density": 2})


def test_a_modifier_without_its_base_is_refused():
    with pytest.raises(UsageError, match="sparsify needs a base"):
        merged("linear", None, draw(2)[1], modify=[{"sparsify": {"density": 0.5}}])
    with pytest.raises(UsageError, match="one modifier with its parameters"):
        merged("linear", None, draw(2)[1], modify=[{"clip": {}, "trimmed": {}}])


# Norm clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("reference", ["median", "mean", "smallest", "one"])
@pytest.mark.parametrize("limit", [0.0, 0.8, 1.5])
def test_clip_shortens_what_is_longer_than_the_bound(n, reference, limit):
    base, experts = draw(n)
    norms = np.array([np.linalg.norm(e - base) for e in experts])
    bound = (
        limit
        * {"median": np.median(norms), "mean": norms.mean(), "smallest": norms.min(), "one": 1.0}[
            reference
        ]
    )
    found = modified("clip", base, experts, limit=limit, reference=reference)
    for expert, norm, clipped in zip(experts, norms, found, strict=True):
        factor = min(1.0, bound / norm)
        np.testing.assert_allclose(clipped, base + factor * (expert - base), rtol=0, atol=1e-13)
        if factor == 1.0:
            np.testing.assert_array_equal(clipped, expert)


def test_experts_that_changed_nothing_do_not_lower_the_bound():
    base, (a, b, c) = draw(3)
    alone = modified("clip", base, [a, b, c])
    with_idle = modified("clip", base, [base, a, base, b, c, base])
    np.testing.assert_array_equal(with_idle[0], base)
    for found, expected in zip([with_idle[i] for i in (1, 3, 4)], alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_clip_without_a_base_clips_the_weights():
    _, experts = draw(3)
    norms = [np.linalg.norm(e) for e in experts]
    for expert, norm, clipped in zip(experts, norms, modified("clip", None, experts), strict=True):
        np.testing.assert_allclose(clipped, expert * min(1, np.median(norms) / norm), atol=1e-13)


def test_only_zeros_stay_zeros():
    zero = np.zeros((3, 3))
    for base in (zero, None):
        for clipped in modified("clip", base, [zero, zero]):
            np.testing.assert_array_equal(clipped, zero)


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_clip_can_take_norms_over_a_layer_or_the_model(scope):
    rng = np.random.default_rng(3)
    names = ["embed", *(f"layers.{i}.{p}" for i in range(3) for p in "ab")]
    base = {n: torch.from_numpy(rng.normal(size=4)) for n in names}
    experts = [
        {n: base[n] + s * torch.from_numpy(rng.normal(size=4)) for n in names} for s in (0.1, 1, 3)
    ]
    found = weightsmith.merge_state_dicts(
        "task_arithmetic", experts, base=base, modify=[{"clip": {"limit": 0.9, "scope": scope}}]
    )
    for name in names:
        layer = name.split(".")[1] if "." in name else None
        same = [n for n in names if (n.split(".")[1] if "." in n else None) == layer]
        counted = names if scope == "model" else same
        norms = [sum(float(((e[n] - base[n]) ** 2).sum()) for n in counted) ** 0.5 for e in experts]
        tau = sum(
            min(1.0, 0.9 * float(np.median(norms)) / norm) * (e[name] - base[name])
            for e, norm in zip(experts, norms, strict=True)
        )
        torch.testing.assert_close(found[name], base[name] + tau, rtol=0, atol=1e-13)


def test_scaling_a_vector_up_beyond_the_bound_changes_nothing():
    base, (a, b, c) = draw(3)
    first = modified("clip", base, [a, b, c], limit=1.0)
    louder = modified("clip", base, [a, b, base + 50 * (c - base)], limit=1.0)
    np.testing.assert_allclose(first[2], louder[2], rtol=0, atol=1e-12)


# Robust values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(3, 1), (4, 1), (5, 1), (5, 2), (6, 2), (4, 0)])
def test_linear_with_trimmed_values_is_the_trimmed_mean(n, k):
    _, experts = draw(n, dyadic=True)
    experts[0][0, 0] = 1e6
    experts[1][1] = experts[2][1]
    found = merged("linear", None, experts, modify=[{"trimmed": {"k": k}}])
    expected = merged("trimmed_mean", None, experts, parameters={"k": k})
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)
    ordered = np.sort(np.stack(experts), axis=0)[k : n - k]
    np.testing.assert_allclose(found, ordered.mean(axis=0), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("method", ["linear", "soup"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_averages_of_medians_are_the_median_bit_for_bit(method, n):
    _, experts = draw(n)
    found = merged(method, None, experts, modify=["coordinate_median"])
    median = np.median(np.stack(experts), axis=0)
    np.testing.assert_allclose(found, median, rtol=1e-15, atol=0)
    if n % 2:
        np.testing.assert_array_equal(found, median)
        odd = merged("trimmed_mean", None, experts, parameters={"k": n // 2}) if n > 1 else found
        np.testing.assert_array_equal(found, odd)


def test_weights_cannot_move_the_median():
    _, experts = draw(3)
    weights = [{"weight": w} for w in (0.7, 0.2, 5.0)]
    found = merged("linear", None, experts, modify=["coordinate_median"], per_expert=weights)
    np.testing.assert_array_equal(found, np.median(np.stack(experts), axis=0))


@pytest.mark.parametrize(("n", "k"), [(3, 1), (5, 1), (5, 2), (4, 1), (3, 0)])
def test_winsorised_values_stay_within_the_inner_range(n, k):
    _, experts = draw(n)
    ordered = np.sort(np.stack(experts), axis=0)
    found = modified("winsorize", None, experts, k=k)
    for value, expert in zip(found, experts, strict=True):
        np.testing.assert_array_equal(value, np.clip(expert, ordered[k], ordered[n - 1 - k]))


@pytest.mark.parametrize("name", ["winsorize", "trimmed"])
def test_more_than_half_cannot_be_trimmed(name):
    with pytest.raises(RecipeError, match=f"modifier {name} with k = 2 needs at least 5 experts"):
        modified(name, None, draw(4)[1], k=2)


@pytest.mark.parametrize("name", ["winsorize", "trimmed", "coordinate_median"])
def test_k_broken_experts_cannot_move_a_robust_average_far(name):
    _, experts = draw(5)
    wrecked = [*experts[:4], np.full_like(experts[4], 1e9)]
    found = merged("linear", None, wrecked, modify=[name])
    honest = np.stack(experts[:4])
    assert (found >= honest.min(axis=0)).all()
    assert (found <= honest.max(axis=0)).all()


# Sparsify ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_sparsify_then_elect_is_ties(scope):
    base, experts = draw(3)
    base, experts = base.astype(np.float32), [e.astype(np.float32) for e in experts]
    step = {"sparsify": {"density": 0.3, "scope": scope}}
    found = merged("ties", base, experts, modify=[step], parameters={"density": 1.0})
    own = merged("ties", base, experts, parameters={"density": 0.3, "trim_scope": scope})
    np.testing.assert_array_equal(found, own)


def test_random_sparsify_then_add_is_dare_bit_for_bit():
    base, experts = draw(3)
    base, experts = base.astype(np.float32), [e.astype(np.float32) for e in experts]
    step = {"sparsify": {"density": 0.4, "keep": "random"}}
    found = merged("task_arithmetic", base, experts, modify=[step], seed=7)
    own = merged(
        "dare_linear", base, experts, parameters={"density": 0.4, "normalize": False}, seed=7
    )
    np.testing.assert_array_equal(found, own)
    assert not np.array_equal(
        found, merged("task_arithmetic", base, experts, modify=[step], seed=8)
    )


def test_kept_elements_keep_every_bit_and_the_others_are_the_base():
    base, experts = draw(2)
    base, experts = base.astype(np.float32) * 1e3, [e.astype(np.float32) for e in experts]
    for expert, sparse in zip(
        experts, modified("sparsify", base, experts, density=0.5), strict=True
    ):
        kept = sparse == expert
        np.testing.assert_array_equal(sparse[~kept], base[~kept])
        assert kept.sum() == 21
        change = np.abs(expert - base)
        assert change[kept].min() >= change[~kept].max()


def test_the_l1_norm_can_be_restored():
    base, experts = draw(2)
    found = modified("sparsify", base, experts, density=0.4, rescale="l1")
    for expert, sparse in zip(experts, found, strict=True):
        np.testing.assert_allclose(np.abs(sparse - base).sum(), np.abs(expert - base).sum())


def test_the_largest_can_be_divided_by_their_share():
    base, experts = draw(2)
    found = modified("sparsify", base, experts, density=0.5, rescale="probability")
    for expert, sparse in zip(experts, found, strict=True):
        tau = expert - base
        kept = abs(tau) >= np.sort(abs(tau).ravel())[-21]
        np.testing.assert_allclose(sparse, base + np.where(kept, tau, 0.0) / 0.5, rtol=1e-13)
    for value in modified("sparsify", base, experts, density=0.0, rescale="probability"):
        np.testing.assert_array_equal(value, base)


@pytest.mark.parametrize("keep", ["largest", "random"])
def test_density_zero_leaves_the_base_and_one_changes_nothing(keep):
    base, experts = draw(2)
    for value in modified("sparsify", base, experts, density=0.0, keep=keep):
        np.testing.assert_array_equal(value, base)
    for value, expert in zip(
        modified("sparsify", base, experts, density=1.0, keep=keep), experts, strict=True
    ):
        np.testing.assert_array_equal(value, expert)


def test_a_share_of_the_model_has_no_meaning_for_single_draws():
    with pytest.raises(RecipeError, match="scope: model has no meaning"):
        modified("sparsify", *draw(2), density=0.5, keep="random", scope="model")


# Composition ------------------------------------------------------------------------------------------------------


def test_modifiers_apply_in_the_order_they_are_written():
    base, experts = draw(2)
    steps = [{"sparsify": {"density": 0.5}}, {"clip": {"limit": 0.1, "reference": "one"}}]
    found = merged("task_arithmetic", base, experts, modify=steps)
    tau = 0.0
    for expert in experts:
        delta = expert - base
        kept = np.where(np.abs(delta) >= np.sort(np.abs(delta).ravel())[21], delta, 0.0)
        tau = tau + kept * min(1.0, 0.1 / np.linalg.norm(kept))
    np.testing.assert_allclose(found, base + tau, rtol=0, atol=1e-14)


def test_statistics_of_the_model_run_over_layers_that_a_modifier_treats_differently():
    # The first layer is scaled, the last is not, and what lies outside is clipped by itself: one threshold for all.
    rng = np.random.default_rng(4)
    names = ["embed", *(f"layers.{i}.w" for i in range(3))]
    base = {n: torch.zeros(6, dtype=torch.float64) for n in names}
    experts = [{n: torch.from_numpy(rng.normal(size=6)) for n in names} for _ in range(3)]
    steps = [{"scale_by_depth": {"alpha": 0.3}}, {"clip": {"limit": 0.9, "scope": "layer"}}]
    parameters = {"density": 0.4, "trim_scope": "model"}
    found = weightsmith.merge_state_dicts(
        "ties", experts, base=base, modify=steps, parameters=parameters
    )
    changed = [{} for _ in experts]
    for name in names:
        scale = {"layers.1.w": 0.65, "layers.2.w": 1.0}.get(name, 0.3)
        norms = [float((scale * e[name]).norm()) for e in experts]
        bound = 0.9 * float(np.median(norms))
        for state, expert, norm in zip(changed, experts, norms, strict=True):
            state[name] = expert[name] * scale * min(1.0, bound / norm)
    expected = weightsmith.merge_state_dicts("ties", changed, base=base, parameters=parameters)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-14)
    kept = sum(int((t != 0).sum()) for t in expected.values())
    assert kept < 24


def example_of(name):
    required = {
        key: 0.5
        for key, value in modifiers.get(name).parameters.items()
        if value.default is REQUIRED
    }
    return {name: required}


def number_of_experts(spec):
    low, high = spec.experts
    return high if high is not None else max(low, 3)


def statistics_for(spec, n):
    """Positive numbers for every element, or a matrix of products of inputs, where the method or modifier takes any."""
    kind = next((k for k in spec.statistics if k != "metrics"), None)
    if kind is None:
        return []
    n = 1 if spec.measured_on is registry.MeasuredOn.BASE else n
    drawn = [torch.from_numpy(x) for x in np.random.default_rng(9).random((n, 5, 5)) + 0.1]
    return [{"w": x.mT @ x if kind == "gram" else x} for x in drawn]


PAIRS = [
    (method, modifier)
    for method in registry.names()
    for modifier in modifiers.names()
    if modifier not in ("winsorize", "trimmed") or number_of_experts(registry.get(method)) >= 3
    # In memory there are statistics for one of the two.
    if not (
        set(registry.get(method).statistics) - {"metrics"} and modifiers.get(modifier).statistics
    )
]


@pytest.mark.parametrize(("method", "modifier"), PAIRS)
def test_every_modifier_composes_with_every_method(method, modifier):
    spec = registry.get(method)
    n = number_of_experts(spec)
    base, experts = draw(n, (5, 5))
    parameters = {k: 0.4 for k, d in spec.defaults().items() if d is REQUIRED}
    needs = Base.REQUIRED in (spec.base, modifiers.get(modifier).base)
    found = merged(
        method,
        base if needs else None,
        experts,
        modify=[example_of(modifier)],
        parameters=parameters,
        statistics=statistics_for(spec, n) or statistics_for(modifiers.get(modifier), n),
    )
    assert found.shape == (5, 5)
    assert np.isfinite(found).all()


def test_gradients_flow_through_modifiers():
    base, experts = draw(3)
    tensors = [torch.from_numpy(e).requires_grad_() for e in experts]
    found = weightsmith.merge_state_dicts(
        "task_arithmetic",
        [{"w": t} for t in tensors],
        base={"w": torch.from_numpy(base)},
        modify=["clip", "winsorize", {"sparsify": {"density": 0.5}}],
    )
    found["w"].sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in tensors)
