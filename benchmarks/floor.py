"""The floor of a merge: read every input once and write as many bytes as the output once, doing nothing with them.

python floor.py OUT BYTES INPUT_FOLDER...
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

BLOCK = 1 << 20
_own = threading.local()


def buffer() -> memoryview:
    """This thread's block of memory."""
    if not hasattr(_own, "block"):
        _own.block = memoryview(bytearray(BLOCK))
    return _own.block


def read(descriptor: int, offset: int) -> None:
    os.preadv(descriptor, [buffer()], offset)


def write(descriptor: int, offset: int, count: int) -> None:
    os.pwrite(descriptor, buffer()[:count], offset)


def main() -> None:
    out, write_bytes, folders = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    os.makedirs(out)
    files = [
        os.path.join(f, n)
        for f in folders
        for n in sorted(os.listdir(f))
        if n.endswith(".safetensors")
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = os.open(os.path.join(out, "floor.bin"), os.O_WRONLY | os.O_CREAT, 0o644)
        jobs = [
            pool.submit(write, written, at, min(BLOCK, write_bytes - at))
            for at in range(0, write_bytes, BLOCK)
        ]
        for file in files:
            opened = os.open(file, os.O_RDONLY)
            size = os.fstat(opened).st_size
            jobs += [pool.submit(read, opened, at) for at in range(0, size, BLOCK)]
        for job in jobs:
            job.result()


if __name__ == "__main__":
    main()
