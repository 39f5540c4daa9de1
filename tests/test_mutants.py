"""The tool that tests the tests makes mistakes where it should, one at a time, and sees what becomes of them."""

from __future__ import annotations

import ast
import functools
import os
import signal
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from mutation import equivalents, live, processes, reach, session, sites  # noqa: E402

SOURCE = b'''"""Text."""

from dataclasses import dataclass
import functools

LIMIT = 3


@dataclass(frozen=True, slots=True)
class Box:
    """A box."""

    side: float = 2.0

    @property
    def size(self) -> float:
        """Text."""
        if self.side < 0.0:
            raise ValueError(f"{self.side - 1} is too small")
        return self.side**2


@functools.lru_cache(maxsize=4)
def rest(
    a: int,
    b: int = 1,
) -> int:
    total = subtract(
        a,
        b,
    )
    total += LIMIT
    return total


def subtract(a: int, b: int) -> int:
    return a - b


class Lid(Box):
    def __init__(self) -> None:
        super().__init__(1.0)
'''


def changes(where):
    return {m.change for m in sites.mutants_of("box.py", SOURCE) if m.where == where}


def executed(code, monkeypatch):
    module = types.ModuleType("box")
    monkeypatch.setitem(sys.modules, "box", module)
    exec(code, module.__dict__)
    return module.__dict__


@pytest.fixture
def path(request):
    """Of no file; each test has its own, since functions of other tests may still live."""
    return f"/nowhere/{request.node.name}.py"


@pytest.fixture
def module(path, monkeypatch):
    return path, executed(compile(SOURCE, path, "exec"), monkeypatch)


def test_conditions_operators_and_guards_are_changed():
    assert changes("Box.size") == {
        "if self.side < 0.0: ... -> pass",
        "self.side < 0.0 -> self.side <= 0.0",
        "self.side < 0.0 -> self.side >= 0.0",
        "0.0 -> 1.0",
        "0.0 -> -1.0",
        "self.side ** 2 -> self.side * 2",
        "2 -> 3",
        "2 -> 1",
    }


def test_arguments_are_exchanged_and_statements_left_out():
    assert {
        "subtract(a, b) -> subtract(b, a)",
        "total += LIMIT -> pass",
        "total += LIMIT -> total -= LIMIT",
    } <= changes("rest")
    assert "a - b -> b - a" in changes("subtract")


def test_defaults_and_constants_are_changed_and_what_describes_is_not():
    everything = sites.mutants_of("box.py", SOURCE)
    assert {"2.0 -> 3.0", "2.0 -> 1.0"} <= changes("Box")
    assert {"3 -> 4", "3 -> 2"} <= changes("")
    assert not [m for m in everything if "slots" in m.change or "Text" in m.change]
    assert not [m for m in everything if "4" in m.change and "maxsize" in m.change]


def test_names_of_types_are_left_alone():
    for alias in (b"Known = dict[str, int | None]\n", b"Number = int | None\n"):
        assert sites.mutants_of("types.py", alias) == []
    assert sites.mutants_of("bits.py", b"mask = low | high\n")


def test_every_mutant_is_python_with_the_same_lines():
    for mutant in sites.mutants_of("box.py", SOURCE):
        mutated = mutant.applied(SOURCE)
        assert mutated != SOURCE
        assert mutated.count(b"\n") == SOURCE.count(b"\n")
        ast.parse(mutated)


def test_mutants_of_scopes_and_of_the_inputs_of_an_operation():
    source = b'def f(x, y):\n    return Scalar("sub", (x, y), scope=Scope.ROW)\n'
    found = {m.change for m in sites.mutants_of("f.py", source)}
    assert "Scope.ROW -> Scope.TENSOR" in found
    assert (
        "Scalar('sub', (x, y), scope=Scope.ROW) -> Scalar('sub', (y, x), scope=Scope.ROW)" in found
    )
    assert "'sub' -> 'add'" in found


def applied(module, where, change):
    path, names = module
    (mutant,) = [
        m for m in sites.mutants_of("box.py", SOURCE) if (m.where, m.change) == (where, change)
    ]
    live.Living([path]).exchange(mutant.function, live.compiled(mutant, path, SOURCE))
    return names


def test_a_living_function_is_exchanged(module):
    alias = module[1]["subtract"]
    applied(module, "subtract", "a - b -> b - a")
    assert alias(5, 2) == -3


def test_a_property_of_a_class_with_slots_is_exchanged(module):
    box = module[1]["Box"](3.0)
    applied(module, "Box.size", "self.side ** 2 -> self.side * 2")
    assert box.size == 6.0


def test_a_function_that_remembers_its_results_is_exchanged(module):
    names = applied(module, "rest", "total += LIMIT -> pass")
    assert names["rest"](5) == 4


def test_a_function_that_would_close_over_less_is_not_exchanged(path):
    found = {m.change: m for m in sites.mutants_of("box.py", SOURCE) if m.where == "Lid.__init__"}
    assert live.is_exchangeable(found["1.0 -> 2.0"], path, SOURCE)
    assert not live.is_exchangeable(found["super().__init__(1.0) -> pass"], path, SOURCE)
    (default,) = [m for m in sites.mutants_of("box.py", SOURCE) if m.change == "2.0 -> 3.0"]
    assert not live.is_exchangeable(default, path, SOURCE)


def test_probes_tell_which_statements_ran(path, monkeypatch):
    places = list(live.places(path, SOURCE))
    probes = live.Probes(places)
    names = executed(probes.compiled(path, SOURCE), monkeypatch)
    assert probes.seen() == 0
    assert names["subtract"](5, 2) == 3
    (ran,) = [p for i, p in enumerate(places) if probes.seen() >> i & 1]
    assert SOURCE.splitlines()[ran.line - 1].strip() == b"return a - b"
    probes.reset()
    with pytest.raises(ValueError, match="too small"):
        names["Box"](-1.0).size  # noqa: B018
    lines = {p.line for i, p in enumerate(places) if probes.seen() >> i & 1}
    assert {SOURCE.splitlines()[line - 1].split()[0] for line in lines} == {b"if", b"raise"}


def test_caches_of_a_file_are_found(module):
    path, names = module
    assert live.Living([path]).caches == [names["rest"]]
    assert live.Living(["/elsewhere.py"]).caches == []


def test_quick_tests_and_first_cases_come_first_up_to_a_time():
    tests = {"a[1]": 2.0, "a[2]": 1.0, "a[3]": 0.5, "b": 1.75, "c": 9.0}
    known = reach.Reach([], {name: reach.Tested(s, 0) for name, s in tests.items()})
    assert known.order(tests, 100.0) == ["a[3]", "b", "a[2]", "a[1]", "c"]
    assert known.order(tests, 100.0, near=["c", "a[1]"]) == ["a[1]", "c", "a[3]", "b", "a[2]"]
    assert known.order(tests, 2.5) == ["a[3]", "b"]


def test_measurements_hold_until_the_code_or_the_test_changes(tmp_path):
    code, test, memory = tmp_path / "code.py", tmp_path / "test_code.py", tmp_path / "m.pickle"
    code.write_text("1")
    test.write_text("2")
    found = {"test_code.py::test": reach.Tested(1.0, 5)}
    reach.Memory(memory, [code], []).keep(test, found)
    assert reach.Memory(memory, [code], []).of(test) == found
    test.write_text("3")
    assert reach.Memory(memory, [code], []).of(test) is None
    test.write_text("2")
    code.write_text("3")
    assert reach.Memory(memory, [code], []).of(test) is None


def test_forked_work_returns_and_a_crash_and_an_endless_loop_are_told_apart():
    def endless():
        processes.limit_time(0.05, 60.0)
        while True:
            pass

    def crash():
        os.kill(os.getpid(), signal.SIGKILL)

    jobs = [("sum", functools.partial(sum, [1, 2])), ("crash", crash), ("endless", endless)]
    ended = dict(processes.run_all(jobs, 2))
    assert ended["sum"] == processes.Ended(3)
    assert ended["crash"].signal == signal.SIGKILL
    assert ended["endless"].signal == signal.SIGPROF


def test_every_mutant_that_is_not_drawn_exists_and_has_a_reason():
    """The list has none that an edit of the code took away."""
    known = equivalents.listed(ROOT / "tools/mutation/equivalent.yaml")
    package = ROOT / "src/weightsmith"
    possible = set()
    for file in {change.file for change in known}:
        (path,) = package.rglob(file)
        source = path.read_bytes()
        possible |= {equivalents.change_of(m, source) for m in sites.mutants_of(str(path), source)}
    assert set(known) <= possible
    assert all(len(reason) > 20 for reason in known.values())


@pytest.mark.parametrize("change", ["2.0 -> 3.0", "2.0 -> 1.0"])
def test_a_mistake_at_import_is_caught_by_the_test_that_fails_and_by_nothing_else(tmp_path, change):
    """Tests of several folders, each with a conftest of its own, in a session that imports the mistake."""
    module = tmp_path / "box_of_two.py"
    module.write_bytes(SOURCE)
    seconds = {}
    for folder, wanted in (("a", "side < 2.5"), ("b", "side > 0.5")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "conftest.py").write_text("")
        text = f"import box_of_two\n\ndef test_it():\n    assert box_of_two.Box().{wanted}\n"
        (tmp_path / folder / f"test_{folder}.py").write_text(text)
        seconds[f"{folder}/test_{folder}.py::test_it"] = 0.1
    (mutant,) = [m for m in sites.mutants_of(str(module), SOURCE) if m.change == change]

    def run():
        os.chdir(tmp_path)
        sys.path.insert(0, str(tmp_path))
        return session.imported(mutant, str(module), SOURCE, list(seconds), seconds)

    ((_, ended),) = processes.run_all([("one", run)], 1)
    caught = "a/test_a.py::test_it" if change == "2.0 -> 3.0" else ""
    assert (ended.value.caught_by, ended.value.tests) == (caught, 1 if caught else 2)
