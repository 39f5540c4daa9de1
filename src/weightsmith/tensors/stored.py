"""A tensor that is not in memory: its name, dtype and shape, and how to read any range of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.fast_records import record
from weightsmith.tensors.files.open_files import OPEN_FILES, FileIdentity, check_unchanged, read_at
from weightsmith.tensors.messages import shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from weightsmith.tensors.pickles.zip_members import MemberBytes

Buffer = bytes | bytearray | memoryview
_CHUNK = 1 << 22


class ReadingCost(NamedTuple):
    """What it takes to read every element of a tensor once.

    `stored_bytes` come from files, `held_bytes` of memory stay taken from the first reading on, and `products` are
    multiplications of numbers.
    """

    stored_bytes: int = 0
    held_bytes: int = 0
    products: int = 0

    @classmethod
    def of(cls, tensors: Iterable[LazyTensor]) -> ReadingCost:
        """The cost of reading several tensors."""
        stored_bytes = held_bytes = products = 0
        for tensor in tensors:
            cost = tensor.cost
            stored_bytes += cost.stored_bytes
            held_bytes += cost.held_bytes
            products += cost.products
        return cls(stored_bytes, held_bytes, products)


# The tensors of a model have few sizes.
@functools.lru_cache(maxsize=1 << 10)
def _of_bytes(count: int) -> ReadingCost:
    return ReadingCost(stored_bytes=count)


class LazyTensor(Protocol):
    """Anything that can hand out ranges of a tensor: a byte range of a file, or a base plus an
    encoded delta.
    """

    @property
    def name(self) -> str:
        """The tensor's name in its checkpoint."""
        ...

    @property
    def dtype(self) -> DType:
        """The type of the elements that `read_into` gives."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes; () for a single number."""
        ...

    @property
    def numel(self) -> int:
        """Number of elements."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, dense."""
        ...

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        ...

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The tensors that it is read from, one step down; none for one that lies in a file or in memory."""
        ...

    @property
    def cost(self) -> ReadingCost:
        """What one reading of all elements takes."""
        ...

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop), in C order, as little-endian bytes of `dtype` into
        `buffer`; thread-safe.
        """
        ...


class _Elements(Protocol):
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class _OfOne(Protocol):
    @property
    def stored(self) -> LazyTensor: ...


class _OfSeveral(Protocol):
    @property
    def sources(self) -> tuple[LazyTensor, ...]: ...


class _Made(Protocol):
    @property
    def parts(self) -> tuple[LazyTensor, ...]: ...


class Shaped:
    """Sizes that follow from `dtype` and `shape`, and the facts of a tensor in memory: it is made of no other."""

    __slots__ = ()

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """None."""
        return ()

    @property
    def cost(self: _Made) -> ReadingCost:
        """That of the parts."""
        return ReadingCost.of(self.parts)

    @property
    def numel(self: _Elements) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self: _Elements) -> int:
        """Bytes of all elements, dense."""
        return math.prod(self.shape) * self.dtype.itemsize


class FromStored(Shaped):
    """A tensor that is read from one other, `stored`: it lies there, and has its dtype unless it says otherwise."""

    __slots__ = ()

    # Names are not passed on here: a dataclass's field `name` would take the property for its default.

    @property
    def dtype(self: _OfOne) -> DType:
        """The stored tensor's dtype."""
        return self.stored.dtype

    @property
    def location(self: _OfOne) -> str:
        """File and tensor, for messages."""
        return self.stored.location

    @property
    def parts(self: _OfOne) -> tuple[LazyTensor, ...]:
        """The stored tensor."""
        return (self.stored,)


class FromSources(Shaped):
    """A tensor that is read from several others, `sources`."""

    __slots__ = ()

    @property
    def location(self: _OfSeveral) -> str:
        """The sources' files and tensors, for messages."""
        return " with ".join(source.location for source in self.sources)

    @property
    def parts(self: _OfSeveral) -> tuple[LazyTensor, ...]:
        """The sources."""
        return self.sources


@record
@dataclass(frozen=True, slots=True)
class StoredTensor(Shaped):
    """A tensor that lies in a file: contiguous from byte `offset`, or a view of elements with
    `strides` (in elements).

    `identity` is that of the file when its header was read; reading a file that changed since is an
    error. Without it the file is taken as it is found.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None
    identity: FileIdentity | None = None
    member: MemberBytes | None = None

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return f"tensor {shown(self.name)} of {shown(self.file)}"

    @property
    def cost(self) -> ReadingCost:
        """Its own bytes."""
        return _of_bytes(self.nbytes)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop), in C order, as little-endian bytes into `buffer` (exactly
        that many bytes).

        Thread-safe; nothing is copied on the way unless the tensor is strided. Raises
        `CheckpointError` if the file is truncated, unreadable or changed since its header was read,
        and `ValueError` if range or buffer do not fit.
        """
        itemsize = self.dtype.itemsize
        if not 0 <= start <= stop <= self.numel:
            raise ValueError(
                f"elements {start}..{stop} are outside {self.location} of {self.numel} elements"
            )
        view = memoryview(buffer)
        if view.nbytes != (stop - start) * itemsize:
            raise ValueError(
                f"a buffer of {view.nbytes} bytes cannot take {stop - start} elements of {self.location}"
            )
        if start == stop:
            return
        if self.member is not None:
            self.member.check()
        view = view.cast("B")
        with OPEN_FILES.opened(self.file, self.identity) as (descriptor, identity):
            if self.strides is None:
                self._read_bytes(descriptor, self.offset + start * itemsize, view)
            else:
                self._read_strided(descriptor, start, stop, view)
            check_unchanged(descriptor, identity, self.file)

    def read_rows(
        self, rows: NDArray[np.int64], length: int, buffer: memoryview, first: int = 0
    ) -> None:
        """Write row `rows[i]`, of `length` elements, for each i behind one another into `buffer`; -1 leaves its place.

        Row 0 begins at element `first`. What `read_into` does row by row, in one call of the native library where there
        is one. Thread-safe. Raises what `read_into` raises.
        """
        from weightsmith.tensors.pickles.strided import row_runs

        size = length * self.dtype.itemsize
        count = (self.numel - first) // max(length, 1)
        if rows.size and not -1 <= rows.min() <= rows.max() < count:
            raise ValueError(f"rows {rows.min()} to {rows.max()} are not all in {self.location}")
        if buffer.nbytes != len(rows) * size:
            raise ValueError(
                f"a buffer of {buffer.nbytes} bytes cannot take {len(rows)} rows of {self.location}"
            )
        if self.member is not None:
            self.member.check()
        view = memoryview(buffer).cast("B")
        with OPEN_FILES.opened(self.file, self.identity) as (descriptor, identity):
            done = 0
            if self.strides is None:
                offset = self.offset + first * self.dtype.itemsize
                done = self._read_rows_natively(descriptor, offset, rows, size, view)
            for low, high in row_runs(rows[done:]) if done < len(rows) else ():
                part = view[(done + low) * size : (done + high) * size]
                start = first + int(rows[done + low]) * length
                if self.strides is None:
                    self._read_bytes(descriptor, self.offset + start * self.dtype.itemsize, part)
                else:
                    self._read_strided(descriptor, start, start + (high - low) * length, part)
            check_unchanged(descriptor, identity, self.file)

    def _read_rows_natively(
        self, descriptor: int, offset: int, rows: NDArray[np.int64], size: int, view: memoryview
    ) -> int:
        import numpy as np

        from weightsmith.tensors.native_library import read_rows

        out = np.frombuffer(view, np.uint8)
        return read_rows(descriptor, offset, size, np.ascontiguousarray(rows), out)

    def _read_strided(self, descriptor: int, start: int, stop: int, view: memoryview) -> None:
        # Imported here because only pickled checkpoints need it, and it loads numpy.
        from weightsmith.tensors.pickles.strided import gather

        itemsize = self.dtype.itemsize

        def read(first: int, part: memoryview) -> None:
            self._read_bytes(descriptor, self.offset + first * itemsize, part)

        gather(read, itemsize, self.shape, self.strides or (), start, stop, view)

    def _read_bytes(self, descriptor: int, offset: int, view: memoryview) -> None:
        try:
            count = read_at(descriptor, view, offset)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(
                f"{self.location} cannot be read at byte {offset} ({reason})."
            ) from error
        if count < len(view):
            raise CheckpointError(
                f"{self.location} needs the file's bytes {offset} to {offset + len(view)}, but the file ends at byte "
                f"{offset + count}: it is truncated, fetch it again."
            )


def read_bytes(tensor: LazyTensor, start: int, stop: int) -> bytearray:
    """Elements [start, stop) of a tensor, as its bytes; raises what its `read_into` raises."""
    data = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read_into(start, stop, memoryview(data))
    return data


def chunks_of(tensor: LazyTensor) -> Iterator[bytearray]:
    """The bytes of a tensor in order, a few megabytes at a time."""
    step = max(1, _CHUNK // tensor.dtype.itemsize)
    for start in range(0, tensor.numel, step):
        yield read_bytes(tensor, start, min(start + step, tensor.numel))


def read_runs(tensor: LazyTensor, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
    """Write the elements of each run (start, count), one after the other, into `buffer`.

    Many runs of one length, whole lengths apart, are read in one call where the tensor lies in a file.
    """
    itemsize, length = tensor.dtype.itemsize, runs[0][1] if runs else 0
    done = filled = 0
    if len(runs) > 1 and length and isinstance(tensor, StoredTensor):
        import numpy as np

        first = runs[0][0] % length
        while done < len(runs) and runs[done][1] == length and runs[done][0] % length == first:
            done += 1
        rows = np.array([start // length for start, _ in runs[:done]], np.int64)
        filled = done * length * itemsize
        tensor.read_rows(rows, length, buffer[:filled], first)
    for start, count in runs[done:]:
        tensor.read_into(start, start + count, buffer[filled : filled + count * itemsize])
        filled += count * itemsize


def behind(tensors: Iterable[LazyTensor]) -> Iterator[LazyTensor]:
    """The tensors and all that they are read from, down to those in files, each once."""
    seen: set[int] = set()
    waiting = list(tensors)[::-1]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
            waiting.extend(tensor.parts[::-1])


def stored_in(tensors: Iterable[LazyTensor]) -> tuple[Path, ...]:
    """The files that tensors are read from, in the order in which they come up."""
    files: dict[Path, None] = {}
    last = None
    for tensor in tensors:
        if not isinstance(tensor, StoredTensor):
            files.update(dict.fromkeys(stored_in(tensor.parts)))
        elif tensor.file is not last:
            # Neighbours lie in one file, and the hash of a path takes longer than all the rest.
            last = tensor.file
            files[last] = None
    return tuple(files)
