"""Delta packages of real families: bytes, error and what is left of the skill, beside other ways to store fine-tunes.

    python benchmarks/deltas.py [--families language,vision,smollm,lora] [--experts N] [--limit N] [--page]

For every expert of a family: a lossless package beside zstd and zipnn, of the file and of its XOR with the base's,
where these are installed (they are no dependencies: `pip install zstandard zipnn`); packages within 1/8 and 1/16 of the
bytes with the codecs that are chosen and with each codec alone; a plain LoRA of as many bytes; and bundles of all
experts. The error is ||decoded - exact|| / ||exact - base||, skill (score - base) / (expert - base) on the expert's own
task, both means over experts. Bytes are those of streams and header. Results go to benchmarks/results/deltas.json and
.md, beside those of other families that are there, with --page also into docs/deltas.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from report import machine

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.formats.package_header import STREAMS
from weightsmith.checkpoints.recognition import PACKAGE_HEADER
from weightsmith.comparison.family import Family
from weightsmith.comparison.family_opening import open_family
from weightsmith.deltas.codecs import LOSSY
from weightsmith.errors import WeightsmithError
from weightsmith.evaluation.scoring import evaluate
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.extraction import extract
from weightsmith.lora.treatments import Choices
from weightsmith.packages.goal import budget_bytes
from weightsmith.packages.packing import pack
from weightsmith.recipes import Recipe
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import LazyTensor
from weightsmith.tensors.widening import WORDS, widen

ROOT = Path(__file__).resolve().parent
PAGE = ROOT.parent / "docs" / "deltas.md"
MARK = "<!-- The tables follow; benchmarks/deltas.py writes them. -->"
BUDGETS = ("1/8", "1/16")
BUNDLES = ("tall_masks", "emr")


@dataclass(frozen=True)
class Result:
    """One way of storing the experts of one family; means over experts."""

    family: str
    way: str
    budget: str
    ratio: float
    error: float | None
    skill: float | None
    seconds: float | None
    codecs: dict[str, int]
    experts: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Stored:
    """One expert, stored in one way."""

    nbytes: float
    error: float | None
    skill: float | None
    seconds: float | None
    codecs: dict[str, int]


class Bench:
    """The experts of a family, and what their scores mean."""

    def __init__(self, family: Family, split: str, experts: int | None, limit: int | None) -> None:
        self.family, self.limit = family, limit
        self.suite = family.suite(split)
        self.tasks = family.experts[:experts]
        self.dense = {task: self._dense_bytes(task) for task in self.tasks}
        self.scores = {
            task: (self._score(family.base.reference, task), self._score(family.expert(task), task))
            for task in self.tasks
        }

    def skill(self, subject: str | Path | Recipe, task: str) -> float:
        """What is left of what the expert has learnt: 1 for the expert, 0 for the base."""
        base, expert = self.scores[task]
        return (self._score(subject, task) - base) / (expert - base)

    def mean(self, way: str, budget: str, store: Callable[[str], Stored]) -> Result | None:
        """One row; None where the way is impossible for an expert."""
        try:
            found = [(task, store(task)) for task in self.tasks]
        except WeightsmithError as error:
            tell(f"{self.family.name}  {way} {budget}: {error}")
            return None
        codecs: dict[str, int] = {}
        for _, stored in found:
            for codec, count in stored.codecs.items():
                codecs[codec] = codecs.get(codec, 0) + count
        result = Result(
            self.family.name,
            way,
            budget,
            statistics.mean(stored.nbytes / self.dense[task] for task, stored in found),
            mean_known([stored.error for _, stored in found]),
            mean_known([stored.skill for _, stored in found]),
            mean_known([stored.seconds for _, stored in found]),
            dict(sorted(codecs.items(), key=lambda item: -item[1])),
            len(found),
            self.limit,
        )
        tell(f"{result.family}  {way} {budget}  {result.ratio:.4f}  {result.error}  {result.skill}")
        return result

    def _score(self, subject: str | Path | Recipe, task: str) -> float:
        found = evaluate(subject, self.suite, tasks=[task], limit=self.limit, threads=1)
        return found.score(task).value

    def _dense_bytes(self, task: str) -> int:
        return sum(t.nbytes for t in open_checkpoint(self.family.expert(task)).tensors.values())


def mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def package(bench: Bench, scratch: Path, **goal: Any) -> Callable[[str], Stored]:
    """A package of each expert."""

    def store(task: str) -> Stored:
        out = scratch / "package"
        begun = time.monotonic()
        header = pack(
            bench.family.expert(task), bench.family.base.reference, out, threads=1, **goal
        )
        seconds = time.monotonic() - begun
        nbytes = sum((out / name).stat().st_size for name in (STREAMS, PACKAGE_HEADER))
        skill = bench.skill(out, task) if goal else 1.0
        shutil.rmtree(out)
        return Stored(nbytes, header.error, skill, seconds, header.codecs())

    return store


def lora(bench: Bench, scratch: Path, budget: str) -> Callable[[str], Stored]:
    """A LoRA of as many bytes as the package may have, by truncated SVD of each matrix, factors in float16."""

    def store(task: str) -> Stored:
        expert, base = bench.family.expert(task), bench.family.base.reference
        out = scratch / "adapter"
        begun = time.monotonic()
        adapter, report = extract(
            open_checkpoint(expert),
            open_checkpoint(base),
            budget_bytes=budget_bytes(budget, bench.dense[task]),
            choices=Choices(embeddings="lora", heads="lora"),
            dtype=DType.FLOAT16,
        )
        write_adapter(adapter, out, base=open_checkpoint(base))
        seconds = time.monotonic() - begun
        recipe = Recipe.load(
            {
                "weightsmith": 1,
                "merge_method": "passthrough",
                "models": [{"model": f"{base}+{out}"}],
            }
        )
        nbytes = (out / "adapter_model.safetensors").stat().st_size
        stored = Stored(nbytes, report.relative, bench.skill(recipe, task), seconds, {})
        shutil.rmtree(out)
        return stored

    return store


def bundle(bench: Bench, scratch: Path, method: str) -> Result | None:
    """All experts in one bundle that refers to its base: each has its mask, and its part of what they share."""
    experts = [str(bench.family.expert(task)) for task in bench.tasks]
    recipe = {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(bench.family.base.reference),
        "models": [{"model": expert} for expert in experts],
        "bundle": {"base": "reference"},
    }
    out = scratch / "bundle"
    begun = time.monotonic()
    try:
        weightsmith.merge(recipe, out, threads=1)
    except WeightsmithError as error:
        tell(f"{bench.family.name}  {method}: {error}")
        return None
    seconds = (time.monotonic() - begun) / len(experts)
    nbytes = sum(file.stat().st_size for file in out.glob("*.safetensors")) / len(experts)

    def store(task: str) -> Stored:
        member = f"{out}#{bench.tasks.index(task) + 1}"
        error = relative_error(member, bench.family.expert(task), bench.family.base.reference)
        return Stored(nbytes, error, bench.skill(member, task), seconds, {})

    result = bench.mean(f"{method} bundle of {len(experts)}", "", store)
    shutil.rmtree(out)
    return result


def relative_error(decoded: str | Path, exact: str | Path, base: str | Path) -> float:
    """||decoded - exact|| / ||exact - base|| over all tensors of floats."""
    found, wanted, origin = (open_checkpoint(path).tensors for path in (decoded, exact, base))
    lost = changed = 0.0
    for name, tensor in wanted.items():
        if tensor.dtype.is_float and name in origin:
            array = floats(tensor)
            lost += float(np.sum((floats(found[name]) - array) ** 2))
            changed += float(np.sum((floats(origin[name]) - array) ** 2))
    return math.sqrt(lost / changed)


def floats(tensor: LazyTensor) -> np.ndarray:
    words = np.empty(tensor.numel, WORDS[tensor.dtype.itemsize])
    tensor.read_into(0, tensor.numel, words.data.cast("B"))
    return widen(words, tensor.dtype).astype(np.float64)


def compressors() -> dict[str, Callable[[bytes, DType], int]]:
    """Other lossless compressors that are installed: bytes of their output."""
    found: dict[str, Callable[[bytes, DType], int]] = {}
    try:
        zstandard = import_module("zstandard")
        found["zstd -3"] = lambda data, _: len(zstandard.compress(data, 3))
    except ImportError:
        tell("zstandard is not installed, its rows are left out")
    try:
        zipnn = import_module("zipnn")

        def zipped(data: bytes, dtype: DType) -> int:
            coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=str(dtype))
            return len(coder.compress(bytearray(data)))

        found["zipnn"] = zipped
    except ImportError:
        tell("zipnn is not installed, its rows are left out")
    return found


def compressed(
    bench: Bench, compress: Callable[[bytes, DType], int], *, xor: bool
) -> Callable[[str], Stored]:
    """The bytes of all tensors compressed as one, alone or XORed with the base's."""

    def store(task: str) -> Stored:
        expert = open_checkpoint(bench.family.expert(task)).tensors
        base = open_checkpoint(bench.family.base.reference).tensors
        data = bytearray()
        for name, tensor in expert.items():
            part = np.empty(tensor.nbytes, np.uint8)
            tensor.read_into(0, tensor.numel, part.data)
            if xor and name in base and base[name].nbytes == tensor.nbytes:
                known = np.empty(tensor.nbytes, np.uint8)
                base[name].read_into(0, tensor.numel, known.data)
                part ^= known
            data += part.tobytes()
        dtype = max(expert.values(), key=lambda tensor: tensor.nbytes).dtype
        begun = time.monotonic()
        size = compress(bytes(data), dtype)
        return Stored(size, 0.0, 1.0, time.monotonic() - begun, {})

    return store


def measure(bench: Bench, scratch: Path, alone: Sequence[str]) -> list[Result]:
    """All rows of one family."""
    rows = [bench.mean("package", "lossless", package(bench, scratch))]
    for name, compress in compressors().items():
        rows.append(
            bench.mean(f"{name} of the file", "lossless", compressed(bench, compress, xor=False))
        )
        rows.append(
            bench.mean(f"{name} of the XOR", "lossless", compressed(bench, compress, xor=True))
        )
    for budget in BUDGETS:
        rows.append(bench.mean("package", budget, package(bench, scratch, budget=budget)))
        for codec in alone:
            goal = {"budget": budget, "codecs": [codec]}
            rows.append(bench.mean(f"only {codec}", budget, package(bench, scratch, **goal)))
        rows.append(bench.mean("LoRA", budget, lora(bench, scratch, budget)))
    if len(bench.tasks) > 1:
        rows += [bundle(bench, scratch, method) for method in BUNDLES]
    return [row for row in rows if row is not None]


def table(results: Sequence[Result]) -> str:
    """A table of each family in markdown."""
    lines: list[str] = []
    for family in dict.fromkeys(result.family for result in results):
        lines += [
            f"**{family}**",
            "",
            "| stored as | asked for | bytes | error | skill left | codecs |",
            "| --- | --- | --: | --: | --: | --- |",
        ]
        for row in (result for result in results if result.family == family):
            mix = ", ".join(f"{count} {codec}" for codec, count in row.codecs.items())
            error = "-" if row.error is None else "none" if row.error == 0 else f"{row.error:.2g}"
            skill = "-" if row.skill is None else f"{row.skill:.3f}"
            cells = (row.way, row.budget, f"{100 * row.ratio:.1f} %", error, skill, mix)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def earlier(file: Path) -> list[Result]:
    """The rows of an earlier run, so that families can be measured one at a time."""
    if not file.is_file():
        return []
    return [Result(**row) for row in json.loads(file.read_text())["results"]]


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default="language,vision,smollm,lora")
    parser.add_argument("--experts", type=int, help="the first experts of each family only")
    parser.add_argument("--limit", type=int, help="the most items of each task")
    parser.add_argument("--split", default="test")
    parser.add_argument("--page", action="store_true", help="write the table into docs/deltas.md")
    parser.add_argument("--codecs", default=",".join(LOSSY), help="codecs to try alone as well")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "deltas.json")
    given = parser.parse_args()
    families = given.families.split(",")
    alone = [codec for codec in given.codecs.split(",") if codec]
    results = [row for row in earlier(given.out) if row.family not in families]
    with tempfile.TemporaryDirectory() as scratch:
        for name in families:
            bench = Bench(open_family(name), given.split, given.experts, given.limit)
            results += measure(bench, Path(scratch), alone)
    content = {"machine": machine(), "results": [asdict(row) for row in results]}
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(table(results))
    if given.page:
        page = PAGE.read_text()
        PAGE.write_text(page[: page.index(MARK)] + f"{MARK}\n\n{table(results)}")
    print(table(results))


if __name__ == "__main__":
    main()
