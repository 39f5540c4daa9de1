"""weightsmith against oracles: every method, variant, shape and structure, in float64 numpy from the papers.

`make oracle` runs all and writes docs/oracle.md. The ordinary tests take a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .catalogue import ORACLES, Rule, Variant, label
from .families import BUILDERS, llama
from .known import known
from .running import Stored, computed, error, in_memory, plain_recipe, store, written
from .structures import STRUCTURES, Case

SHAPES = list(BUILDERS)
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
def record() -> Iterator[Callable[..., None]]:
    """Keeps every error for the table that `make oracle` writes where ORACLE_RESULTS says."""
    rows: list[dict[str, object]] = []

    def keep(rule: Rule, variant: Variant, structure: str, shape: str, found: float) -> None:
        rows.append(
            {
                "method": rule.name,
                "variant": label(variant),
                "structure": structure,
                "shape": shape,
                "error": found,
            }
        )

    yield keep
    if path := os.environ.get("ORACLE_RESULTS"):
        Path(path).write_text(json.dumps(rows))


def cases(structure: str) -> list[object]:
    """Every rule and variant that a structure is for, marked where it is known to fail."""
    found = []
    for rule in ORACLES.values():
        for variant in rule.variants:
            if structure in STRUCTURES and not STRUCTURES[structure].applies(rule, variant):
                continue
            reason = known(rule.name, variant, structure)
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            found.append(
                pytest.param(rule, variant, marks=marks, id=f"{rule.name}-{label(variant)}")
            )
    return found


def every_structure() -> list[object]:
    """All structures with the rules and variants that they are for."""
    return [
        pytest.param(name, *case.values, marks=case.marks, id=f"{name}-{case.id}")
        for name in STRUCTURES
        for case in cases(name)
    ]


def compared(found: dict[str, float], tolerance: float) -> None:
    """Fail with all shapes that are off."""
    assert found
    assert max(found.values()) <= tolerance, {s: f"{e:.2g}" for s, e in found.items()}


# The sample -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ORACLES.values(), ids=ORACLES)
def test_a_method_agrees_with_its_oracle(rule: Rule) -> None:
    variant = rule.variants[0]
    family = rule.cut(llama(), variant)
    found = error(rule(family, variant), in_memory(rule, variant, family), family.base)
    assert found <= rule.tolerance


@pytest.mark.parametrize("structure", STRUCTURES)
def test_task_arithmetic_agrees_with_its_oracle_in_every_structure(structure, stored) -> None:
    rule = ORACLES["task_arithmetic"]
    variant = next(v for v in rule.variants if STRUCTURES[structure].applies(rule, v))
    case = STRUCTURES[structure].make(rule, variant, stored("llama"))
    assert error(case.want, computed(case.recipe), case.base) <= rule.tolerance


# Everything -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize(("rule", "variant"), cases("memory"))
def test_state_dicts_agree(rule, variant, record) -> None:
    found = {}
    for shape in SHAPES:
        family = rule.cut(BUILDERS[shape](), variant)
        want = rule(family, variant)
        found[shape] = error(want, in_memory(rule, variant, family), family.base)
        record(rule, variant, "memory", shape, found[shape])
    compared(found, rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize(("structure", "rule", "variant"), every_structure())
def test_structures_agree(structure, rule, variant, stored, record) -> None:
    found = {}
    for shape in SHAPES:
        case: Case | None = STRUCTURES[structure].make(rule, variant, stored(shape))
        if case is not None:
            found[shape] = error(case.want, computed(case.recipe), case.base)
            record(rule, variant, structure, shape, found[shape])
    compared(found, rule.tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rule", "variant"), cases("files"))
def test_files_agree(rule, variant, dtype, backend, stored, record, tmp_path) -> None:
    found = {}
    for shape in ("llama", "clip"):
        held = stored(shape, dtype)
        made = plain_recipe(rule, variant, held, out_dtype="float32")
        want = rule(rule.cut(held.family, variant), variant)
        found[shape] = error(want, written(made, tmp_path / shape, backend), held.family.base)
        record(rule, variant, f"{dtype} {backend}", shape, found[shape])
    compared(found, rule.tolerance_float32)


@pytest.mark.oracle
@pytest.mark.parametrize(("rule", "variant"), cases("tied"))
def test_a_tied_head_counts_once(rule, variant, record) -> None:
    family = rule.cut(llama(tied=True), variant)
    want = rule(family, variant)
    embedding = "model.embed_tokens.weight"
    got = in_memory(rule, variant, family, {"lm_head.weight": embedding})
    want |= {"lm_head.weight": want[embedding]}
    found = error(want, got, family.base)
    record(rule, variant, "tied", family.name, found)
    assert found <= rule.tolerance
