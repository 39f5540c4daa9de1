"""Writing: the right bytes at the right place, durable, with the user's permissions, or an error that says why not."""

from __future__ import annotations

import errno
import os
import random
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from weightsmith.errors import OutputError, ResourceError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.layout import Shard, plan_layout
from weightsmith.tensors.files.safetensors_header import read_header
from weightsmith.tensors.files.writer import ShardWriter, pwrite_all, sync_file, sync_folder

NUMBERS = np.arange(5000, dtype=np.uint16)


def one_shard() -> Shard:
    return plan_layout([("a", DType.UINT16, (5000,)), ("b", DType.UINT16, (50, 100))]).shards[0]


def failing(code: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def test_tiles_written_by_many_threads_in_any_order_make_the_file(tmp_path: Path) -> None:
    shard = one_shard()
    tiles = [(p, start) for p in shard.placements for start in range(0, 5000, 97)]
    random.Random(0).shuffle(tiles)
    with ShardWriter.create(tmp_path, shard) as writer, ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda tile: writer.write(
                    tile[0], tile[1], NUMBERS[tile[1] : tile[1] + 97].tobytes()
                ),
                tiles,
            )
        )
    assert writer.path.stat().st_size == shard.size
    for tensor in read_header(writer.path):
        buffer = bytearray(tensor.nbytes)
        tensor.read_into(0, tensor.numel, memoryview(buffer))
        assert bytes(buffer) == NUMBERS.tobytes()


def test_a_new_shard_has_its_header_and_its_space_at_once(tmp_path: Path) -> None:
    shard = one_shard()
    writer = ShardWriter.create(tmp_path, shard)
    status = writer.path.stat()
    assert status.st_size == shard.size
    assert status.st_blocks * 512 >= shard.size
    assert writer.path.read_bytes() == shard.header + bytes(20_000)
    writer.close()


@pytest.mark.parametrize("mask", [0o000, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        ShardWriter.create(tmp_path, one_shard()).close()
    finally:
        os.umask(before)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="File exists"):
        ShardWriter.create(tmp_path, one_shard())
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "model.safetensors").symlink_to("victim")
    for attempt in (ShardWriter.create, ShardWriter.reopen):
        with pytest.raises(OutputError):
            attempt(tmp_path, one_shard())
    assert (tmp_path / "victim").read_text() == "mine"


def test_elements_outside_a_tensor_are_a_programming_error(tmp_path: Path) -> None:
    shard = one_shard()
    with ShardWriter.create(tmp_path, shard) as writer:
        for start, size in ((-1, 2), (5000, 2), (4999, 4), (0, 10_002)):
            with pytest.raises(ValueError, match="do not fit"):
                writer.write(shard.placements[0], start, bytes(size))
        writer.write(shard.placements[0], 5000, b"")


def test_an_interrupted_shard_is_continued_with_what_it_holds(tmp_path: Path) -> None:
    shard = one_shard()
    first = ShardWriter.create(tmp_path, shard)
    first.write(shard.placements[0], 0, NUMBERS.tobytes())
    first.close()
    again = ShardWriter.reopen(tmp_path, shard)
    assert again is not None
    with again:
        again.write(shard.placements[1], 0, NUMBERS.tobytes())
    assert again.path.read_bytes() == shard.header + 2 * NUMBERS.tobytes()


@pytest.mark.parametrize("damage", ["missing", "short", "long", "header", "folder"])
def test_a_file_that_is_not_this_shard_is_not_continued(tmp_path: Path, damage: str) -> None:
    shard = one_shard()
    path = tmp_path / shard.file_name
    if damage == "folder":
        path.mkdir()
        with pytest.raises(OutputError, match="could not be continued"):
            ShardWriter.reopen(tmp_path, shard)
        return
    if damage != "missing":
        ShardWriter.create(tmp_path, shard).close()
        content = path.read_bytes()
        path.write_bytes(
            {
                "short": content[:-1],
                "long": content + b"x",
                "header": content[:20] + b"?" + content[21:],
            }[damage]
        )
    assert ShardWriter.reopen(tmp_path, shard) is None


def test_after_an_error_the_shard_is_left_to_be_continued(tmp_path: Path) -> None:
    shard = one_shard()
    with pytest.raises(KeyError), ShardWriter.create(tmp_path, shard) as writer:
        raise KeyError
    assert writer.path.exists()
    writer.close()


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_short_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:limit], offset))
    with (tmp_path / "x").open("wb") as file:
        pwrite_all(file.fileno(), NUMBERS[:500].tobytes(), 7, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == bytes(7) + NUMBERS[:500].tobytes()


def test_nothing_is_written_for_no_bytes_and_no_progress_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(os, "pwrite", lambda *_: calls.append(1) or 0)
    pwrite_all(0, np.empty((0, 3)).data, 0, tmp_path)
    assert calls == []
    with pytest.raises(OutputError, match="takes no bytes at byte 5"):
        pwrite_all(0, b"ab", 5, tmp_path)


def test_a_shard_is_made_durable_after_success_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd))
    with pytest.raises(KeyError), ShardWriter.create(tmp_path, one_shard()):
        raise KeyError
    assert synced == []
    (tmp_path / "model.safetensors").unlink()
    with ShardWriter.create(tmp_path, one_shard()):
        pass
    assert len(synced) == 1
    (tmp_path / "model.safetensors").unlink()
    with ShardWriter.create(tmp_path, one_shard()) as writer:
        writer.finish()
    assert len(synced) == 2


def test_a_device_that_is_always_full_gives_a_resource_error() -> None:
    with (
        open("/dev/full", "wb") as file,
        pytest.raises(ResourceError, match=r"/dev/full.*4 bytes are needed.*free"),
    ):
        pwrite_all(file.fileno(), b"data", 0, Path("/dev/full"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_exhausted_space_quota_or_limit_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "pwrite", failing(code))
    with pytest.raises(ResourceError, match=r"byte 0.*bytes are needed"):
        ShardWriter.create(tmp_path, one_shard())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = one_shard()
    writer = ShardWriter.create(tmp_path, shard)
    monkeypatch.setattr(os, "pwrite", failing(errno.EIO))
    with pytest.raises(OutputError, match=r"model.safetensors.*Input/output"):
        writer.write(shard.placements[0], 0, b"ab")
    writer.close()


def test_a_full_disk_is_seen_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    shard = one_shard()
    with pytest.raises(ResourceError, match=f"{shard.size} bytes are needed"):
        ShardWriter.create(tmp_path, shard)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_without_allocation_the_free_space_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(code))
    ShardWriter.create(tmp_path, one_shard()).close()
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr("weightsmith.tensors.files.writer.free_bytes", lambda _: 100)
    with pytest.raises(ResourceError, match="100 bytes are free"):
        ShardWriter.create(tmp_path, one_shard())


def test_the_file_size_limit_of_the_process_is_a_resource_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ResourceError, match="File too large"):
            ShardWriter.create(tmp_path, one_shard())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_cannot_be_made_durable_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ShardWriter.create(tmp_path, one_shard())
    descriptor = writer._descriptor
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OutputError, match="made durable"):
        writer.finish()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_a_folder_is_synced_and_a_missing_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_folder(tmp_path)
    with pytest.raises(OutputError, match="made durable"):
        sync_folder(tmp_path / "missing")
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    sync_folder(tmp_path)
    with pytest.raises(OutputError):
        sync_file(0, tmp_path)
