"""Which tests run which statements, measured without any mistake and remembered for the next run."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mutation.live import Place


@dataclass(frozen=True)
class Tested:
    """What one test runs: seconds of processor time, and the numbers of statements as bits of an integer."""

    seconds: float
    statements: int


@dataclass
class Reach:
    """What every test runs. `places` are all statements, in the order of their numbers."""

    places: Sequence[Place]
    tests: dict[str, Tested] = field(default_factory=dict)
    at_import: int = 0

    def __post_init__(self) -> None:
        self._number = {place: i for i, place in enumerate(self.places)}

    def runs_at_import(self, place: Place) -> bool:
        """Whether a statement runs while modules are imported."""
        return bool(self.at_import >> self._number[place] & 1)

    def of_statement(self, place: Place) -> list[str]:
        """The tests that run a statement."""
        number = self._number[place]
        return [name for name, test in self.tests.items() if test.statements >> number & 1]

    def of_files(self, paths: Iterable[str]) -> list[str]:
        """The tests that run a function of these files."""
        wanted = set(paths)
        mask = sum(1 << i for i, place in enumerate(self.places) if place.path in wanted)
        return [name for name, test in self.tests.items() if test.statements & mask]

    def order(self, tests: Iterable[str], most_s: float, near: Iterable[str] = ()) -> list[str]:
        """Tests in the order that is likely to find a mistake soon, `most_s` seconds of them.

        `near` ones come first, then quick ones; a further case of a test function counts as slower than the first.
        """
        first = set(near)
        cases: Counter[tuple[bool, str]] = Counter()
        ranked = []
        for name in sorted(tests, key=lambda name: (self.tests[name].seconds, name)):
            case = (name not in first, name.partition("[")[0])
            cases[case] += 1
            ranked.append((case[0], self.tests[name].seconds * cases[case], name))
        chosen: list[str] = []
        spent = 0.0
        for _, _, name in sorted(ranked):
            spent += self.tests[name].seconds
            if chosen and spent > most_s:
                break
            chosen.append(name)
        return chosen


class Memory:
    """Measurements on disk: those of a test file hold while it, the code and what tests share are as they were."""

    def __init__(self, file: Path, code: Iterable[Path], shared: Iterable[Path]) -> None:
        self._file = file
        digest = hashlib.sha256(sys.version.encode())
        for path in sorted([*code, *shared]):
            digest.update(str(path).encode() + path.read_bytes())
        self._base = digest.digest()
        self._known: dict[str, tuple[bytes, dict[str, Tested]]] = {}
        if file.exists():
            self._known = pickle.loads(file.read_bytes())

    def _key(self, test_file: Path) -> bytes:
        return hashlib.sha256(self._base + test_file.read_bytes()).digest()

    def of(self, test_file: Path) -> dict[str, Tested] | None:
        """What is known of the tests of a file, or None."""
        key, found = self._known.get(str(test_file), (b"", {}))
        return found if key == self._key(test_file) else None

    def keep(self, test_file: Path, tests: dict[str, Tested]) -> None:
        """Remember the measurements of a test file."""
        self._known[str(test_file)] = (self._key(test_file), tests)
        self._file.parent.mkdir(exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(self._known))
        partial.rename(self._file)
