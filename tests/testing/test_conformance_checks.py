"""Every check of `weightsmith.testing` notices a method that breaks its promise, and says what is broken."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from weightsmith.errors import RecipeError
from weightsmith.graph import total, where, whole
from weightsmith.methods.parts import registry
from weightsmith.methods.parts.registry import declared_parameters, shared
from weightsmith.testing import check_method, promises


def halved(_base, experts, _site):
    return experts[0] * 0.5


def divided(base, experts, _site):
    return base + (experts[0] - base) / where(abs(base) > 0.0, base, 0.0)


def to_the_fourth(base, experts, _site):
    delta = experts[0] - base
    return base + delta * delta * delta * delta


def narrow(_base, experts, _site):
    return whole(in_float32, experts[0])


def in_float32(linalg, array):
    return array.to(linalg.float32)


def with_one_name(base, experts, site):
    first, second = (total(abs(v), site.over_model("size")) for v in (base, experts[0]))
    return where(abs(base) > first - second, experts[0], base)


BROKEN = [
    ("copies", halved, "copies of one model of shape .* do not merge to that model bit for bit"),
    ("degenerate", divided, "zeros of shape .* do not give finite numbers"),
    ("magnitudes", to_the_fourth, r"weights of about 1e\+15 do not give finite numbers"),
    ("float64", narrow, "float64 inputs are merged to float32"),
    ("statistics", with_one_name, "two statistics of the model are called"),
]


@pytest.fixture
def register(monkeypatch):
    def run(implementation, **facts):
        spec = replace(
            registry.get("wise_ft"),
            name="mine",
            implementation=implementation,
            parameters=declared_parameters(implementation),
            presets={},
        )
        monkeypatch.setitem(registry._REGISTRY, "mine", replace(spec, **facts))

    return run


@dataclass(frozen=True, slots=True)
class Own:
    """Take the expert as it is, from which follows that copies of a model merge to that model.

    theta = theta_1
    """

    share: float = shared(0.5, low=0.0, high=1.0, doc="nothing")

    def combine(self, base, experts, site):
        return experts[0]


def complaint(promise):
    try:
        promise()
    except AssertionError as error:
        return str(error)
    return None


def failing():
    """The first complaint for every promise that is not kept."""
    found = {}
    for promise in promises("mine"):
        found[promise.name] = found.get(promise.name) or complaint(promise)
    return {name: said for name, said in found.items() if said}


@pytest.mark.parametrize(("name", "combine", "message"), BROKEN, ids=[b[0] for b in BROKEN])
def test_a_broken_promise_is_noticed_by_its_name(name, combine, message, register):
    class Broken(Own):
        __doc__ = Own.__doc__

        def combine(self, base, experts, site):
            return combine(base, experts, site)

    register(Broken)
    assert re.search(message, failing()[name])
    with pytest.raises(AssertionError, match="Method mine with preset paper, 1 expert"):
        check_method("mine")


def test_a_method_that_keeps_its_promises_passes(register):
    register(Own)
    check_method("mine")
    assert not failing()


@pytest.mark.parametrize(
    ("facts", "name", "message"),
    [
        ({"title": ""}, "documented", "has no title"),
        ({"paper": "somewhere"}, "documented", "names no source with its year: 'somewhere'"),
        (
            {"presets": {"old": {"shares": 1.0}}},
            "defaults",
            r"names parameters that it lacks: \['s",
        ),
        ({"about_presets": {"old": "as it was"}}, "defaults", "explains presets that it lacks"),
    ],
)
def test_facts_that_are_not_right_are_named(facts, name, message, register):
    register(Own, **facts)
    assert list(failing()) == [name]
    with pytest.raises(AssertionError, match=message):
        check_method("mine")


def test_a_default_outside_of_its_own_bounds_is_named(register):
    register(Own, presets={"old": {"share": 1.5}})
    with pytest.raises(AssertionError, match="A default of method mine is refused: preset old"):
        check_method("mine")


def test_a_docstring_without_a_formula_and_a_parameter_without_a_sentence_are_named(register):
    @dataclass(frozen=True, slots=True)
    class Silent(Own):
        """Take the expert as it is, which is said here at some length but with no formula at all, alas."""

        other: float = shared(1.0, doc="")

    register(Silent)
    with pytest.raises(AssertionError, match="docstring of method mine has no formula"):
        check_method("mine")
    Silent.__doc__ = Own.__doc__
    with pytest.raises(AssertionError, match="Parameter other of method mine has no `doc`"):
        check_method("mine")


def test_parameters_and_numbers_of_experts_can_be_given():
    with pytest.raises(RecipeError, match="alpha"):
        check_method("lines", experts=[1])
    check_method("lines", {"alpha": 0.5}, experts=[1])


def test_promises_have_names_for_a_list_of_tests():
    assert {"ties-documented", "ties-copies-(3, 4)"} <= set(map(str, promises("ties")))
