"""How well diagnostics of interference predict what a merge loses: rank correlations with bootstrap intervals.

    python benchmarks/diagnostics_study.py --families vision,language

For every pair and triple of a family's experts, the uniform average is merged and scored on the tasks of its experts
(held-out test split). The drop is 1 - normalised score. Each diagnostic is correlated with the drop by Spearman's rank
correlation within each family and size of subset; the mean over these is reported. Subsets share experts and are not
independent, so the bootstrap draws experts, not subsets. Evaluations are cached, so a second run is quick. The table
goes to docs/diagnostics.md and the numbers to src/weightsmith/comparison/validated.py.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from weightsmith.checkpoints import open_checkpoint
from weightsmith.comparison.diagnostics import DIAGNOSTICS, diagnose
from weightsmith.comparison.family import Family
from weightsmith.comparison.family_opening import open_family
from weightsmith.comparison.standings import mean_normalized
from weightsmith.evaluation.scoring import evaluate
from weightsmith.recipes import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "diagnostics.md"
TABLE = ROOT / "src" / "weightsmith" / "comparison" / "validated.py"
MARK = "<!-- The study's tables follow; benchmarks/diagnostics_study.py writes them. -->"
RESAMPLES = 2000
SIZES = (2, 3)


@dataclass(frozen=True)
class Subset:
    """Some experts: their places in the family, their diagnostics, and the measured drop."""

    places: tuple[int, ...]
    values: dict[str, float | None]
    drop: float


@dataclass(frozen=True)
class Stratum:
    """All subsets of one size of one family."""

    family: str
    size: int
    experts: int
    subsets: tuple[Subset, ...]


def measure(family: Family, size: int) -> Stratum:
    suite = family.suite("test")
    experts = {
        task: evaluate(family.expert(task), suite, tasks=[task], threads=1)
        for task in family.experts
    }
    subsets = []
    for tasks in itertools.combinations(family.experts, size):
        folders = [str(family.expert(task)) for task in tasks]
        recipe = Recipe.load(
            {
                "weightsmith": 1,
                "merge_method": "linear",
                "models": [{"model": folder} for folder in folders],
            }
        )
        found = evaluate(recipe, suite, tasks=list(tasks), threads=1)
        drop = 1 - mean_normalized(found, {task: experts[task] for task in tasks})
        values = diagnose(family.base.reference, folders, threads=1).values
        subsets.append(Subset(tuple(map(family.experts.index, tasks)), dict(values), drop))
        print(f"{family.name}  {' + '.join(tasks)}  {drop:.3f}", file=sys.stderr, flush=True)
    return Stratum(family.name, size, len(family.experts), tuple(subsets))


def correlation(stratum: Stratum, name: str, times: np.ndarray | None = None) -> float:
    """Spearman's correlation within a stratum, each expert counting `times`; NaN where it is not defined."""
    known = [s for s in stratum.subsets if s.values[name] is not None]
    weight = [1 if times is None else math.prod(times[i] for i in s.places) for s in known]
    if sum(w > 0 for w in weight) < 3:
        return math.nan
    x = rankdata(np.repeat([s.values[name] for s in known], weight))
    y = rankdata(np.repeat([s.drop for s in known], weight))
    x, y = x - x.mean(), y - y.mean()
    norms = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norms if norms else math.nan


def mean_known(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def estimated(strata: list[Stratum], name: str) -> tuple[float, float, float]:
    """The mean correlation over strata and its interval; experts of a family are drawn once for all its strata."""
    generator = np.random.default_rng(0)
    experts = {stratum.family: stratum.experts for stratum in strata}
    resampled = []
    for _ in range(RESAMPLES):
        times = {
            family: np.bincount(generator.integers(number, size=number), minlength=number)
            for family, number in experts.items()
        }
        resampled.append(mean_known([correlation(s, name, times[s.family]) for s in strata]))
    kept = [value for value in resampled if not math.isnan(value)]
    low, high = np.quantile(kept, (0.025, 0.975)) if kept else (math.nan, math.nan)
    return mean_known([correlation(s, name) for s in strata]), float(low), float(high)


def cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def tables(strata: list[Stratum], found: dict[str, tuple[float, float, float]], date: str) -> str:
    heads = [f"{s.family}, {s.size}" for s in strata]
    lines = [
        f"Measured on {date}, on "
        + "; ".join(
            f"{s.family}: {len(s.subsets)} subsets of {s.size} of {s.experts} experts, drops "
            f"{min(x.drop for x in s.subsets):.3f} to {max(x.drop for x in s.subsets):.3f}"
            for s in strata
        )
        + ".",
        "",
        "| diagnostic | mean correlation | 95 % interval | verdict | " + " | ".join(heads) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(heads),
    ]
    order = sorted(found, key=lambda name: -abs(np.nan_to_num(found[name][0])))
    for name in order:
        value, low, high = found[name]
        verdict = "predicts" if low > 0 or high < 0 else "does not predict"
        own = " | ".join(cell(correlation(s, name)) for s in strata)
        lines.append(
            f"| {name} | {cell(value)} | {cell(low)} to {cell(high)} | {verdict} | {own} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default="vision", help="names or folders, with commas")
    parser.add_argument("--write", action="store_true", help="write the page and the table")
    options = parser.parse_args()
    strata = []
    for name in options.families.split(","):
        family = open_family(name)
        open_checkpoint(family.base.reference)
        strata += [measure(family, size) for size in SIZES if size < len(family.experts)]
    found = {name: estimated(strata, name) for name in DIAGNOSTICS}
    date = dt.date.today().isoformat()
    text = tables(strata, found, date)
    print(text)
    if options.write:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(page.partition(MARK)[0] + MARK + "\n\n" + text, "utf-8")
        write_table(found, date, tuple(dict.fromkeys(s.family for s in strata)))


def write_table(
    found: dict[str, tuple[float, float, float]], date: str, families: tuple[str, ...]
) -> None:
    head = TABLE.read_text("utf-8").partition('DATE = "')[0]
    named = ", ".join(f'"{family}"' for family in families)
    rows = "".join(
        f'    "{name}": Validity({value:.3f}, {low:.3f}, {high:.3f}),\n'
        for name, (value, low, high) in found.items()
        if not math.isnan(value)
    )
    TABLE.write_text(
        f'{head}DATE = "{date}"\nFAMILIES: tuple[str, ...] = ({named},)\n'
        f"VALIDITY: Mapping[str, Validity] = {{\n{rows}}}\n",
        "utf-8",
    )


if __name__ == "__main__":
    main()
