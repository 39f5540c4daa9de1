"""The guide to methods: every one in one place, in a line that fits."""

from __future__ import annotations

import collections
import importlib
import re
from dataclasses import replace

import pytest

from weightsmith.inspection.method_guide import MODIFIERS, QUESTIONS, question_of, questions
from weightsmith.methods.parts import method_index, modifiers, registry


def own(names, get):
    """The package's own: other tests of a session may have registered more."""
    return [n for n in names if get(n).implementation.__module__.startswith("weightsmith.")]


def test_every_method_answers_one_question():
    told = collections.Counter(name for question in QUESTIONS for name in question.answers)
    assert sorted(told) == own(registry.names(), registry.get), (
        "add it to inspection/method_guide.py"
    )
    assert set(told.values()) == {1}
    assert sorted(MODIFIERS.answers) == own(modifiers.names(), modifiers.get)


NAMES_BY_MODULE = collections.defaultdict(set)
for kind in ("method", "modifier"):
    for name, module in method_index.modules_of(kind).items():
        NAMES_BY_MODULE[module].add(name)


@pytest.mark.parametrize("module", NAMES_BY_MODULE)
def test_a_method_lies_in_a_folder_that_names_its_question_or_that_of_its_neighbour(module):
    folder = importlib.import_module(module.rpartition(".")[0])
    asked = {re.split("[:,;(]", question_of(name))[0].strip() for name in NAMES_BY_MODULE[module]}
    assert any(question.lower() in folder.__doc__.lower() for question in asked)


def test_a_method_of_another_package_stands_among_others(monkeypatch):
    ties = registry.get("ties")
    monkeypatch.setitem(registry._REGISTRY, "mine", replace(ties, name="mine", title="My own"))
    *_, others, modify = questions()
    assert others.answers["mine"] == "My own"
    assert modify is MODIFIERS
    assert question_of("mine") == "Others"
    assert question_of("ties").startswith("Experts disagree")


def test_names_and_lines_fit_80_columns_below_one_another():
    for question in questions():
        assert len(question.title) <= 80
        width = max(map(len, question.answers))
        for line in question.answers.values():
            assert 2 + width + 2 + len(line) <= 80, line
