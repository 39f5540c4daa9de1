"""One merge in a process of its own, which says what it took.

The peak is read from the kernel's account of this program's memory: that of `wait4` also counts the parent before exec.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from weightsmith.engine import merge


def main(recipe: str, out: str) -> str:
    """Merge on one thread; JSON with CPU-seconds and peak bytes since the program began."""
    merge(Path(recipe), Path(out), threads=1)
    return json.dumps({"cpu_seconds": time.process_time(), "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """The largest resident size of this program so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    sys.stdout.write(main(*sys.argv[1:]))
