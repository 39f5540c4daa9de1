"""The members of a zip archive as byte ranges, for archives as torch writes them: every member
stored, none compressed.

Read from the central directory and checked against each member's local header. Archives with
compression, encryption, several disks, duplicate names, overlapping members, or bytes after the end
are refused, so that a few kilobytes cannot stand for gigabytes and one file cannot mean two things.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import CheckpointError
from weightsmith.tensors.files.open_files import (
    OPEN_FILES,
    FileIdentity,
    check_unchanged,
    read_bytes,
)
from weightsmith.tensors.messages import shown

LOCAL_SIGNATURE = b"PK\x03\x04"
_CENTRAL_SIGNATURE = b"PK\x01\x02"
_END_SIGNATURE = b"PK\x05\x06"
_END64_SIGNATURE = b"PK\x06\x06"
_LOCATOR64_SIGNATURE = b"PK\x06\x07"

_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_LARGEST_DIRECTORY_BYTES = 100_000_000
_UNKNOWN16, _UNKNOWN32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8
_ZIP64_EXTRA = 1
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One stored member: where its bytes lie in the archive, and the CRC-32 that was stated for
    them.
    """

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Record:
    """One entry of the central directory."""

    name: bytes
    flags: int
    crc: int
    size: int
    header_offset: int


def read_members(path: Path) -> tuple[dict[str, ZipMember], FileIdentity]:
    """All members by name, in the order of the directory; raises `CheckpointError` for anything
    unusual.
    """
    with OPEN_FILES.opened(path) as (descriptor, identity):
        directory, count = _read_directory(descriptor, path, identity.size)
        members: dict[str, ZipMember] = {}
        for record in _records(directory, count, path):
            member = _located(descriptor, record, path, identity.size)
            if member.name in members:
                raise _refusal(path, f"the member {shown(member.name)} appears twice")
            members[member.name] = member
    _check_apart(members, path)
    return members, identity


class MemberBytes:
    """The bytes of a member, which are compared with their CRC-32 once, before the first of them is handed out.

    A CRC of 0 was not computed (`torch.serialization.set_crc32_options`), and says nothing.
    """

    __slots__ = ("_identity", "_is_checked", "_lock", "_member", "_path")

    def __init__(self, path: Path, member: ZipMember, identity: FileIdentity) -> None:
        self._path, self._member, self._identity = path, member, identity
        self._is_checked = member.crc == 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[MemberBytes], tuple[Path, ZipMember, FileIdentity]]:
        """A copy in another process checks for itself."""
        return MemberBytes, (self._path, self._member, self._identity)

    def check(self) -> None:
        """Read the member if that has not been done; raises `CheckpointError` where its CRC-32 is another."""
        if self._is_checked:
            return
        with self._lock:
            if not self._is_checked:
                self._compare()
                self._is_checked = True

    def _compare(self) -> None:
        path, member = self._path, self._member
        what = f"the member {shown(member.name)}"
        crc = 0
        with OPEN_FILES.opened(path, self._identity) as (descriptor, _):
            for start in range(0, member.size, _CHUNK):
                length = min(_CHUNK, member.size - start)
                chunk = read_bytes(descriptor, path, member.offset + start, length, what)
                crc = zlib.crc32(chunk, crc)
            check_unchanged(descriptor, self._identity, path)
        if crc != member.crc:
            raise CheckpointError(
                f"{shown(path)}: the bytes of member {shown(member.name)} do not match their CRC-32, so the file is "
                "damaged: fetch it again."
            )


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)}: {reason}; it is not an archive as torch.save writes it: fetch it again, or save it "
        "again as safetensors."
    )


def _read_directory(descriptor: int, path: Path, file_size: int) -> tuple[bytes, int]:
    """The bytes of the central directory and the number of its entries."""
    end_offset = file_size - _END.size
    if end_offset < 0:
        raise _refusal(path, f"the file has {file_size} bytes, too few for a zip archive")
    end = read_bytes(descriptor, path, end_offset, _END.size, "the end record")
    signature, disk, start_disk, here, count, size, offset, comment = _END.unpack(end)
    if signature != _END_SIGNATURE or comment:
        raise _refusal(
            path,
            "its last bytes are not the end of a zip archive, so it is truncated or something was added",
        )
    if disk not in (0, _UNKNOWN16) or start_disk not in (0, _UNKNOWN16) or here != count:
        raise _refusal(path, "it is one part of a divided archive")
    directory_end = end_offset
    locator_offset = end_offset - _LOCATOR64.size
    if locator_offset >= 0:
        locator = read_bytes(descriptor, path, locator_offset, _LOCATOR64.size, "the zip64 locator")
        if locator.startswith(_LOCATOR64_SIGNATURE):
            directory_end = _LOCATOR64.unpack(locator)[2]
            count, size, offset = _read_end64(descriptor, path, directory_end, locator_offset)
    if offset + size != directory_end or size > _LARGEST_DIRECTORY_BYTES:
        raise _refusal(
            path, f"its directory of {size} bytes at byte {offset} is not where it must be"
        )
    if count * _CENTRAL.size > size:
        raise _refusal(path, f"its directory of {size} bytes cannot hold {count} members")
    return read_bytes(descriptor, path, offset, size, "the archive's directory"), count


def _read_end64(
    descriptor: int, path: Path, offset: int, locator_offset: int
) -> tuple[int, int, int]:
    if offset + _END64.size != locator_offset:
        raise _refusal(path, f"its zip64 end record at byte {offset} is not where it must be")
    record = read_bytes(descriptor, path, offset, _END64.size, "the zip64 end record")
    signature, _, _, _, disk, start_disk, here, count, size, start = _END64.unpack(record)
    if signature != _END64_SIGNATURE or disk or start_disk or here != count:
        raise _refusal(path, f"its zip64 end record at byte {offset} is damaged")
    return count, size, start


def _records(directory: bytes, count: int, path: Path) -> Iterator[_Record]:
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(directory):
            raise _refusal(path, "its directory ends too early")
        fields = _CENTRAL.unpack_from(directory, position)
        signature, flags, method = fields[0], fields[3], fields[4]
        crc, packed, size, name_length, extra_length, comment_length = fields[7:13]
        name_end = position + _CENTRAL.size + name_length
        name = directory[position + _CENTRAL.size : name_end]
        extra = directory[name_end : name_end + extra_length]
        position = name_end + extra_length + comment_length
        if signature != _CENTRAL_SIGNATURE or position > len(directory):
            raise _refusal(path, "its directory is damaged")
        size, packed, header_offset = _wide_numbers(extra, size, packed, fields[16], path)
        if method or flags & _ENCRYPTED or packed != size:
            raise _refusal(
                path,
                f"the member {_spelled(name)} is compressed or encrypted (TorchScript archives are)",
            )
        yield _Record(name, flags, crc, size, header_offset)
    if position != len(directory):
        raise _refusal(path, "its directory holds more than its members")


def _wide_numbers(
    extra: bytes, size: int, packed: int, header_offset: int, path: Path
) -> tuple[int, int, int]:
    """Replace the numbers that did not fit into 32 bits by those of the zip64 extra field."""
    numbers = [size, packed, header_offset]
    wanted = [i for i, number in enumerate(numbers) if number == _UNKNOWN32]
    position = 0
    while wanted and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == _ZIP64_EXTRA and length >= 8 * len(wanted) and position + length <= len(extra):
            for i, number in zip(
                wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, position), strict=True
            ):
                numbers[i] = number
            wanted = []
        position += length
    if wanted:
        raise _refusal(path, "its directory lacks the zip64 sizes that it refers to")
    return numbers[0], numbers[1], numbers[2]


def _spelled(name: bytes) -> str:
    return shown(name.decode("utf-8", "backslashreplace"))


def _located(descriptor: int, record: _Record, path: Path, file_size: int) -> ZipMember:
    """Find a member's bytes through its local header, which must agree with the directory."""
    offset = record.header_offset
    what = f"the header of member {_spelled(record.name)}"
    if offset + _LOCAL.size + len(record.name) > file_size:
        raise _refusal(path, f"{what} at byte {offset} lies outside the file")
    header = read_bytes(descriptor, path, offset, _LOCAL.size + len(record.name), what)
    signature, _, flags, method, _, _, _, packed, size, name_length, extra_length = (
        _LOCAL.unpack_from(header)
    )
    name = header[_LOCAL.size :]
    sizes_agree = flags & _SIZES_FOLLOW or {packed, size} <= {record.size, _UNKNOWN32}
    if signature != LOCAL_SIGNATURE or method or flags & _ENCRYPTED or not sizes_agree:
        raise _refusal(path, f"{what} at byte {offset} does not agree with the directory")
    if name_length != len(record.name) or name != record.name:
        raise _refusal(path, f"{what} at byte {offset} states another name")
    start = offset + _LOCAL.size + name_length + extra_length
    if start + record.size > file_size:
        raise _refusal(
            path, f"the member {_spelled(record.name)} ends beyond the file's {file_size} bytes"
        )
    try:
        return ZipMember(record.name.decode("utf-8"), start, record.size, record.crc)
    except UnicodeDecodeError:
        raise _refusal(path, f"the name of member {_spelled(record.name)} is not UTF-8") from None


def _check_apart(members: dict[str, ZipMember], path: Path) -> None:
    end = 0
    for member in sorted(members.values(), key=lambda m: (m.offset, m.size)):
        if member.offset < end:
            raise _refusal(
                path, f"the member {shown(member.name)} overlaps another at byte {member.offset}"
            )
        end = member.offset + member.size
