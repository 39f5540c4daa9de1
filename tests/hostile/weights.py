"""Weight files: safetensors, their indices and PyTorch's archives, damaged in every place and made to grow."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .running import Input, Make, lazily

COMMANDS = (
    ("inspect", "{case}/m"),
    ("diff", "base", "{case}/m"),
    ("plan", "{case}/r.yaml"),
    ("merge", "{case}/r.yaml", "{case}/out", "--quiet"),
)
RECIPE = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: case/m}]\n"
VALID = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
}


def file(header: Any, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> bytes:
    """A file of one tensor, changed."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}
    return file({"a": {key: value for key, value in entry.items() if value is not ...}})


def sparse(size: int, head: bytes = b"") -> Make:
    """A file of holes behind some bytes."""

    def make(path: Path) -> None:
        with path.open("wb") as opened:
            opened.write(head)
            opened.truncate(size)

    return make


HEADERS: dict[str, bytes | Make] = {
    "nothing": b"",
    "seven bytes": b"\x00" * 7,
    "a length alone": struct.pack("<Q", 8),
    "length 0": struct.pack("<Q", 0),
    "length 2^63": struct.pack("<Q", 2**63),
    "length -1": struct.pack("<Q", 2**64 - 1),
    "length of 99 MB in holes": sparse(120_000_000, struct.pack("<Q", 99_999_999)),
    "length above 100 MB": sparse(300_000_000, struct.pack("<Q", 200_000_000)),
    "no JSON": file(b"{'a': 1}"),
    "not UTF-8": file(b'{"\xff": 1}'),
    "a list": file([]),
    "a text": file("x"),
    "a number": file(5),
    "null": file(None),
    "no tensors": file({}),
    "metadata alone": file({"__metadata__": {"a": "b"}}),
    "metadata of numbers": file({"__metadata__": {"a": 1}, **VALID}),
    "metadata a list": file({"__metadata__": [], **VALID}),
    "the key twice": file(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    ),
    "deep": lazily(lambda: file(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}")),
    "deep objects": lazily(lambda: file(b'{"a":' * 30_000 + b"1" + b"}" * 30_000)),
    "digits": file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'),
    "NaN": file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "1e400": file(b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,16]}}'),
    "an entry that is none": file({"a": 1}),
    "an entry a list": file({"a": []}),
    "no dtype": one(dtype=...),
    "no shape": one(shape=...),
    "no offsets": one(data_offsets=...),
    "an unknown dtype": one(dtype="F31"),
    "dtype a number": one(dtype=5),
    "dtype null": one(dtype=None),
    "shape a number": one(shape=4),
    "shape null": one(shape=None),
    "a negative length": one(shape=[-4]),
    "a fraction": one(shape=[4.0]),
    "true": one(shape=[True, 4]),
    "a text in the shape": one(shape=["4"]),
    "a huge length": one(shape=[2**62]),
    "lengths that overflow": one(shape=[2**32, 2**32]),
    "lengths that overflow to 4": one(shape=[2**63, 2, 4]),
    "a zero among huge": one(shape=[2**40, 0], data_offsets=[0, 0]),
    "huge rank": lazily(lambda: one(shape=[1] * 10_000 + [4])),
    "offsets backwards": one(data_offsets=[16, 0]),
    "offsets past the end": one(data_offsets=[0, 1600]),
    "offsets huge": one(data_offsets=[0, 2**63]),
    "offsets negative": one(data_offsets=[-16, 0]),
    "offsets of three": one(data_offsets=[0, 8, 16]),
    "offsets null": one(data_offsets=None),
    "one byte too few": one(data_offsets=[0, 15]),
    "a gap": file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}),
    "an overlap": file({"a": VALID["a"], "b": {**VALID["b"], "data_offsets": [4, 12]}}),
    "bytes behind the end": file(VALID, bytes(4096)),
    "truncated data": file(VALID, bytes(9)),
    "no data": file(VALID, b""),
    "a huge name": lazily(lambda: file({"n" * 2_000_000: VALID["a"], "b": VALID["b"]})),
    "an empty name": file({"": VALID["a"], "b": VALID["b"]}),
    "a name of controls": file({"\x1b[2J\u202e": VALID["a"], "b": VALID["b"]}),
    "a name of newlines": file({"a\nb": VALID["a"], "b": VALID["b"]}),
    "a surrogate": file(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "a layer of many digits": file(
        {f"layers.{'9' * 5000}.weight": VALID["a"], "layers.0.weight": VALID["b"]}
    ),
    "layer 99999": file({"layers.99999.mlp.weight": VALID["a"], "layers.0.mlp.weight": VALID["b"]}),
    "an expert of many digits": file(
        {f"experts.{'9' * 5000}.w1.weight": VALID["a"], "b": VALID["b"]}
    ),
    "a name with slashes": file({"../../etc/passwd": VALID["a"], "b": VALID["b"]}),
    "thirty thousand tensors": lazily(
        lambda: file(
            {
                f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for i in range(30_000)
            },
            b"",
        )
    ),
    "a terabyte of holes": sparse(1 << 40, file(VALID, b"")),
    "spaces before": file(b" " * 100 + json.dumps(VALID).encode()),
    "a byte order mark": file(b"\xef\xbb\xbf" + json.dumps(VALID).encode()),
    "a zip": b"PK\x03\x04" + bytes(60),
    "html": b"<!DOCTYPE html><html>404</html>",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "scalars": file({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
    "NaN in the weights": file(VALID, struct.pack("<4f", float("nan"), 1, 2, 3)),
    "infinity in the weights": file(VALID, struct.pack("<4f", float("inf"), 1, 2, 3)),
    "booleans that are 2": file(
        {"a": {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}}, bytes([0, 1, 2, 255])
    ),
    "floats of 4 bits": file(
        {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, bytes(2)
    ),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("none"),
}

INDICES: dict[str, Any] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": [],
    "null": None,
    "no map": {},
    "a map that is none": {"weight_map": 5},
    "a map of nothing": {"weight_map": {}},
    "a map of numbers": {"weight_map": {"a": 1}},
    "a missing shard": {"weight_map": {"a": "none.safetensors"}},
    "a shard outside": {"weight_map": {"a": "../../../etc/passwd.safetensors"}},
    "an absolute shard": {"weight_map": {"a": "/etc/passwd"}},
    "a drive": {"weight_map": {"a": "C:\\x.safetensors"}},
    "a backslash": {"weight_map": {"a": "..\\x.safetensors"}},
    "another ending": {"weight_map": {"a": "model.py"}},
    "controls": {"weight_map": {"a": "\x1b[31m.safetensors"}},
    "a tensor that the shard lacks": {"weight_map": {"a": "s.safetensors", "z": "s.safetensors"}},
    "half of the shard": {"weight_map": {"a": "s.safetensors"}},
    "deep": lazily(lambda: b"[" * 200_000),
    "digits": b'{"metadata": {"total_size": ' + b"9" * 5000 + b'}, "weight_map": {}}',
    "the key twice": b'{"weight_map": {"a": "s.safetensors", "a": "t.safetensors"}}',
    "ten thousand shards": {"weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(10_000)}},
    "a long name": {"weight_map": {"a": "x" * 3000 + ".safetensors"}},
    "the index itself": {"weight_map": {"a": "model.safetensors.index.json"}},
}


def archive(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with some members."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return made.getvalue()


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran-a-pickle",)


PICKLES: dict[str, bytes | Make] = {
    "nothing": b"",
    "no archive": b"x" * 100,
    "an empty zip": archive({}),
    "no pickle in it": archive({"x/data/0": bytes(8)}),
    "no pickle": archive({"x/data.pkl": b"\x80\x02"}),
    "a pickle that runs": archive({"x/data.pkl": pickle.dumps(_Runs(), 2)}),
    "a bare pickle that runs": pickle.dumps(_Runs(), 2),
    "a number": archive({"x/data.pkl": pickle.dumps(5, 2)}),
    "a list": archive({"x/data.pkl": pickle.dumps([1], 2)}),
    "an empty state dict": archive({"x/data.pkl": pickle.dumps({}, 2)}),
    "a dict of numbers": archive({"x/data.pkl": pickle.dumps({"a": 1}, 2)}),
    "a million marks": lazily(
        lambda: archive({"x/data.pkl": b"\x80\x02" + b"(" * 1_000_000 + b"."})
    ),
    "a memo bomb": lazily(
        lambda: archive({"x/data.pkl": b"\x80\x02]q\x00" + b"(h\x00h\x00lq\x00" * 50_000 + b"."})
    ),
    "deep tuples": lazily(
        lambda: archive({"x/data.pkl": b"\x80\x02" + b"N" + b"\x85" * 200_000 + b"."})
    ),
    "truncated": archive({"x/data.pkl": pickle.dumps({"a": [1] * 99}, 2)})[:-40],
    "a bomb": lazily(
        lambda: archive({"x/data.pkl": bytes(60_000_000)}, method=zipfile.ZIP_DEFLATED)
    ),
    "a member outside": archive({"../../x/data.pkl": pickle.dumps({}, 2)}),
    "sixty thousand members": lazily(lambda: archive({f"x/data/{i}": b"" for i in range(60_000)})),
    "protocol 5": archive({"x/data.pkl": pickle.dumps({"a": bytearray(9)}, 5)}),
    "protocol 255": archive({"x/data.pkl": b"\x80\xff."}),
    "an unknown opcode": archive({"x/data.pkl": b"\x80\x02\xfe."}),
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
    "a terabyte of holes": sparse(1 << 40),
    "a tar": b"ustar" + bytes(600),
}


def inputs() -> Iterator[Input]:
    for name, content in HEADERS.items():
        yield from _each("weights", name, {"m/model.safetensors": content})
        yield Input(
            "weights",
            f"{name}, as a file alone",
            ("inspect", "{case}/x.safetensors"),
            {"x.safetensors": content},
        )
        yield Input(
            "weights",
            f"{name}, as an adapter",
            ("adapter", "inspect", "{case}/x.safetensors"),
            {"x.safetensors": content},
        )
    for name, index in INDICES.items():
        data = index if isinstance(index, bytes) or callable(index) else json.dumps(index).encode()
        yield from _each(
            "indices",
            name,
            {"m/model.safetensors.index.json": data, "m/s.safetensors": file(VALID)},
        )
    for name, content in PICKLES.items():
        yield from _each("pickles", name, {"m/pytorch_model.bin": content})
    valid = file(VALID)
    for at in range(len(valid)):
        for byte in (0x00, 0xFF, valid[at] ^ 1):
            changed = valid[:at] + bytes([byte]) + valid[at + 1 :]
            yield Input(
                "bytes",
                f"byte {at} is {byte}",
                ("inspect", "{case}/x.safetensors"),
                {"x.safetensors": changed},
            )
    for length in range(0, len(valid), 3):
        yield Input(
            "bytes",
            f"cut at {length}",
            ("diff", "{case}/x.safetensors", "{case}/x.safetensors"),
            {"x.safetensors": valid[:length]},
        )


def _each(group: str, name: str, files: dict[str, Any]) -> Iterator[Input]:
    for argv in COMMANDS:
        yield Input(group, f"{name}, {argv[0]}", argv, {**files, "r.yaml": RECIPE})
