"""Shards of safetensors while they are being filled."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from weightsmith.engine.outputs.storage import Sink
from weightsmith.engine.records.journal import TensorRecord
from weightsmith.errors import OutputError, WeightsmithError
from weightsmith.progress import Progress
from weightsmith.tensors import (
    DType,
    LazyTensor,
    Placement,
    ShardLayout,
    ShardWriter,
    StoredTensor,
    read_at,
)


class PlacedSink:
    """Writes one tensor's tiles to their final bytes."""

    def __init__(
        self, writer: ShardWriter, placement: Placement, advance: Callable[[int], None]
    ) -> None:
        self._writer, self._placement, self._advance = writer, placement, advance

    def write(self, start: int, data: memoryview) -> None:
        """Take the bytes that begin at element `start`."""
        self._writer.write(self._placement, start, data)
        self._advance(len(data))


class WrittenTensor(StoredTensor):
    """A finished tensor of a shard that others are still written to, which `StoredTensor` takes for a changed file."""

    __slots__ = ()

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop) back."""
        if start == stop:
            return
        descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = self.offset + start * self.dtype.itemsize
            if read_at(descriptor, buffer, at) < len(buffer):
                raise OutputError(
                    f"{self.location} cannot be read back; the disk may be faulty, run again."
                )
        finally:
            os.close(descriptor)


class Shards:
    """The `Store` of shards: opened when first needed and made durable as soon as each is full.

    With `create` false the files must be there, made by another process.
    """

    def __init__(self, layout: ShardLayout, folder: Path, *, create: bool = True) -> None:
        self._layout = layout
        self._create = create
        self.folder = folder
        self._writers: dict[int, ShardWriter] = {}
        self._missing = Counter(p.shard for shard in layout.shards for p in shard.placements)
        self._lock = threading.Lock()
        self._syncing: list[threading.Thread] = []
        self._sync_error: BaseException | None = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for thread in self._syncing:
            thread.join()
        for writer in self._writers.values():
            writer.close()

    def has(self, name: str) -> bool:
        """True if the file of a tensor is there, as planned, from an earlier run."""
        shard = self._layout.placement(name).shard
        with self._lock:
            if shard not in self._writers:
                reopened = ShardWriter.reopen(self.folder, self._layout.shards[shard])
                if reopened is None:
                    return False
                self._writers[shard] = reopened
            return True

    def make_without_reading(self, progress: Progress) -> set[str]:
        """Nothing: every tensor is computed."""
        return set()

    def digests(self, records: Mapping[str, TensorRecord]) -> dict[str, str]:
        """Those that were taken while the tensors were written."""
        return {name: record.digest for name, record in records.items()}

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        """Where the tiles of a tensor go."""
        placement = self._layout.placement(name)
        return PlacedSink(self._writer(placement.shard), placement, advance)

    def stored(self, name: str) -> LazyTensor:
        """A finished tensor, to be read back once nothing is written any more."""
        return StoredTensor(*self._place(name))

    def written(self, name: str) -> LazyTensor:
        """A finished tensor, to be read back while others are written."""
        return WrittenTensor(*self._place(name))

    def _place(self, name: str) -> tuple[str, DType, tuple[int, ...], Path, int]:
        placement = self._layout.placement(name)
        file = self.folder / self._layout.shards[placement.shard].file_name
        return name, placement.dtype, placement.shape, file, placement.offset

    def tensor_done(self, name: str) -> None:
        """Count a finished tensor; a shard that is full is made durable in the background."""
        shard = self._layout.placement(name).shard
        with self._lock:
            self._missing[shard] -= 1
            if self._missing[shard] == 0:
                thread = threading.Thread(
                    target=self._sync, args=(self._writers[shard],), daemon=True
                )
                self._syncing.append(thread)
                thread.start()

    def sync(self, name: str) -> None:
        """Make what was written of a tensor's shard durable."""
        self._writer(self._layout.placement(name).shard).sync()

    def finish(self) -> None:
        """Make every shard durable; shards without tensors are created empty, and what lies beside is removed."""
        for thread in self._syncing:
            thread.join()
        self._raise_sync_error()
        for shard in range(len(self._layout.shards)):
            self._sync(self._writer(shard))
        self._raise_sync_error()
        self._remove_strays()

    def _remove_strays(self) -> None:
        """Whatever a killed run left beside the shards, such as a half-written config: all of it is written again."""
        shards = {self.folder / shard.file_name for shard in self._layout.shards}
        kept = {folder for shard in shards for folder in shard.parents}
        for entry in [
            e for folder in kept if folder.is_relative_to(self.folder) for e in folder.iterdir()
        ]:
            if entry in shards or entry in kept:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _writer(self, shard: int) -> ShardWriter:
        with self._lock:
            if shard not in self._writers:
                described = self._layout.shards[shard]
                reopened = ShardWriter.reopen(self.folder, described)
                if reopened is None and not self._create:
                    raise OutputError(
                        f"The file {str(self.folder / described.file_name)!r} is not to be seen from here; "
                        "the output must lie on storage that all machines of the cluster share."
                    )
                if reopened is None:
                    file = self.folder / described.file_name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.unlink(missing_ok=True)
                    reopened = ShardWriter.create(self.folder, described)
                self._writers[shard] = reopened
            return self._writers[shard]

    def _sync(self, writer: ShardWriter) -> None:
        try:
            writer.sync()
        except (OSError, WeightsmithError) as error:  # reported by finish(), in the caller's thread
            self._sync_error = error
            # After a failed fsync the cache may show bytes that the disk never got, so a later run must not trust them.
            writer.path.unlink(missing_ok=True)

    def _raise_sync_error(self) -> None:
        if self._sync_error is not None:
            raise self._sync_error
