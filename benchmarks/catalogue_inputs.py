"""What the catalogue benchmark merges: a recipe for each method, its statistics files, and the matrices of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from make_checkpoints import SIZES, WORK, make_checkpoint, make_family
from spectral import DECOMPOSED

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.methods.parts import registry

EXPERTS = 4
SAMPLES = 2
LAYER = "model.layers.0."
# One matrix of each shape of a layer, and a tensor that is no matrix.
OF_A_LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
)
Matrices = list[np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One method with what it needs; `bare` is what LAPACK and BLAS alone do for one matrix's task vectors."""

    method: str
    experts: int = EXPERTS
    parameters: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    bare: Callable[[Matrices], object] | None = None

    @property
    def has_base(self) -> bool:
        """Whether the recipe names a base."""
        return registry.get(self.method).base is not registry.Base.IGNORED

    def measured(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Models of a base and experts, each with the statistics file that the recipe names there."""
        measured_on = registry.get(self.method).measured_on
        base, *experts = paths
        if not self.kinds:
            return []
        if measured_on is registry.MeasuredOn.BASE:
            return [(base, statistics(base, base, self.kinds[0]))]
        is_own = measured_on is registry.MeasuredOn.EXPERTS
        return [
            (
                expert,
                statistics(
                    expert, expert if is_own else base, self.kinds[min(i, len(self.kinds) - 1)]
                ),
            )
            for i, expert in enumerate(experts[: self.experts])
        ]


def _decompositions(method: str) -> Callable[[Matrices], object]:
    def bare(taus: Matrices) -> None:
        for matrix in DECOMPOSED[method](taus):
            np.linalg.svd(matrix, full_matrices=False)

    return bare


def _gram(taus: Matrices) -> None:
    """(sum tau_i G_i)(sum G_i)^+ over the eigenvectors of the sum, as WUDI's formula reads."""
    grams = [tau.T @ tau for tau in taus]
    _, vectors = np.linalg.eigh(sum(grams[1:], grams[0]))
    right = sum(tau @ gram for tau, gram in zip(taus, grams, strict=True))
    right @ vectors @ vectors.T


def _leading_gram(taus: Matrices) -> None:
    """OptMerge: every task vector and its difference to the mean are decomposed before the solve."""
    mean = sum(taus[1:], taus[0]) / len(taus)
    for tau in taus:
        np.linalg.svd(tau, full_matrices=False)
        np.linalg.svd(tau - mean, full_matrices=False)
    _gram(taus)


def _calibration(taus: Matrices) -> None:
    """SVC: the sum is decomposed, and every task vector is seen in its directions."""
    left, _, _ = np.linalg.svd(sum(taus[1:], taus[0]), full_matrices=False)
    for tau in taus:
        left.T @ tau


def _rotations(taus: Matrices) -> None:
    """OrthoMerge: the product of base and expert is decomposed, whose sides are the inputs."""
    for tau in taus:
        np.linalg.svd(taus[0].T @ tau, full_matrices=False)


def _estimates(weights: Matrices) -> None:
    """Two steps of LoRE: what each model has beyond a mean is decomposed twice."""
    mean = sum(weights[1:], weights[0]) / len(weights)
    for weight in weights * 2:
        np.linalg.svd(weight - mean, full_matrices=False)


def _regression(weights: Matrices) -> None:
    """sum W_i G_i and one solve, as RegMean's formula reads; any positive definite Gram matrix takes the same time."""
    inputs = weights[0].shape[1]
    gram = (np.eye(inputs) * 2.0 + np.full((inputs, inputs), 1.0 / inputs)).astype(weights[0].dtype)
    right = sum(weight @ gram for weight in weights)
    np.linalg.solve(gram, np.asarray(right).T)


def cases() -> dict[str, Case]:
    """Every method of the registry, by name."""
    special = {
        "aim": Case("aim", kinds=("channels:input_magnitude",)),
        "fisher": Case("fisher", kinds=("fisher",)),
        "layer_swapping": Case("layer_swapping", experts=2),
        "linear": Case("linear", each={"weight": (0.25,) * EXPERTS}),
        "metrics_weighted": Case("metrics_weighted", each={"metric": (0.4, 0.3, 0.2, 0.1)}),
        "ota": Case("ota", kinds=("adam",)),
        "rcp": Case("rcp", experts=2, kinds=("fisher", "gradients")),
        "regmean": Case("regmean", kinds=("gram",), bare=_regression),
        "sens": Case("sens", kinds=("gradients:absolute",)),
        "svc": Case("svc", bare=_calibration),
        "tatr": Case("tatr", kinds=("gradients:absolute",)),
        "lore": Case("lore", parameters={"steps": 2}, bare=_estimates),
        "twin": Case("twin", bare=_decompositions("truncate")),
        "slerp": Case("slerp", experts=1, parameters={"t": 0.4}),
        "optmerge": Case("optmerge", parameters={"solver": "closed"}, bare=_leading_gram),
        "tsv_c": Case("tsv_c", experts=1, bare=_decompositions("truncate")),
        "subspace_boosting": Case("subspace_boosting", bare=_decompositions("iso_c")),
        "cart": Case("cart", bare=_decompositions("truncate")),
        "dc_merge": Case("dc_merge", bare=_decompositions("tsv_m")),
        "resmerge": Case("resmerge", bare=_decompositions("truncate")),
        "orthomerge": Case("orthomerge", bare=_rotations),
        "ace": Case("ace", bare=_gram),
        **{name: Case(name, bare=_gram) for name in ("wudi", "iwudi", "swudi", "aswudi")},
        **{name: Case(name, bare=_decompositions(name)) for name in DECOMPOSED},
    }
    found = {}
    for name in registry.names():
        most = registry.get(name).experts[1]
        found[name] = special.get(name) or Case(name, experts=min(most or EXPERTS, EXPERTS))
    return found


def family(case: Case) -> list[Path]:
    """The checkpoints, base first: the whole family, or one layer of it for methods that decompose matrices."""
    return layer_family() if case.bare else make_family("small")


def layer_family() -> list[Path]:
    """A family of one matrix of each shape of the 0.35 B family, drawn as that is."""
    small = SIZES["small"]
    names = [f"{LAYER}{part}.weight" for part in OF_A_LAYER]
    tensors = [(name, shape) for name, shape in small.tensors() if name in names]
    config = {**small.config(), "num_hidden_layers": 1}
    paths = [WORK / "layer" / n for n in ("base", *(f"expert-{i + 1}" for i in range(EXPERTS)))]
    for expert, path in enumerate(paths):
        if not (path / "config.json").exists():
            make_checkpoint(path, tensors, config, 1, expert)
    return paths


def recipe(case: Case) -> str:
    """The recipe as YAML, with the method's defaults wherever it has any."""
    base, *experts = paths = family(case)
    files = dict(case.measured(paths))
    models = []
    for position, expert in enumerate(experts[: case.experts]):
        entry: dict[str, Any] = {"model": str(expert)}
        if case.each:
            entry["parameters"] = {key: float(n[position]) for key, n in case.each.items()}
        models.append(entry)
    if base in files:
        models.append({"model": str(base)})
    for entry in models:
        if (model := Path(entry["model"])) in files:
            entry["statistics"] = str(files[model])
    written = {"weightsmith": 1, "merge_method": case.method, "models": models}
    if case.has_base:
        written["base_model"] = str(base)
    if case.parameters:
        written["parameters"] = dict(case.parameters)
    return yaml.safe_dump(written)


def inputs(case: Case) -> list[Path]:
    """The folders and files that the case reads."""
    base, *experts = paths = family(case)
    files = [file for _, file in case.measured(paths)]
    return [*([base] if case.has_base else []), *experts[: case.experts], *files]


def statistics(model: Path, of: Path, kind: str) -> Path:
    """A statistics file of random numbers in float16, or of Gram matrices in float32, made when first asked for.

    It is of the weights `of`, over what might be the data of `model`.
    """
    owner = "" if of == model else f".{of.name}"
    path = model.parent / f"{model.name}{owner}.{kind.replace(':', '-')}.safetensors"
    if not path.exists():
        weightsmith.write_statistics(
            path,
            _numbers(model, kind),
            kind=kind.partition(":")[0],
            of=of,
            data="random numbers",
            samples=SAMPLES,
        )
    return path


def _numbers(model: Path, kind: str) -> dict[str, Any]:
    number = model.name.rpartition("-")[2]
    rng = np.random.default_rng([len(kind), int(number) if number.isdecimal() else 0])
    word = kind.partition(":")[2]
    found: dict[str, Any] = {}
    for name, tensor in open_checkpoint(model).tensors.items():
        if kind == "gram":
            if len(tensor.shape) == 2:
                inputs = rng.random((tensor.shape[1] + 64, tensor.shape[1]), np.float32) - 0.5
                found[name] = inputs.T @ inputs
        elif kind.startswith("channels"):
            if len(tensor.shape) == 2 and "embed" not in name:
                found[f"{name}::{word}"] = _halves(rng, tensor.shape[1:])
        elif word:
            found[f"{name}::{word}"] = _halves(rng, tensor.shape)
        elif kind == "gradients":
            found[name] = [_halves(rng, tensor.shape) - np.float16(0.5) for _ in range(SAMPLES)]
        else:
            found[name] = _halves(rng, tensor.shape) + np.float16(0.0625)
    return found


def _halves(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    return rng.random(tuple(shape), np.float32).astype(np.float16)


def bare_matrices(case: Case, dtype: type) -> list[Matrices]:
    """For every matrix of the layer what the formula decomposes: the task vectors, or the weights."""
    from safetensors.torch import load_file

    base, *experts = (load_file(path / "model.safetensors") for path in family(case))
    found = []
    for name, tensor in base.items():
        if tensor.ndim == 2:
            own = [expert[name].float() for expert in experts[: case.experts]]
            taus = own if not case.has_base else [expert - tensor.float() for expert in own]
            found.append([tau.numpy().astype(dtype) for tau in taus])
    return found
