"""The demo: train a family on handwritten digits, merge it three ways, see who reads what, verify.

python examples/digits/run.py [FOLDER]        FOLDER defaults to demo-output
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import family
from rich import box
from rich.console import Console
from rich.table import Table

RECIPES = ("linear.yaml", "task-arithmetic.yaml", "ties.yaml")
# The table of digits, which no narrower terminal may cut names of.
LEAST_COLUMNS = 76
NEXT = ("weightsmith evaluate ties.yaml --suite suite.yaml", "weightsmith methods")
console = Console(width=max(LEAST_COLUMNS, Console().width))


def weightsmith(folder: Path, *arguments: str) -> None:
    """Run one command line in `folder` as a user would type it; stop the demo where it fails."""
    console.print(f"\n[bold]$ weightsmith {shlex.join(arguments)}[/bold]")
    sys.stdout.flush()
    command = [sys.executable, "-m", "weightsmith", *arguments]
    status = subprocess.run(command, cwd=folder).returncode
    if status != 0:
        sys.exit(status)


def prepare(folder: Path) -> list[str]:
    """Build the family and put the recipes beside it; returns the names of the checkpoints."""
    folders = family.build(folder)
    for recipe in RECIPES:
        shutil.copy(Path(__file__).parent / recipe, folder / recipe)
    return [path.name for path in folders]


def train(folder: Path) -> list[str]:
    """`prepare`, telling about it."""
    console.print("Training one base and two experts, each on half of the digits ...")
    started = time.perf_counter()
    names = prepare(folder)
    took = time.perf_counter() - started
    console.print(f"{', '.join(names)}, three recipes and suite.yaml are ready after {took:.0f} s.")
    return names


def shade(share: float) -> str:
    """A percentage, green where the digit is read and red where it is not."""
    colour = "green" if share >= 0.6 else "red" if share < 0.3 else "yellow"
    return f"[{colour}]{100 * share:.0f}[/{colour}]"


def compare(folder: Path, names: list[str]) -> dict[str, float]:
    """Print which share of each digit every checkpoint reads; returns the means."""
    table = Table(
        title="Held-out images read right, in percent",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("checkpoint", no_wrap=True)
    for digit in range(family.CLASSES):
        table.add_column(str(digit), justify="right")
    table.add_column("all", justify="right")
    means = {}
    for name in names:
        shares = family.read_digits(folder / name)
        means[name] = mean(shares)
        table.add_row(name, *map(shade, shares), shade(means[name]))
    console.print()
    console.print(table)
    return means


def main() -> None:
    """Train, plan, merge, compare, verify."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output").resolve()
    names = train(folder)
    weightsmith(folder, "plan", RECIPES[-1])
    merged = [f"merged-{Path(recipe).stem}" for recipe in RECIPES]
    for recipe, output in zip(RECIPES, merged, strict=True):
        weightsmith(folder, "merge", recipe, output, "--force")
    means = compare(folder, [*names, *merged])
    for output in merged:
        weightsmith(folder, "verify", output)
    worst = min(merged, key=means.__getitem__)
    if means[worst] < 0.85:
        sys.exit(f"{worst} reads only {means[worst]:.0%} of the digits; at least 85% was expected")
    console.print("\nEvery merged classifier reads all ten digits. To go on from here:\n")
    environment = Path(sys.prefix)
    for line in (f". {shown(environment)}/bin/activate", f"cd {shown(folder)}", *NEXT):
        console.print(f"    {line}", highlight=False, soft_wrap=True)


def shown(path: Path) -> str:
    """A path from the working directory where it lies below that, quoted for a shell."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


if __name__ == "__main__":
    main()
