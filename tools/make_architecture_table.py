"""Write docs/architectures-tested.md from what `make architectures` found in a folder, which is the argument."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "architectures-tested.md"
CHECKS = ("average", "loads", "forward", "slices", "adapter in", "adapter out", "BASE+ADAPTER")
HEAD = """# Architectures tested

*This page is written by `make architectures` from its own run; run it instead of changing the page.*

`make architectures` makes the smallest random model of each architecture with the class of its own library, two
fine-tunes that differ in every tensor, and an adapter that PEFT trained on every linear module.

- **average**: every tensor of the average of the two, loaded, is that of plain torch.
- **loads**: the library misses no tensor of the average and knows all.
- **forward**: the average gives what the network gives whose tensors plain torch averaged. Of models of text and
  images, the text goes through (CLIP and SigLIP: both).
- **slices**: layers 0, 1, 4 and 5 of six, or all but the last of fewer, load with no missing and no unexpected tensor,
  are the modules that plain torch keeps, and run.
- **adapter in**: `BASE+ADAPTER` written out has the tensors and the outputs of PEFT's `merge_and_unload`.
- **adapter out**: the adapter that `adapter extract` makes of a fine-tune of the linear modules gives that
  fine-tune in PEFT.
- **BASE+ADAPTER**: averaged with another model it is the average in plain torch of what PEFT merges and that model.

Numbers count as equal within 1e-5 of a tensor's largest, or of one.
"""


def _note(text: str) -> str:
    """What a cell's note says: one line, without what only this run has."""
    line = " ".join(text.replace("WRONG:", "defect:", 1).split())
    line = re.sub(r"This plan cannot be run; it has \d+ errors?: - ", "", line)
    return line.replace("|", "\\|")


def _cell(text: str, notes: list[str]) -> str:
    if text in ("", "yes"):
        return text
    note = _note(text)
    if note not in notes:
        notes.append(note)
    return f"{note.split(':')[0]} [{notes.index(note) + 1}]"


def page(found: Mapping[str, Mapping[str, str]]) -> str:
    """The page of what was found, by architecture and check."""
    made = {name: ways for name, ways in sorted(found.items()) if "not made" not in ways}
    counts = Counter(text.split(":")[0] for ways in made.values() for text in ways.values())
    notes: list[str] = []
    lines = [HEAD]
    lines.append(
        f"{len(made)} architectures: {counts['yes']} checks are passed, {counts['refused']} refused, "
        f"{counts['warned']} warned of, {counts['not tried']} could not be tried, {counts['WRONG']} are defects.\n"
    )
    lines.append(f"| architecture | {' | '.join(CHECKS)} |")
    lines.append("| --- |" + " --- |" * len(CHECKS))
    for name, ways in made.items():
        cells = [_cell(ways.get(check, ""), notes) for check in CHECKS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    if notes:
        lines.append("\n## Notes\n")
        lines.extend(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    if others := sorted(found.keys() - made.keys()):
        lines.append("\n## Not made\n")
        lines.extend(f"- `{name}`: {_note(found[name]['not made'])}" for name in others)
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Read every result and write the page."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(folder.glob("*.json")):
        found |= json.loads(file.read_text())
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
