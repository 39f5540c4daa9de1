"""How large the house is: files, functions, parameters, docstrings, and names that stand twice.

python tools/house_figures.py                  the package of this checkout
python tools/house_figures.py OTHER_CHECKOUT   another one beside it, such as a worktree of an older version
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
LONG, MANY = 50, 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A file: its name, lines, functions and public classes."""

    name: str
    lines: int
    functions: Sequence[Function]
    classes: Sequence[str]


def read(path: Path) -> Module:
    """What is measured of a file."""
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    return Module(
        name=path.name,
        lines=text.count("\n"),
        functions=[n for n in nodes if isinstance(n, Function)],
        classes=[
            n.name for n in nodes if isinstance(n, ast.ClassDef) and not n.name.startswith("_")
        ],
    )


def length(function: Function) -> int:
    """Lines, its decorators left out and its docstring counted."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    """How many a caller can give, `self` and `cls` left out."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in given)


def share_below(numbers: Sequence[int], share: float) -> int:
    """The number that this share of them does not exceed."""
    return sorted(numbers)[int(share * (len(numbers) - 1))]


def twice(names: Sequence[str]) -> int:
    """How many names stand more than once."""
    return sum(count > 1 for count in Counter(names).values())


def figures(root: Path) -> dict[str, str]:
    """The table of one checkout."""
    modules = [read(path) for path in sorted((root / "src" / "weightsmith").rglob("*.py"))]
    functions = [f for m in modules for f in m.functions]
    lines = [m.lines for m in modules]
    lengths = [length(f) for f in functions]
    documented = sum(ast.get_docstring(f) is not None for f in functions)
    files = [m.name for m in modules if m.name not in ("__init__.py", "__main__.py")]
    return {
        "files / lines": f"{len(modules)} / {sum(lines)}",
        "lines of a file, median / p90 / most": (
            f"{median(lines):.0f} / {share_below(lines, 0.9)} / {max(lines)}"
        ),
        "functions": str(len(functions)),
        "lines of a function, median / p90": (
            f"{median(lengths):.0f} / {share_below(lengths, 0.9)}"
        ),
        f"functions over {LONG} lines": str(sum(n > LONG for n in lengths)),
        f"functions over {MANY} parameters": str(sum(parameters(f) > MANY for f in functions)),
        "functions with a docstring": f"{documented / len(functions):.0%}",
        "names of files that stand twice": str(twice(files)),
        "names of public classes that stand twice": str(
            twice([c for m in modules for c in m.classes])
        ),
    }


def main(others: Sequence[str]) -> None:
    """Print a row for each figure, with a column for each checkout."""
    columns = [figures(Path(other)) for other in (*others, str(ROOT))]
    for name in columns[-1]:
        print(" | ".join(["", name, *(column[name] for column in columns), ""]).strip())


if __name__ == "__main__":
    main(sys.argv[1:])
