"""Whether the tests notice a small random mistake in a method or in the value graph.

python tools/mutants.py                        a sample of each group; its seed is printed
python tools/mutants.py --seed 7 --size 20     the same 20 of each group every time
python tools/mutants.py --file src/weightsmith/methods/conflicts/ties.py --size 40

Prints each mutant with the test that caught it, then the survivors with their differences. The exit code is 1 if a
group falls below the goal, 2 if tests fail without any mistake. Nothing is written to the source tree but
build/mutants.pickle, which remembers what the tests run. See docs/mutants.md.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import importlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation import live, processes, session
from mutation.equivalents import change_of, listed
from mutation.reach import Memory
from mutation.report import Result, as_json, rate, survivors
from mutation.sites import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "weightsmith"
NUMBERS = ("digest_pieces", "grid")
GROUPS = {
    "methods": sorted((PACKAGE / "methods").rglob("*.py")),
    "graph": [
        *sorted((PACKAGE / "graph").glob("*.py")),
        *(PACKAGE / "tensors" / f"{name}.py" for name in NUMBERS),
    ],
}
TESTS = (
    "tests/methods",
    "tests/tensors",
    "tests/graph",
    "tests/native",
    "tests/engine",
    "tests/oracle",
)
# Compares what methods declare (defaults, bounds, choices, presets) with a page, whatever functions that runs.
DECLARATIONS = "tests/test_catalogue.py"
MEMORY = ROOT / "build" / "mutants.pickle"
# Mutants that were looked at and that change nothing which anyone could see, with the reasons.
EQUIVALENT = Path(__file__).parent / "mutation" / "equivalent.yaml"
# Loaded once, before anything is forked.
LIBRARIES = ("numpy", "torch", "pytest", "scipy.linalg", "pydantic")


@dataclass(frozen=True)
class Task:
    """A mutant of a sample."""

    number: int
    group: str
    mutant: Mutant

    @property
    def path(self) -> str:
        """Of its file."""
        return str(ROOT / self.mutant.path)

    @property
    def place(self) -> live.Place:
        """Of its statement."""
        return live.Place(self.path, *self.mutant.statement)


def main() -> int:
    """Run a sample; see the module's description."""
    options = _options()
    sys.path.insert(0, str(SOURCE))
    os.environ.update(PYTHONPATH=str(SOURCE), OMP_NUM_THREADS="1", CI="1")
    os.chdir(ROOT)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    tasks = _sample(options, seed)
    print(f"seed {seed}, {len(tasks)} mutants", flush=True)
    began = time.monotonic()
    for name in LIBRARIES:
        importlib.import_module(name)
    terminal = os.dup(sys.stdout.fileno())
    verdicts = _run(tasks, options, lambda line: os.write(terminal, f"{line}\n".encode()))
    results = [Result(t.group, t.mutant, verdicts[t.number]) for t in tasks]
    print("\nSurvivors\n\n" + survivors(results, ROOT))
    print(f"\nseed {seed}, {time.monotonic() - began:.0f} s")
    if options.json:
        facts = {"seed": seed, "date": time.strftime("%Y-%m-%d"), "size": options.size}
        options.json.write_text(as_json(results, facts))
    reached_goal = True
    for group in dict.fromkeys(task.group for task in tasks):
        caught, drawn = rate(results, group)
        reached_goal = reached_goal and caught >= options.goal * drawn
        print(f"{group}: {caught} of {drawn} caught ({caught / drawn:.0%})")
    return 0 if reached_goal else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="repeats a sample; else one is drawn and printed")
    parser.add_argument("--size", type=int, default=50, help="mutants of each group (50)")
    parser.add_argument("--group", choices=list(GROUPS), action="append", help="only this group")
    parser.add_argument("--file", action="append", help="only mutants of this file")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--most", type=float, default=45.0, help="seconds of tests for one mutant at most (45)"
    )
    parser.add_argument("--goal", type=float, default=0.85, help="share to be caught (0.85)")
    parser.add_argument("--json", type=Path, help="a file for the record")
    return parser.parse_args()


def _sample(options: argparse.Namespace, seed: int) -> list[Task]:
    equivalent = listed(EQUIVALENT)
    wanted = {Path(f).resolve() for f in options.file or ()}
    tasks: list[Task] = []
    for group in options.group or GROUPS:
        files = [f for f in GROUPS[group] if not wanted or f in wanted]
        found = []
        for file in files:
            source = file.read_bytes()
            mutants = mutants_of(str(file.relative_to(ROOT)), source)
            found += [m for m in mutants if change_of(m, source) not in equivalent]
        drawn = random.Random(f"{seed} {group}").sample(found, min(options.size, len(found)))
        tasks += [Task(len(tasks) + i, group, mutant) for i, mutant in enumerate(drawn)]
    return tasks


def _run(
    tasks: Sequence[Task], options: argparse.Namespace, say: Callable[[str], object]
) -> dict[int, session.Verdict]:
    """The verdict on every task, by its number."""
    sources = {str(f): f.read_bytes() for files in GROUPS.values() for f in files}
    work = functools.partial(_in_session, tasks, sources, options, say)
    ((_, ended),) = processes.run_all([(None, work)], 1)
    if ended.value is None:
        raise RuntimeError(f"The session ended by signal {ended.signal}.")
    if isinstance(ended.value, session.TestsFail):
        print("These tests fail without any mistake:", *ended.value.names, sep="\n  ")
        sys.exit(2)
    verdicts, alone, seconds = ended.value
    jobs = []
    for number, tests in alone.items():
        task = tasks[number]
        source = sources[task.path]
        run = functools.partial(session.imported, task.mutant, task.path, source, tests, seconds)
        jobs.append((number, run))
    return verdicts | _verdicts(jobs, tasks, options, say)


def _verdicts(
    jobs: Iterable[tuple[int, Callable[[], session.Verdict]]],
    tasks: Sequence[Task],
    options: argparse.Namespace,
    say: Callable[[str], object],
) -> dict[int, session.Verdict]:
    found = {}
    for number, ended in processes.run_all(jobs, options.workers):
        died = session.Verdict(f"signal {ended.signal}", 0)
        found[number] = died if ended.signal else ended.value
        say(Result(tasks[number].group, tasks[number].mutant, found[number]).line())
    return found


def _in_session(
    tasks: Sequence[Task],
    sources: Mapping[str, bytes],
    options: argparse.Namespace,
    say: Callable[[str], object],
) -> object:
    """In a fork: collect the tests with probes in the code, and run the mutants of functions."""
    probes = live.Probes(p for path, source in sources.items() for p in live.places(path, source))
    codes = {path: probes.compiled(path, source) for path, source in sources.items()}
    live.substitute(codes.get)
    work = functools.partial(_with_tests, tasks, sources, options, say, probes)
    folders = [folder for folder in (*TESTS, DECLARATIONS) if (ROOT / folder).exists()]
    try:
        return session.Collected.run(folders, work)
    except session.TestsFail as failed:
        return failed


def _with_tests(
    tasks: Sequence[Task],
    sources: Mapping[str, bytes],
    options: argparse.Namespace,
    say: Callable[[str], object],
    probes: live.Probes,
    collected: session.Collected,
) -> object:
    for path in sources:
        parts = Path(path).relative_to(SOURCE).with_suffix("").parts
        importlib.import_module(".".join(p for p in parts if p != "__init__"))
    shared = [p for p in (ROOT / "tests").rglob("*.py") if not p.name.startswith("test_")]
    memory = Memory(MEMORY, PACKAGE.rglob("*.py"), shared)
    living = live.Living(sources)
    # Forks then neither copy nor search what is there already.
    gc.freeze()
    reach = session.Measurement(probes, living, options.workers).reach(collected, memory, say)
    seconds = {name: test.seconds for name, test in reach.tests.items()}
    users = _users(sources)
    jobs, alone = [], {}
    for task in tasks:
        source = sources[task.path]
        is_exchangeable = live.is_exchangeable(task.mutant, task.path, source)
        if not is_exchangeable or reach.runs_at_import(task.place):
            near = reach.of_files([task.path])
            if task.group == "methods":
                near += [name for name in reach.tests if name.startswith(DECLARATIONS)]
            tests = {*near, *reach.of_files(users.get(task.path, ()))}
            alone[task.number] = reach.order(tests, options.most, near)
        else:
            ordered = reach.order(reach.of_statement(task.place), options.most)
            run = functools.partial(
                session.exchanged,
                *(task.mutant, task.path, source, living, collected, ordered, seconds),
            )
            jobs.append((task.number, run))
    return _verdicts(jobs, tasks, options, say), alone, seconds


def _users(sources: Mapping[str, bytes]) -> dict[str, list[str]]:
    """For each file of the groups those that import from it."""
    users: dict[str, list[str]] = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                used = SOURCE.joinpath(*node.module.split(".")).with_suffix(".py")
                users.setdefault(str(used), []).append(path)
    return users


if __name__ == "__main__":
    sys.exit(main())
