"""pytest sessions: one that measures what tests reach and runs mutants in forks, and one for a single mutant.

Code that runs while a module is imported (defaults, tables, what decorators call) cannot be exchanged later, so a
mutant of it gets a session of its own, which imports everything with the mistake in it.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mutation import live, processes
from mutation.reach import Memory, Reach, Tested
from mutation.sites import Mutant

# How much longer than without a mistake a test may take, and what is added to that.
_SLOWER, _CPU_S, _WALL_S = 10.0, 5.0, 120.0
_OPTIONS = ("-p", "no:cacheprovider", "--capture=no", "-q")


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: how it was caught ("" if it was not), after how many tests and seconds."""

    caught_by: str
    tests: int
    seconds: float = 0.0


class TestsFail(Exception):
    """Tests fail without any mistake; `names` are theirs."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = names


class _Outcome:
    """Notes whether the running test failed."""

    def __init__(self) -> None:
        self.failed = False

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed


class Collected(_Outcome):
    """A plugin that hands the collected tests to `work` instead of running them; `result` is what that returns."""

    def __init__(self, work: Callable[[Collected], Any]) -> None:
        super().__init__()
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self.result: Any = None

    @classmethod
    def run(cls, folders: Sequence[str], work: Callable[[Collected], Any]) -> Any:
        """Collect the tests of some folders and work on them."""
        plugin = cls(work)
        code = pytest.main([*_OPTIONS, *folders], plugins=[plugin])
        if isinstance(plugin.result, TestsFail):
            raise plugin.result
        if not plugin.items or code:
            raise RuntimeError(f"pytest could not collect the tests, and ended with {code}.")
        return plugin.result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        try:
            self.result = self._work(self)
        except TestsFail as failure:
            self.result = failure
        return True

    def verdict(self, tests: Sequence[str], seconds: Mapping[str, float]) -> Verdict:
        """Run tests until one fails."""
        return _until_failure([self.items[name] for name in tests], seconds, self)


class Measurement:
    """A plugin that sees which statements each test runs."""

    def __init__(self, probes: live.Probes, living: live.Living, workers: int) -> None:
        self._probes = probes
        self._living = living
        self._workers = workers
        self._of_fixtures: dict[tuple[str, str], int] = {}

    def reach(self, collected: Collected, memory: Memory, say: Callable[[str], object]) -> Reach:
        """Of all tests, in forks; what is remembered is not run. Raises TestsFail."""
        reach = Reach(self._probes.places, at_import=self._probes.seen())
        by_file: dict[Path, list[pytest.Item]] = {}
        for item in collected.items.values():
            by_file.setdefault(item.path, []).append(item)
        waiting = []
        for file, items in by_file.items():
            known = memory.of(file)
            if known is None:
                waiting.append((file, functools.partial(self._measured, collected, items)))
            else:
                reach.tests |= known
        failed: list[str] = []
        for file, ended in processes.run_all(waiting, self._workers):
            if ended.value is None:
                raise RuntimeError(f"The tests of {file} ended by signal {ended.signal}.")
            tests, failing = ended.value
            failed += failing
            reach.tests |= tests
            if not failing:
                memory.keep(file, tests)
            say(f"{len(tests)} tests of {file.name} measured")
        if failed:
            raise TestsFail(failed)
        return reach

    def _measured(
        self, collected: Collected, items: Sequence[pytest.Item]
    ) -> tuple[dict[str, Tested], list[str]]:
        collected.items[items[0].nodeid].config.pluginmanager.register(self)
        found, failed = {}, []
        for item, following in itertools.zip_longest(items, items[1:]):
            for cache in self._living.caches:
                # Else a test would not run what an earlier one had remembered.
                cache.cache_clear()
            self._probes.reset()
            collected.failed = False
            before = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds = time.process_time() - before
            seen = self._probes.seen()
            for (name, base), reached in self._of_fixtures.items():
                if name in item.fixturenames and item.nodeid.startswith(base):
                    seen |= reached
            found[item.nodeid] = Tested(seconds, seen)
            failed += [item.nodeid] if collected.failed else []
        return found, failed

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """What a shared fixture runs counts for every test that has the fixture."""
        if fixturedef.scope == "function":
            return (yield)
        before = bytes(self._probes.ran)
        self._probes.reset()
        try:
            return (yield)
        finally:
            key = (fixturedef.argname, fixturedef.baseid)
            self._of_fixtures[key] = self._of_fixtures.get(key, 0) | self._probes.seen()
            self._probes.ran[:] = before


def exchanged(
    mutant: Mutant,
    path: str,
    source: bytes,
    living: live.Living,
    collected: Collected,
    tests: Sequence[str],
    seconds: Mapping[str, float],
) -> Verdict:
    """Run tests with a mutant's function exchanged."""
    assert mutant.function is not None
    living.exchange(mutant.function, live.compiled(mutant, path, source))
    return collected.verdict(tests, seconds)


def imported(
    mutant: Mutant, path: str, source: bytes, tests: Sequence[str], seconds: Mapping[str, float]
) -> Verdict:
    """Run tests in a session of their own, whose modules are imported with the mistake."""
    processes.limit_time(_CPU_S + 60.0, 10 * _WALL_S)
    code = live.compiled(mutant, path, source)
    live.substitute({path: code}.get)
    plugin = _Single(tests, seconds)
    files = dict.fromkeys(name.partition("::")[0] for name in tests)
    if pytest.main([*_OPTIONS, *files], plugins=[plugin]) is pytest.ExitCode.INTERNAL_ERROR:
        raise RuntimeError("pytest failed by itself, which says nothing of the tests.")
    return plugin.verdict or Verdict("import or collection", 0)


@dataclass(eq=False)  # pytest keeps plugins in sets
class _Single(_Outcome):
    tests: Sequence[str]
    seconds: Mapping[str, float]
    verdict: Verdict | None = field(default=None, init=False)
    failed: bool = field(default=False, init=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None
        items = {item.nodeid: item for item in session.items}
        # A mistake can take a test away, such as that of a parameter that is gone; this alone catches nothing.
        found = [items[name] for name in self.tests if name in items]
        self.verdict = _until_failure(found, self.seconds, self)
        return True


def _until_failure(
    items: Sequence[pytest.Item], seconds: Mapping[str, float], outcome: _Outcome
) -> Verdict:
    began = time.process_time()
    outcome.failed = False
    done = 0
    for item, following in itertools.zip_longest(items, items[1:]):
        slowest = _CPU_S + _SLOWER * seconds[item.nodeid]
        processes.limit_time(slowest, _WALL_S + 10 * slowest)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        done += 1
        if outcome.failed:
            break
    processes.limit_time(0.0, 0.0)
    caught_by = items[done - 1].nodeid if outcome.failed else ""
    return Verdict(caught_by, done, time.process_time() - began)
