"""What measuring a merged network anew gains: accuracy on held-out items, with statistics collected over others.

    python benchmarks/repair.py pair FAMILY       reset of batch norm; FAMILY is what `testbed build pair` made
    python benchmarks/repair.py digits            REPAIR of residual networks without normalisation; RegMean++

Networks that began with different weights are averaged as they are, and with the channels of the second put into the
order in which they correlate best with those of the first.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment

import weightsmith
from weightsmith.live import residual_perceptron
from weightsmith.statistics import Sample, Samples, collect_through
from weightsmith.testbeds.data.tasks import read_items
from weightsmith.testbeds.models.vit import as_tensor

ITEMS = 256
DIGITS = {"model_type": "digits-mlp", "hidden_size": 64, "num_labels": 10}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("what", choices=["pair", "digits"])
    options.add_argument("family", type=Path, nargs="?")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if given.what == "digits":
            repair_digits(Path(place))
            return
        if given.family is None:
            sys.exit("Give the folder of the family: weightsmith testbed build pair --out FOLDER.")
        reset_pair(given.family, Path(place))


def merge(method: str, models: list[Path], out: Path, statistics: Any = ()) -> Path:
    entries: list[dict[str, Any]] = [{"model": str(model)} for model in models]
    for entry, file in zip(entries, statistics, strict=False):
        entry["statistics"] = str(file)
    weightsmith.merge({"weightsmith": 1, "merge_method": method, "models": entries}, out)
    return out


def repaired(merged: Path, data: Any, parents: dict[str, float] | None = None) -> Path:
    file = merged.with_suffix(".safetensors")
    weightsmith.collect("repair", merged, data=data, parents=parents, out=file, limit=ITEMS)
    return merge("repair", [merged], merged.with_name(f"{merged.name}-repaired"), [file])


def order(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """For every channel of `one` [N, C] the channel of `other` with which it correlates best, each taken once."""
    first, second = ((x - x.mean(0)) / x.std(0).clamp(min=1e-6) for x in (one, other))
    return torch.from_numpy(linear_sum_assignment(-(first.T @ second).numpy())[1])


# ResNets with batch norm.


def reset_pair(family: Path, place: Path) -> None:
    first, second = (family / "experts" / name for name in ("first", "second"))
    suites = {split: family / f"suite.{split}.yaml" for split in ("validation", "test")}
    turned = aligned_resnet(first, second, family, place / "aligned")

    def scored(model: Path) -> float:
        return float(weightsmith.evaluate(model, suites["test"]).scores[0].value)

    print("| accuracy, test | merged | batch norm reset |\n| --- | --- | --- |")
    for name, other in (("average", second), ("average, channels aligned", turned)):
        merged = merge("linear", [first, other], place / name.replace(", ", "-").replace(" ", "-"))
        print(
            f"| {name} | {scored(merged):.3f} | {scored(repaired(merged, suites['validation'])):.3f} |"
        )
    print(f"| the two networks | {scored(first):.3f}, {scored(second):.3f} | |")


def aligned_resnet(first: Path, second: Path, family: Path, out: Path) -> Path:
    """The second network with its channels in the order of the first's, group by group of what is added up."""
    from transformers import ResNetForImageClassification

    images = as_tensor(read_items(family / "data/figures.train.npz")[0][:512])
    networks = [ResNetForImageClassification.from_pretrained(f).eval() for f in (first, second)]
    stages = "resnet.encoder.stages"
    streams = [["resnet.embedder.embedder", f"{stages}.0.layers.0"]]
    streams += [[f"{stages}.{i}.layers.0"] for i in (1, 2)]
    inner = [[f"{stages}.{i}.layers.0.layer.0"] for i in range(3)]
    seen: list[dict[str, torch.Tensor]] = [{}, {}]
    for network, found in zip(networks, seen, strict=True):
        for path in chain.from_iterable(streams + inner):
            network.get_submodule(path).register_forward_hook(
                lambda _, __, output, path=path, found=found: found.update(
                    {path: output.movedim(1, -1).flatten(0, -2)}
                )
            )
        with torch.no_grad():
            network(pixel_values=images)
    orders = [
        order(*(torch.cat([found[path] for path in group]) for found in seen))
        for group in streams + inner
    ]
    state = networks[1].state_dict()
    for name in state:
        own = state[name]
        outputs, inputs = _groups(name)
        if outputs is not None and own.ndim:
            own = own[orders[outputs]]
        if inputs is not None:
            own = own[:, orders[inputs]]
        state[name] = own
    networks[1].load_state_dict(state)
    networks[1].save_pretrained(out)
    return out


def _groups(name: str) -> tuple[int | None, int | None]:
    """The groups of the output and of the input channels of a tensor: streams 0 to 2, inner channels 3 to 5."""
    is_kernel = name.endswith("convolution.weight")
    if name.startswith("resnet.embedder"):
        return 0, None
    if name.startswith("classifier"):
        return None, 2 if name.endswith("weight") else None
    stage = int(name.split("stages.")[1][0])
    before = max(stage - 1, 0)
    if "shortcut" in name:
        return stage, before if is_kernel else None
    if ".layer.0." in name:
        return 3 + stage, before if is_kernel else None
    return stage, 3 + stage if is_kernel else None


# Residual networks without normalisation.


def repair_digits(place: Path) -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy((pixels / 16).astype(np.float32))
    targets = torch.from_numpy(labels)
    shuffled = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, held = shuffled[:1200], shuffled[1200:]

    def scored(folder: Path, chosen: torch.Tensor = held) -> float:
        with torch.no_grad():
            return float((read(folder)(inputs[chosen]).argmax(1) == targets[chosen]).float().mean())

    def data(chosen: torch.Tensor) -> Samples:
        rows = [
            Sample({"inputs": x}, torch.tensor([0]), classes=10) for x in inputs[chosen][:ITEMS]
        ]
        return Samples("digits", rows, predictions=lambda m, b: m.logits(b)[:, None])

    print("| accuracy, held out | merged | REPAIR |\n| --- | --- | --- |")
    for layers in (2, 4):
        pair = []
        for seed in (1, 2):
            network = new_network(layers, seed)
            fit(network, inputs[train], targets[train], 600, 3e-3, seed)
            pair.append(save(network, place / f"{layers}-{seed}", layers))
        first, second = pair
        turned = aligned_perceptron(
            first, second, inputs[train], place / f"{layers}-aligned", layers
        )
        for name, other in (("average", second), ("average, units aligned", turned)):
            merged = merge(
                "linear",
                [first, other],
                place / f"{layers}-{name.replace(', ', '-').replace(' ', '-')}",
            )
            fixed = repaired(merged, data(train), {str(first): 0.5, str(other): 0.5})
            print(f"| {layers} blocks, {name} | {scored(merged):.3f} | {scored(fixed):.3f} |")
        print(
            f"| {layers} blocks, the two networks | {scored(first):.3f}, {scored(second):.3f} | |"
        )
    regressions(place, inputs, targets, train, scored, data)


def regressions(place, inputs, targets, train, scored, data) -> None:  # type: ignore[no-untyped-def]
    """Experts on the lower and the upper digits of one base."""
    print("\n| accuracy, held out | average | RegMean | RegMean++ |\n| --- | --- | --- | --- |")
    for layers in (2, 4, 8):
        base = new_network(layers, 5)
        fit(base, inputs[train], targets[train], 60, 3e-3, 5)
        folders, parts = [], [train[targets[train] < 5], train[targets[train] >= 5]]
        for i, part in enumerate(parts):
            expert = copy.deepcopy(base)
            fit(expert, inputs[part], targets[part], 600, 3e-3, i)
            folders.append(save(expert, place / f"{layers}-expert-{i}", layers))
        files = [place / f"{layers}-{i}.gram.safetensors" for i in range(2)]
        for folder, file, part in zip(folders, files, parts, strict=True):
            weightsmith.collect("gram", folder, data=data(part), out=file)
        scores = [scored(merge("linear", folders, place / f"{layers}-mean"))]
        scores.append(scored(merge("regmean", folders, place / f"{layers}-regmean", files)))
        entries = [
            {"model": str(f), "statistics": str(s)} for f, s in zip(folders, files, strict=True)
        ]
        recipe = {"weightsmith": 1, "merge_method": "regmean", "models": entries}
        collect_through(recipe, data=[data(part) for part in parts])
        scores.append(scored(merge("regmean", folders, place / f"{layers}-plus", files)))
        print(f"| {layers} blocks | " + " | ".join(f"{score:.3f}" for score in scores) + " |")


def new_network(layers: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return residual_perceptron({**DIGITS, "num_hidden_layers": layers})


def fit(network, inputs, targets, steps: int, rate: float, seed: int) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,), generator=generator)
        loss = torch.nn.functional.cross_entropy(network(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(network: torch.nn.Module, folder: Path, layers: int) -> Path:
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**DIGITS, "num_hidden_layers": layers}))
    return folder


def read(folder: Path) -> Any:
    network = residual_perceptron(json.loads((folder / "config.json").read_text()))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network


def aligned_perceptron(first: Path, second: Path, inputs, out: Path, layers: int) -> Path:  # type: ignore[no-untyped-def]
    """The second network with its units in the order of the first's; all layers add to one stream, so there is one."""
    one, other = read(first), read(second)
    with torch.no_grad():
        turn = order(one.features(inputs), other.features(inputs))
    state = other.state_dict()
    for name, tensor in state.items():
        turned = (
            tensor
            if name.startswith("classifier.b")
            else tensor[:, turn]
            if name.startswith("classifier")
            else tensor[turn]
        )
        state[name] = turned[:, turn] if ".layers." in name and name.endswith("weight") else turned
    other.load_state_dict(state)
    assert torch.allclose(other(inputs[:4]), read(second)(inputs[:4]), atol=1e-4)
    return save(other, out, layers)


if __name__ == "__main__":
    main()
