"""One small output in a process of its own: publish_once.py report|adapter PLACE WORD.

The report is a file with WORD in it, the adapter a folder whose factors have its length in them. A WeightsmithError is
one line on stderr and its exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from weightsmith.errors import WeightsmithError
from weightsmith.publishing.files import publish_file
from weightsmith.publishing.seals import with_seal


def report(word: str) -> bytes:
    """The content of the file."""
    return with_seal(f"<p>{word}</p>\n".encode() * 2000, "report")


def write_adapter(place: Path, number: int) -> None:
    """Write the adapter, in the place of an earlier one."""
    import numpy as np

    from weightsmith.deltas.changes import LowRankChange
    from weightsmith.lora.adapter_writing import write_adapter as write
    from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter

    change = LowRankChange(np.full((4, 2), float(number)), np.ones((2, 3)))
    factors = {"m.a.weight": Factors("m.a.weight", change, (4, 3))}
    write(LowRankAdapter(factors), place, force=True)


def main() -> int:
    """Publish it."""
    kind, place, word = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    try:
        if kind == "report":
            publish_file(place, report(word), "report")
        else:
            write_adapter(place, len(word))
    except WeightsmithError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
