"""Records: frozen dataclasses that differ from others in nothing but the time it takes to make them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass, field, replace

import pytest

from weightsmith.tensors.fast_records import record


class Named:
    __slots__ = ()

    @property
    def title(self) -> str:
        return self.name.title()


@record
@dataclass(frozen=True, slots=True)
class Record(Named):
    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    known: str | None = field(default="nothing", init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Plain(Named):
    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    known: str | None = field(default="nothing", init=False, repr=False, compare=False)


@record
@dataclass(frozen=True, slots=True)
class Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("below zero")


GIVEN = [(("a", (2, 3)), {}), (("a", (2, 3), 4), {}), ((), {"shape": (), "name": "b", "layer": 1})]


@pytest.mark.parametrize(("positional", "named"), GIVEN, ids=str)
def test_a_record_is_what_the_dataclass_would_be(positional, named):
    made, plain = Record(*positional, **named), Plain(*positional, **named)
    assert type(made) is Record
    assert dataclasses.astuple(made) == dataclasses.astuple(plain)
    assert repr(made) == repr(plain).replace("Plain", "Record")
    assert hash(made) == hash(plain)
    assert made == Record(*positional, **named)
    assert made.title == plain.title
    assert made.known == "nothing"


def test_a_record_cannot_be_changed():
    made = Record("a", ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del made.name
    with pytest.raises((AttributeError, TypeError)):
        made.other = 1


@pytest.mark.parametrize("wrong", [(), ("a",), ("a", (), 1, 2)])
def test_wrong_arguments_are_refused_as_by_any_function(wrong):
    with pytest.raises(TypeError, match=r"__init__\(\)"):
        Record(*wrong)


def test_records_are_copied_pickled_and_replaced():
    made = Record("a", (1,))
    assert copy.copy(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
    assert replace(made, layer=3) == Record("a", (1,), 3)


def test_the_signature_has_names_and_defaults():
    assert list(inspect.signature(Record).parameters) == ["name", "shape", "layer"]
    assert inspect.signature(Record).parameters["layer"].default is None


def test_what_checks_a_record_still_runs():
    assert Checked(1).number == 1
    with pytest.raises(ValueError, match="below zero"):
        Checked(-1)


def test_other_classes_are_refused():
    @dataclass(frozen=True)
    class Open:
        name: str

    @dataclass(slots=True)
    class Changing:
        name: str

    @dataclass(frozen=True, slots=True)
    class Listed:
        names: list[str] = field(default_factory=list)

    for cls in (Open, Changing, int):
        with pytest.raises(TypeError, match="no frozen dataclass"):
            record(cls)
    with pytest.raises(TypeError, match="default factory"):
        record(Listed)


def test_a_subclass_is_refused_where_it_is_made():
    class Below(Record):
        __slots__ = ("more",)

    with pytest.raises(TypeError):
        Below("a", ())
