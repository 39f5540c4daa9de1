"""The number formats that checkpoints store, under the names that torch and safetensors give them."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.wording import shown


class DType(enum.Enum):
    """An element type: the value is torch's name; `.itemsize` is in bytes; `.safetensors` is the
    code in a header.
    """

    itemsize: int
    safetensors: str
    is_float: bool

    def __new__(cls, name: str, itemsize: int, code: str, is_float: bool) -> DType:
        """Keep the facts as plain attributes, because headers look them up once per tensor."""
        member = object.__new__(cls)
        member._value_ = name
        member.itemsize = itemsize
        member.safetensors = code
        member.is_float = is_float
        return member

    FLOAT64 = "float64", 8, "F64", True
    FLOAT32 = "float32", 4, "F32", True
    FLOAT16 = "float16", 2, "F16", True
    BFLOAT16 = "bfloat16", 2, "BF16", True
    FLOAT8_E4M3FN = "float8_e4m3fn", 1, "F8_E4M3", True
    FLOAT8_E5M2 = "float8_e5m2", 1, "F8_E5M2", True
    INT64 = "int64", 8, "I64", False
    INT32 = "int32", 4, "I32", False
    INT16 = "int16", 2, "I16", False
    INT8 = "int8", 1, "I8", False
    UINT64 = "uint64", 8, "U64", False
    UINT32 = "uint32", 4, "U32", False
    UINT16 = "uint16", 2, "U16", False
    UINT8 = "uint8", 1, "U8", False
    BOOL = "bool", 1, "BOOL", False
    COMPLEX64 = "complex64", 8, "C64", False

    # Members are one object each; the hash that enumerations have by default is a function in Python.
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return str(self.value)

    @property
    def is_fp8(self) -> bool:
        """True for the two 8-bit floats, which have no arithmetic of their own."""
        return self.is_float and self.itemsize == 1

    @property
    def significant_bits(self) -> int:
        """Binary digits of a float's significand, the hidden one included; 0 for other types."""
        return _SIGNIFICANT_BITS.get(self, 0)

    @classmethod
    def parse(cls, text: str) -> DType:
        """The type that a person means by `text`: "bfloat16", "torch.bfloat16", "bf16", "BF16",
        "half", "fp8"...

        Raises `UsageError`, with the list of names, for anything else.
        """
        wanted = str(text).strip().lower().removeprefix("torch.")
        found = _SPOKEN_NAMES.get(wanted)
        if found is None:
            known = ", ".join(member.value for member in cls if member.is_float)
            raise UsageError(f"{shown(str(text))} is not a dtype: use one of {known}.")
        return found


_SIGNIFICANT_BITS = {
    DType.FLOAT64: 53,
    DType.FLOAT32: 24,
    DType.FLOAT16: 11,
    DType.BFLOAT16: 8,
    DType.FLOAT8_E4M3FN: 4,
    DType.FLOAT8_E5M2: 3,
}
SAFETENSORS_CODES: dict[str, DType] = {member.safetensors: member for member in DType}

# Codes of the safetensors library that hold scaled or sub-byte numbers: they mean nothing without their scales.
_UNSUPPORTED_CODES = frozenset(
    {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "E8M0"}
)

_ALIASES = {
    "double": DType.FLOAT64,
    "fp64": DType.FLOAT64,
    "float": DType.FLOAT32,
    "single": DType.FLOAT32,
    "fp32": DType.FLOAT32,
    "half": DType.FLOAT16,
    "fp16": DType.FLOAT16,
    "fp8": DType.FLOAT8_E4M3FN,
    "float8": DType.FLOAT8_E4M3FN,
    "fp8_e4m3": DType.FLOAT8_E4M3FN,
    "fp8_e4m3fn": DType.FLOAT8_E4M3FN,
    "float8_e4m3": DType.FLOAT8_E4M3FN,
    "fp8_e5m2": DType.FLOAT8_E5M2,
    "long": DType.INT64,
    "int": DType.INT32,
    "short": DType.INT16,
    "char": DType.INT8,
    "byte": DType.UINT8,
    "boolean": DType.BOOL,
    "cfloat": DType.COMPLEX64,
}
_SPOKEN_NAMES: dict[str, DType] = {
    **{member.safetensors.lower(): member for member in DType},
    **{member.value: member for member in DType},
    **_ALIASES,
}


def unknown_code(code: str) -> str:
    """Say why a safetensors dtype code cannot be read, and what to do."""
    if code in _UNSUPPORTED_CODES:
        return (
            f"dtype {code} holds scaled or sub-byte numbers that mean nothing without their scales; "
            "dequantise the checkpoint to bfloat16 first."
        )
    known = ", ".join(SAFETENSORS_CODES)
    return f"dtype {code[:80]!r} is unknown; the known ones are {known}."


def promote(dtypes: Iterable[DType]) -> DType:
    """The type in which numbers of all `dtypes` fit, as torch promotes: one type stays itself,
    bfloat16 with float16 gives float32.

    An 8-bit float mixed with any other float gives float32 (float64 if that is among them), where
    torch refuses. Integers and bools give way to floats. Raises `CompatibilityError` for no dtypes,
    for different integer types and for complex numbers mixed with others, none of which may be
    converted silently.
    """
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return distinct[0]
    floats = [dtype for dtype in distinct if dtype.is_float]
    if not floats or DType.COMPLEX64 in distinct:
        listed = ", ".join(str(dtype) for dtype in distinct) or "no dtypes"
        raise CompatibilityError(f"{listed} cannot be combined: convert them to one dtype first.")
    if len(floats) == 1:
        return floats[0]
    return DType.FLOAT64 if DType.FLOAT64 in floats else DType.FLOAT32
