"""Where sums over data lie: the small ones in memory, the large ones in files that are mapped, if there is a folder.

What is mapped is written back to its file where memory is needed for other things.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from weightsmith.tensors import allocate

if TYPE_CHECKING:
    from torch import Tensor

# Up to so many elements a sum over data is float64, and in memory.
SMALL = 1 << 22


def bytes_of_sum(count: int) -> int:
    """What a sum of so many elements takes."""
    return (8 if count <= SMALL else 4) * count


class SumSpace:
    """Room for sums; `folder` is where the large ones lie, None if all are to be in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def zeros(self, count: int, device: str, *, wide: bool = True) -> Tensor:
        """What a sum of so many elements begins with, flat: float64 where it is small, unless it is not to be `wide`.

        Raises ResourceError where there is no room for the file, OutputError where there can be none.
        """
        import torch

        dtype = torch.float64 if wide and count <= SMALL else torch.float32
        if self._folder is None or count <= SMALL or device != "cpu":
            return torch.zeros(count, dtype=dtype, device=device)
        return _mapped(self._folder, count)


def _mapped(folder: Path, count: int) -> Tensor:
    """Zeros in a file that is gone with them."""
    import torch

    descriptor, place = tempfile.mkstemp(prefix="sum-", dir=folder)
    try:
        # A disk that is full only when a page is written back would end the process.
        allocate(descriptor, 4 * count, Path(place))
        return torch.from_file(place, shared=True, size=count, dtype=torch.float32)
    finally:
        os.close(descriptor)
        Path(place).unlink()
