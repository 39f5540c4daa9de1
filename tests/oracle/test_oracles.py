"""weightsmith against oracles: every method, variant, shape and structure, in float64 numpy from the papers.

`make oracle` runs all and writes docs/oracle.md. The ordinary tests take a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weightsmith.methods.parts import modifiers, registry

from .catalogue import MODIFIERS, ORACLES, Rule, Variant, label
from .families import BUILDERS, llama
from .measured import measured
from .running import Stored, computed, error, in_memory, plain_recipe, store, written
from .structures import ROUNDED, SINGLE, STRUCTURES, Case

SHAPES = list(BUILDERS)
FLOAT32 = {f"{d} {b}" for d in ("float32", "bfloat16") for b in ("native", "torch")} | SINGLE
WITHOUT_ORACLE: dict[str, str] = {}
"""Methods that have no oracle, with the reason."""


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Stored]:
    """The family of a shape and dtype on disk, written when first asked for."""
    made: dict[tuple[str, str], Stored] = {}

    def get(shape: str, dtype: str = "float64") -> Stored:
        if (shape, dtype) not in made:
            folder = tmp_path_factory.mktemp(f"{shape}-{dtype}")
            made[shape, dtype] = store(BUILDERS[shape](dtype), folder, dtype)
        return made[shape, dtype]

    return get


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A family on disk that holds its embedding again as its head."""
    folder = tmp_path_factory.mktemp("tied")
    names = {"lm_head.weight": "model.embed_tokens.weight"}
    return store(llama(tied=True), folder, "float64", names)


@pytest.fixture(scope="session")
def record() -> Iterator[Callable[..., None]]:
    """Keeps every error for the table that `make oracle` writes, in a file of the folder ORACLE_RESULTS."""
    rows: list[dict[str, object]] = []

    def keep(rule: Rule, variant: Variant, structure: str, shape: str, found: float) -> None:
        rows.append(
            {
                "method": rule.name,
                "variant": label(variant),
                "structure": structure,
                "shape": shape,
                "error": found,
                "tolerance": rule.tolerance_float32 if structure in FLOAT32 else rule.tolerance,
            }
        )

    yield keep
    if folder := os.environ.get("ORACLE_RESULTS"):
        Path(folder, f"{os.getpid()}.json").write_text(json.dumps(rows))


def cases(structure: str) -> list[object]:
    """Every rule with the variants that a structure is for."""
    found = []
    for rule in ORACLES.values():
        fitting = [v for v in rule.tried(structure) if _applies(structure, rule, v)]
        if fitting:
            found.append(pytest.param(rule, fitting, id=rule.name))
    return found


def _applies(structure: str, rule: Rule, variant: Variant) -> bool:
    if structure == "equal":
        return variant in rule.equal
    return structure not in STRUCTURES or STRUCTURES[structure].applies(rule, variant)


def every_structure() -> list[object]:
    """All structures with the rules and variants that they are for."""
    return [
        pytest.param(name, *case.values, marks=case.marks, id=f"{name}-{case.id}")
        for name in STRUCTURES
        for case in cases(name)
    ]


def compared(found: dict[str, float], tolerance: float) -> None:
    """Fail with everything that is off."""
    assert found
    off = {case: f"{error:.2g}" for case, error in found.items() if not error <= tolerance}
    assert not off, f"beyond {tolerance}: {off}"


# The sample -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ORACLES.values(), ids=ORACLES)
def test_a_method_agrees_with_its_oracle(rule: Rule) -> None:
    variant = rule.variants[0]
    family = rule.cut(llama(), variant)
    found = error(rule(family, variant), in_memory(rule, variant, family), family.base)
    assert found <= rule.tolerance


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_method_agrees_with_its_oracle_in_every_structure(structure, stored) -> None:
    """Task arithmetic does, and TIES in those that need a share."""
    rule, variant = next(
        (rule, variant)
        for rule in (ORACLES["task_arithmetic"], ORACLES["ties"])
        for variant in rule.variants
        if STRUCTURES[structure].applies(rule, variant)
    )
    case = STRUCTURES[structure].make(rule, variant, stored("llama"))
    tolerance = rule.tolerance_float32 if structure in SINGLE else rule.tolerance
    assert error(case.want, computed(case.recipe), case.base) <= tolerance


# Everything -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize(("rule", "variants"), cases("memory"))
def test_state_dicts_agree(rule, variants, record) -> None:
    found = {}
    for variant in variants:
        for shape in SHAPES:
            family = rule.cut(BUILDERS[shape](), variant)
            off = error(rule(family, variant), in_memory(rule, variant, family), family.base)
            found[f"{label(variant)} {shape}"] = off
            record(rule, variant, "memory", shape, off)
    compared(found, rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize(("structure", "rule", "variants"), every_structure())
def test_structures_agree(structure, rule, variants, stored, record) -> None:
    found = {}
    for variant in variants:
        tried = rule.exactly(variant) if structure in ROUNDED else variant
        for shape in SHAPES:
            case: Case | None = STRUCTURES[structure].make(rule, tried, stored(shape))
            if case is not None:
                off = error(case.want, computed(case.recipe), case.base)
                found[f"{label(variant)} {shape}"] = off
                record(rule, variant, structure, shape, off)
    compared(found, rule.tolerance_float32 if structure in SINGLE else rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rule", "variants"), cases("files"))
def test_files_agree(rule, variants, dtype, stored, record, tmp_path) -> None:
    found = {}
    for i, variant in enumerate(variants):
        tried = rule.exactly(variant)
        for shape in ("llama", "clip"):
            held = stored(shape, dtype)
            want = rule(rule.cut(held.family, tried), tried)
            made = plain_recipe(rule, tried, held, out_dtype="float32")
            for backend in ("native", "torch"):
                got = written(made, tmp_path / f"{i}-{shape}-{backend}", backend)
                off = error(want, got, held.family.base)
                found[f"{label(variant)} {shape} {backend}"] = off
                record(rule, variant, f"{dtype} {backend}", shape, off)
    compared(found, rule.tolerance_float32)


@pytest.mark.oracle
@pytest.mark.parametrize(("rule", "variants"), cases("tied"))
def test_a_tied_head_counts_once(rule, variants, record) -> None:
    found = {}
    embedding = "model.embed_tokens.weight"
    for variant in variants:
        family = rule.cut(llama(tied=True), variant)
        want = rule(family, variant)
        want |= {"lm_head.weight": want[embedding]}
        got = in_memory(rule, variant, family, {"lm_head.weight": embedding})
        found[label(variant)] = error(want, got, family.base)
        record(rule, variant, "tied", family.name, found[label(variant)])
    compared(found, rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize(("rule", "variants"), cases("tied"))
def test_a_tied_head_in_files_counts_once(rule, variants, tied, record) -> None:
    found = {}
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    for variant in variants:
        want = rule(rule.cut(tied.family, variant), variant)
        got = computed(plain_recipe(rule, variant, tied))
        if head in got:
            want |= {head: want[embedding]}
        found[label(variant)] = error(want, got, tied.family.base)
        record(rule, variant, "tied files", tied.family.name, found[label(variant)])
    compared(found, rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize(("rule", "variants"), cases("equal"))
def test_equal_magnitudes_agree(rule, variants, record) -> None:
    found = {}
    for variant in variants:
        for shape in SHAPES:
            family = rule.cut(BUILDERS[shape]("coarse"), variant)
            off = error(rule(family, variant), in_memory(rule, variant, family), family.base)
            found[f"{label(variant)} {shape}"] = off
            record(rule, variant, "equal", shape, off)
    compared(found, rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("modifier", MODIFIERS.values(), ids=MODIFIERS)
@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties"])
def test_modifiers_agree(modifier, method, record) -> None:
    found = {}
    rule = ORACLES[method]
    weighted = next(v for v in rule.variants if isinstance(v.get("weight"), list))
    based = modifiers.get(modifier.name).base is not registry.Base.IGNORED or method != "linear"
    for variant in modifier.variants:
        for shape in SHAPES:
            family = rule.cut(BUILDERS[shape](), weighted)
            if modifier.statistics is not None:
                family = measured(family, modifier.statistics)
            want = rule(modifier.function(family, dict(variant)), weighted)
            got = in_memory(rule, weighted, family, modify={modifier.name: variant}, based=based)
            found[f"{label(variant)} {shape}"] = error(want, got, family.base)
            record(modifier, variant, f"modify {method}", shape, found[f"{label(variant)} {shape}"])
    compared(found, rule.tolerance)
