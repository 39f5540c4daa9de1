"""Write docs/sliced-layers.md from what `make layers` found: `python tools/make_layer_table.py FOLDER`."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "sliced-layers.md"
HEAD = """# Sliced layers

`make layers` makes the smallest random model of every class of transformers that can be made small by its usual keys,
takes slices of its six layers (`drop`: 0 to 2 and 4 to 6, `prefix`: 0 to 3, `suffix`: 2 to 6, `repeat`: 0 to 4 and
2 to 6) and loads the result in transformers. *Loads* means: no missing and no unexpected tensor. What cannot be said in
a configuration is refused in a sentence.
"""


def reason(text: str) -> str:
    """What a refusal or a failure says, in a few words and without this machine's paths."""
    if not text.startswith("refused"):
        return "the library does not load its own" if text.startswith("WRONG") else text
    for pattern, words in (
        (r"has no number of layers", "refused: no number of layers"),
        (r"with one number", "refused: one number for two stacks"),
        (r"no key of the configuration", "refused: tensors by position"),
        (r"how it counts", "refused: another number of layers"),
        (r"needs at least", "refused: a kind of layers would be missing"),
        (r"by its turn", "refused: shared tensors by turn"),
        (r"takes the output of layer", "refused: an output is taken there"),
        (r"By the configuration's '(\w+)'", r"refused: `\1`"),
        (r"'(\w+)' describes", r"refused: `\1`"),
    ):
        found = re.search(pattern, text)
        if found is not None:
            return found.expand(words)
    return "refused"


def main(folder: Path) -> None:
    """Read every share's results and write the page."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(folder.glob("*.json")):
        found |= json.loads(file.read_text())
    made = {family: ways for family, ways in found.items() if "not made" not in ways}
    kinds = Counter(
        next((reason(w) for w in ways.values() if w != "loads"), "loads") for ways in made.values()
    )
    lines = [HEAD]
    lines.append(
        f"{len(made)} families are made, {len(found) - len(made)} are not: they need other packages or keys."
    )
    lines.append(f"Of these, {kinds['loads']} load in every way. The others:\n")
    lines.append("| family | drop | prefix | suffix | repeat |\n| --- | --- | --- | --- | --- |")
    for family, ways in sorted(made.items()):
        if any(text != "loads" for text in ways.values()):
            cells = [
                reason(ways[w]) if w in ways else "" for w in ("drop", "prefix", "suffix", "repeat")
            ]
            lines.append(f"| `{family}` | {' | '.join(cells)} |")
    lines.append("\nThose that load in every way:\n")
    lines.append(
        ", ".join(f"`{f}`" for f, ways in sorted(made.items()) if set(ways.values()) == {"loads"})
    )
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
