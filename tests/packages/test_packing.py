"""Packages of fine-tunes: bit for bit without loss, within what was asked for with it, the same bytes every time."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

import weightsmith
from weightsmith.checkpoints.formats.package_header import STREAMS, read_package_header
from weightsmith.checkpoints.recognition import PACKAGE_HEADER
from weightsmith.errors import (
    CheckpointError,
    CompatibilityError,
    OutputError,
    ResourceError,
    UsageError,
)
from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_backend import TorchBackend
from weightsmith.packages import packing
from weightsmith.packages.goal import budget_bytes
from weightsmith.packages.packing import pack
from weightsmith.packages.sharing import dedupe
from weightsmith.packages.unpacking import unpack
from weightsmith.tensors.dtypes import DType

FLOATS = [
    DType.FLOAT64,
    DType.FLOAT32,
    DType.FLOAT16,
    DType.BFLOAT16,
    DType.FLOAT8_E4M3FN,
    DType.FLOAT8_E5M2,
]
OWN = ("delta.safetensors", "weightsmith-delta.json")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_lossless_packages_give_every_bit_back(make_family, content, digests, dtype):
    family = make_family(dtype)
    tuned = family.finetune("tuned")
    header = pack(tuned, family.base, family.root / "package", threads=2)
    assert content(family.root / "package") == content(tuned)
    made = unpack(family.root / "package", family.root / "again", threads=2)
    assert dict(made.outputs) == digests(tuned)
    assert content(family.root / "again") == content(tuned)
    assert header.digest == header.finetune_digest == made.digest
    assert header.error == 0.0
    assert weightsmith.verify(family.root / "again", recompute=100).ok


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_special_values_and_integers_come_back(family, content, dtype):
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, 5 * 7 * dtype.itemsize, np.uint8)
    if dtype is DType.BOOL:
        data &= 1
    tensor = {"extra.table": (dtype, (5, 7), data.tobytes())}
    other = {"extra.table": (dtype, (5, 7), np.roll(data, 3).tobytes())}
    base = family.finetune("other-base", replaced=tensor)
    tuned = family.finetune("tuned", seed=2, replaced=other)
    pack(tuned, base, family.root / "package")
    assert content(family.root / "package") == content(tuned)


def test_a_base_in_another_dtype_serves_as_well(make_family, content, stored):
    family = make_family()
    rng = np.random.default_rng(1)
    tuned = family.finetune(
        "tuned",
        replaced={
            n: stored(a + 1e-3 * rng.standard_normal(a.shape), DType.BFLOAT16)
            for n, a in family.arrays.items()
        },
    )
    header = pack(tuned, family.base, family.root / "package")
    assert content(family.root / "package") == content(tuned)
    assert {t.coded.codec for t in header.tensors.values()} == {"lossless"}
    assert header.coded_bytes < 0.5 * header.dense_bytes


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16, DType.FLOAT8_E5M2])
def test_nan_in_a_base_of_another_dtype_is_the_same_on_every_machine(
    make_family, content, stored, monkeypatch, dtype
):
    backends = [lambda: TorchBackend("cpu")] + ([native.load] if native.available() else [])
    family = make_family()
    name = "model.layers.0.mlp.up_proj.weight"
    words = family.arrays[name].astype(np.float32).view(np.uint32)
    words[:40] |= 0x7F800000
    base = family.finetune("other", replaced={name: (DType.FLOAT32, words.shape, words.tobytes())})
    tuned = family.finetune("tuned", replaced={name: stored(family.arrays[name], dtype)})
    for number, backend in enumerate(backends):
        monkeypatch.setattr("weightsmith.deltas.decoded_tensors._backend", backend)
        pack(tuned, base, family.root / f"package-{number}")
        for other in backends:
            monkeypatch.setattr("weightsmith.deltas.decoded_tensors._backend", other)
            assert content(family.root / f"package-{number}") == content(tuned)


def test_tensors_are_matched_as_they_must(family, content, stored):
    rng = np.random.default_rng(9)
    grown = np.concatenate(
        [family.arrays["model.embed_tokens.weight"], rng.standard_normal((8, 64))]
    )
    same = stored(family.arrays["lm_head.weight"], DType.FLOAT32)
    tuned = family.finetune(
        "tuned",
        absent=("model.norm.weight",),
        replaced={
            "model.embed_tokens.weight": stored(grown, DType.FLOAT32),
            "model.layers.0.self_attn.q_proj.weight": stored(
                family.arrays["model.layers.0.self_attn.q_proj.weight"][:40], DType.FLOAT32
            ),
            "model.layers.0.mlp.up_proj.weight": stored(
                rng.standard_normal((64, 128)), DType.FLOAT32
            ),
            "lm_head.weight": same,
            "score.weight": stored(rng.standard_normal((3, 64)), DType.FLOAT32),
            "score.copy": same,
            "empty": stored(np.zeros((0, 4)), DType.FLOAT32),
        },
    )
    for name, wanted in (("exact", {}), ("lossy", {"error": 0.5})):
        header = pack(tuned, family.base, family.root / name, **wanted)
        made = header.tensors
        assert "model.norm.weight" not in made
        assert made["score.weight"].coded.codec == "whole"
        assert made["score.weight"].base is None
        assert made["model.layers.0.mlp.up_proj.weight"].coded.codec == "whole"
        assert made["lm_head.weight"].coded.codec == "same"
        assert made["score.copy"].same_as == "lm_head.weight"
        found, exact = content(family.root / name), content(tuned)
        assert list(found) == list(exact)
        for tensor in ("lm_head.weight", "score.weight", "score.copy", "empty"):
            assert found[tensor] == exact[tensor]
    assert content(family.root / "exact") == content(tuned)
    unpack(family.root / "exact", family.root / "again")
    assert content(family.root / "again") == content(tuned)


def test_new_rows_are_exact_in_lossy_packages(family, content, stored):
    rng = np.random.default_rng(9)
    name = "model.embed_tokens.weight"
    grown = family.arrays[name] + 0.01 * rng.standard_normal((96, 64))
    grown = np.concatenate([grown, rng.standard_normal((8, 64))])
    tuned = family.finetune("tuned", replaced={name: stored(grown, DType.FLOAT32)})
    package = family.root / "package"
    header = pack(tuned, family.base, package, budget="1/8")
    packed = header.tensors[name]
    assert packed.rows == 96
    assert packed.added.codec == "whole"
    assert packed.coded.error > 0
    assert content(package)[name][96 * 64 * 4 :] == content(tuned)[name][96 * 64 * 4 :]
    assert content(package)[name] != content(tuned)[name]


def test_an_untied_head_is_a_change_of_the_embedding(family, content, write, stored):
    tied = {"tie_word_embeddings": True}
    config = json.loads((family.base / "config.json").read_text()) | tied
    arrays = {n: a for n, a in family.arrays.items() if n != "lm_head.weight"}
    base = write(
        family.root / "tied", {n: stored(a, DType.FLOAT32) for n, a in arrays.items()}, config
    )
    head = family.arrays["model.embed_tokens.weight"] + 1e-4
    tuned = family.finetune("tuned", replaced={"lm_head.weight": stored(head, DType.FLOAT32)})
    header = pack(tuned, base, family.root / "package")
    assert header.tensors["lm_head.weight"].base == "model.embed_tokens.weight"
    assert content(family.root / "package") == content(tuned)


def test_a_tied_pair_is_stored_once(family, content, stored, digests):
    config = json.loads((family.base / "config.json").read_text()) | {"tie_word_embeddings": True}
    table = stored(family.arrays["lm_head.weight"] + 0.01, DType.FLOAT32)
    both = {"model.embed_tokens.weight": table, "lm_head.weight": table}
    tuned = family.finetune("tuned", replaced=both, config=config)
    header = pack(tuned, family.base, family.root / "package")
    assert header.tensors["lm_head.weight"].same_as == "model.embed_tokens.weight"
    assert not any(stream.startswith("lm_head") for stream in header.streams)
    assert content(family.root / "package") == content(tuned)
    made = unpack(family.root / "package", family.root / "again")
    # A merge writes a tied head once as well.
    assert dict(made.outputs) == {n: d for n, d in digests(tuned).items() if n != "lm_head.weight"}


def test_a_base_with_an_adapter_is_packed_in_the_bases_dtype(make_family, content):
    family = make_family(DType.BFLOAT16)
    adapter, rng = family.root / "adapter", np.random.default_rng(3)
    adapter.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {"lora_A": (2, 64), "lora_B": (64, 2)}
    save_file(
        {f"{module}.{f}.weight": rng.standard_normal(s).astype("f4") for f, s in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    reference = f"{family.base}+{adapter}"
    header = pack(reference, family.base, family.root / "package")
    assert set(header.codecs()) == {"same", "refined"}
    weightsmith.merge(
        {
            "weightsmith": 1,
            "merge_method": "passthrough",
            "models": [{"model": reference}],
        },
        family.root / "merged",
    )
    assert content(family.root / "package") == content(family.root / "merged")


@pytest.mark.parametrize("goal", [{}, {"budget": "1/12"}, {"error": 0.3}], ids=str)
def test_the_same_package_twice_has_the_same_bytes(family, goal):
    tuned = family.finetune("tuned")
    for name, threads in (("one", 1), ("two", 4)):
        pack(tuned, family.base, family.root / name, threads=threads, **goal)
    one, two = family.root / "one", family.root / "two"
    assert sorted(f.name for f in one.iterdir()) == sorted(f.name for f in two.iterdir())
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


@pytest.mark.parametrize("budget", ["1/8", "1/16", "20kB"])
def test_a_budget_is_kept_and_the_error_is_the_true_one(family, content, budget):
    tuned, package = family.finetune("tuned"), family.root / "package"
    header = pack(tuned, family.base, package, budget=budget)
    taken = sum((package / name).stat().st_size for name in OWN)
    assert 0.5 * budget_bytes(budget, header.dense_bytes) < taken
    assert taken <= budget_bytes(budget, header.dense_bytes)
    base, exact, found = content(family.base), content(tuned), content(package)
    lost = changed = 0.0
    for name, tensor in header.tensors.items():
        a, b, c = (np.frombuffer(x[name], np.float32).astype(float) for x in (found, exact, base))
        if name.endswith("norm.weight"):
            assert found[name] == exact[name]
        error = math.dist(a, b) / math.dist(b, c)
        assert tensor.error == pytest.approx(error, rel=1e-4, abs=1e-9)
        lost, changed = lost + math.dist(a, b) ** 2, changed + math.dist(b, c) ** 2
    assert header.error == pytest.approx(math.sqrt(lost / changed), rel=1e-4)
    unpack(package, family.root / "again")
    assert content(family.root / "again") == found


def test_more_bytes_never_mean_more_error(family):
    tuned = family.finetune("tuned")
    codecs = ["sign", "sparse", "lloyd4"]
    errors = [
        pack(tuned, family.base, family.root / f"p{n}", budget=f"1/{n}", codecs=codecs).error
        for n in (16, 8, 3)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_the_error_of_a_package_counts_tensors_that_are_stored_exactly(family, content):
    name = "model.layers.0.mlp.up_proj.weight"
    array = family.arrays[name]
    moved = array + np.random.default_rng(3).standard_normal(array.shape)
    tuned = family.finetune(
        "tuned", replaced={name: (DType.FLOAT32, array.shape, moved.astype(np.float32).tobytes())}
    )
    header = pack(tuned, family.base, family.root / "p", budget="3/5", codecs=["lloyd4"])
    assert header.tensors[name].coded.codec == "lossless"
    assert {"lloyd4", "lossless"} == set(header.codecs())
    base, exact, found = (content(family.root / f) for f in ("base", "tuned", "p"))
    floats = [np.frombuffer(b"".join(c[n] for n in base), np.float32) for c in (found, exact, base)]
    found, exact, base = (f.astype(float) for f in floats)
    assert header.error == pytest.approx(math.dist(found, exact) / math.dist(exact, base), rel=1e-4)
    assert header.error < 0.01


def test_an_error_bound_holds_for_every_tensor_with_fewer_bytes_than_without_loss(family):
    tuned = family.finetune("tuned")
    exact = pack(tuned, family.base, family.root / "exact")
    sizes = []
    for bound in (0.0, 0.2):
        header = pack(tuned, family.base, family.root / f"b{bound}", error=bound)
        assert all(tensor.error <= bound for tensor in header.tensors.values())
        sizes.append(header.coded_bytes)
    assert sizes[0] == exact.coded_bytes
    assert sizes == sorted(sizes, reverse=True)


def test_only_the_codecs_that_are_named_are_used(family):
    tuned = family.finetune("tuned")
    header = pack(tuned, family.base, family.root / "p", budget="1/10", codecs=["sign"])
    assert set(header.codecs()) <= {"sign", "lossless", "same"}
    assert header.codecs()["sign"] > 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"budget": "1/16", "error": 0.1}, "one of them"),
        ({"budget": "half"}, "no budget"),
        ({"budget": "1/0"}, "no budget"),
        ({"budget": "3/2"}, "up to 1/1"),
        ({"budget": 100}, "too small"),
        ({"error": 1.0}, "below 1"),
        ({"error": math.nan}, "below 1"),
        ({"codecs": ["sign"]}, "one codec"),
        ({"budget": "1/4", "codecs": ["signs"]}, "did you mean 'sign'"),
        ({"budget": "1/4", "codecs": []}, "at least one"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused_and_leaves_nothing(family, asked, words):
    tuned = family.finetune("tuned")
    with pytest.raises(UsageError, match=words):
        pack(tuned, family.base, family.root / "package", **asked)
    assert not list(family.root.glob("package*"))


def test_a_base_that_has_nothing_in_common_is_refused(family, write, stored):
    other = write(family.root / "other", {"x": stored(np.zeros((4, 4)), DType.FLOAT32)})
    with pytest.raises(CompatibilityError, match="was not made from"):
        pack(family.finetune("tuned"), other, family.root / "package")
    assert not list(family.root.glob("package*"))


def test_nan_in_a_lossy_package_is_kept_exactly(family, content, stored):
    name = "model.layers.0.mlp.up_proj.weight"
    array = family.arrays[name].copy()
    array[3, 4] = np.nan
    tuned = family.finetune("tuned", replaced={name: stored(array, DType.FLOAT32)})
    header = pack(tuned, family.base, family.root / "package", budget="1/4")
    assert header.tensors[name].coded.codec == "lossless"
    assert content(family.root / "package")[name] == content(tuned)[name]


def test_an_output_that_exists_or_is_an_input_is_refused(family):
    tuned, place = family.finetune("tuned"), family.root / "package"
    pack(tuned, family.base, place)
    with pytest.raises(OutputError, match="exists"):
        pack(tuned, family.base, place)
    with pytest.raises(OutputError, match="input"):
        pack(tuned, family.base, family.base, force=True)
    with pytest.raises(OutputError, match="input"):
        pack(tuned, place, place, force=True)
    chained = family.root / "chained"
    pack(tuned, place, chained)
    with pytest.raises(OutputError, match="input"):
        pack(tuned, chained, place, force=True)
    pack(tuned, family.base, place, budget="1/4", force=True)
    assert read_package_header(place).goal == "budget"
    (place / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match=r"holds 'mine.txt', which was not written"):
        pack(tuned, family.base, place, force=True)
    other = family.root / "other"
    other.mkdir()
    (other / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="was not written by weightsmith"):
        pack(tuned, family.base, other, force=True)
    assert not list(family.root.glob("*.partial"))


def flipped(place):
    """A bit of the streams, the header of their file being as it was."""
    data = bytearray((place / STREAMS).read_bytes())
    data[-1] ^= 1
    (place / STREAMS).write_bytes(data)


def edited(place):
    (place / "config.json").write_text("{}")


def sealed_no_more(place):
    (place / PACKAGE_HEADER).write_text(
        (place / PACKAGE_HEADER).read_text().replace("budget", "budged")
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [(flipped, STREAMS), (edited, "config.json"), (sealed_no_more, PACKAGE_HEADER)],
)
def test_a_package_that_was_changed_is_not_replaced(family, change, name):
    tuned, place = family.finetune("tuned"), family.root / "package"
    pack(tuned, family.base, place, budget="1/4")
    change(place)
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    with pytest.raises(OutputError, match=rf"holds .*{name}.* was changed since"):
        pack(tuned, family.base, place, force=True)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


def test_a_package_whose_streams_lie_with_others_is_still_its_own(family):
    tuned, library = family.finetune("tuned", size=1.0), family.root / "library"
    library.mkdir()
    for name in ("one", "two"):
        pack(tuned, family.base, library / name)
    assert dedupe(library).streams
    pack(tuned, family.base, library / "one", force=True)


def test_a_package_and_a_merge_do_not_replace_each_other(family):
    """`--force` is for an earlier output of the same kind."""
    tuned, place = family.finetune("tuned"), family.root / "out"
    pack(tuned, family.base, place)
    copy = {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": str(tuned)}]}
    with pytest.raises(OutputError, match="and is of another kind"):
        weightsmith.merge(copy, place, force=True)
    weightsmith.merge(copy, family.root / "merged")
    with pytest.raises(OutputError, match="and is of another kind"):
        pack(tuned, family.base, family.root / "merged", force=True)


def test_what_appears_while_a_package_is_made_is_left(family, monkeypatch):
    tuned, place = family.finetune("tuned"), family.root / "package"
    write = packing.write_file

    def late(path, data):
        write(path, data)
        if path.name == PACKAGE_HEADER:
            place.mkdir()
            (place / "mine").write_text("precious")

    monkeypatch.setattr(packing, "write_file", late)
    with pytest.raises(OutputError, match="Something has appeared"):
        pack(tuned, family.base, place)
    assert (place / "mine").read_text() == "precious"
    assert not list(family.root.glob("*.partial"))


def test_a_full_disk_is_found_before_the_work(family, monkeypatch):
    tuned = family.finetune("tuned")
    monkeypatch.setattr("weightsmith.engine.records.merge_staging.free_bytes", lambda _: 10)
    with pytest.raises(ResourceError, match="are free"):
        pack(tuned, family.base, family.root / "package")
    assert not list(family.root.glob("package*"))


def test_an_error_in_the_middle_leaves_nothing(family, monkeypatch):
    tuned = family.finetune("tuned")
    place = family.root / "package"

    def full(*_arguments):
        raise ResourceError("The disk is full.")

    monkeypatch.setattr("weightsmith.packages.package_streams.pwrite_all", full)
    with pytest.raises(ResourceError):
        pack(tuned, family.base, place)
    monkeypatch.setattr("weightsmith.packages.package_streams.pwrite_all", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(tuned, family.base, place)
    assert not list(family.root.glob("package*"))


def _interrupt(*_arguments):
    raise KeyboardInterrupt


def test_a_killed_run_leaves_no_package_and_the_next_one_is_whole(family, content):
    tuned, place = family.finetune("tuned"), family.root / "package"
    program = (
        "import sys, time\n"
        "from weightsmith.packages import package_streams as streams, packing\n"
        "streams.StreamFile.finish = lambda self: (print('there', flush=True), time.sleep(60))\n"
        "packing.pack(*sys.argv[1:])\n"
    )
    arguments = [sys.executable, "-c", program, str(tuned), str(family.base), str(place)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=dict(os.environ)) as running:
        assert running.stdout is not None
        assert running.stdout.readline().strip() == b"there"
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not place.exists()
    begun = time.monotonic()
    pack(tuned, family.base, place)
    assert time.monotonic() - begun < 30
    assert content(place) == content(tuned)
    assert not list(family.root.glob("*.partial"))
    assert sorted(f.name for f in place.iterdir()) == [
        "config.json",
        "delta.safetensors",
        "weightsmith-delta.json",
    ]


def test_papers_travel_along_and_are_checked(family):
    tuned = family.finetune("tuned")
    for name in ("tokenizer.json", "README.md", "generation_config.json"):
        (tuned / name).write_text("{}")
    (tuned / "modeling.py").write_text("import os")
    header = pack(tuned, family.base, family.root / "package")
    assert set(header.files) == {
        "config.json",
        "tokenizer.json",
        "README.md",
        "generation_config.json",
    }
    unpack(family.root / "package", family.root / "again")
    assert (family.root / "again" / "tokenizer.json").read_text() == "{}"
    (family.root / "package" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        unpack(family.root / "package", family.root / "another")
    assert not (family.root / "another").exists()


def test_memory_does_not_grow_with_the_number_of_tensors(family, stored, monkeypatch):
    # Blocks that are kept for the next tile have a bound of their own.
    monkeypatch.setattr("weightsmith.deltas.codecs.held.KEPT._limit", 0)
    rng = np.random.default_rng(0)
    size = (1024, 1024)
    peaks = []
    for count in (2, 10):
        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(count)]
        base, tuned = (
            family.finetune(
                f"{kind}{count}",
                replaced={n: stored(rng.standard_normal(size), DType.FLOAT16) for n in names},
            )
            for kind in ("base", "tuned")
        )
        tracemalloc.start()
        pack(tuned, base, family.root / f"package{count}", threads=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2 * 2**20
