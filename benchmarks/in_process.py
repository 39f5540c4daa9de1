"""One merge through the Python API, with parts of the work switched off: what a part costs is the difference.

    python in_process.py RECIPE OUT [--backend torch] [--without digests finite fsync]

The package itself has no such switches: an output without digests or durability is of no use but to this measurement.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = Path(__file__).parent / "work" / "native-without-finite" / "_native.so"
PARTS = ("digests", "finite", "fsync")


def build_library() -> None:
    """Compile the native kernels with a finite check that always passes."""
    folder = LIBRARY.parent
    folder.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / "src" / "native").iterdir():
        text = re.sub(
            r"(static inline bool is_finite\(\w+ code\)) \{[^}]*\}",
            r"\1 { return code == code; }",
            file.read_text(),
        )
        (folder / file.name).write_text(text)
    flags = re.search(r'^FLAGS = "(.*)"\.split', (ROOT / "setup.py").read_text(), re.MULTILINE)
    if flags is None:
        raise SystemExit(
            "setup.py no longer names the compiler's flags as this benchmark reads them."
        )
    sources = sorted(folder.glob("*.cpp"))
    subprocess.run(
        [os.environ.get("CXX", "c++"), *flags[1].split(), *sources, "-o", LIBRARY], check=True
    )


def switch_off(part: str, backend: str) -> None:
    """Replace one part of the work by nothing."""
    from weightsmith.engine.planning import tiles
    from weightsmith.tensors import native_library

    if part == "fsync":
        os.fsync = os.fdatasync = lambda _descriptor: None  # type: ignore[assignment]
    elif part == "digests":
        tiles.piece_digest = lambda _data: bytes(16)
    elif backend == "torch":
        from weightsmith.graph.backends import torch_backend

        torch_backend.nonfinite = lambda _values, _start: (0, -1)
    else:
        native_library.LIBRARY = LIBRARY


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--without", nargs="*", choices=PARTS, default=[])
    chosen = parser.parse_args()
    for part in chosen.without:
        switch_off(part, chosen.backend)

    import weightsmith

    weightsmith.merge(chosen.recipe, chosen.out, backend=chosen.backend)


if __name__ == "__main__":
    main()
