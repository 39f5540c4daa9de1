"""Statistics of channels seen as numbers of weights: which axis, any range, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import by_weight, open_checkpoint, read_statistics
from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.errors import CompatibilityError
from weightsmith.tensors.compressed import read_array, read_range

SHAPES = {
    "h.0.attn.c_attn.weight": (4, 12),
    "h.0.mlp.c_fc.weight": (4, 16),
    "h.1.attn.c_attn.weight": (4, 12),
    "h.1.mlp.c_fc.weight": (4, 16),
    "ln_f.weight": (4,),
    "patch.weight": (5, 3, 2, 2),
    "linear.weight": (5, 7),
}
# GPT-2's matrices are stored inputs first.
AXES = {name: 0 if name.startswith("h.") or name == "ln_f.weight" else 1 for name in SHAPES}


@pytest.fixture
def checkpoint(tmp_path):
    save_file({n: np.zeros(s, np.float32) for n, s in SHAPES.items()}, tmp_path / "m.safetensors")
    return open_checkpoint(tmp_path / "m.safetensors")


def write(path, checkpoint, channels):
    tensors = {f"{n}::input_square": c for n, c in channels.items()}
    write_statistics(path, tensors, kind="channels", of=checkpoint, data="numbers", samples=3)
    return read_statistics(path)


def test_every_weight_has_the_number_of_its_input(checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    drawn = {n: rng.random(s[AXES[n]]).astype(np.float32) for n, s in SHAPES.items()}
    found = by_weight(write(tmp_path / "s.safetensors", checkpoint, drawn), checkpoint)
    for name, shape in SHAPES.items():
        (part,) = found.names(name, "input_square")
        tensor = found.checkpoint.tensors[part]
        like = [-1 if i == AXES[name] else 1 for i in range(len(shape))]
        expected = np.broadcast_to(drawn[name].reshape(like), shape)
        assert tensor.shape == shape
        np.testing.assert_array_equal(read_array(tensor), expected)
        for start, stop in ((0, 0), (1, 3), (2, tensor.numel), (tensor.numel - 1, tensor.numel)):
            got = read_range(tensor, start, stop)
            np.testing.assert_array_equal(got, expected.reshape(-1)[start:stop])
    assert found.names("linear.weight") == ()
    assert found.names("linear.weight", "output_mean") == ()


def test_as_many_channels_as_outputs_are_refused(checkpoint, tmp_path):
    found = write(tmp_path / "s.safetensors", checkpoint, {"linear.weight": np.ones(5, np.float32)})
    message = (
        r"shape \[5\], which are not the input channels of a weight of shape \[5, 7\]: collect"
    )
    with pytest.raises(CompatibilityError, match=message):
        by_weight(found, checkpoint)


def test_other_kinds_stay_as_they_are(checkpoint, tmp_path):
    path = tmp_path / "f.safetensors"
    ones = {"linear.weight": np.ones((5, 7), np.float32)}
    write_statistics(path, ones, kind="fisher", of=checkpoint, data="numbers", samples=3)
    found = read_statistics(path)
    assert by_weight(found, checkpoint) is found
