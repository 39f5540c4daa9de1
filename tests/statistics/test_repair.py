"""REPAIR and reset of batch norm, against networks of torch that correct their units in one pass over all items."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.live.architectures import images, reference
from torch import nn

import weightsmith
from weightsmith.cli.main import execute
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live import plain_models, residual_perceptron
from weightsmith.progress import Silence
from weightsmith.statistics import Sample, Samples
from weightsmith.statistics.units import Moments

from .killing import killed_after

SIDE = 12


class ResidualConvolutions(nn.Module):
    """x -> stem -> h + second(relu(first(h))) for each block -> mean over places -> classifier."""

    def __init__(self, config) -> None:
        super().__init__()
        bias = config.get("bias", True)
        groups = config.get("groups", 1)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": nn.Conv2d(6, 6, 3, padding=1, groups=groups),
                    "second": nn.Conv2d(6, 6, 1, bias=bias),
                }
            )
            for _ in range(2)
        )
        for block in self.blocks:
            block.forward = lambda h, own=block: h + own["second"](own["first"](h).relu())
        self.classifier = nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.classifier(hidden.mean((2, 3)))


@pytest.fixture(autouse=True)
def _known_network(monkeypatch):
    monkeypatch.setitem(plain_models._BUILDERS, "convolutions", ResidualConvolutions)


def saved_network(folder: Path, seed: int, build=ResidualConvolutions, **config) -> Path:
    torch.manual_seed(seed)
    network = build(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "convolutions", "num_labels": 4, **config})
    )
    return folder


def read_network(folder: Path, build=ResidualConvolutions) -> nn.Module:
    network = build(json.loads((folder / "config.json").read_text()))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval()


def items(count: int = 7, shape=(1, SIDE, SIDE)) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3)) + 0.3


def samples_of(inputs: torch.Tensor, name: str = "inputs") -> Samples:
    found = [Sample({name: x}, torch.tensor([0]), classes=4) for x in inputs]
    return Samples("noise", found, predictions=lambda model, batch: model.logits(batch)[:, None])


def merged_with(tmp_path: Path, models, statistics=None, method="linear", out="merged") -> Path:
    entries = [{"model": str(model)} for model in models]
    if statistics is not None:
        entries[0]["statistics"] = str(statistics)
    recipe = {"weightsmith": 1, "merge_method": method, "models": entries}
    weightsmith.merge(recipe, tmp_path / out)
    return tmp_path / out


def rows_of(output: torch.Tensor) -> torch.Tensor:
    return (output.movedim(1, -1) if output.ndim == 4 else output).flatten(0, -2).double()


def moments_by_module(network, inputs, names):
    """Mean and deviation of what modules give for all inputs."""
    found = {}

    def seeing(name):
        def hook(_, __, output):
            rows = rows_of(output)
            found[name] = rows.mean(0), rows.std(0, unbiased=False)

        return hook

    handles = [network.get_submodule(name).register_forward_hook(seeing(name)) for name in names]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return found


def corrected_logits(network, inputs, goals):
    """One pass over all inputs in which every unit is shifted and scaled to its goal as it is called."""

    def correcting(name):
        def hook(_, __, output):
            rows = rows_of(output)
            mean, deviation = rows.mean(0), rows.std(0, unbiased=False)
            shape = (1, -1, 1, 1) if output.ndim == 4 else (1, -1)
            goal_mean, goal_deviation = (goal.view(shape) for goal in goals[name])
            centred = output.double() - mean.view(shape)
            return (centred / deviation.view(shape) * goal_deviation + goal_mean).float()

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(correcting(name)) for name in goals
    ]
    with torch.no_grad():
        logits = network(inputs)
    for handle in handles:
        handle.remove()
    return logits


def build_perceptron(config):
    return residual_perceptron(
        {"hidden_size": 8, "num_hidden_layers": 2, "num_labels": 4, **config}
    )


NETWORKS = {
    "convolutions": (
        ResidualConvolutions,
        ["stem", "blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second"],
        (1, SIDE, SIDE),
        {},
    ),
    "perceptron": (
        build_perceptron,
        ["model.embed", "model.layers.0", "model.layers.1"],
        (64,),
        {
            "model_type": "digits-mlp",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_labels": 4,
        },
    ),
}


@pytest.mark.parametrize("memory", [1 << 30, 1], ids=["whole", "by blocks"])
@pytest.mark.parametrize("name", NETWORKS)
def test_units_get_the_mean_statistics_of_their_parents(tmp_path, name, memory):
    build, hidden, shape, config = NETWORKS[name]
    parents = [saved_network(tmp_path / f"p{i}", i, build, **config) for i in range(2)]
    merged = merged_with(tmp_path, parents)
    inputs = items(shape=shape)
    weights = {str(parents[0]): 1.0, str(parents[1]): 3.0}
    made = weightsmith.collect(
        "repair",
        merged,
        data=samples_of(inputs),
        parents=weights,
        out=tmp_path / "r.safetensors",
        batch_size=3,
        memory_bytes=memory,
    )
    assert made.blocks is (memory == 1)
    of_parents = [moments_by_module(read_network(p, build), inputs, hidden) for p in parents]
    goals = {
        module: tuple(
            0.25 * one + 0.75 * other
            for one, other in zip(*(p[module] for p in of_parents), strict=True)
        )
        for module in hidden
    }
    repaired = merged_with(tmp_path, [merged], tmp_path / "r.safetensors", "repair", "repaired")
    network = read_network(repaired, build)
    # The folded network computes what the one with shifts and scales does, and has the statistics that it was to have.
    with torch.no_grad():
        logits = network(inputs)
    torch.testing.assert_close(
        logits, corrected_logits(read_network(merged, build), inputs, goals), rtol=1e-4, atol=1e-5
    )
    for module, found in moments_by_module(network, inputs, hidden).items():
        for own, goal in zip(found, goals[module], strict=True):
            torch.testing.assert_close(own, goal, rtol=1e-4, atol=1e-5)
    # The head is no hidden unit.
    before, after = (load_file(f / "model.safetensors") for f in (merged, repaired))
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert weightsmith.verify(repaired).ok


def test_the_parent_itself_stays_as_it_is(tmp_path):
    parent = saved_network(tmp_path / "p", 0)
    other = saved_network(tmp_path / "o", 1)
    inputs = samples_of(items())
    out = tmp_path / "r.safetensors"
    weightsmith.collect(
        "repair", parent, data=inputs, parents={str(parent): 1.0, str(other): 0.0}, out=out
    )
    for name, tensor in load_file(out).items():
        stored, _, shape = name.partition("::factors:")
        own = load_file(parent / "model.safetensors")[stored]
        expected = torch.ones(len(own)) if shape else own
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_a_unit_that_is_constant_keeps_its_scale_and_gets_the_mean(tmp_path):
    parents = [saved_network(tmp_path / f"p{i}", i) for i in range(2)]
    merged = merged_with(tmp_path, parents)
    tensors = load_file(merged / "model.safetensors")
    tensors["stem.weight"][2] = 0.0
    save_file(tensors, merged / "model.safetensors")
    inputs, out = items(), tmp_path / "r.safetensors"
    weights = {str(parent): 1.0 for parent in parents}
    weightsmith.collect("repair", merged, data=samples_of(inputs), parents=weights, out=out)
    found = load_file(out)
    assert found["stem.weight::factors:6,1,3,3"][2] == 1.0
    means = [moments_by_module(read_network(p), inputs, ["stem"])["stem"][0][2] for p in parents]
    assert float(found["stem.bias"][2]) == pytest.approx(float(sum(means)) / 2, rel=1e-5)


@pytest.fixture
def normed(saved, tmp_path):
    """A ResNet with batch norm that was merged."""
    return merged_with(tmp_path, [saved("resnet", 0), saved("resnet", 1)], out="normed")


def pixels(count: int = 5) -> torch.Tensor:
    return torch.cat([images(24)["pixel_values"] * (i + 1) / 2 + i / 8 for i in range(count)])


@pytest.mark.parametrize("memory", [1 << 30, 1], ids=["whole", "by blocks"])
def test_batch_norms_get_the_moments_of_what_they_read(normed, tmp_path, memory):
    inputs, out = pixels(), tmp_path / "r.safetensors"
    weightsmith.collect(
        "repair",
        normed,
        data=samples_of(inputs, "pixel_values"),
        out=out,
        batch_size=4,
        memory_bytes=memory,
    )
    network = reference(normed)
    found = load_file(out)
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(found) == {f"{n}.{part}" for n in norms for part in ("running_mean", "running_var")}

    def resetting(module, given):
        rows = rows_of(given[0])
        module.running_mean.copy_(rows.mean(0))
        module.running_var.copy_(rows.var(0))

    for name in norms:
        network.get_submodule(name).register_forward_pre_hook(resetting)
    with torch.no_grad():
        logits = network(pixel_values=inputs).logits
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-5)
    repaired = merged_with(tmp_path, [normed], out, "repair", "reset")
    with torch.no_grad():
        again = reference(repaired)(pixel_values=inputs).logits
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)
    before, after = (load_file(f / "model.safetensors") for f in (normed, repaired))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == set(found)


def test_batches_and_blocks_change_nothing_but_rounding(normed, tmp_path):
    data = samples_of(pixels(), "pixel_values")

    def made(name, **options):
        out = tmp_path / f"{name}.safetensors"
        weightsmith.collect("repair", normed, data=data, out=out, **options)
        return out

    whole, blocks = made("whole"), made("blocks", memory_bytes=1)
    assert whole.read_bytes() == blocks.read_bytes()
    single = load_file(made("single", batch_size=1))
    for name, tensor in load_file(whole).items():
        torch.testing.assert_close(tensor, single[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [1 << 30, 1], ids=["whole", "by blocks"])
def test_an_interrupted_repair_goes_on_where_it_was(normed, tmp_path, monkeypatch, memory):
    data = samples_of(pixels(), "pixel_values")

    def made(name, progress=None):
        out = tmp_path / f"{name}.safetensors"
        weightsmith.collect(
            "repair", normed, data=data, out=out, memory_bytes=memory, progress=progress
        )
        return out.read_bytes()

    class Interrupting(Silence):
        seen = 0

        def advance(self, amount, what=""):
            type(self).seen += 1
            if self.seen == 8:
                raise KeyboardInterrupt

    whole = made("whole")
    with pytest.raises(KeyboardInterrupt):
        made("again", Interrupting())
    measured = []
    add = Moments.add
    monkeypatch.setattr(Moments, "add", lambda self, rows: measured.append(1) or add(self, rows))
    assert made("again") == whole
    norms = len([name for name in load_file(normed / "model.safetensors") if "running_var" in name])
    batches = 2
    # Seven batches were told of as done, the eighth had been added too: three norms and a half.
    assert len(measured) == (norms - 3) * batches


@pytest.mark.usefixtures("one_thread")
def test_a_repair_with_parents_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    parents = [saved_network(tmp_path / f"p{i}", i) for i in range(2)]
    merged = merged_with(tmp_path, parents)
    weights = {str(parent): 1.0 for parent in parents}

    def made(name, progress=None):
        out, data = tmp_path / f"{name}.safetensors", samples_of(items())
        options = {"batch_size": 3, "memory_bytes": 1, "progress": progress}
        weightsmith.collect("repair", merged, data=data, parents=weights, out=out, **options)
        return out.read_bytes()

    class Counting(Silence):
        batches = 0

        def advance(self, amount, what=""):
            self.batches += amount

    every, left = Counting(), Counting()
    whole = made("whole", every)
    late = every.batches * 3 // 4
    assert killed_after(late, lambda progress: made("again", progress)) == signal.SIGKILL
    assert not (tmp_path / "again.safetensors").exists()
    assert made("again", left) == whole
    assert 0 < left.batches < every.batches


def test_a_repair_in_bfloat16_is_near_that_in_float32_and_says_so(tmp_path):
    parents = [saved_network(tmp_path / f"p{i}", i) for i in range(2)]
    merged = merged_with(tmp_path, parents)
    weights = {str(parent): 1.0 for parent in parents}
    found = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.safetensors"
        data = samples_of(items())
        weightsmith.collect("repair", merged, data=data, parents=weights, out=out, dtype=dtype)
        assert weightsmith.read_statistics(out).header.dtype == (
            "" if dtype == "float32" else dtype
        )
        found[dtype] = load_file(out)
    differing = 0
    for name, tensor in found["float32"].items():
        torch.testing.assert_close(found["bfloat16"][name], tensor, rtol=0.05, atol=0.05)
        differing += not torch.equal(found["bfloat16"][name], tensor)
    assert differing
    repaired = merged_with(tmp_path, [merged], out, "repair", "repaired")
    assert weightsmith.verify(repaired).ok


def test_what_cannot_be_repaired_is_said_in_a_sentence(saved, normed, tmp_path):
    plain = [saved_network(tmp_path / f"p{i}", i) for i in range(2)]
    bare = saved_network(tmp_path / "bare", 0, bias=False)
    grouped = saved_network(tmp_path / "grouped", 0, groups=2)
    inputs = samples_of(items())

    def refused(error, match, model, data=inputs, **options):
        with pytest.raises(error, match=match):
            weightsmith.collect(
                "repair", model, data=data, out=tmp_path / "no.safetensors", **options
            )
        assert not list(tmp_path.glob("no.*"))

    def with_itself(model):
        return {"parents": {str(model): 1.0}}

    refused(CompatibilityError, "has no batch norm .* say with --parent", plain[0])
    refused(CompatibilityError, "blocks.0.second of .* has no bias", bare, **with_itself(bare))
    refused(CompatibilityError, "blocks.0.first of .* in groups", grouped, **with_itself(grouped))
    refused(CompatibilityError, "has another config.json", plain[0], **with_itself(bare))
    pictures = samples_of(pixels(), "pixel_values")
    refused(UsageError, "leave the parents out", normed, pictures, **with_itself(normed))
    refused(
        CompatibilityError,
        "cannot be run on item 1",
        normed,
        samples_of(items(shape=(3, 5, 5)), "pixel_values"),
    )
    refused(UsageError, "none below 0", plain[0], parents={str(plain[1]): -1.0, str(plain[0]): 3.0})
    refused(CompatibilityError, "no bias", saved("llama"), tokens(), **with_itself(saved("llama")))
    with pytest.raises(UsageError, match="ask for it alone"):
        weightsmith.collect("repair,gram", plain[0], data=inputs, out=tmp_path / "no.safetensors")
    with pytest.raises(UsageError, match="Only repair has parents"):
        weightsmith.collect(
            "gram", plain[0], data=inputs, out=tmp_path / "no.safetensors", **with_itself(plain[0])
        )


def tokens() -> Samples:
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    found = [Sample({"input_ids": row}) for row in ids]
    return Samples("tokens", found, predictions=lambda model, batch: model.logits(batch))


def test_statistics_of_another_model_are_refused(saved, normed, tmp_path):
    out = tmp_path / "r.safetensors"
    weightsmith.collect("repair", normed, data=samples_of(pixels(), "pixel_values"), out=out)
    with pytest.raises(CompatibilityError, match="are of 'normed'"):
        merged_with(tmp_path, [saved("resnet", 0)], out, "repair", "other")


def saved_suite(folder: Path, labels: np.ndarray) -> Path:
    np.savez(folder / "d.npz", inputs=items().numpy(), labels=labels)
    rows = [{"name": "noise", "kind": "classification", "data": "d.npz", "metric": "accuracy"}]
    (folder / "s.yaml").write_text(json.dumps({"suite": "noise", "tasks": rows}))
    return folder / "s.yaml"


def test_data_of_other_classes_are_refused(tmp_path):
    model = saved_network(tmp_path / "p", 0)
    suite = saved_suite(tmp_path, np.arange(7))
    with pytest.raises(UsageError, match="4 classes"):
        weightsmith.collect("repair", model, data=suite, out=tmp_path / "r.safetensors")


def test_three_commands_lead_from_two_models_to_a_repaired_one(tmp_path, capsys):
    parents = [saved_network(tmp_path / f"p{i}", i) for i in range(2)]
    merged = merged_with(tmp_path, parents)
    suite = saved_suite(tmp_path, np.arange(7) % 4)
    out = str(tmp_path / "r.safetensors")
    command = ["collect", "repair", str(merged), "--data", str(suite), "--out", out]
    for parent in parents:
        command += ["--parent", str(parent), "0.5"]
    assert execute([*command, "--quiet"]) == 0, capsys.readouterr().err
    assert "repair" in capsys.readouterr().out
    header = weightsmith.read_statistics(out).header
    assert (header.goals, header.samples) == ("0.5 p0, 0.5 p1", 7)
    repaired = merged_with(tmp_path, [merged], out, "repair", "repaired")
    assert execute(["replay", str(repaired), str(tmp_path / "again"), "--quiet"]) == 0
    one, other = ((f / "model.safetensors").read_bytes() for f in (repaired, tmp_path / "again"))
    assert one == other
