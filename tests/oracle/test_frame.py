"""Oracles are independent of what they judge, complete, and right about the families."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.checkpoints import open_checkpoint
from weightsmith.methods.parts import modifiers, registry

from .catalogue import MODIFIERS, ORACLES, RULES, label
from .families import BUILDERS, llama
from .rules.shared.order import count, largest
from .running import error, store
from .structures import bfloat16, gradient
from .test_oracles import WITHOUT_ORACLE, compared

SOURCES = [RULES.parent / f"{name}.py" for name in ("families", "measured", "special")]
SOURCES += [*sorted(RULES.rglob("*.py"))]
ALLOWED = {"__future__", "collections", "dataclasses", "fractions", "functools", "hashlib"}
ALLOWED |= {"itertools", "math", "numpy", "typing", "zlib"}


def imported(path: Path) -> set[str]:
    """The packages that a file imports, however it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "__import__":
            found.add("__import__")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(RULES.parent)))
def test_an_oracle_imports_numpy_alone(path: Path) -> None:
    assert imported(path) <= ALLOWED
    levels = [
        n.level for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
    ]
    assert max(levels, default=0) <= len(path.relative_to(RULES.parent).parts)


def test_an_import_of_the_code_under_test_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text(
        "def rule():\n    from weightsmith.methods import ties\n    import torch as t\n"
    )
    assert imported(path) == {"weightsmith", "torch"}


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(registry.names()) - set(WITHOUT_ORACLE)
    assert all(len(reason) > 20 for reason in WITHOUT_ORACLE.values())


def test_every_modifier_has_an_oracle() -> None:
    assert set(MODIFIERS) == set(modifiers.names())


@pytest.mark.parametrize("rule", [*ORACLES.values(), *MODIFIERS.values()], ids=lambda r: r.name)
def test_variants_are_distinct_and_every_preset_is_among_them(rule) -> None:
    labels = [label(v) for v in rule.variants]
    assert len(set(labels)) == len(labels)
    if rule.name in registry.names():
        tried = {v.get("preset", "paper") for v in rule.variants}
        assert tried == {"paper", *registry.get(rule.name).presets}


@pytest.mark.parametrize("shape", BUILDERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_numbers_fit_their_dtype_and_magnitudes_differ(shape: str, dtype: str) -> None:
    family = BUILDERS[shape](dtype)
    for expert in family.experts:
        deltas = np.concatenate([np.ravel(expert[n] - family.base[n]) for n in family.places])
        magnitudes = np.abs(deltas[deltas != 0])
        assert len(np.unique(magnitudes)) == len(magnitudes)
        assert 0.05 < np.mean(deltas == 0) < 0.2
        stored = getattr(torch, dtype)
        for tensors in (family.base, expert):
            for x in tensors.values():
                exact = torch.from_numpy(np.array(x)).to(stored).double().numpy()
                assert np.array_equal(exact, x)
        if dtype != "float64":
            assert np.array_equal(deltas.astype(np.float32).astype(np.float64), deltas)


@pytest.mark.parametrize("shape", BUILDERS)
def test_places_are_those_that_weightsmith_sees(shape: str, tmp_path: Path) -> None:
    held = store(BUILDERS[shape](), tmp_path, "float64")
    checkpoint = open_checkpoint(held.base)
    for name, place in held.family.places.items():
        role = checkpoint.places[name]
        seen = (role.kind.value, role.layer, role.input_first, role.stack or "")
        assert seen == (place.role, place.layer, place.input_first, place.stack), name
        if place.stack:
            assert checkpoint.stacks[place.stack].count == place.layers


def test_shares_are_the_decimals_that_they_are_written_as() -> None:
    assert count(0.29, 100) == 29
    assert list(largest(np.array([1.0, -3.0, 3.0, 2.0]), 2)) == [False, True, True, False]


def test_a_family_is_the_same_every_time() -> None:
    one, two = llama(), llama()
    assert all(np.array_equal(one.base[n], two.base[n]) for n in one.places)


def test_an_error_is_a_share_of_the_largest_change() -> None:
    base = {"a": np.zeros(2), "b": np.ones(3)}
    want = {"a": np.array([0.0, 0.5]), "b": np.ones(3)}
    got = {"a": np.array([0.0, 0.5]), "b": np.array([1.0, 1.0, 1.001])}
    assert error(want, want, base) == 0
    assert error(want, got, base) == pytest.approx(0.002)


@pytest.mark.parametrize(
    "got",
    [{"a": np.array([np.nan])}, {}, {"a": np.zeros((1, 1))}, {"a": np.ones(1), "b": np.ones(1)}],
    ids=["not a number", "missing", "another shape", "one too many"],
)
def test_what_is_no_result_is_no_small_error(got) -> None:
    with pytest.raises(AssertionError):
        error({"a": np.ones(1)}, got, {"a": np.zeros(1)})


def test_every_case_beyond_the_tolerance_is_named() -> None:
    with pytest.raises(AssertionError, match=r"'one': '0.1', 'three': 'nan'"):
        compared({"one": 0.1, "two": 1e-13, "three": float("nan")}, 1e-12)
    with pytest.raises(AssertionError):
        compared({}, 1e-12)


def test_bfloat16_rounds_as_torch_does() -> None:
    x = np.random.default_rng(0).normal(size=1000) * 2.0 ** np.arange(-20, 20).repeat(25)
    assert np.array_equal(bfloat16(x), torch.from_numpy(x).to(torch.bfloat16).double().numpy())
    halves = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 0.0, -(1 + 2.0**-8)])
    assert list(bfloat16(halves)) == [1, 1 + 2.0**-6, 0, -1]


def test_gradients_are_spread_over_the_layers() -> None:
    place = llama().places
    values = [0.0, 1.0, 0.25]
    at = {n: gradient(values, p) for n, p in place.items()}
    assert at["model.embed_tokens.weight"] == at["model.layers.0.mlp.up_proj.weight"] == 0
    assert at["model.layers.1.mlp.up_proj.weight"] == pytest.approx(2 / 3)
    assert at["model.layers.2.mlp.up_proj.weight"] == pytest.approx(0.75)
    assert at["model.layers.3.mlp.up_proj.weight"] == 0.25
