"""Inputs, what they are run with, and what every answer to one must be."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
# Generous, because the machine may be busy: nothing here takes a tenth of them.
CPU_SECONDS = 20.0
WALL_SECONDS = 90.0
PEAK_BYTES = 700 * 2**20
_LONGEST_LINE = 2_000

# What only Python, its libraries or a defect would say.
_FOREIGN = re.compile(
    r"Traceback|unexpected [A-Z]\w*|report what it shows|PosixPath|\[Errno|<class |object at 0x|NoneType|"
    r"KeyError|TypeError|ValueError|IndexError|AttributeError|OverflowError|ZeroDivisionError|RecursionError|"
    r"UnicodeDecodeError|UnicodeEncodeError|RuntimeWarning|UserWarning|DeprecationWarning|"
    r"has no attribute|not subscriptable|not iterable|unhashable|indices must be|required positional|unexpected keyword|"
    r"invalid literal|could not convert|unsupported operand|not supported between|cannot be interpreted|"
    r"zip\(\) argument|allow_pickle|ignore_mismatched_sizes|int_max_str_digits|maximum recursion|"
    r"[Ii]nput should be|after validation|pydantic"
)
# What a pickle holds is Python's, and is called so there.
_OF_PICKLES = re.compile(r"(?<!state )\bdict\b|\btuple\b")
_LINE = re.compile(r"^(?:weightsmith: |error\[|warning\[|note\[|  fix: |  - |Usage: )")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

Make = Callable[[Path], None]


def lazily(content: Callable[[], bytes]) -> Make:
    """A file whose content is made when it is needed, because all contents together would fill the memory."""
    return lambda path: (path.write_bytes(content()), None)[1]


@dataclass(frozen=True)
class Input:
    """One hostile input: a command line, in which {case} is a folder of its own, and what lies in that folder.

    `files` are by relative name: bytes, texts, or functions that make them. `may` are exit codes besides the refusals;
    `leaves` says that a run that stops half-way keeps its work.
    """

    group: str
    name: str
    argv: tuple[str, ...]
    files: Mapping[str, bytes | str | Make] = field(default_factory=dict)
    may: frozenset[int] = frozenset({0, 1})
    leaves: bool = False
    shows: str = ""

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass
class Answer:
    """What a run gave; `code` is None for one that had to be killed."""

    code: int | None
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


class Runner:
    """Runs command lines in a warm process, which is replaced when it had to be killed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None

    def run(self, argv: tuple[str, ...], cwd: Path) -> Answer:
        process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"argv": argv, "cwd": str(cwd)}) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], WALL_SECONDS)
            line = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line = ""
        if line:
            return Answer(**json.loads(line))
        self.stop()
        return Answer(None)

    def _started(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            text=True,
        )
        return self._process

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None


@dataclass
class World:
    """The folder that command lines run in, whose content no input may change."""

    root: Path
    runner: Runner

    def __post_init__(self) -> None:
        self._content = self._seen(self.root)

    def problems(self, one: Input) -> tuple[list[str], Answer]:
        """What is wrong with the answer to an input; nothing if it is as it must be."""
        case = self.root / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        for name, content in one.files.items():
            path = case / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(
                    content.encode("utf-8", "surrogatepass")
                    if isinstance(content, str)
                    else content
                )
        before = self._seen(case)
        argv = tuple(part.replace("{case}", "case") for part in one.argv)
        answer = self.runner.run(argv, self.root)
        found = _wrong(one, answer)
        after = self._seen(case)
        if answer.code != 0 and not one.leaves and after != before:
            found.append(f"it left {sorted(after.keys() ^ before.keys()) or 'changed files'}")
        shutil.rmtree(case, ignore_errors=True)
        if self._seen(self.root) != self._content:
            found.append("an input was changed")
            self._content = self._seen(self.root)
        return found, answer

    def _seen(self, folder: Path) -> dict[str, tuple[int, int]]:
        seen: dict[str, tuple[int, int]] = {}
        for at, folders, files in os.walk(folder):
            if Path(at) == self.root and "case" in folders:
                folders.remove("case")
            for name in (*files, *folders):
                status = os.lstat(os.path.join(at, name))
                is_folder = name in folders
                path = os.path.relpath(os.path.join(at, name), folder)
                seen[path] = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
        return seen


def _wrong(one: Input, answer: Answer) -> list[str]:
    if answer.code is None:
        return [f"it took more than {WALL_SECONDS:.0f} s, or died"]
    found = []
    if answer.code not in {2, 4, 5, *one.may}:
        found.append(f"exit code {answer.code}")
    if answer.seconds > CPU_SECONDS:
        found.append(f"{answer.seconds:.1f} s of CPU time")
    if answer.peak_bytes > PEAK_BYTES:
        found.append(f"{answer.peak_bytes / 2**20:.0f} MiB")
    said = answer.err + (answer.out if answer.code else "")
    words = [_FOREIGN] if one.group == "pickles" else [_FOREIGN, _OF_PICKLES]
    found += [f"it says {foreign[0]!r}" for word in words if (foreign := word.search(said))]
    if answer.code in (2, 4, 5):
        found += _of_a_refusal(answer, may_show=one.leaves)
    if one.shows and one.shows not in answer.out + answer.err:
        found.append(f"it does not say {one.shows!r}")
    return found


def _of_a_refusal(answer: Answer, *, may_show: bool) -> list[str]:
    found = []
    lines = answer.err.splitlines()
    if not any(line.startswith("weightsmith: error: ") for line in lines):
        found.append("no sentence")
    strange = next((line for line in lines if not _LINE.match(line)), None)
    if strange is not None:
        found.append(f"the line {strange[:100]!r}")
    if max(map(len, lines), default=0) > _LONGEST_LINE:
        found.append("a line of many thousand characters")
    if _CONTROL.search(answer.err.replace("\n", "")):
        found.append("control characters")
    if answer.out.strip() and not may_show:
        found.append(f"stdout has {answer.out[:60]!r}")
    return found


def described(one: Input, problems: list[str], answer: Answer) -> str:
    """A failure for people who read the test's output."""
    argv = " ".join(part if len(part) < 100 else part[:100] + "..." for part in one.argv)
    said = (answer.err or answer.out).strip()[-400:]
    return f"{one.id}\n    $ weightsmith {argv}\n    {'; '.join(problems)}\n    {said!r}"


def tally(answer: Answer) -> str:
    """The column that an answer is counted in."""
    if answer.code is None:
        return "killed"
    return (
        "accepted" if answer.code == 0 else "refused" if answer.code in (1, 2, 4, 5) else "failed"
    )


def environment(cache: Path) -> dict[str, Any]:
    """Where runs keep nothing of the user's and ask for nothing from the network."""
    return {
        **os.environ,
        "WEIGHTSMITH_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "hf"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "PYTHONWARNINGS": "default",
    }
