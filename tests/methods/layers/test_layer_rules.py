"""Layer swapping, layer-wise weights and depth scaling against their formulas, over models in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError
from weightsmith.graph.backends.torch_memory import evaluate
from weightsmith.graph.graph import source
from weightsmith.graph.site import Site
from weightsmith.methods.layers.layer_swapping import middle_block, swap_share
from weightsmith.methods.parts import modifiers
from weightsmith.tensors.place import Place

LAYERS = 6
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in ("q", "mlp.0", "norm")),
    "model.norm.weight",
    "lm_head.weight",
]


def model(seed, base=None, strength=None):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in NAMES:
        shape = (5,) if "norm" in name else (4, 5)
        fresh = torch.randn(shape, generator=generator, dtype=torch.float64)
        layer = layer_of(name)
        factor = 0.1 if strength is None or layer is None else strength[layer]
        made[name] = fresh if base is None else base[name] + factor * fresh
    return made


def layer_of(name):
    return int(name.split(".")[2]) if ".layers." in name else None


BASE = model(0)
TASK = model(1, BASE, [0.1, 0.1, 0.9, 0.8, 0.7, 0.1])
LANGUAGE = model(2, BASE, [0.9, 0.5, 0.1, 0.1, 0.2, 0.8])


def swapped(**parameters):
    return weightsmith.merge_state_dicts(
        "layer_swapping", [TASK, LANGUAGE], base=BASE, parameters=parameters
    )


def share_found(name, merged):
    """0, 0.5 or 1 where a tensor is exactly expert 1, the average, or expert 2."""
    if torch.equal(merged[name], TASK[name]):
        return 0.0
    if torch.equal(merged[name], LANGUAGE[name]):
        return 1.0
    torch.testing.assert_close(merged[name], (TASK[name] + LANGUAGE[name]) / 2)
    return 0.5


def shares(merged):
    """The share of expert 2 in each layer, which all of its tensors must have."""
    found = []
    for layer in range(LAYERS):
        own = {share_found(n, merged) for n in NAMES if layer_of(n) == layer}
        assert len(own) == 1, f"layer {layer} is torn apart"
        found.append(own.pop())
    return found


# Layer swapping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "u", "t", "expected"),
    [
        (0, 0, 0, [0, 0, 0, 0, 0, 0]),
        (0, 0, 2, [0, 0, 0, 0, 0, 0]),
        (6, 0, 0, [1, 1, 1, 1, 1, 1]),
        (2, 1, 0, [1, 1, 0, 0, 0, 1]),
        (1, 1, 1, [1, 0.5, 0, 0, 0.5, 1]),
        (2, 0, 2, [1, 1, 0.5, 0.5, 0, 0]),
        (0, 1, 3, [0, 0, 0.5, 0.5, 0.5, 1]),
        (1, 2, 5, [1, 0.5, 0.5, 0.5, 1, 1]),
        (3, 3, 1, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_layers_are_swapped_whole_and_bit_for_bit(b, u, t, expected):
    assert shares(swapped(bottom=b, top=u, transition=t)) == expected
    assert [swap_share(layer, LAYERS, b, u, t) for layer in range(LAYERS)] == expected


@pytest.mark.parametrize(
    ("rest", "expected"), [("first", TASK), ("second", LANGUAGE), ("base", BASE)]
)
def test_what_lies_outside_of_layers_is_a_choice(rest, expected):
    merged = swapped(bottom=1, rest=rest)
    for name in NAMES:
        if layer_of(name) is None:
            assert torch.equal(merged[name], expected[name])


def test_the_average_is_a_choice_outside_of_layers_too():
    merged = swapped(bottom=1, rest="average")
    assert share_found("lm_head.weight", merged) == 0.5


def test_swapping_more_layers_than_there_are_is_refused():
    with pytest.raises(RecipeError, match="bottom 4 and top 3 swaps more than the 6 layers"):
        swapped(bottom=4, top=3)


def test_a_measurement_without_a_base_is_refused():
    for parameters in ({"select": "measured"}, {"rest": "base"}):
        with pytest.raises(RecipeError, match="needs a base"):
            weightsmith.merge_state_dicts("layer_swapping", [TASK, LANGUAGE], parameters=parameters)


def changes(expert, measure):
    found = []
    for layer in range(LAYERS):
        own = [n for n in NAMES if layer_of(n) == layer]
        change = sum(float(((expert[n] - BASE[n]) ** 2).sum()) for n in own) ** 0.5
        norm = sum(float((BASE[n] ** 2).sum()) for n in own) ** 0.5
        found.append(change / norm if measure == "relative" else change)
    return np.array(found)


@pytest.mark.parametrize("measure", ["relative", "norm"])
def test_measured_swaps_follow_from_where_each_expert_changed_most(measure):
    a, b = changes(TASK, measure), changes(LANGUAGE, measure)
    gain = a / a.sum() - b / b.sum()
    runs = [(i, j) for i in range(LAYERS) for j in range(i + 1, LAYERS + 1)]
    start, end = max(runs, key=lambda run: gain[run[0] : run[1]].sum())
    assert (start, end) == (2, 5)
    expected = [0.0 if start <= layer < end else 1.0 for layer in range(LAYERS)]
    assert shares(swapped(select="measured", measure=measure)) == expected


def test_measured_swaps_have_a_transition_too():
    assert shares(swapped(select="measured", transition=1)) == [1, 1, 0.5, 0, 0.5, 1]


def _q_change(expert, layer):
    name = f"model.layers.{layer}.q.weight"
    return float((expert[name] - BASE[name]).norm() / BASE[name].norm())


def test_stacks_of_the_same_depth_are_measured_apart():
    def two(first, second):
        found = {f"encoder.block.{i}.w": first[f"model.layers.{i}.q.weight"] for i in range(LAYERS)}
        return found | {
            f"decoder.block.{i}.w": second[f"model.layers.{i}.q.weight"] for i in range(LAYERS)
        }

    def run(first, second):
        a, b = (
            np.array([_q_change(expert, i) for i in range(LAYERS)]) for expert in (first, second)
        )
        gain = a / a.sum() - b / b.sum()
        runs = [range(i, j) for i in range(LAYERS) for j in range(i + 1, LAYERS + 1)]
        return max(runs, key=lambda layers: gain[list(layers)].sum())

    merged = weightsmith.merge_state_dicts(
        "layer_swapping",
        [two(TASK, LANGUAGE), two(LANGUAGE, TASK)],
        base=two(BASE, BASE),
        parameters={"select": "measured"},
    )
    for i in range(LAYERS):
        from_task = torch.equal(merged[f"encoder.block.{i}.w"], TASK[f"model.layers.{i}.q.weight"])
        in_decoder = torch.equal(
            merged[f"decoder.block.{i}.w"], LANGUAGE[f"model.layers.{i}.q.weight"]
        )
        assert from_task == (i in run(TASK, LANGUAGE))
        assert in_decoder == (i in run(LANGUAGE, TASK))


def test_the_middle_block_is_the_longest_of_equal_gain():
    assert middle_block([0.0, 0.0, 0.0]) == (0, 0)
    assert middle_block([-1.0, 2.0, -1.0, 2.0, -5.0]) == (1, 1)
    assert middle_block([-3.0, -1.0, -2.0]) == (1, 1)
    assert middle_block([1.0, -1.0, 1.0]) == (0, 0)
    assert middle_block([1.0, -2.0, 1.0]) == (0, 2)


# Layer-wise weights -----------------------------------------------------------------------------------------------


def weighted(experts, **parameters):
    return weightsmith.merge_state_dicts(
        "layer_importance", experts, base=BASE, parameters=parameters
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("measure", ["relative", "norm"])
@pytest.mark.parametrize("scale_by", ["expert", "none"])
def test_experts_count_by_their_share_of_change_in_each_layer(temperature, measure, scale_by):
    given = [1.0, 2.0]
    merged = weightsmith.merge_state_dicts(
        "layer_importance",
        [TASK, LANGUAGE],
        base=BASE,
        parameters={
            "temperature": temperature,
            "measure": measure,
            "scale_by": scale_by,
            "lambda": 0.7,
        },
        per_expert=[{"weight": g} for g in given],
    )
    rows = [changes(TASK, measure), changes(LANGUAGE, measure)]
    if scale_by == "expert":
        rows = [row / row.sum() for row in rows]
    for name in NAMES:
        layer = layer_of(name)
        strengths = (
            given
            if layer is None
            else [(g * r[layer]) ** (1 / temperature) for g, r in zip(given, rows, strict=True)]
        )
        w = np.array(strengths) / sum(strengths)
        tau = w[0] * (TASK[name] - BASE[name]) + w[1] * (LANGUAGE[name] - BASE[name])
        torch.testing.assert_close(merged[name], BASE[name] + 0.7 * tau, rtol=0, atol=1e-12)


def test_a_low_temperature_gives_each_layer_to_one_expert_and_a_high_one_averages():
    cold, hot = (
        weighted([TASK, LANGUAGE], temperature=1e-3),
        weighted([TASK, LANGUAGE], temperature=1e6),
    )
    name = "model.layers.3.q.weight"
    torch.testing.assert_close(cold[name], TASK[name], rtol=0, atol=1e-12)
    torch.testing.assert_close(hot[name], (TASK[name] + LANGUAGE[name]) / 2, rtol=0, atol=1e-5)


def test_an_expert_that_left_a_layer_alone_has_no_weight_there():
    lazy = dict(LANGUAGE)
    lazy |= {n: BASE[n] for n in NAMES if layer_of(n) == 4}
    merged = weighted([TASK, lazy])
    for name in NAMES:
        if layer_of(name) == 4:
            torch.testing.assert_close(merged[name], TASK[name], rtol=0, atol=1e-14)


def test_experts_without_any_change_give_the_base():
    for name, tensor in weighted([BASE, BASE]).items():
        assert torch.equal(tensor, BASE[name])


def test_strength_of_an_expert_as_a_whole_does_not_shift_its_weights():
    stronger = {n: BASE[n] + 5.0 * (LANGUAGE[n] - BASE[n]) for n in NAMES}
    plain, strong = weighted([TASK, LANGUAGE]), weighted([TASK, stronger])
    name = "model.layers.0.q.weight"
    weight = changes(LANGUAGE, "relative")
    share = weight[0] / weight.sum()
    other = changes(TASK, "relative")
    w = share / (share + other[0] / other.sum())
    expected = plain[name] + 4.0 * w * (LANGUAGE[name] - BASE[name])
    torch.testing.assert_close(strong[name], expected, rtol=0, atol=1e-12)


# Depth scaling ----------------------------------------------------------------------------------------------------


def test_numbers_elsewhere_in_a_name_are_no_layers():
    # `mlp.0` and the norm behind the stack: block numbers come from the stack, and nothing else.
    merged = weightsmith.merge_state_dicts("lines", [TASK], base=BASE, parameters={"alpha": 0.25})
    for name in NAMES:
        layer = layer_of(name)
        scale = 0.25 if layer is None else 0.25 + 0.75 * layer / (LAYERS - 1)
        expected = BASE[name] + scale * (TASK[name] - BASE[name])
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-14)


def test_scaling_before_a_linear_method_is_scaling_after_it():
    before = weightsmith.merge_state_dicts(
        "task_arithmetic",
        [TASK, LANGUAGE],
        base=BASE,
        parameters={"lambda": 0.4},
        modify=[{"scale_by_depth": {"alpha": 0.3}}],
    )
    merged = weightsmith.merge_state_dicts(
        "task_arithmetic", [TASK, LANGUAGE], base=BASE, parameters={"lambda": 0.4}
    )
    after = weightsmith.merge_state_dicts("lines", [merged], base=BASE, parameters={"alpha": 0.3})
    for name in NAMES:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-13)


def test_the_only_block_is_the_last_and_needs_no_division(merge):
    # l / (L - 1) has no value for L = 1.
    base, expert = np.zeros(3), np.ones(3)
    given = {"alpha": 0.25, "beta": 0.5}
    merged = merge("lines", base, [expert], shared=given, layer=0, layers=1)
    np.testing.assert_array_equal(merged, 0.75)
    (value,) = (
        modifiers.get("scale_by_depth")
        .build(given)
        .modify(source(0), [source(1)], Site(Place("w", layer=0, layers=1), (3,)))
    )
    inputs = [torch.from_numpy(base), torch.from_numpy(expert)]
    np.testing.assert_array_equal(evaluate(value, inputs), 0.75)


@pytest.mark.parametrize("method", ["lines", "scale_by_depth"])
def test_beta_zero_scales_all_layers_alike_and_the_last_block_of_one_task_stays(method):
    flat = _scaled(method, TASK, BASE, alpha=0.3, beta=0.0)
    edited = _scaled(method, TASK, BASE, alpha=0.3)
    for name in NAMES:
        expected = BASE[name] + 0.3 * (TASK[name] - BASE[name])
        torch.testing.assert_close(flat[name], expected, rtol=0, atol=1e-14)
        if layer_of(name) == LAYERS - 1:
            torch.testing.assert_close(edited[name], TASK[name], rtol=0, atol=1e-14)


def _scaled(method, expert, base, **parameters):
    if method == "lines":
        return weightsmith.merge_state_dicts("lines", [expert], base=base, parameters=parameters)
    step = {"scale_by_depth": parameters}
    return weightsmith.merge_state_dicts("task_arithmetic", [expert], base=base, modify=[step])
