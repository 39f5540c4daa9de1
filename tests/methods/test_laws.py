"""Laws that hold for any input: translation, order of experts, sign, scale, layout, dtype, and unchanged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from weightsmith.methods.parts import registry
from weightsmith.methods.parts.registry import REQUIRED, Base

SHAPES = [
    (),
    (0,),
    (1,),
    (2,),
    (17,),
    (1, 1),
    (4, 1),
    (1, 5),
    (3, 7),
    (0, 4),
    (2, 3, 4),
    (2, 2, 3, 2),
]
NAMES = registry.names()
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
# Singular directions touch every element, and broken ones are refused.
SPECTRAL = set(
    "truncate tsv_m tsv_c resm iso_c iso_cts opcm knots doge svc regmean wudi iwudi swudi aswudi optmerge twin "
    "lore subspace_boosting cart dc_merge ace orthomerge resmerge".split()
)
# Formulas that depend on the experts' order in time.
ORDERED = {
    "ema",
    "lawa",
    "wma",
    "layer_swapping",
    "opcm",
    "magmax",
    "rcp",
    "cabs",
    "train_difference",
}
# Formulas without an origin or a unit: f(x + c) = f(x) + c.
TRANSLATED = (
    "linear soup ema lawa wma wise_ft expo geometric_median trimmed_mean task_arithmetic ties dare_linear "
    "dare_ties breadcrumbs breadcrumbs_ties della della_linear sce ram model_stock truncate lines passthrough "
    "tsv_m tsv_c resm iso_c iso_cts opcm knots doge svc consensus tall_masks emr magmax localize_and_stitch pcb "
    "task_karcher fisher ota regmean metrics_weighted wudi iwudi swudi aswudi optmerge twin lore aim tatr "
    "tatr_zero_shot cabs subspace_boosting cart dc_merge ace resmerge"
).split()
# A repair has biases of its own; OptMerge's default takes steps of one size, and LoRE lowers singular values by one
# number, whatever the size of task vectors; a clamp's limit is a number, and so is ACE's epsilon.
SCALE_BOUND = set(
    "clamp rcp widen doge nearswap ram ramplus_tl arcee_fusion optmerge lore repair ace".split()
)
# Iterations that start elsewhere, or stop within a tolerance.
ITERATED = {"karcher": 1e-6, "task_karcher": 1e-6}
SIGN_BOUND = {"rcp", "sce", "arcee_fusion", "repair"}


@st.composite
def families(draw, n, *, dyadic=False):
    """A base and n experts: random, with copies of the base and of each other, and zeros, among them."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([1e-3, 0.1, 1.0]))
    base = rng.normal(size=shape)
    experts = []
    for _ in range(n):
        kind = draw(st.sampled_from(["fresh", "fresh", "fresh", "base", "copy", "sparse"]))
        change = size * rng.normal(size=shape)
        if kind == "sparse":
            change = change * (rng.random(shape) < 0.3)
        expert = base + change
        if kind == "base":
            expert = base.copy()
        if kind == "copy" and experts:
            expert = experts[-1].copy()
        experts.append(expert)
    if dyadic:  # multiples of 2^-10, so that translation and sums are exact
        base, *experts = (np.round(x * 1024) / 1024 for x in [base, *experts])
    return base, experts


def settings_of(name, n):
    spec = registry.get(name)
    shared = {key: 0.4 for key, default in spec.defaults().items() if default is REQUIRED}
    if name == "sce":
        shared["select_topk"] = 0.5
    if name == "truncate":
        shared["rank"] = 1
    if name == "lines":
        shared["alpha"] = 0.3
    if name in ("tall_masks", "emr"):
        shared["task"] = "m1"
    return {"shared": shared, "labels": tuple(f"m{i}" for i in range(n))}


def experts_for(name, wanted=4):
    low, high = registry.get(name).experts
    return min(max(low, wanted), high or wanted)


def base_for(name, base):
    return base if registry.get(name).base is Base.REQUIRED else None


def cancel(vectors):
    lengths = [np.linalg.norm(v) for v in vectors]
    alive = [v / length for v, length in zip(vectors, lengths, strict=True) if length]
    return bool(alive) and np.linalg.norm(np.sum(alive, axis=0)) < 1e-6


def close(actual, expected, base, experts, tolerance=1e-9):
    scale = max([1.0, *(np.abs(x).max(initial=0.0) for x in [base, *experts])])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", TRANSLATED)
@given(data=st.data())
@settings(max_examples=15)
def test_translation(name, merge, data):
    base, experts = data.draw(families(experts_for(name), dyadic=True))
    shift = 8.0
    how = settings_of(name, len(experts))
    merged = merge(name, base_for(name, base), experts, **how)
    moved = merge(name, base_for(name, base + shift), [e + shift for e in experts], **how)
    close(moved, merged + shift, base, experts)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if registry.get(n).experts[1] != 1 and n not in ORDERED]
)
@given(data=st.data())
@settings(max_examples=15)
def test_order_of_experts(name, merge, data):
    # Values are multiples of 2^-10 so that no sum depends on its order and no elected sign on rounding. KnOTS elects
    # signs of coordinates along singular directions: on such a grid they cancel but for rounding.
    base, experts = data.draw(families(experts_for(name), dyadic=name != "knots"))
    if name == "karcher":  # directions that cancel have no mean; it then stays at the first
        assume(not cancel(experts))
    if name == "task_karcher":
        assume(not cancel([expert - base for expert in experts]))
    order = data.draw(st.permutations(range(len(experts))))
    how = settings_of(name, len(experts))
    merged = merge(name, base_for(name, base), experts, **how)
    how["labels"] = tuple(how["labels"][i] for i in order)
    reordered = merge(name, base_for(name, base), [experts[i] for i in order], **how)
    close(reordered, merged, base, experts, ITERATED.get(name, 1e-9))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SIGN_BOUND])
@given(data=st.data())
@settings(max_examples=15)
def test_sign(name, merge, data):
    base, experts = data.draw(families(experts_for(name)))
    how = settings_of(name, len(experts))
    merged = merge(name, base_for(name, base), experts, **how)
    mirrored = merge(name, base_for(name, -base), [-e for e in experts], **how)
    close(mirrored, -merged, base, experts)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SCALE_BOUND])
@given(data=st.data(), power=st.sampled_from([-40, -3, 5, 30]))
@settings(max_examples=15)
def test_scale(name, merge, data, power):
    base, experts = data.draw(families(experts_for(name)))
    factor = 2.0**power
    how = settings_of(name, len(experts))
    merged = merge(name, base_for(name, base), experts, **how)
    scaled = merge(name, base_for(name, base * factor), [e * factor for e in experts], **how)
    close(scaled / factor, merged, base, experts)


# Spectral methods whose weights are strengths: each of its task vector, before anything is decomposed.
STRENGTHS = (
    "tsv_m resm iso_c iso_cts wudi iwudi swudi aswudi optmerge subspace_boosting dc_merge ace resmerge"
).split()


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_is_a_factor_of_its_task_vector(name, merge):
    base, *taus = np.random.default_rng(9).normal(size=(4, 7, 5))
    weights = [0.5, 2.0, 1.25]
    given = [{"weight": w} for w in weights]
    shared = {"solver": "closed"} if name == "optmerge" else {}
    found = merge(name, base, [base + t for t in taus], per_expert=given, shared=shared)
    scaled = [base + w * t for w, t in zip(weights, taus, strict=True)]
    expected = merge(name, base, scaled, shared=shared)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    assert abs(found - merge(name, base, [base + t for t in taus], shared=shared)).max() > 0.1


@pytest.mark.parametrize(
    ("name", "preset"), [("sce", "paper"), ("pcb", "paper"), ("pcb", "pcb_es")]
)
@pytest.mark.parametrize("power", [-50, 60])
def test_products_of_float32_numbers_keep_all_their_digits_down_to_changes_of_1e_18(
    name, preset, merge, power
):
    """The docstrings say so; a change of 2^-60, as most are here, has a square of 2^-120."""
    base = np.zeros(2000, np.float32)
    drawn = np.random.default_rng(0).standard_normal((3, 2000)).astype(np.float32)
    experts = [np.float32(2.0**-10) * e for e in drawn]
    merged = merge(name, base, experts, preset=preset)
    scaled = merge(name, base, [np.float32(2.0**power) * e for e in experts], preset=preset)
    np.testing.assert_array_equal(scaled, np.float32(2.0**power) * merged)
    assert np.abs(merged).max() > 0


ELEMENTWISE = (
    "linear soup ema lawa wma wise_ft expo trimmed_mean task_arithmetic ties dare_linear dare_ties breadcrumbs "
    "breadcrumbs_ties sce ram ramplus_tl nearswap passthrough lines slerp nuslerp multislerp karcher model_stock "
    "geometric_median consensus tall_masks emr magmax localize_and_stitch pcb fisher ota metrics_weighted cabs"
).split()


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(data=st.data())
@settings(max_examples=15)
def test_shape_does_not_matter_where_no_row_does(name, merge, data):
    base, experts = data.draw(families(experts_for(name)))
    how = settings_of(name, len(experts))
    merged = merge(name, base_for(name, base), experts, **how)
    flat = merge(name, base_for(name, base.reshape(-1)), [e.reshape(-1) for e in experts], **how)
    np.testing.assert_array_equal(flat, merged.reshape(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_float_dtype_gives_the_merge_of_its_values(name, merge, dtype):
    n = experts_for(name)
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.normal(size=(4, 6))).to(dtype) for _ in range(n + 1)]
    wide = [x.to(torch.float32) if dtype is not torch.float64 else x for x in inputs]
    how = settings_of(name, n)
    merged = merge(name, base_for(name, inputs[0]), inputs[1:], **how)
    assert merged.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.equal(merged, merge(name, base_for(name, wide[0]), wide[1:], **how))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=10)
def test_strided_inputs_are_read_in_logical_order(name, merge, data):
    base, experts = data.draw(families(experts_for(name)))
    inputs = [torch.from_numpy(np.array(x)) for x in [base, *experts]]
    turned = [x.mT.contiguous().mT if x.ndim > 1 else x for x in inputs]
    how = settings_of(name, len(experts))
    merged = merge(name, base_for(name, inputs[0]), inputs[1:], **how)
    assert torch.equal(merged, merge(name, base_for(name, turned[0]), turned[1:], **how))


# The span of a rotation or a truncation touches every element.
MIXING = {"slerp", *SPECTRAL}
LOCAL = [n for n in NAMES if registry.get(n).base is Base.REQUIRED and n not in MIXING]


@pytest.mark.parametrize("name", LOCAL)
@given(data=st.data())
@settings(max_examples=10)
def test_what_no_expert_changed_is_untouched(name, merge, data):
    n = experts_for(name)
    base, experts = data.draw(families(n))
    base32 = base.astype(np.float32)
    mask = np.random.default_rng(0).random(base.shape) < 0.5
    experts32 = [np.where(mask, base32, e.astype(np.float32)) for e in experts]
    merged = merge(name, base32, experts32, **settings_of(name, n))
    np.testing.assert_array_equal(merged[mask], base32[mask])


ONE_BROKEN = [n for n in NAMES if n not in {*SPECTRAL, "lawa", "trimmed_mean"}]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ONE_BROKEN)
def test_a_broken_weight_neither_raises_nor_warns(name, merge, bad):
    n = experts_for(name)
    inputs = list(np.random.default_rng(0).normal(size=(n + 1, 3, 4)))
    inputs[1][1, 2] = bad
    merged = merge(name, base_for(name, inputs[0]), inputs[1:], **settings_of(name, n))
    assert merged.shape == (3, 4)
