"""A family in the format of `testbed build`, trained in a second: clusters in 16 dimensions, an expert each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from weightsmith.live import residual_perceptron

CONFIG = {
    "model_type": "digits-mlp",
    "num_inputs": 16,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_labels": 9,
}
TASKS = ("red", "green", "blue")


def items(split: str, task: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the three classes of a task."""
    seed = {"train": 0, "validation": 1, "test": 2}[split]
    generator = np.random.default_rng([seed, task])
    centres = np.random.default_rng(5).normal(size=(9, 16))
    labels = 3 * task + generator.integers(3, size=number)
    points = centres[labels] + 0.8 * generator.normal(size=(number, 16))
    return points.astype(np.float32), labels


def trained(model, batches: list[tuple[np.ndarray, np.ndarray]], steps: int) -> None:
    points, labels = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*batches, strict=True)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(points), labels).backward()
        optimizer.step()


def build(folder: Path) -> Path:
    """Write the family and return its folder."""
    torch.manual_seed(0)
    model = residual_perceptron(CONFIG)
    trained(model, [items("train", task, 60) for task in range(3)], 15)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(folder / "base", start)
    for task, name in enumerate(TASKS):
        model.load_state_dict(start)
        trained(model, [items("train", task, 300)], 30)
        write(folder / "experts" / name, model.state_dict())
    (folder / "data").mkdir()
    for split in ("validation", "test"):
        for task, name in enumerate(TASKS):
            points, labels = items(split, task, 150)
            np.savez(folder / f"data/{name}.{split}.npz", inputs=points, labels=labels)
        tasks = [
            {"name": name, "kind": "classification", "data": f"data/{name}.{split}.npz"}
            for name in TASKS
        ]
        text = yaml.safe_dump({"suite": f"small-{split}", "tasks": tasks})
        (folder / f"suite.{split}.yaml").write_text(text)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    record = {"family": "small", "tasks": list(TASKS), "digest": f"sha256:{state}"}
    (folder / "family.json").write_text(json.dumps(record))
    return folder


def write(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
