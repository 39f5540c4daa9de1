"""Second moments as trainers left them, by the names of the files."""

from __future__ import annotations

import io
import pickle
import warnings
from collections import OrderedDict, namedtuple

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.live.architectures import save
from torch.distributed import checkpoint
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

import weightsmith
from weightsmith.errors import CheckpointError, CompatibilityError, UsageError
from weightsmith.live import load_model, quiet_library

Fragment = namedtuple("Fragment", "numel start")


class Foreign:
    """What a trainer has of its own, whose making would be seen."""

    def __init__(self):
        self.scale = 1.0

    def __setstate__(self, state):
        raise AssertionError("something in the file was run")


def trained(folder, steps=3):
    """A network after a few steps of AdamW, and its optimiser with transformers' two groups."""
    torch.manual_seed(0)
    with quiet_library():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    decayed = [p for n, p in model.named_parameters() if "norm" not in n]
    others = [p for n, p in model.named_parameters() if "norm" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=1e-3, betas=(0.9, 0.95)
    )
    for step in range(steps):
        rows = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    moments = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters()}
    with quiet_library():
        model.save_pretrained(folder)
    return model, optimizer, moments


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = save("llama tied", tmp_path_factory.mktemp("model"))
    return folder, *trained(folder)


def beside(folder, ending=""):
    """A place outside of what is read."""
    return folder.with_name(f"{folder.name}.safetensors{ending}")


def taken(folder, place, out):
    weightsmith.collect("adam", folder, data=place, out=out)
    return load_file(out), weightsmith.read_statistics(out).header


def expect(found, folder, moments):
    corrected = {n: m / (1 - 0.95**3) for n, m in moments.items()}
    expected = load_model(folder).names.to_files(corrected)
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        torch.testing.assert_close(found[name], moment, rtol=1e-6, atol=0)


def test_numbers_of_transformers_trainer_become_names(run, tmp_path):
    folder, _, optimizer, moments = run
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found, header = taken(folder, tmp_path, beside(tmp_path))
    expect(found, folder, moments)
    assert (header.kind, header.samples) == ("adam", 3)
    assert "optimizer.pt" in header.data


def test_names_of_fsdp_are_taken_without_its_wrappers(run, tmp_path):
    folder, model, optimizer, moments = run
    state = {
        n.replace("layers.0", "layers.0._fsdp_wrapped_module"): optimizer.state[p]
        for n, p in model.named_parameters()
    }
    torch.save(
        {"state": state, "param_groups": [{"betas": (0.9, 0.95)}]}, tmp_path / "optimizer.bin"
    )
    found, _ = taken(folder, tmp_path / "optimizer.bin", beside(tmp_path))
    expect(found, folder, moments)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("ranks", [1, 3])
def test_shards_of_deepspeed_are_joined(run, tmp_path, stage, ranks):
    folder, model, _, moments = run
    place = tmp_path / "global_step3"
    place.mkdir()
    names = [n for n, _ in model.named_parameters()]
    groups = [[n for n in names if "norm" not in n], [n for n in names if "norm" in n]]
    shapes = [OrderedDict((n, moments[n].shape) for n in group) for group in groups]
    torch.save(
        {"param_shapes": shapes, "ds_version": "0.15", "args": Foreign()},
        place
        / (
            "mp_rank_00_model_states.pt"
            if stage < 3
            else "zero_pp_rank_0_mp_rank_00_model_states.pt"
        ),
    )
    for rank in range(ranks):
        states = [shard([moments[n] for n in group], rank, ranks, stage) for group in groups]
        states = [{"step": 3, "exp_avg_sq": own, "exp_avg": own * 0} for own in states]
        inner = {"state": dict(enumerate(states)), "param_groups": [{"betas": [0.9, 0.95]}] * 2}
        key = "base_optimizer_state" if stage < 3 else "optimizer_state_dict"
        torch.save(
            {
                "optimizer_state_dict": {
                    "zero_stage": stage,
                    "loss_scaler": Foreign(),
                    "partition_count": ranks,
                    "param_slice_mappings": [OrderedDict(a=Fragment(3, 4))],
                    key: inner,
                }
            },
            place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
    found, _ = taken(folder, tmp_path, beside(tmp_path))
    expect(found, folder, moments)


def shard(tensors, rank, ranks, stage):
    """What a rank has of a group: a part of all in a row (with padding), or parts of each."""
    if stage == 3:
        return torch.cat([cut(tensor.reshape(-1), rank, ranks) for tensor in tensors])
    return cut(torch.cat([tensor.reshape(-1) for tensor in tensors]), rank, ranks)


def cut(flat, rank, ranks):
    size = -(-len(flat) // ranks)
    return torch.nn.functional.pad(flat, (0, size * ranks - len(flat)))[
        rank * size : (rank + 1) * size
    ].clone()


def saved_in_shards(state, place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(state, checkpoint_id=place, no_dist=True)


@pytest.mark.parametrize("form", ["nested", "flat", "numbers"])
def test_states_that_torch_writes_in_shards_are_read(run, tmp_path, form):
    folder, model, optimizer, moments = run
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flat")
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if form == "numbers":
        state = optimizer.state_dict()
    inside = tmp_path / "step" / ("optimizer_0" if form == "nested" else "")
    saved_in_shards({"optimizer": state} if form == "nested" else state, inside)
    found, header = taken(folder, tmp_path / "step", beside(tmp_path))
    expect(found, folder, moments)
    assert header.samples == 3
    found, _ = taken(folder, inside / "__0_0.distcp", beside(tmp_path))
    expect(found, folder, moments)


def cut_in_shards(state, place, parts=2):
    """What as many ranks write that have equal parts of all rows, in the form of torch's own metadata."""
    place.mkdir()
    files = [(place / f"__{rank}_0.distcp").open("wb") for rank in range(parts)]
    described, places = {}, {}

    def put(rank, name, value, offset=None):
        index = metadata.MetadataIndex(name, offset)
        buffer = io.BytesIO()
        torch.save(value, buffer)
        at = files[rank].tell()
        files[rank].write(buffer.getvalue())
        length = len(buffer.getvalue())
        places[index] = filesystem._StorageInfo(f"__{rank}_0.distcp", at, length)

    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            described[name] = metadata.BytesStorageMetadata()
            put(0, name, value)
            continue
        chunks, first = [], 0
        for rank, part in enumerate(value.chunk(parts) if value.ndim else [value]):
            offset = torch.Size((first, *[0] * (value.ndim - 1)) if value.ndim else ())
            put(rank, name, part.clone(), offset)
            chunks.append(metadata.ChunkStorageMetadata(offset, part.shape))
            first += len(part) if part.ndim else 0
        properties = metadata.TensorProperties.create_from_tensor(value)
        described[name] = metadata.TensorStorageMetadata(properties, value.shape, chunks)
    for file in files:
        file.close()
    whole = metadata.Metadata(described, {}, places)
    (place / ".metadata").write_bytes(pickle.dumps(whole))
    return whole


def flattened(model, optimizer):
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    return get_optimizer_state_dict(model, optimizer, options=options)


def test_pieces_of_several_ranks_are_joined(run, tmp_path):
    folder, model, optimizer, moments = run
    cut_in_shards(flattened(model, optimizer), tmp_path / "step", parts=3)
    found, _ = taken(folder, tmp_path / "step", beside(tmp_path))
    expect(found, folder, moments)


def test_nothing_in_metadata_is_run(run, tmp_path):
    folder, model, optimizer, moments = run
    whole = cut_in_shards(flattened(model, optimizer), tmp_path / "step")
    whole.planner_data = Foreign()
    whole.storage_meta = Called()
    (tmp_path / "step" / ".metadata").write_bytes(pickle.dumps(whole))
    found, _ = taken(folder, tmp_path / "step", beside(tmp_path))
    expect(found, folder, moments)


class Called:
    def __reduce__(self):
        return _called, ()


def _called():
    raise AssertionError("something in the file was run")


def test_damaged_shards_are_told(run, tmp_path):
    folder, model, optimizer, _ = run
    place, out = tmp_path / "step", beside(tmp_path)
    whole = cut_in_shards(flattened(model, optimizer), place)
    index = next(i for i in whole.storage_data if i.fqn.endswith("q_proj.weight.exp_avg_sq"))
    good = whole.storage_data[index]

    def told(says):
        (place / ".metadata").write_bytes(pickle.dumps(whole))
        with pytest.raises(CheckpointError, match=says):
            taken(folder, place, out)
        whole.storage_data[index] = good

    for info, says in (
        (filesystem._StorageInfo("../__0_0.distcp", 0, 10), "no metadata"),
        (filesystem._StorageInfo("__9_0.distcp", 0, 10), "cannot be read"),
        (filesystem._StorageInfo(good.relative_path, 10**9, good.length), "is cut off"),
        (filesystem._StorageInfo(good.relative_path, good.offset, 40), "no archive of torch"),
        (filesystem._StorageInfo(good.relative_path, 0, 10, ["zstd"]), "is compressed"),
    ):
        whole.storage_data[index] = info
        told(says)
    chunks = whole.state_dict_metadata[index.fqn].chunks
    first = chunks.pop()
    told("does not have all of")
    chunks.append(metadata.ChunkStorageMetadata(chunks[0].offsets, chunks[0].sizes))
    told("overlap")
    chunks[-1] = first
    (place / ".metadata").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="the pickle is refused"):
        taken(folder, place, out)
    assert not out.exists()


def test_moments_merge(run, tmp_path):
    folder, _, optimizer, _ = run
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    taken(folder, tmp_path, beside(tmp_path))
    recipe = tmp_path / "r.yaml"
    model = f"{{model: {folder}, statistics: {beside(tmp_path)}}}"
    recipe.write_text(f"weightsmith: 1\nmerge_method: ota\nmodels:\n  - {model}\n  - {model}\n")
    weightsmith.merge(recipe, tmp_path / "merged")


def test_a_checkpoint_of_another_model_is_told(run, saved, tmp_path):
    _, _, optimizer, _ = run
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(CompatibilityError, match="is of another model"):
        taken(saved("qwen2"), tmp_path, beside(tmp_path))
    torch.save(
        {"state": {"head.weight": {"exp_avg_sq": torch.ones(2)}}, "param_groups": []},
        tmp_path / "optimizer.pt",
    )
    with pytest.raises(CompatibilityError, match=r"head\.weight"):
        taken(saved("qwen2"), tmp_path, beside(tmp_path))
    assert not (beside(tmp_path)).exists()
    assert not (beside(tmp_path, ".partial")).exists()


def test_what_is_no_state_of_adam_is_told(saved, tmp_path):
    model = saved("llama")
    for content, kind, says in (
        ({"a": torch.ones(2)}, CheckpointError, "no state of an optimiser"),
        (
            {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []},
            CompatibilityError,
            "not Adam",
        ),
    ):
        torch.save(content, tmp_path / "optimizer.pt")
        with pytest.raises(kind, match=says):
            taken(model, tmp_path, beside(tmp_path))
    (tmp_path / "optimizer.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no zip archive"):
        taken(model, tmp_path, beside(tmp_path))
    (tmp_path / "optimizer.pt").unlink()
    with pytest.raises(UsageError, match=r"no optimizer\.pt"):
        taken(model, tmp_path, beside(tmp_path))
    with pytest.raises(UsageError, match="ask for it alone"):
        weightsmith.collect("adam,gram", model, data=tmp_path, out=beside(tmp_path))
