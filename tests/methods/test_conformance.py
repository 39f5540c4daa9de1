"""What every registered method promises, whatever it computes."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.graph.equal_graphs import shared_graph
from weightsmith.graph.graph import Cut, source, statistic_of, value, walk
from weightsmith.graph.site import Site
from weightsmith.methods.parts import registry
from weightsmith.methods.parts.registry import REQUIRED, Base

SHAPES = [(), (0,), (1,), (5,), (3, 4), (3, 0), (0, 3), (4, 1), (1, 6), (2, 3, 4), (2, 3, 3, 2)]
NAMES = registry.names()


def legal_counts(spec):
    low, high = spec.experts
    return sorted({low, high or max(low, 4)})


def required(spec, preset, n):
    """Values for what has no default: `lines` tells alpha from several experts only."""
    found = {key: 0.5 for key, default in spec.defaults(preset).items() if default is REQUIRED}
    return found | ({"alpha": 0.5} if spec.name == "lines" and n == 1 else {})


def presets(spec):
    return [registry.PAPER, *spec.presets]


def bases(spec):
    return {Base.REQUIRED: [True], Base.IGNORED: [False], Base.OPTIONAL: [True, False]}[spec.base]


def every_way(name):
    spec = registry.get(name)
    for preset in presets(spec):
        for n in legal_counts(spec):
            for has_base in bases(spec):
                yield preset, n, has_base, required(spec, preset, n)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_documented(name):
    spec = registry.get(name)
    assert spec.title
    assert any(c.isdigit() for c in spec.paper), "a paper or source with its year"
    assert "=" in spec.doc or name == "passthrough", "the docstring has the formula"
    assert len(spec.doc) > 80
    for parameter in spec.parameters.values():
        assert parameter.doc


@pytest.mark.parametrize("name", NAMES)
def test_defaults_pass_their_own_checks(name):
    spec = registry.get(name)
    for preset in presets(spec):
        for key, default in spec.defaults(preset).items():
            if default is not REQUIRED:
                spec.parameters[key].check(default, "defaults", preset)


@pytest.mark.parametrize("name", NAMES)
def test_presets_name_existing_parameters(name):
    spec = registry.get(name)
    for overrides in spec.presets.values():
        assert set(overrides) <= set(spec.parameters)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_copies_of_one_model_merge_to_that_model_bit_for_bit(name, shape, merge):
    model = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for preset, n, has_base, shared in every_way(name):
        merged = merge(name, model if has_base else None, [model] * n, shared=shared, preset=preset)
        np.testing.assert_array_equal(merged, model, err_msg=f"{preset} {n} {has_base}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_inputs_give_finite_numbers_of_the_same_shape(name, shape, merge):
    rng = np.random.default_rng(2)
    some = rng.normal(size=shape).astype(np.float32)
    zero = np.zeros(shape, np.float32)
    near = some + np.float32(1e-7)
    families = [
        [zero, zero, zero, zero],
        [some, zero, some, zero],
        [some, -some, some, -some],
        [some, near, zero, near],
    ]
    for preset, n, has_base, shared in every_way(name):
        for experts in families:
            for base in [zero, some] if has_base else [None]:
                merged = merge(name, base, experts[:n], shared=shared, preset=preset)
                assert merged.shape == shape
                assert np.isfinite(merged).all(), f"{preset} {n}"


@pytest.mark.parametrize("name", NAMES)
def test_tiny_and_huge_weights_stay_finite(name, merge):
    rng = np.random.default_rng(3)
    for size in (1e-30, 1e15):
        base, *experts = (rng.normal(size=(5, 3, 4)) * size).astype(np.float32)
        for preset, n, has_base, shared in every_way(name):
            merged = merge(
                name, base if has_base else None, experts[:n], shared=shared, preset=preset
            )
            assert np.isfinite(merged).all(), f"{preset} {size}"


@pytest.mark.parametrize("name", NAMES)
def test_float64_inputs_are_merged_in_float64(name, merge):
    rng = np.random.default_rng(4)
    base, *experts = rng.normal(size=(5, 3, 4))
    for preset, n, has_base, shared in every_way(name):
        assert (
            merge(name, base if has_base else None, experts[:n], shared=shared, preset=preset).dtype
            == np.float64
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_statistic_of_the_model_means_one_number(name):
    """Two numbers of one name would be joined over the tensors of a model, silently."""
    spec = registry.get(name)
    site = Site("layers.1.w", (4, 6), layer=1, layers=3, stack="layers", labels=("a", "b", "c"))
    for preset, n, has_base, required_values in every_way(name):
        for extra in variants(spec):
            shared = {**extra, **required_values}
            try:
                built = spec.build(shared, [{}] * n, preset=preset)
                graph = built.combine(
                    source(0) if has_base else None, [source(1 + i) for i in range(n)], site
                )
            except RecipeError:
                continue
            known = {}
            for node in walk([graph]):
                statistic = statistic_of(node)
                if statistic is not None:
                    first = known.setdefault(statistic, node)
                    assert twin(node) is twin(first), f"{preset} {extra} {statistic}"


def variants(spec):
    """The defaults, and every choice of every parameter by itself."""
    yield {}
    for key, parameter in spec.parameters.items():
        if parameter.choices and not parameter.per_expert:
            yield from ({key: choice} for choice in parameter.choices)
    if "trim" in spec.parameters:
        yield {"trim": 0.5}


def twin(node):
    """The first graph that is built as the number's is."""
    root = value(node.magnitude if isinstance(node, Cut) else node)
    return shared_graph(root)[root]
