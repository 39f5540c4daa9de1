"""The kind of a method follows from its formula."""

from __future__ import annotations

import pytest

from weightsmith.inspection.explanation import formula_of
from weightsmith.inspection.method_facts import facts_of
from weightsmith.methods.parts import registry


@pytest.mark.parametrize(
    ("name", "kind", "passes"),
    [
        ("linear", "elementwise", 1),
        ("task_arithmetic", "elementwise", 1),
        ("slerp", "measured", 2),
        ("model_stock", "measured", 2),
        ("della", "measured", 1),
        ("ties", "model", 2),
        ("truncate", "matrix", 1),
    ],
)
def test_kind_and_passes_of_well_known_methods(name, kind, passes):
    facts = facts_of(registry.get(name))
    assert (facts.kind, facts.passes) == (kind, passes)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
def test_every_method_can_be_traced_under_every_preset(name, preset):
    assert facts_of(registry.get(name), preset).passes >= 1


@pytest.mark.parametrize("name", registry.names())
def test_every_docstring_shows_a_formula(name):
    formula = formula_of(registry.get(name))
    assert formula
    assert any("=" in line for line in formula)
