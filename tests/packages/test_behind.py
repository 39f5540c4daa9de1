"""What a checkpoint is decoded with is an input: never written over, counted, on record, found again for a replay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import weightsmith
from weightsmith.adapters.adapted_models import open_model
from weightsmith.checkpoints import open_checkpoint
from weightsmith.engine.records.manifest import FILE_NAME
from weightsmith.errors import OutputError
from weightsmith.inspection.plan_summary import summarize_plan
from weightsmith.packages.package_library import materialise
from weightsmith.packages.packing import pack
from weightsmith.packages.sharing import dedupe
from weightsmith.packages.unpacking import unpack
from weightsmith.publishing.sealing import sealed
from weightsmith.tensors.files.safetensors_header import parse_file


def copy_of(*models: Path | str) -> dict[str, object]:
    """The recipe of an average, of one model a copy."""
    return {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": str(model)} for model in models],
    }


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def chain(family):
    """`first` (a merge), the package `near` of a fine-tune against it, and `far` of another against that."""
    weightsmith.merge(copy_of(family.base), family.root / "first")
    pack(family.finetune("one"), family.root / "first", family.root / "near")
    pack(family.finetune("two", seed=2), family.root / "near", family.root / "far")
    return family


def write_adapter(folder: Path) -> Path:
    """A LoRA of rank 1 of one matrix."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    folder.mkdir()
    factors = {name.format("A"): np.ones((1, 64)), name.format("B"): np.ones((64, 1))}
    save_file(
        {n: a.astype(np.float32) for n, a in factors.items()}, folder / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_every_place_behind_a_checkpoint_is_one_of_its_inputs(chain):
    root = chain.root
    opened = open_model(f"{root / 'far'}+{write_adapter(root / 'adapter')}")
    places = {root / name for name in ("far", "near", "first", "adapter")}
    assert {place.resolve() for place in opened.inputs} == places
    assert {file.resolve().parent for file in opened.files()} == places


def test_streams_that_packages_share_are_inputs(chain):
    root = chain.root
    shutil.copytree(root / "near", root / "again")
    dedupe(root)
    shared = sorted((root / ".shared").glob("*.safetensors"))
    assert shared
    assert set(shared) <= set(open_checkpoint(root / "again").inputs)


@pytest.mark.parametrize("place", ["near", "first", "first/inside"])
@pytest.mark.parametrize(
    "write",
    [
        lambda root, out: weightsmith.merge(copy_of(root / "far"), out, force=True, fresh=True),
        lambda root, out: unpack(root / "far", out, force=True, fresh=True),
        lambda root, out: materialise(root, "far", out, force=True),
        lambda root, out: pack(root / "far", root / "base", out, force=True),
        lambda root, out: pack(root / "two", root / "far", out, force=True),
    ],
    ids=["merge", "unpack", "materialise", "pack", "pack against"],
)
def test_no_output_takes_the_place_of_what_is_behind_an_input(chain, write, place):
    root = chain.root
    before = {name: bytes_of(root / name) for name in ("far", "near", "first")}
    with pytest.raises(OutputError, match="input"):
        write(root, root / place)
    assert before == {name: bytes_of(root / name) for name in before}


def test_a_link_to_what_is_behind_an_input_is_no_way_round(chain):
    root = chain.root
    (root / "link").symlink_to(root, target_is_directory=True)
    with pytest.raises(OutputError, match="input"):
        weightsmith.merge(copy_of(root / "far"), root / "link" / "first", force=True)


def test_a_plan_counts_the_base_behind_a_package(chain):
    """What is read are the streams of both packages and every tensor of the base, once."""
    root = chain.root
    streams = {name: stream_bytes(root / name) for name in ("near", "far")}
    base = sum(t.nbytes for t in open_checkpoint(root / "first").tensors.values())
    summary = summarize_plan(weightsmith.plan(copy_of(root / "far")))
    assert summary.read_bytes == summary.input_bytes == sum(streams.values()) + base
    assert [(row.path.resolve(), row.part, row.bytes_read) for row in summary.inputs] == [
        (root / "far", "config", streams["far"]),
        (root / "near", "base of far", streams["near"]),
        (root / "first", "base of near", base),
    ]
    assert [row.tensors_read for row in summary.inputs] == [6, 6, 6]


def stream_bytes(package: Path) -> int:
    return sum(tensor.nbytes for tensor in parse_file(package / "delta.safetensors").tensors)


def test_the_base_behind_a_package_is_on_record_with_its_digests(chain):
    root = chain.root
    made = weightsmith.merge(copy_of(root / "far"), root / "out")
    (given,) = made.inputs.values()
    near, first = given.behind
    assert (near.path, first.path) == ("../near", "../first")
    assert near.tensors == weightsmith.merge(copy_of(root / "near"), root / "nearest").outputs
    recorded = json.loads((root / "first" / FILE_NAME).read_bytes())
    assert first.tensors == recorded["outputs"]
    assert first.digest == recorded["digest"]
    assert "base of far" in (root / "out" / "README.md").read_text()
    assert json.loads((root / "out" / FILE_NAME).read_bytes())["schema"] == 2


def test_only_what_was_read_of_a_base_is_on_record(chain):
    """A tensor that a rule takes from elsewhere needs none of the package's base."""
    root = chain.root
    keep = {"match": {"name": "lm_head"}, "keep": str(chain.base)}
    made = weightsmith.merge({**copy_of(root / "near"), "rules": [keep]}, root / "out")
    near = next(given for given in made.inputs.values() if given.behind)
    assert "lm_head.weight" not in near.behind[0].tensors
    assert len(near.behind[0].tensors) == 5


def test_a_manifest_without_what_is_behind_keeps_the_form_that_older_versions_read(family):
    weightsmith.merge(copy_of(family.base), family.root / "out")
    content = json.loads((family.root / "out" / FILE_NAME).read_bytes())
    assert content["schema"] == 1
    assert all("behind" not in given for given in content["inputs"].values())


def test_a_record_of_the_first_form_is_still_verified_and_replayed(chain):
    """As 0.1.0 wrote it over a package: without what is behind."""
    root = chain.root
    made = weightsmith.merge(copy_of(root / "far"), root / "out")
    path = root / "out" / FILE_NAME
    content = json.loads(path.read_bytes())
    del content["seal"], content["inputs"]["far"]["behind"]
    path.write_bytes(sealed({**content, "schema": 1}))
    assert weightsmith.verify(root / "out", recompute=10).ok
    assert weightsmith.replay(root / "out", root / "again").digest == made.digest


def test_a_replay_finds_the_base_where_it_is_told_that_it_lies(chain, tmp_path):
    root = chain.root
    made = weightsmith.merge(copy_of(root / "far"), root / "out")
    shutil.move(root / "first", tmp_path / "elsewhere")
    reference = next(iter(made.inputs.values())).behind[1].reference
    inputs = {reference: tmp_path / "elsewhere"}
    again = weightsmith.replay(root / "out", root / "again", inputs=inputs)
    assert again.digest == made.digest
    assert weightsmith.verify(root / "out", recompute=3, inputs=inputs).ok


def test_neither_the_replayed_output_nor_a_place_in_it_is_written_to(family):
    weightsmith.merge(copy_of(family.base), family.root / "out")
    before = bytes_of(family.root / "out")
    with pytest.raises(OutputError, match="inside the input"):
        weightsmith.replay(family.root / "out", family.root / "out" / "again")
    assert bytes_of(family.root / "out") == before
