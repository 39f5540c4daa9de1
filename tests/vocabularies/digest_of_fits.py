"""Prints a digest of the bits of all fitted rules on two tables in a folder; run in processes of its own."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from weightsmith.tensors.files.safetensors_header import read_header
from weightsmith.vocabularies.missing import Missing
from weightsmith.vocabularies.rules import FittedRows, LeastSquares, Omp, Procrustes
from weightsmith.vocabularies.token_tables import TokenTable


def digest_of_fits(folder: Path) -> str:
    """All rules on rows of which the first 700 are shared."""
    own, donor = (TokenTable(read_header(folder / f"{n}.safetensors")[0]) for n in ("own", "donor"))
    pairs, wanted = np.arange(700), np.arange(700, 900)
    missing = Missing(own, 200, None, donor, pairs, pairs, wanted)
    state = hashlib.sha256()
    for rule in (Omp(k=16), LeastSquares(), Procrustes()):
        state.update(FittedRows(rule, missing).read(np.arange(200)).tobytes())
    return state.hexdigest()


if __name__ == "__main__":
    print(digest_of_fits(Path(sys.argv[1])))
