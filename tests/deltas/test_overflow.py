"""A change that is too large for float32 is refused where it is decoded, without a word from numpy."""

from __future__ import annotations

import numpy as np
import pytest

import weightsmith
from weightsmith.adapters.adapted_models import open_model
from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.deltas import DecodedTensor
from weightsmith.deltas.changed import ChangedTensor
from weightsmith.deltas.changes import Full, LowRankChange
from weightsmith.deltas.codecs.applied import on_base
from weightsmith.deltas.codecs.codec import StoredChange
from weightsmith.deltas.rounded import RoundedTensor
from weightsmith.errors import NonFiniteError, WeightsmithError
from weightsmith.graph.graph import source
from weightsmith.lora.low_rank_adapters import low_rank_adapter
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor


def held(name: str, array: np.ndarray) -> MemoryTensor:
    """An array of floats as a lazy tensor."""
    dtype = {"f4": DType.FLOAT32, "f8": DType.FLOAT64}[array.dtype.str[1:]]
    return MemoryTensor(name, dtype, array.shape, bytearray(array.tobytes()))


def read(tensor, start=0, stop=None) -> np.ndarray:
    stop = tensor.numel if stop is None else stop
    kind = {DType.FLOAT64: np.float64, DType.FLOAT32: np.float32, DType.FLOAT16: np.float16}
    out = np.empty(stop - start, kind[tensor.dtype])
    tensor.read_into(start, stop, out.data.cast("B"))
    return out


def changed(base: np.ndarray, change: np.ndarray, **more) -> ChangedTensor:
    return ChangedTensor(held("w", base), (), lambda: Full(change.astype(np.float64)), **more)


BASE = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("value", [1e39, -1e39, 1e308 * 10, -np.inf, np.nan])
def test_one_element_that_overflows_is_named(value):
    change = np.zeros((3, 4))
    change[1, 2] = value
    tensor = changed(BASE, change)
    with pytest.raises(NonFiniteError, match="overflows float32 at element 6"):
        read(tensor)
    with pytest.raises(NonFiniteError):
        read(tensor, 0, 1)


def test_the_largest_numbers_of_float32_are_none():
    change = np.full((3, 4), float(np.finfo(np.float32).max))
    found = read(changed(np.zeros((3, 4), np.float32), change))
    assert (found == np.finfo(np.float32).max).all()
    wide = changed(np.zeros((3, 4)), np.full((3, 4), 1e300))
    assert (read(wide) == 1e300).all()


@pytest.mark.parametrize("by_column", [False, True])
def test_what_the_base_itself_does_not_have_in_finite_numbers_passes(by_column):
    """It is judged by those who read the base."""
    base = BASE.copy()
    base[1, 2] = np.nan
    assert np.flatnonzero(~np.isfinite(read(changed(base, np.ones((3, 4)))))).tolist() == [6]
    gain = held("g", np.ones(4 if by_column else 3, np.float32))
    found = read(changed(base, np.ones((3, 4)), magnitude=gain, by_column=by_column))
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [6]


@pytest.mark.parametrize("by_column", [False, True])
def test_a_magnitude_that_overflows_is_refused(by_column):
    gain = held("g", np.full(4 if by_column else 3, 1e300))
    tensor = changed(BASE, np.ones((3, 4)), magnitude=gain, by_column=by_column)
    with pytest.raises(NonFiniteError, match="overflows float32"):
        read(tensor)


def decoded(base: np.ndarray, change: np.ndarray, dtype=DType.FLOAT32, **more) -> DecodedTensor:
    parts = (held("w", base), held("d", change))
    return DecodedTensor("w", dtype, base.shape, parts, lambda: source(0) + source(1), **more)


def test_a_decoded_element_that_overflows_is_named():
    change = np.zeros((3, 4), np.float32)
    change[2, 1] = 3e38
    base = np.full((3, 4), 1e38, np.float32)
    with pytest.raises(NonFiniteError, match="overflows float32 at element 9"):
        read(decoded(base, change))
    with pytest.raises(NonFiniteError, match="overflows float16 at element 0"):
        read(decoded(base, change, DType.FLOAT16))
    base[2, 1] = np.inf
    assert np.flatnonzero(np.isinf(read(decoded(base, change)))).tolist() == [9]


def test_rounding_alone_may_overflow():
    """As a library rounds: a package that stores no bit lost must come to the same."""
    tensor = RoundedTensor(held("w", np.array([1e6, 1.0, -1e6], np.float32)), DType.FLOAT16)
    assert read(tensor).tolist() == [np.inf, 1.0, -np.inf]


def test_a_coded_change_that_overflows_is_refused():
    base = held("w", BASE)
    stored = StoredChange("x", {}, {}, base, "w", DType.FLOAT32, BASE.shape)
    tensor = on_base(stored, lambda _: (np.full(12, 1e39)).astype(np.float32))
    with pytest.raises(NonFiniteError, match="overflows float32 in block 0"):
        read(tensor)


def test_a_forged_scale_of_a_package_is_refused():
    parts = (held("w", BASE), held("d", BASE))
    for scale in (np.inf, np.nan, 3e38):
        constant = held("s", np.array(scale, np.float32))
        tensor = DecodedTensor(
            "w", DType.FLOAT32, BASE.shape, parts, lambda s: source(0) + source(1) * s, (constant,)
        )
        with pytest.raises(NonFiniteError):
            read(tensor)


@pytest.fixture
def adapter(family, write_lora):
    """Of the family's first up projection."""
    return write_lora(family.root / "adapter", "model.layers.0.mlp.up_proj", (7, 11))


@pytest.mark.parametrize("strength", ["1e39", "1e308"])
def test_no_output_has_an_adapter_that_overflows(family, adapter, strength):
    """A copy of a float32 tensor is looked at as well as a computed one."""
    reference = f"{family.root / 'base'}+{adapter}:{strength}"
    for dtype in (None, "float16"):
        recipe = {
            "weightsmith": 1,
            "merge_method": "passthrough",
            "models": [{"model": reference}],
            **({} if dtype is None else {"dtype": dtype}),
        }
        with pytest.raises(NonFiniteError, match=r"up_proj.*'.*adapter_model\.safetensors'"):
            weightsmith.merge(recipe, family.root / "out", fresh=True)
    assert not (family.root / "out").exists()
    weightsmith.merge(
        {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": reference}]}
        | {"models": [{"model": f"{family.root / 'base'}+{adapter}:1e3"}]},
        family.root / "out",
        fresh=True,
    )


def test_an_adapter_whose_alpha_overflows_is_refused_where_it_is_loaded(family, write_lora):
    place = write_lora(family.root / "huge", "model.layers.0.mlp.up_proj", (7, 11), alpha=1e308)
    with pytest.raises(NonFiniteError, match=r"overflows float32: look .* which is 1e\+308"):
        low_rank_adapter(open_adapter(place))
    tensor = open_model(f"{family.root / 'base'}+{place}").tensors[
        "model.layers.0.mlp.up_proj.weight"
    ]
    with pytest.raises(WeightsmithError):
        read(tensor)


def test_a_change_at_the_border_is_not_refused():
    """2 x 3 of ones times the largest float32 over 2: entries of that largest number."""
    scale = float(np.finfo(np.float32).max) / 2
    change = LowRankChange(np.ones((2, 2)), np.ones((2, 3)), scale)
    tensor = ChangedTensor(held("w", np.zeros((2, 3), np.float32)), (), lambda: change)
    assert np.isfinite(read(tensor)).all()
