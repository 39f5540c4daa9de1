"""numpy's linear algebra on one thread, whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from numpy.linalg import _umath_linalg
from weightsmith.tensors.blas import use_one_thread
library = ctypes.CDLL(_umath_linalg.__file__)
getter = getattr(library, "scipy_openblas_get_num_threads64_", None)
if getter is None:
    raise SystemExit(77)
before = getter()
use_one_thread()
print(before, getter())
"""


def test_the_library_works_on_one_thread_afterwards():
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    if done.returncode == 77:
        pytest.skip("numpy is built with another library")
    before, after = map(int, done.stdout.split())
    assert before == min(2, os.cpu_count() or 1)
    assert after == 1
