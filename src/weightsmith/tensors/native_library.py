"""The shared library of native kernels: found, loaded through ctypes, and asked for what needs no value graph.

It has a plain C interface and is optional. `open_library` gives it, or the reason why there is none.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARY = Path(__file__).with_name("_native.so")


class NativeLibrary:
    """The loaded shared library; `level` is the best instruction set of this processor, `opcodes` its instructions."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.ws_opcodes.restype = ctypes.c_char_p
        library.ws_run.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self.run = library.ws_run
        library.ws_read_rows.argtypes = (
            ctypes.c_int,
            *(ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
        )
        library.ws_read_rows.restype = ctypes.c_int64
        self.read_rows = library.ws_read_rows
        self.level = int(library.ws_best_level())
        names = library.ws_opcodes().decode("ascii").split()
        self.opcodes = {name: number for number, name in enumerate(names)}


@functools.cache
def open_library() -> NativeLibrary | str:
    """The library, or the reason why there is none."""
    if not LIBRARY.exists():
        return f"the native module {LIBRARY.name} was not built for this installation (no C++ compiler was found)"
    try:
        return NativeLibrary(LIBRARY)
    except (OSError, AttributeError) as error:
        return f"the native module {LIBRARY.name} cannot be loaded: {error}"


def read_rows(
    descriptor: int, offset: int, size: int, rows: NDArray[np.int64], out: NDArray[np.uint8]
) -> int:
    """Put row `rows[i]` of `size` bytes, counted from byte `offset` of an open file, at `out[i * size]`.

    -1 leaves its place as it is. Returns how many rows, from the first on, are done: not all where the file ends or
    fails, and none without the library. `rows` and `out` are contiguous.
    """
    found = open_library()
    if isinstance(found, str):
        return 0
    done: int = found.read_rows(
        descriptor, offset, size, address_of(rows), len(rows), address_of(out)
    )
    return done


def address_of(numbers: NDArray[Any]) -> int:
    """Where the numbers of a contiguous array lie in memory."""
    address: int = numbers.__array_interface__["data"][0]
    return address
