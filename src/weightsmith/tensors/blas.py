"""The threads of the linear algebra behind numpy."""

from __future__ import annotations

import contextlib
import ctypes

# Setters of the libraries that numpy is built with; others (Apple's Accelerate) take one from their environment.
_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)


def use_one_thread() -> None:
    """Leave parallelism to the engine's workers: the library's own threads would change the order of sums."""
    from numpy.linalg import _umath_linalg

    with contextlib.suppress(OSError):
        library = ctypes.CDLL(_umath_linalg.__file__)
        for name in _SETTERS:
            setter = getattr(library, name, None)
            if setter is not None:
                setter(ctypes.c_int(1))
                return
