"""What recipes may say about a method, and what is refused."""

from __future__ import annotations

import pytest

from weightsmith.errors import RecipeError
from weightsmith.methods.parts import registry

MERGEKIT_METHODS = (
    "linear slerp nuslerp multislerp karcher passthrough model_stock nearswap arcee_fusion task_arithmetic ties "
    "dare_ties dare_linear breadcrumbs breadcrumbs_ties della della_linear sce ram ramplus_tl"
).split()
OWN_METHODS = "soup wise_ft expo ema lawa wma geometric_median trimmed_mean truncate lines".split()


def build(name, shared=None, experts=1, preset=registry.PAPER, **per_expert):
    return registry.get(name).build(shared or {}, [per_expert] * experts, preset=preset)


def test_every_method_is_registered():
    assert set(MERGEKIT_METHODS + OWN_METHODS) <= set(registry.names())


def test_an_unknown_method_is_answered_with_the_nearest_name():
    with pytest.raises(RecipeError, match="did you mean ties"):
        registry.get("tiess")


WEIGHTED = [
    m for m in MERGEKIT_METHODS if "weight" in registry.get(m).parameters and m != "karcher"
]


@pytest.mark.parametrize("name", WEIGHTED)
def test_mergekit_preset_requires_weights_as_mergekit_does(name):
    n = registry.get(name).experts[0]
    with pytest.raises(RecipeError, match="needs the parameter 'weight'"):
        build(name, experts=n, preset="mergekit")
    assert build(name, experts=n).weight == (1.0,) * n


@pytest.mark.parametrize("name", ["slerp", "nearswap"])
def test_mergekit_preset_requires_t(name):
    with pytest.raises(RecipeError, match="needs the parameter 't'"):
        build(name, preset="mergekit")


@pytest.mark.parametrize(
    ("name", "preset", "meaning"),
    [
        ("dare_linear", "paper", "probability"),
        ("dare_linear", "mergekit", "l1"),
        ("della", "paper", "probability"),
        ("della", "mergekit", "l1"),
        ("ties", "paper", "l1"),
        ("ties", "mergekit", "l1"),
    ],
)
def test_rescale_true_means_what_the_preset_says(name, preset, meaning):
    given = {"rescale": True}
    assert build(name, given, preset=preset, weight=1.0).rescale == meaning
    assert build(name, {"rescale": False}, preset=preset, weight=1.0).rescale == "none"
    assert build(name, {"rescale": 1}, preset=preset, weight=1.0).rescale == meaning


def test_normalize_true_divides_by_signed_weights_only_for_mergekit():
    assert build("ties", {"normalize": True}, weight=1.0).normalize == "absolute"
    assert build("ties", {"normalize": True}, preset="mergekit", weight=1.0).normalize == "signed"
    assert build("ties", {"normalize": False}, preset="mergekit", weight=1.0).normalize == "none"


@pytest.mark.parametrize(
    "name",
    "task_arithmetic ties dare_ties dare_linear breadcrumbs breadcrumbs_ties della della_linear".split(),
)
def test_the_family_accepts_every_key_of_mergekit(name):
    keys = {"normalize": True, "lambda": 0.5}
    if name != "task_arithmetic":  # where mergekit reads them without effect
        keys |= {"rescale": False, "density": 1.0}
    built = build(name, keys, preset="mergekit", weight=0.5, experts=2)
    assert (built.scale, built.weight) == (0.5, (0.5, 0.5))


MERGEKIT_DEFAULTS = {
    "linear": {"normalize": True},
    "nuslerp": {"nuslerp_row_wise": False, "nuslerp_flatten": True},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "passthrough": {"scale": None},
    "model_stock": {"filter_wise": False},
    "task_arithmetic": {"normalize": "none", "lambda": 1.0},
    "ties": {"normalize": "signed", "rescale": "none", "lambda": 1.0, "density": 1.0},
    "dare_ties": {"normalize": "none", "rescale": "l1", "lambda": 1.0, "density": 1.0},
    "dare_linear": {"normalize": "none", "rescale": "l1", "density": 1.0},
    "breadcrumbs": {"normalize": "none", "rescale": "none", "density": 1.0, "gamma": 0.01},
    "breadcrumbs_ties": {"normalize": "none", "rescale": "none", "density": 1.0, "gamma": 0.01},
    "della": {"normalize": "signed", "rescale": "l1", "density": 1.0, "epsilon": 0.15},
    "della_linear": {"normalize": "none", "rescale": "l1", "density": 1.0, "epsilon": 0.15},
    "sce": {"select_topk": 1.0},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
}


@pytest.mark.parametrize("name", MERGEKIT_DEFAULTS)
def test_mergekit_preset_has_the_defaults_of_its_contract(name):
    defaults = registry.get(name).defaults("mergekit")
    assert {k: defaults[k] for k in MERGEKIT_DEFAULTS[name]} == MERGEKIT_DEFAULTS[name]


@pytest.mark.parametrize(
    ("name", "shared", "message"),
    [
        ("ties", {"density": 1.5}, r"density must lie in \[0, 1\]"),
        ("ties", {"density": float("nan")}, "must be finite"),
        ("ties", {"density": "half"}, "must be a number"),
        ("ties", {"density": True}, "must be a number"),
        ("ties", {"zero_sum": "minus"}, "must be one of zero, positive, majority"),
        ("ties", {"desnity": 0.5}, "has no parameter 'desnity'"),
        ("ties", {"rescale": 2}, "must be one of none, l1"),
        ("linear", {"normalize": "yes"}, "must be true or false"),
        ("lawa", {"k": 1.5}, "must be a whole number"),
        ("lawa", {"k": float("inf")}, "must be finite"),
        ("ties", {"lambda": 10**400}, "must be finite"),
        ("lawa", {"k": 0}, r"must lie in \[1, inf\]"),
    ],
)
def test_a_meaningless_parameter_is_refused_with_its_name(name, shared, message):
    with pytest.raises(RecipeError, match=message):
        build(name, shared)


@pytest.mark.parametrize("given", [1e101, -1e101, 10**101])
def test_a_number_of_an_expert_is_of_a_size_that_sums_hold(given):
    with pytest.raises(RecipeError, match="weight must be of a size up to 1e\\+100, but is"):
        build("linear", {"weight": given})


@pytest.mark.parametrize(
    ("name", "key", "given", "meant"),
    [
        ("linear", "normalize", 1, True),
        ("linear", "normalize", 0.0, False),
        ("lawa", "k", 1, 1),
        ("lawa", "k", 3.0, 3),
        ("ties", "zero_sum", "majority", "majority"),
    ],
)
def test_a_parameter_may_be_written_in_another_way(name, key, given, meant):
    found = getattr(build(name, {key: given}), key)
    assert (found, type(found)) == (meant, type(meant))


def test_a_share_may_be_all_or_nothing():
    for given in (0, 1):
        assert build("ties", {"density": given}).density == (float(given),)


@pytest.mark.parametrize("given", [2, -1, 0.5, float("nan")])
def test_a_number_that_is_neither_0_nor_1_is_no_switch(given):
    with pytest.raises(RecipeError, match="normalize must be true or false"):
        build("linear", {"normalize": given})


@pytest.mark.parametrize(
    ("name", "experts"), [("slerp", 2), ("model_stock", 1), ("nuslerp", 3), ("trimmed_mean", 2)]
)
def test_a_wrong_number_of_experts_is_refused(name, experts):
    with pytest.raises(RecipeError, match=f"{experts} were given"):
        build(name, {"t": 0.5} if name == "slerp" else {}, experts=experts)
