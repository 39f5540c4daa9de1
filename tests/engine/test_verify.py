"""`verify` finds every change to an output, and `recompute` one that was covered up."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.engine.records import manifest as manifests
from weightsmith.errors import UsageError, VerificationError
from weightsmith.tensors.digests import checkpoint_digest, digest_tensor

from .conftest import Family


@pytest.fixture
def out(family: Family) -> Path:
    """A merged folder with several shards, an index and a tokenizer."""
    (family.root / "base" / "tokenizer.json").write_text('{"version": "1.0"}')
    weightsmith.merge(family.recipe("ties", shard_size=300_000), family.root / "out")
    return family.root / "out"


@pytest.mark.parametrize("recompute", [-1, "all", 1.5])
def test_a_number_of_tensors_to_recompute_is_a_count(out: Path, recompute: Any) -> None:
    with pytest.raises(UsageError, match="recompute is a number of tensors"):
        weightsmith.verify(out, recompute=recompute)


def test_ways_to_roll_back_are_called_by_their_names(out: Path) -> None:
    way: Any = "subtracting"
    with pytest.raises(UsageError, match="by replay or subtraction, not by 'subtracting'"):
        weightsmith.rollback(out, out.with_name("new"), "e1", by=way)


def is_sound(folder: Path) -> bool:
    """Whether `verify` finds nothing."""
    try:
        return weightsmith.verify(folder).ok
    except VerificationError:
        return False


def test_an_untouched_output_is_sound(out: Path) -> None:
    """Every tensor and file is looked at, and with `recompute` every tensor is made again."""
    found = weightsmith.verify(out, recompute=1000)
    assert found.problems == ()
    assert found.tensors == len(found.recomputed) == 9
    assert found.files == len(list(out.iterdir())) - 1 - len(list(out.glob("*.safetensors")))


@pytest.mark.parametrize(
    "name",
    [
        "weights",
        "config.json",
        "model.safetensors.index.json",
        "weightsmith-manifest.json",
        "README.md",
        "tokenizer.json",
        "weightsmith-recipe.yaml",
    ],
)
def test_every_flipped_bit_is_found(out: Path, name: str) -> None:
    """In headers, tensors, the index, the record and everything else; 30 random bits of each kind of file."""
    generator = random.Random(name)
    files = sorted(out.glob("*.safetensors")) if name == "weights" else [out / name]
    for _ in range(30):
        file = generator.choice(files)
        data = file.read_bytes()
        # Headers are a small part of a shard, and the part that no tensor's digest covers.
        end = len(data) if generator.random() < 0.5 else min(len(data), 400)
        at, bit = generator.randrange(end), generator.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
        assert not is_sound(out), f"bit {bit} of byte {at} of {file.name}"
        file.write_bytes(data)
    assert is_sound(out)


def _remove_shard(out: Path) -> None:
    min(out.glob("*.safetensors")).unlink()


def _truncate_shard(out: Path) -> None:
    shard = sorted(out.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])


def _swap_tensors(out: Path) -> None:
    """Two tensors of one shape trade places: the same bytes, another model."""
    first, second = (
        next(
            f
            for f in out.glob("*.safetensors")
            if f"layers.{n}.mlp".encode() in f.read_bytes()[:2000]
        )
        for n in (0, 1)
    )
    a, b = first.read_bytes(), second.read_bytes()
    size = 3000 * 96 * 2
    assert len(a) >= size
    assert len(b) >= size
    first.write_bytes(a[:-size] + b[-size:])
    second.write_bytes(b[:-size] + a[-size:])


def _add_tensor_file(out: Path) -> None:
    save_file({"extra": torch.zeros(2)}, out / "adapter_model.safetensors")


def _add_file(out: Path) -> None:
    (out / "modeling.py").write_text("import os")


def _remove_file(out: Path) -> None:
    (out / "config.json").unlink()


def _replace_by_link(out: Path) -> None:
    (out / "config.json").unlink()
    (out / "config.json").symlink_to(out / "missing.json")


@pytest.mark.parametrize(
    "change",
    [
        _remove_shard,
        _truncate_shard,
        _swap_tensors,
        _add_tensor_file,
        _add_file,
        _remove_file,
        _replace_by_link,
    ],
)
def test_changes_of_the_folder_are_found(out: Path, change: Callable[[Path], None]) -> None:
    """Missing, added, swapped and cut files."""
    change(out)
    found = weightsmith.verify(out)
    assert not found.ok
    assert all(problem.strip() for problem in found.problems)


def test_a_problem_names_the_tensor(out: Path) -> None:
    """One changed element is one sentence about its tensor."""
    shard = next(f for f in out.glob("*.safetensors") if b"lm_head" in f.read_bytes()[:2000])
    data = bytearray(shard.read_bytes())
    data[-5] ^= 16
    shard.write_bytes(data)
    (problem,) = weightsmith.verify(out).problems
    assert "was changed" in problem
    assert any(repr(name) in problem for name in load_file(shard))


def test_a_folder_without_or_with_a_foreign_manifest_cannot_be_verified(
    family: Family, out: Path
) -> None:
    """The sentence says which of the two it is."""
    with pytest.raises(VerificationError, match="not written by"):
        weightsmith.verify(family.root / "base")
    for content in (b"", b"{}", b"[1]", b"\xff", b'{"schema": 1}'):
        (out / manifests.FILE_NAME).write_bytes(content)
        with pytest.raises(VerificationError, match="damaged"):
            weightsmith.verify(out)


def forge(out: Path, name: str) -> None:
    """Change a tensor and every digest of it, the manifest's own seal included."""
    from weightsmith.checkpoints import open_checkpoint

    shard = next(f for f in out.glob("*.safetensors") if name.encode() in f.read_bytes()[:2000])
    tensors = load_file(shard)
    data = bytearray(shard.read_bytes())
    mine = tensors[name].view(torch.uint8).numpy().tobytes()
    at = data.index(mine)
    data[at + 7] ^= 1
    shard.write_bytes(data)
    path = out / manifests.FILE_NAME
    content: dict[str, Any] = json.loads(path.read_bytes())
    del content["seal"]
    content["outputs"][name] = digest_tensor(open_checkpoint(out).tensors[name])
    content["digest"] = checkpoint_digest(content["outputs"])
    body = json.dumps(content, indent=1).removesuffix("\n}").encode() + b",\n"
    path.write_bytes(
        body + b' "seal": "sha256:' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    )


def test_a_forged_but_consistent_tensor_is_found_by_computing_it_again(out: Path) -> None:
    """Digests alone cannot tell; the recipe and the inputs can."""
    name = "model.layers.1.mlp.up_proj.weight"
    forge(out, name)
    assert weightsmith.verify(out).ok
    (problem,) = weightsmith.verify(out, recompute=1000).problems
    assert problem.startswith(f"tensor {name!r} comes out differently")
    assert "the output or the manifest was changed" in problem


def test_recompute_takes_as_many_tensors_as_asked_evenly_spread(out: Path) -> None:
    """Each once, never more than there are."""
    counts = {k: weightsmith.verify(out, recompute=k).recomputed for k in (0, 1, 4, 9, 50)}
    assert [len(names) for names in counts.values()] == [0, 1, 4, 9, 9]
    assert all(len(set(names)) == len(names) for names in counts.values())


def test_recompute_says_which_input_is_another(family: Family, out: Path) -> None:
    """A changed expert, not a changed output, is to blame."""
    tensors = family.tensors("e2")
    tensors["lm_head.weight"] += 1
    save_file(tensors, family.root / "e2" / "model.safetensors", metadata={"format": "pt"})
    found = weightsmith.verify(out, recompute=9).problems
    assert "is not the one on record" in found[0]
    assert "'lm_head.weight' of" in found[0]
    assert "e2" in found[0]
    # TIES keeps the largest changes of the whole model, so one changed input moves every tensor.
    assert all("statistics of the whole model" in problem for problem in found[1:])


def test_recompute_with_inputs_that_no_longer_fit_is_a_problem_not_a_crash(
    family: Family, out: Path
) -> None:
    """An expert of another shape under the old name."""
    tensors = family.tensors("e2")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :5].contiguous()
    save_file(tensors, family.root / "e2" / "model.safetensors", metadata={"format": "pt"})
    found = weightsmith.verify(out, recompute=9)
    assert found.recomputed == ()
    assert any("lm_head.weight" in problem for problem in found.problems)


@pytest.mark.parametrize("method", ["linear", "della", "slerp", "model_stock"])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_recompute_agrees_for_every_kind_of_method_and_the_backend_on_record(
    family: Family, method: str, backend: str
) -> None:
    """One pass, drawn masks, measured and model-wide; sums are repeated by the backend that made them."""
    experts = 1 if method == "slerp" else 3
    parameters = {"t": 0.3} if method == "slerp" else {}
    recipe = family.recipe(method, experts=experts, parameters=parameters)
    weightsmith.merge(recipe, family.root / "out", backend=backend)
    assert weightsmith.verify(family.root / "out", recompute=3).problems == ()


def test_a_moved_folder_is_sound_without_its_inputs(family: Family, out: Path) -> None:
    """Only `recompute` needs them."""
    shutil.move(out, family.root / "elsewhere")
    for name in ("base", "e1", "e2", "e3"):
        shutil.rmtree(family.root / name)
    assert weightsmith.verify(family.root / "elsewhere").ok
    with pytest.raises(weightsmith.errors.WeightsmithError):
        weightsmith.verify(family.root / "elsewhere", recompute=1)
