"""What becomes of one architecture: averages, slices and adapters, beside plain torch, PEFT and its own library."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import WeightsmithError
from weightsmith.live import quiet_library

from .tested_architectures import Architecture

CHECKS = ("average", "loads", "forward", "slices", "adapter in", "adapter out", "BASE+ADAPTER")
TOLERANCE = 1e-5
# Modules that PEFT does not take, by `model_type`: kernels read their weights past the module.
_PASSED_BY = ("mamba", "mamba2", "falcon_mamba", "nemotron_h", "jamba")


class NotThere(Exception):
    """What cannot be tried, as libraries beside say."""


def targets(model: Any) -> tuple[list[str], list[str]]:
    """Linear modules but for tied heads, and experts and routers that are parameters."""
    from transformers.pytorch_utils import Conv1D

    tied = set(getattr(model, "all_tied_weights_keys", ()))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and f"{name}.weight" not in tied
    ]
    parameters = [
        name
        for name, parameter in model.named_parameters()
        if (parameter.dim() == 3 and "experts" in name)
        or (
            name.endswith(("router.weight", ".gate.weight"))
            and name[: -len(".weight")] not in linear
        )
    ]
    return linear, parameters


def _taken(model: Any) -> tuple[list[str], list[str]]:
    """What of it gets an adapter: convolutions where nothing is linear."""
    linear, parameters = targets(model)
    if getattr(getattr(model, "config", None), "model_type", "") in _PASSED_BY:
        linear = [name for name in linear if not name.endswith(("out_proj", "conv1d"))]
    if not linear:
        linear = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    return linear, parameters


def change(network: Any, seed: int, only: Callable[[str], bool] = lambda _: True) -> Any:
    """Make a fine-tune of it: every number of some tensors moved a little, variances upwards."""
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and only(name) and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                noise = torch.randn(tensor.shape, generator=generator) * 0.02
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return network


def _numbers(output: Any) -> Iterator[torch.Tensor]:
    """Every tensor of numbers that a network gives."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _numbers(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _numbers(value)
    elif hasattr(output, "mean") and hasattr(output, "logvar"):
        yield output.mean


def _run(architecture: Architecture, network: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return list(_numbers(network.eval()(**architecture.batch(network))))


def _off(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """Where two sets of tensors differ, or nothing."""
    if found.keys() != wanted.keys():
        return f"other names: {sorted(found.keys() ^ wanted.keys())[:3]}"
    for name, tensor in wanted.items():
        largest = max(1.0, float(tensor.abs().max())) if tensor.numel() else 1.0
        if found[name].shape != tensor.shape or not torch.allclose(
            found[name].float(), tensor.float(), rtol=0, atol=TOLERANCE * largest
        ):
            return f"other numbers: {name}"
    return ""


def _average(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {n: (t.double() + b[n].double()).div(2).to(t.dtype) for n, t in a.items()}


def _merge(models: list[str], out: Path) -> None:
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear" if len(models) > 1 else "passthrough",
        "models": [{"model": model} for model in models],
    }
    weightsmith.merge(recipe, out)


class Tried:
    """A base, two fine-tunes and an adapter of one architecture in a folder, and what comes of them."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        """Write the base and the fine-tunes."""
        self.architecture, self.folder = architecture, folder
        torch.manual_seed(0)
        network = architecture.make().eval()
        # What a library does not keep in a file is not compared with it.
        network.save_pretrained(folder / "base")
        self.base, wrong = architecture.open(folder / "base")
        if wrong:
            raise NotThere(f"the library misses {wrong[:2]} in what it wrote")
        self.tunes = [change(copy.deepcopy(self.base), seed) for seed in (1, 2)]
        for name, tune in zip("ab", self.tunes, strict=True):
            tune.save_pretrained(folder / name)
        self.average: Any = None

    def averaged(self) -> str:
        """Tensors of the average of two fine-tunes are those of plain torch."""
        out = self.folder / "average"
        _merge([str(self.folder / name) for name in "ab"], out)
        self.average, self.wrong = self.architecture.open(out)
        a, b = (tune.state_dict() for tune in self.tunes)
        return _off(self.average.state_dict(), _average(a, b))

    def loaded(self) -> str:
        """The library of the average misses no tensor and knows all."""
        if self.average is None:
            raise NotThere("there is no average")
        return f"missing or unexpected: {self.wrong[:3]}" if self.wrong else ""

    def forward(self) -> str:
        """The average runs as the network whose tensors plain torch averaged."""
        if self.average is None:
            raise NotThere("there is no average")
        plain = copy.deepcopy(self.base)
        a, b = (tune.state_dict() for tune in self.tunes)
        plain.load_state_dict(_average(a, b))
        wanted, found = (_run(self.architecture, n) for n in (plain, self.average))
        if not wanted or not all(torch.isfinite(t).all() for t in wanted):
            raise NotThere("the network gives no numbers")
        return _off(dict(enumerate(found)), dict(enumerate(wanted)))  # type: ignore[arg-type]

    def sliced(self) -> str:
        """The layers of a slice are the modules that plain torch keeps, and the library loads them."""
        count = open_checkpoint(self.folder / "a").layer_count
        if count < 2:
            raise NotThere(f"{count} layers")
        ranges = [(0, 2), (4, 6)] if count == 6 else [(0, count - 1)]
        kept = [layer for part in ranges for layer in range(*part)]
        parts = [
            {"sources": [{"model": str(self.folder / "a"), "layer_range": list(part)}]}
            for part in ranges
        ]
        recipe = {"weightsmith": 1, "merge_method": "passthrough", "slices": parts}
        weightsmith.merge(recipe, self.folder / "sliced")
        network, wrong = self.architecture.open(self.folder / "sliced")
        if wrong:
            return f"missing or unexpected: {wrong[:3]}"
        plain, ours = copy.deepcopy(self.tunes[0]), dict(network.named_modules())
        for name, module in list(plain.named_modules()):
            is_list = isinstance(module, torch.nn.ModuleList) and name in ours
            if is_list and len(module) == count and len(ours[name]) == len(kept):
                plain.set_submodule(name, torch.nn.ModuleList([module[i] for i in kept]))
        if problem := _off(network.state_dict(), plain.state_dict()):
            return problem
        _run(self.architecture, network)
        return ""

    @functools.cached_property
    def adapted_by_peft(self) -> Any:
        """The base with an adapter that PEFT made, merged by PEFT."""
        import peft

        linear, parameters = _taken(self.architecture.body(self.base))
        torch.manual_seed(3)
        try:
            config = peft.LoraConfig(
                r=2, lora_alpha=4, target_modules=linear, target_parameters=parameters or None
            )
            body = copy.deepcopy(self.architecture.body(self.base))
            trained = peft.get_peft_model(body, config)
            with torch.no_grad():
                for parameter in trained.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            trained.save_pretrained(self.folder / "lora")
            return self._with(self.folder / "lora")
        except Exception as problem:
            raise NotThere(f"PEFT: {problem}") from problem

    def _with(self, adapter: Path) -> Any:
        import peft

        base = copy.deepcopy(self.base)
        peft.PeftModel.from_pretrained(self.architecture.body(base), adapter).merge_and_unload()
        return base

    def adapter_in(self) -> str:
        """`BASE+ADAPTER` written out is what PEFT merges."""
        wanted = self.adapted_by_peft
        _merge([f"{self.folder / 'base'}+{self.folder / 'lora'}"], self.folder / "applied")
        found, wrong = self.architecture.open(self.folder / "applied")
        return f"missing or unexpected: {wrong[:3]}" if wrong else self._same(found, wanted)

    def _same(self, found: Any, wanted: Any) -> str:
        problem = _off(found.state_dict(), wanted.state_dict())
        ours, theirs = (_run(self.architecture, n) for n in (found, wanted))
        return problem or _off(dict(enumerate(ours)), dict(enumerate(theirs)))  # type: ignore[arg-type]

    def adapter_out(self) -> str:
        """The base with the adapter of a fine-tune of linear modules is that fine-tune, in PEFT."""
        linear, parameters = _taken(self.architecture.body(self.base))
        names = {*parameters, *(f"{name}.weight" for name in linear)}
        tune = copy.deepcopy(self.base)
        change(self.architecture.body(tune), 4, only=lambda name: name in names)
        tune.save_pretrained(self.folder / "tune")
        report = weightsmith.extract_adapter(
            self.folder / "tune", self.folder / "base", self.folder / "extracted", energy=1.0
        )
        ignored = [f.message for f in report.findings if f.code == "left-out-by-peft"]
        if ignored:
            return f"warned: {ignored[0]}"
        return self._same(self._with(self.folder / "extracted"), tune)

    def adapted(self) -> str:
        """`BASE+ADAPTER` averaged with another model is the average of what PEFT merges and that model."""
        wanted = self.adapted_by_peft
        reference = f"{self.folder / 'base'}+{self.folder / 'lora'}"
        _merge([reference, str(self.folder / "b")], self.folder / "mixed")
        found, wrong = self.architecture.open(self.folder / "mixed")
        if wrong:
            return f"missing or unexpected: {wrong[:3]}"
        return _off(found.state_dict(), _average(wanted.state_dict(), self.tunes[1].state_dict()))

    def outcomes(self) -> dict[str, str]:
        """`yes`, `refused: SENTENCE`, `warned: SENTENCE`, `not tried: SENTENCE` or `WRONG: WHAT` of every check."""
        ways = (
            self.averaged,
            self.loaded,
            self.forward,
            self.sliced,
            self.adapter_in,
            self.adapter_out,
            self.adapted,
        )
        return {name: self._outcome(way) for name, way in zip(CHECKS, ways, strict=True)}

    def _outcome(self, way: Callable[[], str]) -> str:
        try:
            problem = way()
        except WeightsmithError as refusal:
            return f"refused: {refusal}".replace(str(self.folder), "…")
        except NotThere as why:
            return f"not tried: {why}".replace(str(self.folder), "…")
        except Exception as crash:  # noqa: BLE001 - whatever a library says
            return f"WRONG: {crash!r:.300}".replace(str(self.folder), "…")
        if problem.startswith("warned:"):
            return problem
        return f"WRONG: {problem}" if problem else "yes"


def outcomes(architecture: Architecture, folder: Path) -> dict[str, str]:
    """What comes of every check, or why there is no network."""
    with warnings.catch_warnings(), quiet_library():
        warnings.simplefilter("ignore")
        try:
            tried = Tried(architecture, folder)
        except Exception as problem:  # noqa: BLE001 - whatever a library says
            return {"not made": f"{problem!r:.200}"}
        return tried.outcomes()
