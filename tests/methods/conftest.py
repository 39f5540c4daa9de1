"""One way to run a method on arrays, for every test of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from weightsmith.testing import merge_arrays, merge_models


@pytest.fixture(scope="session")
def merge() -> Callable[..., Any]:
    return merge_arrays


@pytest.fixture(scope="session")
def merge_model() -> Callable[..., dict[str, np.ndarray]]:
    return merge_models
