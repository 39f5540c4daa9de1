"""Statistics files: what is written is read, of the right checkpoint, in every form, and nothing else is taken."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.fingerprint import fingerprint
from weightsmith.checkpoints.formats.statistics import read_statistics, require_match
from weightsmith.checkpoints.formats.statistics_header import METADATA_ENTRY
from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.errors import CheckpointError, CompatibilityError, UsageError
from weightsmith.tensors.compressed import read_array

RNG = np.random.default_rng(3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {"a.weight": (6, 4), "b.weight": (5, 4), "norm": (4,), "big": (300, 40)}
    save_file({n: RNG.normal(size=s).astype(np.float32) for n, s in tensors.items()}, path)
    return path


def written(model: Path, tensors, **how):
    path = model.parent / "stats.safetensors"
    write_statistics(
        path, tensors, **{"kind": "fisher", "of": model, "data": "c4", "samples": 8} | how
    )
    return path


def tensors_of(statistics, name):
    return [statistics.checkpoint.tensors[part] for part in statistics.names(name)]


def values(statistics, name):
    return [read_array(t) for t in tensors_of(statistics, name)]


def test_what_is_written_is_read_again(model):
    tensors = {
        "a.weight": RNG.random((6, 4)).astype(np.float32),
        "norm": RNG.random(4).astype(np.float16),
    }
    path = written(model, tensors, normalization="sum", same={"b.weight": "norm"})
    found = read_statistics(path)
    header = found.header
    assert (header.kind, header.data, header.samples, header.divisor) == ("fisher", "c4", 8, 8.0)
    assert header.name == "model.safetensors"
    for name, array in tensors.items():
        np.testing.assert_array_equal(values(found, name)[0], array)
    np.testing.assert_array_equal(values(found, "b.weight")[0], tensors["norm"])
    assert found.names("big") == ()
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(tensors)


def test_gradients_are_read_sample_by_sample_in_order(model):
    samples = [np.full(4, float(k)) for k in range(12)]
    found = read_statistics(written(model, {"norm": samples}, kind="gradients"))
    assert [v[0] for v in values(found, "norm")] == list(range(12))


def test_torch_tensors_are_written_as_their_numbers(model):
    torch = pytest.importorskip("torch")
    tensor = torch.rand(4).to(torch.bfloat16)
    found = read_statistics(written(model, {"norm": tensor}))
    np.testing.assert_array_equal(values(found, "norm")[0], tensor.float().numpy())


# Compressed forms -------------------------------------------------------------------------------------------------


def test_rows_and_columns_are_exact_for_outer_products_and_keep_all_sums(model):
    outer = np.outer(RNG.random(6), RNG.random(4))
    found = read_statistics(
        written(model, {"a.weight": outer, "norm": np.ones(4)}, form="rows_columns")
    )
    np.testing.assert_allclose(values(found, "a.weight")[0], outer, rtol=1e-6)
    np.testing.assert_array_equal(values(found, "norm")[0], np.ones(4))
    dense = RNG.random((6, 4))
    made = values(
        read_statistics(written(model, {"a.weight": dense}, form="rows_columns")), "a.weight"
    )[0]
    np.testing.assert_allclose(made.sum(0), dense.sum(0), rtol=1e-6)
    np.testing.assert_allclose(made.sum(1), dense.sum(1), rtol=1e-6)
    assert np.linalg.matrix_rank(made, tol=1e-5) == 1


def test_adafactors_means_and_stacks_are_read(tmp_path):
    save_file({"e": np.ones((2, 3, 4), np.float32)}, tmp_path / "stack.safetensors")
    rows, columns = RNG.random((2, 3)), RNG.random((2, 4))
    path = tmp_path / "adafactor.safetensors"
    write_statistics(
        path,
        {"e::rows": rows, "e::columns": columns},
        kind="adam",
        of=tmp_path / "stack.safetensors",
        data="run",
        samples=1,
        means=True,
    )
    expected = rows[:, :, None] * columns[:, None, :] / rows.mean(1)[:, None, None]
    np.testing.assert_allclose(values(read_statistics(path), "e")[0], expected, rtol=1e-6)


def test_low_rank_is_the_best_approximation_without_negative_numbers(model):
    dense = RNG.random((6, 4)) ** 4
    left, s, right = np.linalg.svd(dense)
    expected = np.maximum((left[:, :2] * s[:2]) @ right[:2], 0)
    found = read_statistics(written(model, {"a.weight": dense}, form="low_rank", rank=2))
    np.testing.assert_allclose(values(found, "a.weight")[0], expected, rtol=1e-5, atol=1e-7)


def test_blocks_have_the_mean_of_their_elements(model):
    dense = RNG.random((6, 4))
    found = read_statistics(written(model, {"a.weight": dense}, form="blocks", block=5))
    flat = dense.reshape(-1)
    expected = np.concatenate([np.full(len(b), b.mean()) for b in np.split(flat, range(5, 24, 5))])
    np.testing.assert_allclose(values(found, "a.weight")[0].reshape(-1), expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["rows_columns", "low_rank", "blocks"])
def test_any_range_of_a_compressed_tensor_has_the_bits_of_the_whole(model, form):
    dense = RNG.random((300, 40))
    path = written(model, {"big": dense}, form=form, rank=3, block=7 if form == "blocks" else 0)
    (tensor,) = tensors_of(read_statistics(path), "big")
    whole = read_array(tensor).reshape(-1)
    for start, stop in [(0, 0), (3, 17), (39, 81), (777, 5000), (11999, 12000)]:
        buffer = bytearray(4 * (stop - start))
        tensor.read_into(start, stop, memoryview(buffer))
        np.testing.assert_array_equal(np.frombuffer(buffer, np.float32), whole[start:stop])


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "words"), [(-1e-9, "negative"), (np.nan, "NaN"), (np.inf, "NaN")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_no_fisher_has_are_refused_when_they_are_read(model, bad, words, dtype):
    array = np.ones((6, 4), dtype)
    array[3, 1] = bad if dtype is not np.float16 or not np.isfinite(bad) else -1e-3
    found = read_statistics(written(model, {"a.weight": array}))
    with pytest.raises(CheckpointError, match=f"{words}.* at element 13"):
        values(found, "a.weight")


def test_negative_zero_is_zero_and_gradients_may_be_negative(model):
    values(read_statistics(written(model, {"norm": -np.zeros(4)})), "norm")
    values(read_statistics(written(model, {"norm": [-np.ones(4)]}, kind="gradients")), "norm")


def test_statistics_belong_to_the_weights_that_they_are_of(model, tmp_path):
    statistics = read_statistics(written(model, {"norm": np.ones(4)}))
    require_match(statistics, open_checkpoint(model))
    changed = tmp_path / "other.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(bytes(data))
    with pytest.raises(CompatibilityError, match=r"are of 'model.safetensors'.*not of"):
        require_match(statistics, open_checkpoint(changed))


def test_a_fingerprint_sees_names_shapes_dtypes_and_both_ends_and_no_files(tmp_path):
    array = RNG.normal(size=(100, 100)).astype(np.float32)

    def of(tensors, name):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return fingerprint(open_checkpoint(tmp_path / f"{name}.safetensors"))

    first = of({"a": array, "b": array[0]}, "first")
    assert first.startswith("xxh3-sample-1:")
    assert of({"b": array[0], "a": array}, "second") == first
    ends = array.copy()
    ends[-1, -1] += 1
    others = [
        {"a": ends, "b": array[0]},
        {"c": array, "b": array[0]},
        {"a": array.reshape(50, 200), "b": array[0]},
        {"a": array.astype(np.float64), "b": array[0]},
        {"a": array * np.float32(1.0001), "b": array[0]},
    ]
    assert len({first, *(of(t, f"x{i}") for i, t in enumerate(others))}) == 6


def edited(path: Path, change) -> Path:
    with safe_open(path, "np") as file:
        content = json.loads(file.metadata()[METADATA_ENTRY])
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    change(content)
    save_file(tensors, path, metadata={METADATA_ENTRY: json.dumps(content)})
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(schema=2),
        lambda c: c.update(kind="hessian"),
        lambda c: c.update(samples=0),
        lambda c: c.update(samples=True),
        lambda c: c.update(normalization="median"),
        lambda c: c.update(of="model"),
        lambda c: c.update(metrics={"loss": "low"}),
        lambda c: c.update(data=3),
        lambda c: c.pop("kind"),
        lambda c: c.update(same=[1]),
    ],
)
def test_a_damaged_header_is_refused(model, change):
    path = edited(written(model, {"norm": np.ones(4)}), change)
    with pytest.raises(CheckpointError, match="statistics header that cannot be read"):
        read_statistics(path)


def test_weights_are_no_statistics(model):
    with pytest.raises(CheckpointError, match="holds weights and no statistics"):
        read_statistics(model)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.weight::rows": np.ones(6)},
        {"a.weight::rows": np.ones(6), "a.weight::columns": np.ones((2, 4))},
        {"a.weight::left": np.ones((6, 2)), "a.weight::right": np.ones((3, 4))},
        {"a.weight::top": np.ones(4)},
        {"a.weight": np.ones((6, 4)), "a.weight::rows": np.ones(6)},
    ],
)
def test_factors_that_make_no_matrix_are_refused(model, tensors):
    with pytest.raises(CheckpointError, match=r"collect them again|collect the statistics again"):
        read_statistics(written(model, tensors))


def test_integers_are_no_statistics(model):
    with pytest.raises(UsageError, match="int64"):
        written(model, {"norm": np.ones(4, np.int64)})


@pytest.mark.parametrize(
    "how",
    [
        {"kind": "hessian"},
        {"samples": 0},
        {"normalization": "max"},
        {"form": "zip"},
        {"form": "blocks"},
        {"metrics": {"loss": float("nan")}, "kind": "metrics"},
    ],
)
def test_what_makes_no_statistics_is_not_written(model, how):
    with pytest.raises(UsageError):
        written(model, {"norm": np.ones(4)}, **how)
    assert not (model.parent / "stats.safetensors").exists()


def test_statistics_of_unknown_tensors_are_not_written(model):
    with pytest.raises(UsageError, match="'elsewhere'"):
        written(model, {"elsewhere": np.ones(4)})


@pytest.mark.parametrize(("kind", "length"), [("gradients", 0), ("fisher", 2), ("gram", 1)])
def test_lists_are_for_samples_of_gradients(model, kind, length):
    with pytest.raises(UsageError, match=f"'norm' is a list of {length}, but kind {kind} has one"):
        written(model, {"norm": [np.ones(4)] * length}, kind=kind)


def test_metrics_have_names_and_numbers(model):
    found = read_statistics(written(model, {}, kind="metrics", metrics={"loss": 0.5, "step": 100}))
    assert found.header.metrics == {"loss": 0.5, "step": 100}
    assert found.names("metrics") == ()


@pytest.mark.parametrize("form", ["rows_columns", "low_rank", "blocks"])
def test_expanding_a_tile_takes_little_memory_beside_it(tmp_path, form):
    save_file({"w": np.zeros((1500, 1000), np.float16)}, tmp_path / "m.safetensors")
    path = tmp_path / "s.safetensors"
    block = 64 if form == "blocks" else 0
    dense = np.ones((1500, 1000), np.float32)
    if form == "low_rank":
        given = {
            "w::left": np.ones((1500, 2), np.float32),
            "w::right": np.ones((2, 1000), np.float32),
        }
        how = {}
    else:
        given, how = {"w": dense}, {"form": form, "block": block}
    write_statistics(
        path, given, kind="adam", of=tmp_path / "m.safetensors", data="", samples=1, **how
    )
    (tensor,) = tensors_of(read_statistics(path), "w")
    buffer = memoryview(bytearray(tensor.nbytes))
    tracemalloc.start()
    try:
        tensor.read_into(0, tensor.numel, buffer)
        assert tracemalloc.get_traced_memory()[1] < tensor.nbytes / 2
    finally:
        tracemalloc.stop()


# Triangles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [(), (3,)])
def test_symmetric_matrices_are_read_from_their_triangles_in_any_range(model, stack):
    size = 4
    rows = RNG.normal(size=(*stack, 9, size))
    gram = (np.swapaxes(rows, -1, -2) @ rows).astype(np.float32)
    upper = gram[(..., *np.triu_indices(size))]
    path = written(model, {"a.weight::upper": upper}, kind="gram")
    (tensor,) = tensors_of(read_statistics(path), "a.weight")
    assert tensor.shape == gram.shape
    for start in range(gram.size):
        for stop in range(start, gram.size + 1):
            data = bytearray(4 * (stop - start))
            tensor.read_into(start, stop, memoryview(data))
            np.testing.assert_array_equal(
                np.frombuffer(data, np.float32), gram.reshape(-1)[start:stop]
            )


def test_what_is_no_triangle_is_refused(model):
    path = written(model, {"a.weight::upper": np.ones(5, np.float32)}, kind="gram")
    with pytest.raises(CheckpointError, match="no triangle of a matrix"):
        read_statistics(path)


def test_summaries_of_gradients_are_no_gradients_of_samples(model):
    path = written(
        model,
        {"norm::mean": np.ones(4), "norm::0": np.zeros(4), "norm::1": np.ones(4)},
        kind="gradients",
    )
    found = read_statistics(path)
    assert found.names("norm") == ("norm::0", "norm::1")
    assert "norm::mean" in found.checkpoint.tensors


def test_factors_stand_for_every_element_of_their_row(model):
    factors = RNG.normal(size=6).astype(np.float32)
    path = written(model, {"a.weight::factors:6,4": factors}, kind="repair")
    found = read_statistics(path)
    (name,) = found.names("a.weight")
    expected = np.repeat(factors[:, None], 4, axis=1)
    np.testing.assert_array_equal(read_array(found.checkpoint.tensors[name]), expected)


@pytest.mark.parametrize("name", ["factors:5,4", "factors:6,x", "factors", "blocks:6,4"])
def test_factors_that_are_none_of_their_weight_are_refused(model, name):
    path = written(model, {f"a.weight::{name}": np.ones(6, np.float32)}, kind="repair")
    with pytest.raises(CheckpointError, match=r"a\.weight.*collect (the statistics|them) again"):
        read_statistics(path)
