"""Nothing in a torch file is ever run, and no few bytes can cost much time or memory."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsmith.errors import CheckpointError
from weightsmith.tensors.pickles.pickle_machine import Global, PickleMachine, PickleRefused
from weightsmith.tensors.pickles.pickle_reader import read_torch_file


def archive(
    path: Path, data: bytes, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", data)
        for name, content in members:
            file.writestr(name, content)
    return path


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def text_call(module: str, name: str, argument: str) -> bytes:
    return (
        f"c{module}\n{name}\n".encode()
        + b"\x8c"
        + bytes([len(argument)])
        + argument.encode()
        + b"\x85R"
    )


def stack_call(module: str, name: str, argument: str) -> bytes:
    def short(text: str) -> bytes:
        return b"\x8c" + bytes([len(text.encode())]) + text.encode()

    return short(module) + short(name) + b"\x93" + short(argument) + b"\x85R"


GADGETS = """
    os:system posix:system nt:system os:popen subprocess:Popen subprocess:check_output
    builtins:eval builtins:exec __builtin__:eval builtins:__import__ builtins:getattr
    builtins:open builtins:compile builtins:setattr builtins:globals builtins:apply
    runpy:run_path runpy:_run_code importlib:import_module ctypes:CDLL pty:spawn
    code:InteractiveInterpreter.runcode timeit:main cProfile:run pdb:run bdb:Bdb.run
    asyncio.unix_events:_UnixSubprocessTransport._start pip:main pickle:loads _pickle:loads
    marshal:loads types:CodeType types:FunctionType operator:attrgetter
    operator:methodcaller functools:partial functools:reduce itertools:starmap shutil:rmtree
    pathlib:Path.write_text socket:create_connection webbrowser:open urllib.request:urlopen
    httplib2:Http venv:create torch:load torch.hub:load torch.serialization:load torch:ops
    torch._utils:_import_dotted_name torch._utils:_rebuild_tensor_v2.__globals__
    torch.storage:_load_from_bytes torch.jit:load torch._inductor.codecache:compile_file
    torch.utils._config_module:load_config torch:typename.__globals__ numpy:load
    numpy.testing._private.utils:runstring numpy.f2py.crackfortran:getlincoef
    collections:OrderedDict.__reduce__ collections:namedtuple
    weightsmith.errors:WeightsmithError os.path:os.system
""".split()

# Names that only look like an allowed one: nothing, a NUL inside, a Cyrillic letter.
LOOKALIKES = [":", "torch\x00:Size", "t\u043erch:Size"]


@pytest.mark.parametrize("spell", [text_call, stack_call])
@pytest.mark.parametrize("gadget", GADGETS + LOOKALIKES)
def test_a_global_that_tensors_do_not_need_is_refused_by_name_and_not_run(
    tmp_path: Path, gadget: str, spell: Callable[[str, str, str], bytes]
) -> None:
    marker = tmp_path / "ran"
    data = b"\x80\x04" + spell(*gadget.split(":"), f"touch {marker}") + b"."
    with pytest.raises(CheckpointError, match=r"refers to .*nothing was run") as caught:
        read_torch_file(archive(tmp_path / "x.pt", data))
    assert str(caught.value).isprintable()
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda c: c,
        lambda c: {"w": c},
        lambda c: {"m": [({"w": (1, c)},)]},
        lambda c: {"w": torch.ones(2), "x": c},
    ],
)
def test_a_payload_is_refused_in_every_protocol_and_at_every_depth(
    tmp_path: Path, protocol: int, wrap: Callable[[Any], Any]
) -> None:
    marker = tmp_path / "ran"
    for zipped in (True, False):
        with (tmp_path / "x.pt").open("wb") as file:
            torch.save(
                wrap(Call(exec, f"open({str(marker)!r}, 'w')")),
                file,
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=zipped,
            )
        with pytest.raises(CheckpointError):
            read_torch_file(tmp_path / "x.pt")
    assert not marker.exists()


BUILDS: dict[str, bytes] = {
    "state of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x01aNsb.",
    "slots of a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}\x8c\x0c__defaults__)s\x86b.",
    "state of a list": b"]}b.",
    "odd state of a dict": b"}N}\x86b.",
    "call of a dtype": b"ctorch\nfloat32\n)R.",
    "call of a storage class": b"ctorch\nFloatStorage\n)R.",
    "call of a dict": b"})R.",
    "call with a list": b"ccollections\nOrderedDict\n]R.",
    "call with wrong arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "items of a function": b"ctorch\nSize\n\x8c\x01aNs.",
    "items through extend of a dict": b"}(Ne.",
    "new object": b"ccollections\nOrderedDict\n)\x81.",
    "new object with keywords": b"ccollections\nOrderedDict\n)}\x92.",
    "instance": b"(ios\nsystem\n.",
    "object": b"(cos\nsystem\no.",
    "extension registry": b"\x82\x01.",
    "out-of-band buffer": b"\x97.",
    "text persistent id": b"P0\n.",
    "persistent id of nothing": b"NQ.",
    "persistent id of a list": b"]Q.",
    "storage of a wrong class": b"(\x8c\x07storagectorch\nSize\n\x8c\x010\x8c\x03cpuK\x01tQ.",
    "storage without a class": b"(\x8c\x07storageN\x8c\x010\x8c\x03cpuK\x01tQ.",
    "storage of minus one": b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuJ\xff\xff\xff\xfftQ.",
    "storage that climbs": b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x0b../data.pkl\x8c\x03cpuK\x01tQ.",
    "tensor of a number": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89NtR.",
    "parameter of a number": b"ctorch._utils\n_rebuild_parameter\nK\x01\x89N\x87R.",
    "subclass": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nSize\n)NtR.",
    "size of text": b"ctorch\nSize\n\x8c\x02ab\x85R.",
    "ordered dict of text": b"ccollections\nOrderedDict\n\x8c\x02ab\x85R.",
    "tuple as a key": b"})Ns.",
    "dict as a key": b"}}Ns.",
    "duplicate key": b"}(\x8c\x01aN\x8c\x01aNu.",
    "odd number of items": b"}(\x8c\x01au.",
    "empty stack": b".",
    "two values": b"NN.",
    "open mark": b"(N.",
    "no mark": b"t.",
    "memo never set": b"h\x07.",
    "no stop": b"N",
    "unknown operation": b"\xff.",
    "huge integer": b"\x8b\xff\xff\xff\x7f" + b"1" * 50 + b".",
    "huge text": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "huge bytes": b"B\xff\xff\xff\xffx.",
    "text that is not text": b"\x8c\x01\xff.",
    "global without an end": b"cos",
    "protocol 9": b"\x80\x09N.",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BUILDS)
def test_a_pickle_trick_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match="the pickle is refused because"):
        read_torch_file(archive(tmp_path / "x.pt", BUILDS[kind]))


def run(data: bytes) -> Any:
    return PickleMachine(
        data, lambda module, name: Global(f"{module}.{name}"), lambda pid: pid
    ).run()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_understood_as_pickle_understands_it(protocol: int) -> None:
    shared = [1, "shared"]
    value = {
        "numbers": [0, 1, 255, 256, 65536, -1, -(2**31), 2**31, 2**63, -(2**70), 1.5, float("inf")],
        "text": ["", "ü", "重み" * 200, "x" * 300],
        "others": (
            None,
            True,
            False,
            (),
            (1,),
            (1, 2),
            (1, 2, 3),
            (1, 2, 3, 4),
            {},
            {"a": {1: 2}},
            {"one": 1},
        ),
        "shared": (shared, shared),
        "many": {str(i): i for i in range(3000)},
    }
    data = pickle.dumps(value, protocol)
    found = run(data)
    assert found == value
    assert found["shared"][0] is found["shared"][1]
    assert run(pickletools.optimize(data)) == value


def test_a_memo_index_of_four_billion_costs_nothing() -> None:
    tracemalloc.start()
    assert run(b"\x80\x02]r\xff\xff\xff\xff.") == []
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("opening", [b"(" * 200_000, b"]" * 200_000])
def test_a_flood_of_open_containers_ends_in_a_refusal(opening: bytes) -> None:
    with pytest.raises(PickleRefused):
        run(opening + b".")


def test_deep_nesting_is_built_and_dropped_without_recursion(tmp_path: Path) -> None:
    data = b"\x80\x02}\x8c\x01w" + b")" + b"\x85" * 300_000 + b"s."
    with pytest.raises(CheckpointError, match="cannot be told"):
        read_torch_file(archive(tmp_path / "x.pt", data))


def test_work_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightsmith.tensors.pickles.pickle_machine._MOST_CONTAINERS", 1000)
    with pytest.raises(PickleRefused, match="more than 1000 containers"):
        run(b"]0" * 2000 + b"N.")
    monkeypatch.setattr("weightsmith.tensors.pickles.pickle_machine._MOST_OPERATIONS", 1000)
    with pytest.raises(PickleRefused, match="more than 1000 operations"):
        run(b"N0" * 2000 + b"N.")


def test_a_pickle_above_the_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightsmith.tensors.pickles.pickle_reader.LARGEST_PICKLE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"data\.pkl has 1001 bytes"):
        read_torch_file(archive(tmp_path / "x.pt", b"N" * 1001))


# Tensors that claim more than they have -----------------------------------------------------------------------------


def tensor_pickle(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], numel: int = 4
) -> bytes:
    """A pickle of one float32 tensor on storage '0' of `numel` elements."""
    parts = [pickle.dumps(part, 2)[2:-1] for part in (offset, shape, strides, numel)]
    storage = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpu" + parts[3] + b"tQ"
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + parts[0]
        + parts[1]
        + parts[2]
        + b"\x89}tR"
    )
    # Memo numbers of the parts would collide only with themselves: nothing is recalled.
    return b"\x80\x02}\x8c\x01w" + call + b"s."


def test_the_hand_made_pickle_of_these_tests_is_read(tmp_path: Path) -> None:
    (tensor,) = read_torch_file(
        archive(tmp_path / "x.pt", tensor_pickle(1, (3,), (1,)), ("x/data/0", b"abcdefghijklmnop"))
    )
    buffer = bytearray(12)
    tensor.read_into(0, 3, memoryview(buffer))
    assert buffer == b"efghijklmnop"


CLAIMS = [
    (0, (2**34,), (0,)),
    (0, (2, 2), (0, 1)),
    (0, (3, 3), (1, 1)),
    (0, (5,), (1,)),
    (1, (4,), (1,)),
    (0, (2,), (4,)),
    (2**62, (1,), (1,)),
    (-1, (1,), (1,)),
    (0, (-1,), (1,)),
    (0, (2,), (-1,)),
    (0, (2, 2), (2,)),
    (0, (2**32, 2**32), (1, 1)),
    (0, (2**64,), (1,)),
    (0, (1,) * 65, (1,) * 65),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_view_that_claims_more_than_its_storage_is_refused(tmp_path: Path, claim: Any) -> None:
    with pytest.raises(CheckpointError, match="a tensor"):
        read_torch_file(archive(tmp_path / "x.pt", tensor_pickle(*claim), ("x/data/0", bytes(16))))


@pytest.mark.parametrize("size", [0, 15])
def test_a_storage_with_too_few_bytes_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(CheckpointError, match=f"storage '0' of 16 bytes has only {size} bytes"):
        read_torch_file(
            archive(tmp_path / "x.pt", tensor_pickle(0, (4,), (1,)), ("x/data/0", bytes(size)))
        )


def test_a_storage_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="storage '0' of 16 bytes has no bytes"):
        read_torch_file(archive(tmp_path / "x.pt", tensor_pickle(0, (4,), (1,))))


# Archives -----------------------------------------------------------------------------------------------------------

GOOD = tensor_pickle(0, (4,), (1,))
STORAGE = ("x/data/0", bytes(16))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_refused(tmp_path: Path, compression: int) -> None:
    path = archive(
        tmp_path / "x.pt", GOOD, ("x/data/0", bytes(10_000_000)), compression=compression
    )
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_file(path)


def test_a_big_endian_archive_is_refused(tmp_path: Path) -> None:
    assert read_torch_file(archive(tmp_path / "x.pt", GOOD, STORAGE, ("x/byteorder", b"little")))
    with pytest.raises(CheckpointError, match="byte order is 'big'"):
        read_torch_file(archive(tmp_path / "y.pt", GOOD, STORAGE, ("x/byteorder", b"big")))


def test_an_archive_without_exactly_one_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"2 files data\.pkl"):
        read_torch_file(archive(tmp_path / "x.pt", GOOD, STORAGE, ("y/data.pkl", GOOD)))
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
        file.writestr("data.pkl", GOOD)
    with pytest.raises(CheckpointError, match=r"0 files data\.pkl"):
        read_torch_file(tmp_path / "y.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'x/data/0' appears twice"):
        read_torch_file(archive(tmp_path / "x.pt", GOOD, STORAGE, STORAGE))


def damaged(change: Callable[[bytearray], Any], folder: Path) -> Path:
    path = archive(folder / "x.pt", GOOD, STORAGE)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def set_at(
    content: bytearray, signature: bytes, position: int, value: bytes, last: bool = False
) -> None:
    start = (content.rfind if last else content.find)(signature) + position
    content[start : start + len(value)] = value


DAMAGE: dict[str, Callable[[bytearray], Any]] = {
    "bytes after the end": lambda c: c.extend(b"x"),
    "a comment": lambda c: (set_at(c, b"PK\5\6", 20, b"\1\0"), c.extend(b"x")),
    "bytes before the start": lambda c: c.__setitem__(slice(0, 0), b"PK\3\4xxxx"),
    "another disk": lambda c: set_at(c, b"PK\5\6", 4, b"\1\0"),
    "too many members": lambda c: set_at(c, b"PK\5\6", 8, b"\xff\x00\xff\x00"),
    "a member less": lambda c: set_at(c, b"PK\5\6", 8, b"\1\0\1\0"),
    "a huge directory": lambda c: set_at(c, b"PK\5\6", 12, b"\xff\xff\xff\x7f"),
    "a directory elsewhere": lambda c: set_at(c, b"PK\5\6", 16, b"\0\0\0\0"),
    "a size beyond the file": lambda c: set_at(c, b"PK\1\2", 20, b"\xff\xff\0\0\xff\xff\0\0", last=True),
    "sizes that differ": lambda c: set_at(c, b"PK\1\2", 24, b"\xff\xff\0\0", last=True),
    "sizes in zip64 without zip64": lambda c: set_at(c, b"PK\1\2", 20, b"\xff" * 8, last=True),
    "a local header elsewhere": lambda c: set_at(c, b"PK\1\2", 42, b"\x07\0\0\0", last=True),
    "a local header beyond the file": lambda c: set_at(c, b"PK\1\2", 42, b"\xf0\xff\xff\x7f", last=True),
    "a local header of another member": lambda c: set_at(c, b"PK\1\2", 42, b"\0\0\0\0", last=True),
    "another local name": lambda c: set_at(c, b"PK\3\4", 30, b"y", last=True),
    "a longer local name": lambda c: set_at(c, b"PK\3\4", 26, b"\x09\0", last=True),
    "another local size": lambda c: set_at(c, b"PK\3\4", 18, b"\x01\0\0\0", last=True),
    "local compression": lambda c: set_at(c, b"PK\3\4", 8, b"\x08\0", last=True),
    "an encrypted member": lambda c: set_at(c, b"PK\1\2", 8, b"\x01\0", last=True),
    "a name that is not UTF-8": lambda c: (
        set_at(c, b"PK\1\2", 46, b"\xff", last=True),
        set_at(c, b"PK\3\4", 30, b"\xff", last=True),
    ),
    "a local extra field beyond the file": lambda c: set_at(c, b"PK\3\4", 28, b"\xff\xff", last=True),
}  # fmt: skip


REASONS = {
    "bytes after the end": "last bytes are not the end",
    "a comment": "last bytes are not the end",
    "bytes before the start": "directory of .* is not where it must be",
    "a huge directory": "directory of .* is not where it must be",
    "a directory elsewhere": "directory of .* is not where it must be",
    "another disk": "divided archive",
    "too many members": "cannot hold 255 members",
    "a member less": "more than its members",
    "sizes that differ": "compressed or encrypted",
    "an encrypted member": "compressed or encrypted",
    "another local name": "states another name",
    "another local size": "does not agree",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_archive_that_contradicts_itself_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match=REASONS.get(kind, r"x\.pt")):
        read_torch_file(damaged(DAMAGE[kind], tmp_path))


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    inner = archive(tmp_path / "inner", b"N.", ("x/data/1", b"12345678")).read_bytes()
    start = inner.index(b"PK\3\4", 4)
    hidden = inner[start : start + 30 + 8 + 8]
    path = archive(tmp_path / "x.pt", GOOD, STORAGE, ("x/data/1", hidden))
    content = bytearray(path.read_bytes())
    outer, nested = content.index(b"x/data/1") - 30, content.index(hidden)
    record = content.rfind(b"PK\1\2")
    content[record + 42 : record + 46] = nested.to_bytes(4, "little")
    content[record + 20 : record + 28] = struct.pack("<2L", 8, 8)
    second = content.rfind(b"PK\1\2", 0, record)
    assert outer < nested
    content[second + 20 : second + 28] = struct.pack("<2L", 16, 16)
    path.write_bytes(content)
    found = read_torch_file(path)
    assert len(found) == 1  # the nested member alone is harmless: nothing overlaps it
    content[second + 42 : second + 46] = content[record + 42 : record + 46]
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_torch_file(path)


def test_a_zip64_archive_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (("x/data.pkl", GOOD), ("x/data/0", b"abcdefghijklmnop")):
            with file.open(name, "w", force_zip64=True) as member:
                member.write(content)
    content = bytearray(buffer.getvalue())
    record = content.rfind(b"PK\1\2")
    name_end = record + 46 + 8
    extra = struct.pack("<2H2Q", 1, 16, 16, 16)
    content[record + 20 : record + 28] = b"\xff" * 8
    content[record + 30 : record + 32] = struct.pack("<H", len(extra))
    content[name_end:name_end] = extra
    end = content.rfind(b"PK\5\6")
    _, _, _, _, count, size, offset, _ = struct.unpack_from("<4s4H2LH", content, end)
    size += len(extra)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "x.pt"
    path.write_bytes(bytes(content[:end]) + end64 + locator + tail)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    (tensor,) = read_torch_file(path)
    found = bytearray(16)
    tensor.read_into(0, 4, memoryview(found))
    assert found == b"abcdefghijklmnop"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"PK\3\4",
        b"PK\5\6" + bytes(18),
        bytes(1000),
        b"\x80\x02K\x01.",
        b"GGUF" * 99,
        b"\x93NUMPY" * 9,
    ],
)
def test_what_is_no_torch_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        read_torch_file(tmp_path / "x.pt")


def test_an_archive_too_short_for_its_end_is_refused_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\3\4" + bytes(17))
    with pytest.raises(CheckpointError, match="has 21 bytes, too few"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(4))
def test_random_pickles_end_in_a_value_or_a_refusal(seed: int) -> None:
    generator = random.Random(seed)
    operations = [
        bytes([code])
        for code in b"\x80\x95.(01N\x88\x89KMJ\x8a\x8bG\x8cX\x8dCBUT]})\x85\x86\x87tldaesuqr\x94hjc\x93QRb"
    ]
    started = time.process_time()
    for _ in range(100_000):
        parts = [
            generator.choice(operations) + generator.randbytes(generator.choice([0, 0, 1, 2, 4]))
            for _ in range(30)
        ]
        try:
            run(b"".join(parts))
        except PickleRefused:
            continue
    assert time.process_time() - started < 120
