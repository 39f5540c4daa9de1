"""Run the examples in the documentation, so that they stay true.

    python tools/check_docs.py README.md docs

Fenced blocks of one file run from top to bottom in one folder of their own, which is what `make demo`
begins with: the digits family (base, expert-low, expert-high), its recipes and suite.yaml.

```yaml       a first line `# name.yaml` makes the block a recipe: it is saved under that name for
              the blocks below it, and planned without an error; after `# name.yaml (refused)`
              the plan must fail; other YAML is left alone
```console    every `$ weightsmith ...` line is run and its output compared with the lines below
              it; `...` stands for any text
```python     run as it stands; a line that expects a result uses `assert`
```text       not run
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPE_NAME = re.compile(r"#\s*([\w.-]+\.ya?ml)( \(refused\))?\s*$", re.MULTILINE)
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Example:
    """A fenced block: where it stands, its language and its text."""

    file: Path
    line: int
    language: str
    text: str


def examples(file: Path) -> Iterator[Example]:
    """The fenced blocks of a page, in order."""
    page = file.read_text()
    for match in FENCE.finditer(page):
        yield Example(file, page.count("\n", 0, match.start()) + 1, match[1], match[2])


def python(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and joined output of this interpreter in a folder."""
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return finished.returncode, finished.stdout


def matches(expected: str, output: str) -> bool:
    """Whether output is what the page shows, with `...` for any text; spaces at line ends aside."""

    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*?".join(re.escape(part) for part in tidy(expected).split("..."))
    return re.fullmatch(pattern, tidy(output), re.DOTALL) is not None


def check_console(example: Example, folder: Path) -> Iterator[str]:
    """Run each command of a block and compare what it prints."""
    for chunk in re.split(r"^\$ ", example.text, flags=re.MULTILINE)[1:]:
        command, _, expected = chunk.partition("\n")
        program, *arguments = shlex.split(command)
        if program != "weightsmith":
            continue
        _, output = python(folder, "-m", "weightsmith", *arguments)
        if not matches(expected, output):
            yield f"`{command}` printed\n{output}\ninstead of\n{expected}"


def check(example: Example, folder: Path) -> Iterator[str]:
    """Run one block; yields what is wrong with it."""
    if example.language == "console":
        yield from check_console(example, folder)
    elif example.language == "python":
        code, output = python(folder, "-W", "error", "-c", example.text)
        if code != 0:
            yield output
    elif example.language == "yaml" and (name := RECIPE_NAME.match(example.text)):
        (folder / name[1]).write_text(example.text)
        code, output = python(folder, "-m", "weightsmith", "plan", name[1])
        if code not in ((1, 4) if name[2] else (0,)):
            yield output


def pages(arguments: list[str]) -> list[Path]:
    """The Markdown files among files and folders."""
    paths = [Path(argument) for argument in arguments]
    return [
        page
        for path in paths
        for page in (sorted(path.glob("**/*.md")) if path.is_dir() else [path])
    ]


def main() -> int:
    """Check every page; exit code 1 if an example is not true."""
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    import run

    failures = count = 0
    with tempfile.TemporaryDirectory() as scratch:
        # What an earlier run has computed must not show in this one.
        ENVIRONMENT["WEIGHTSMITH_CACHE"] = str(Path(scratch) / "cache")
        run.prepare(Path(scratch) / "family")
        for page in pages(sys.argv[1:]):
            folder = Path(scratch) / f"{page.parent.name}-{page.stem}"
            shutil.copytree(Path(scratch) / "family", folder)
            for example in examples(page):
                count += 1
                for failure in check(example, folder):
                    failures += 1
                    print(f"{example.file}:{example.line}: {failure}\n")
    print(f"{count} examples, {failures} failures")
    return 1 if failures or not count else 0


if __name__ == "__main__":
    sys.exit(main())
