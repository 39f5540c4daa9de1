"""`weightsmith methods` lists modifiers beside methods, and explains them."""

from __future__ import annotations

from weightsmith.cli.main import execute
from weightsmith.inspection.method_facts import facts_of_modifier
from weightsmith.methods.parts import modifiers


def test_modifiers_are_listed_below_the_methods(capsys):
    assert execute(["methods"]) == 0
    text = capsys.readouterr().out
    text = text.partition("\nModifiers (`modify:`)")[2]
    for name in modifiers.names():
        assert f"\n  {name} " in text


def test_a_modifier_is_explained(capsys):
    assert execute(["methods", "clip"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("clip: Norm clipping\n")
    assert "tau'_i = tau_i min(1, c / ||tau_i||)" in text
    assert "kind: measured (needs sums or ranks of its tensor first), 1 more pass over" in text
    assert "median, mean, smallest, one" in text
    assert execute(["methods", "clip", "--markdown"]) == 0
    assert "| limit | number >= 0 | 1 |" in capsys.readouterr().out


def test_one_without_parameters_says_so(capsys):
    assert execute(["methods", "coordinate_median"]) == 0
    assert "No parameters" in capsys.readouterr().out


def test_what_a_modifier_adds_is_found_by_tracing_it():
    assert facts_of_modifier(modifiers.get("winsorize")).passes == 0
    assert facts_of_modifier(modifiers.get("winsorize")).kind == "elementwise"
    assert facts_of_modifier(modifiers.get("clip")).kind == "measured"
