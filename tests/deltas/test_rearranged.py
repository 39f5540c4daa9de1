"""Views whose elements lie in another order: any range of them is what numpy makes of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas import JoinedColumns, StridedView, reshaped, turned
from weightsmith.tensors import read_bytes


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Tensors of a file by name, and their arrays."""
    generator = np.random.default_rng(0)
    shapes = {"stack": (3, 5, 8), "wide": (300, 700), "a": (4, 3), "b": (4, 3), "c": (4, 2)}
    arrays = {k: generator.normal(size=s).astype(np.float16) for k, s in shapes.items()}
    file = tmp_path_factory.mktemp("file") / "m.safetensors"
    save_file(arrays, file)
    return open_checkpoint(file).tensors, arrays


def _is(view, expected):
    flat = np.ascontiguousarray(expected).reshape(-1)
    assert view.shape == expected.shape
    cuts = sorted({0, 1, 2, flat.size // 3, flat.size // 2 + 1, flat.size - 1, flat.size})
    for start in cuts:
        for stop in cuts:
            if start <= stop:
                found = np.frombuffer(read_bytes(view, start, stop), np.float16)
                np.testing.assert_array_equal(found, flat[start:stop])


def test_the_last_two_axes_are_exchanged(stored):
    tensors, arrays = stored
    _is(turned(tensors["stack"], "t"), arrays["stack"].transpose(0, 2, 1))
    _is(turned(tensors["wide"], "t"), arrays["wide"].T)
    _is(turned(turned(tensors["stack"], "t"), "u"), arrays["stack"])


def test_alternate_columns_of_one_expert_are_a_matrix_of_its_outputs(stored):
    tensors, arrays = stored
    view = StridedView("gate", tensors["stack"], 2 * 40 + 1, (4, 5), (2, 8))
    _is(view, arrays["stack"][2][:, 1::2].T)
    assert view.cost.stored_bytes == tensors["stack"].cost.stored_bytes // 6


def test_columns_are_joined_behind_one_another_or_alternate(stored):
    tensors, arrays = stored
    sources = tuple(tensors[name] for name in "abc")
    _is(JoinedColumns("j", sources), np.concatenate([arrays[name] for name in "abc"], axis=1))
    alternating = np.stack([arrays["a"], arrays["b"]], axis=2).reshape(4, 6)
    _is(JoinedColumns("j", sources[:2], alternating=True), alternating)


def test_elements_keep_their_order_under_another_shape(stored):
    tensors, arrays = stored
    _is(reshaped(tensors["a"], "r", (4, 3, 1, 1)), arrays["a"].reshape(4, 3, 1, 1))


@pytest.mark.parametrize("band", [2, 14, 1 << 24])
def test_columns_are_the_same_whatever_is_gathered_at_once(stored, monkeypatch, band):
    monkeypatch.setattr("weightsmith.deltas.rearranged._BAND", band)
    tensors, arrays = stored
    views = {name: turned(tensors[name], "t") for name in ("stack", "a", "b")}
    for _ in range(2):
        for name, view in views.items():
            _is(view, np.swapaxes(arrays[name], -1, -2))
