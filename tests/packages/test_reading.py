"""A package is a checkpoint wherever a model may stand; wrong bases, damaged files and hostile headers are refused."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.formats.package_header import read_package_header
from weightsmith.checkpoints.recognition import PACKAGE_HEADER
from weightsmith.errors import CheckpointError, WeightsmithError
from weightsmith.packages.packing import pack
from weightsmith.packages.unpacking import unpack
from weightsmith.publishing.sealing import sealed
from weightsmith.tensors.dtypes import DType


@pytest.fixture
def packed(family):
    """A family with the fine-tunes one and two, and their lossless packages p-one and p-two."""
    for seed, name in enumerate(("one", "two"), start=1):
        tuned = family.finetune(name, seed=seed)
        pack(tuned, family.base, family.root / f"p-{name}")
    return family


def rewrite(package, change):
    """Change a header and seal it again, as a stranger can."""
    content = json.loads((package / PACKAGE_HEADER).read_bytes())
    del content["seal"]
    change(content)
    (package / PACKAGE_HEADER).write_bytes(sealed(content))


RECIPES = {
    "linear": {"parameters": {"weight": 0.5}},
    "ties": {"base_model": "base", "parameters": {"weight": 0.5, "density": 0.6}},
    "slerp": {"base_model": "one", "parameters": {"t": 0.3}},
}


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_recipes_over_packages_give_what_they_give_over_the_originals(packed, method, threads):
    made = {}
    for kind in ("", "p-"):
        given = dict(RECIPES[method])
        names = {"base": packed.base, "one": packed.root / f"{kind}one"}
        if "base_model" in given:
            given["base_model"] = str(names[given["base_model"]])
        models = [str(packed.root / f"{kind}one"), str(packed.root / f"{kind}two")]
        recipe = {
            "weightsmith": 1,
            "merge_method": method,
            "models": [{"model": model} for model in models],
            **given,
        }
        out = packed.root / f"out{kind}"
        made[kind] = weightsmith.merge(recipe, out, threads=threads, memory_bytes=1 << 20)
        assert weightsmith.verify(out, recompute=100).ok
    assert made[""].outputs == made["p-"].outputs
    assert made[""].digest == made["p-"].digest


def test_a_merge_of_packages_is_replayed_and_notices_a_changed_package(packed):
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": str(packed.root / "p-one")}, {"model": str(packed.root / "p-two")}],
        "parameters": {"weight": 0.5},
    }
    out = packed.root / "out"
    made = weightsmith.merge(recipe, out)
    assert weightsmith.replay(out, packed.root / "again").digest == made.digest
    shutil.rmtree(packed.root / "p-two")
    pack(packed.finetune("three", seed=9), packed.base, packed.root / "p-two")
    with pytest.raises(WeightsmithError):
        weightsmith.replay(out, packed.root / "another")
    assert not (packed.root / "another").exists()


def test_any_range_reads_the_same(packed, content):
    opened = open_checkpoint(packed.root / "p-one")
    whole = content(packed.root / "one")
    for name, tensor in opened.tensors.items():
        for start, stop in ((0, 1), (3, 17), (tensor.numel - 5, tensor.numel), (7, 7)):
            buffer = bytearray((stop - start) * 4)
            tensor.read_into(start, stop, memoryview(buffer))
            assert bytes(buffer) == whole[name][4 * start : 4 * stop]


def test_opening_reads_no_weights(packed):
    opened = open_checkpoint(packed.root / "p-one")
    assert opened.config is not None
    assert opened.path == packed.root / "p-one"
    assert {file.name for file in opened.files()} == {"delta.safetensors", "model.safetensors"}
    assert [t.shape for t in opened.tensors.values()] == [
        t.shape for t in open_checkpoint(packed.root / "one").tensors.values()
    ]


def test_another_base_is_refused_with_the_first_tensor_that_differs(packed, stored):
    name = "model.layers.0.mlp.up_proj.weight"
    other = packed.finetune(
        "other",
        size=0.0,
        replaced={
            n: stored(packed.arrays[n] + 1e-3, DType.FLOAT32) for n in (name, "lm_head.weight")
        },
    )
    with pytest.raises(CheckpointError, match=r"mlp.up_proj.*has the digest.*give the base"):
        unpack(packed.root / "p-one", packed.root / "out", base=other)
    assert not list(packed.root.glob("out*"))


@pytest.mark.parametrize("kind", ["lacks", "shape", "nowhere"])
def test_a_base_that_lacks_something_is_refused_from_headers(packed, stored, kind):
    name = "model.layers.0.mlp.up_proj.weight"
    if kind == "lacks":
        other, words = packed.finetune("other", absent=(name,)), f"no tensor '{name}'"
    elif kind == "shape":
        replaced = {name: stored(packed.arrays[name].T, DType.FLOAT32)}
        other, words = packed.finetune("other", replaced=replaced), "not made from"
    else:
        other, words = packed.root / "nowhere", "No checkpoint is at"
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(packed.root / "p-one", base=other)


def test_the_base_is_found_beside_the_package_wherever_both_go(packed, content, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(packed.root, moved)
    assert content(moved / "p-one") == content(moved / "one")
    shutil.move(moved / "base", moved / "elsewhere")
    with pytest.raises(CheckpointError, match="not to be found: put it back"):
        open_checkpoint(moved / "p-one")
    unpack(moved / "p-one", moved / "out", base=moved / "elsewhere")
    assert content(moved / "out") == content(moved / "one")


def test_packages_of_packages_are_read_through_the_chain(packed, content):
    chain = [packed.root / "p-one"]
    for step in range(2, 5):
        tuned = packed.finetune(f"t{step}", seed=step)
        chain.append(packed.root / f"c{step}")
        pack(tuned, chain[-2], chain[-1])
        assert content(chain[-1]) == content(tuned)
    lossy = packed.root / "lossy"
    pack(packed.root / "two", chain[-1], lossy, error=0.5)
    pack(packed.root / "one", lossy, packed.root / "on-lossy")
    assert content(packed.root / "on-lossy") == content(packed.root / "one")


def test_a_cycle_of_packages_is_refused(packed):
    def lead(to):
        return lambda header: header["base"].update(places=[f"../{to}"])

    rewrite(packed.root / "p-one", lead("p-two"))
    rewrite(packed.root / "p-two", lead("p-one"))
    with pytest.raises(CheckpointError, match="coded against itself"):
        open_checkpoint(packed.root / "p-one")
    rewrite(packed.root / "p-one", lead("p-one"))
    with pytest.raises(CheckpointError, match="coded against itself"):
        open_checkpoint(packed.root / "p-one")


def test_a_chain_that_is_too_long_is_refused(packed, monkeypatch):
    monkeypatch.setattr("weightsmith.checkpoints.formats.outside_base.LONGEST_CHAIN", 2)
    pack(packed.root / "two", packed.root / "p-one", packed.root / "second")
    open_checkpoint(packed.root / "second")
    pack(packed.root / "one", packed.root / "second", packed.root / "third")
    with pytest.raises(CheckpointError, match="more than 2 bases: unpack one"):
        open_checkpoint(packed.root / "third")


def test_a_bundles_task_may_be_the_base(packed, content):
    recipe = {
        "weightsmith": 1,
        "merge_method": "emr",
        "base_model": str(packed.base),
        "models": [{"model": str(packed.root / "one")}, {"model": str(packed.root / "two")}],
        "bundle": {},
    }
    weightsmith.merge(recipe, packed.root / "tasks")
    pack(packed.root / "one", f"{packed.root / 'tasks'}#one", packed.root / "package")
    assert content(packed.root / "package") == content(packed.root / "one")


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_truncated_file_is_refused(packed, cut):
    for name in ("delta.safetensors", PACKAGE_HEADER):
        shutil.copytree(packed.root / "p-one", packed.root / f"cut-{name}")
        file = packed.root / f"cut-{name}" / name
        file.write_bytes(file.read_bytes()[:-cut])
        with pytest.raises(CheckpointError):
            unpack(file.parent, packed.root / "out")
        assert not list(packed.root.glob("out*"))


def test_every_changed_byte_of_the_streams_is_found(packed):
    package = packed.root / "p-one"
    file = package / "delta.safetensors"
    data = file.read_bytes()
    for at in range(9, len(data), len(data) // 40):
        changed = bytearray(data)
        changed[at] ^= 0x11
        file.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError):
            unpack(package, packed.root / "out")
    assert not list(packed.root.glob("out*"))


def test_every_changed_byte_of_the_header_is_found(packed):
    file = packed.root / "p-one" / PACKAGE_HEADER
    data = file.read_bytes()
    for at in range(0, len(data), len(data) // 60):
        changed = bytearray(data)
        changed[at] ^= 0x01
        file.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError):
            read_package_header(file.parent)


UP = "model.layers.0.mlp.up_proj.weight"
HOSTILE = {
    "schema": lambda h: h.update(schema=2),
    "no tensors": lambda h: h.update(tensors={}),
    "a list": lambda h: h.update(tensors=[]),
    "a control name": lambda h: h["tensors"].update({"a\x1b[2J": h["tensors"][UP]}),
    "a name that leads out": lambda h: h["tensors"].update({"../../x": h["tensors"][UP]}),
    "another shape": lambda h: h["tensors"][UP].update(shape=[64, 128]),
    "more rows": lambda h: h["tensors"][UP].update(shape=[129, 64]),
    "huge": lambda h: h["tensors"][UP].update(shape=[2**62, 64]),
    "large": lambda h: h["tensors"][UP].update(shape=[2**50, 64]),
    "huge and empty": lambda h: h["tensors"][UP].update(shape=[2**62, 2**62, 0]),
    "negative": lambda h: h["tensors"][UP].update(shape=[-128, -64]),
    "no number": lambda h: h["tensors"][UP].update(shape=[128, "64"]),
    "truth as a number": lambda h: h["tensors"][UP].update(shape=[True, 64]),
    "too many axes": lambda h: h["tensors"][UP].update(shape=[1] * 100),
    "another dtype": lambda h: h["tensors"][UP].update(dtype="float64"),
    "no dtype": lambda h: h["tensors"][UP].update(dtype="float99"),
    "a path as digest": lambda h: h["tensors"][UP]["coded"]["parts"].update(
        planes="xxh3-tensor-1:../../../etc/passwd"
    ),
    "a path as tensor digest": lambda h: h["tensors"][UP].update(digest="../x"),
    "an unknown codec": lambda h: h["tensors"][UP]["coded"].update(codec="pickle"),
    "a codec of another kind": lambda h: h["tensors"][UP]["coded"].update(codec="sign"),
    "a part too few": lambda h: h["tensors"][UP]["coded"]["parts"].popitem(),
    "no parts": lambda h: h["tensors"][UP]["coded"].update(parts={}),
    "parts as a list": lambda h: h["tensors"][UP]["coded"].update(parts=[]),
    "parameters as a list": lambda h: h["tensors"][UP]["coded"].update(parameters=[1]),
    "no piece": lambda h: h["tensors"][UP].pop("coded"),
    "rows beyond": lambda h: h["tensors"][UP].update(rows=200),
    "rows without a piece": lambda h: h["tensors"][UP].update(rows=3),
    "the same as a later one": lambda h: h["tensors"][UP].update(same_as="lm_head.weight"),
    "the same as another": lambda h: h["tensors"][UP].update(same_as="model.embed_tokens.weight"),
    "the same as itself": lambda h: h["tensors"][UP].update(same_as=UP),
    "no base": lambda h: h["tensors"][UP].pop("base"),
    "another base tensor": lambda h: h["tensors"][UP].update(base="model.norm.weight"),
    "places": lambda h: h["base"].update(places=7),
    "a name of great length": lambda h: h["tensors"][UP].update(base="x" * 10_000),
    "a codec of great length": lambda h: h["tensors"][UP]["coded"].update(codec="x" * 10_000),
    "a dtype of great length": lambda h: h["tensors"][UP].update(dtype="x" * 10_000),
    "nobody's home": lambda h: h["base"].update(places=["~nobody-9/x"], reference="~nobody-9/x"),
    "a place of great length": lambda h: h["base"].update(
        places=["x" * 10_000], reference="y" * 999
    ),
    "bytes": lambda h: h["tensors"][UP]["coded"].update(bytes="many"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_header_is_refused_and_nothing_is_written(packed, attack):
    package = packed.root / "p-one"
    rewrite(package, HOSTILE[attack])
    before = sorted(packed.root.rglob("*"))
    with pytest.raises(WeightsmithError) as caught:
        unpack(package, packed.root / "out")
    assert len(str(caught.value)) < 1500
    assert sorted(packed.root.rglob("*")) == before


def test_places_that_are_no_paths_are_passed_over(packed, content):
    def change(header):
        header["base"]["places"] = ["~nobody-9/x", "x" * 10_000, "a\0b", *header["base"]["places"]]

    rewrite(packed.root / "p-one", change)
    assert content(packed.root / "p-one") == content(packed.root / "one")


def test_a_base_that_is_given_is_meant_from_here_not_from_the_package(packed, content, monkeypatch):
    there = packed.root / "p-one" / "origin"
    here = packed.root / "here"
    shutil.copytree(packed.base, here / "origin")
    shutil.copytree(packed.root / "two", there)
    monkeypatch.chdir(here)
    unpack(packed.root / "p-one", packed.root / "out", base="origin")
    assert content(packed.root / "out") == content(packed.root / "one")


def test_numbers_that_are_no_json_are_refused(packed):
    file = packed.root / "p-one" / PACKAGE_HEADER
    for text in (b"", b"{}", b"[]", b"null", b"[" * 100_000):
        file.write_bytes(text)
        with pytest.raises(CheckpointError, match="damaged"):
            open_checkpoint(file.parent)


def test_a_number_beyond_all_others_is_refused(packed):
    file = packed.root / "p-one" / PACKAGE_HEADER
    rewrite(file.parent, lambda h: h["tensors"][UP]["coded"].update(bytes="many"))
    body = file.read_bytes().rpartition(b' "seal"')[0].replace(b'"many"', b"1e999")
    seal = hashlib.sha256(body).hexdigest().encode()
    file.write_bytes(body + b' "seal": "sha256:' + seal + b'"\n}\n')
    with pytest.raises(CheckpointError, match="another form than it should"):
        open_checkpoint(file.parent)


def test_links_out_of_the_package_are_refused(packed):
    package = packed.root / "p-one"
    outside = packed.root / "outside.safetensors"
    shutil.move(package / "delta.safetensors", outside)
    (package / "delta.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"delta\.safetensors"):
        open_checkpoint(package)


def test_a_base_that_changes_while_the_package_is_open_is_noticed(packed):
    opened = open_checkpoint(packed.root / "p-one")
    name = "lm_head.weight"
    file = packed.base / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    tensor = opened.tensors[name]
    with pytest.raises(CheckpointError):
        tensor.read_into(0, tensor.numel, memoryview(bytearray(tensor.nbytes)))
