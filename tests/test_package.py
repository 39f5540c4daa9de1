"""The package as a whole: what importing it costs, what it hands out, how its rooms are joined."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import weightsmith

SOURCE = Path(weightsmith.__file__).parent
HEAVY = {"numpy", "pydantic", "ray", "safetensors", "sklearn", "torch", "transformers"}
OPTIONAL = {"matplotlib", "ray", "safetensors", "scipy", "sklearn", "torch", "transformers"}
TORCH_LIVES_IN = {
    *(SOURCE / "graph" / "backends").glob("torch_*.py"),
    # Functions of its autograd, which only what runs a network imports.
    SOURCE / "live" / "gradient_catching.py",
    SOURCE / "statistics" / "log_probabilities.py",
}
# A run block by block has tensors of its own.
TORCH_LIVES_IN |= set((SOURCE / "live" / "blocks").glob("*.py"))
# What `testbed list` loads stays light; the recipes of the families train networks, and tell how good they are.
TESTBEDS = SOURCE / "testbeds"
TORCH_LIVES_IN |= {*(TESTBEDS / "families").glob("*.py"), *(TESTBEDS / "models").glob("*.py")}
TORCH_LIVES_IN.add(TESTBEDS / "data" / "language_tasks.py")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(finished.stdout.splitlines()[-1])}


def cpu_seconds(statement: str) -> float:
    """Least CPU time of three fresh interpreters that run a statement and nothing else."""
    program = f"import time\n{statement}\nprint(time.process_time())"
    command = [sys.executable, "-c", program]
    return min(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    )


def test_importing_the_package_loads_no_heavy_module():
    assert not loaded_by("import weightsmith") & HEAVY


def test_listing_the_public_names_loads_no_heavy_module():
    assert not loaded_by("import weightsmith; dir(weightsmith)") & HEAVY


def test_importing_the_package_costs_a_few_milliseconds():
    assert cpu_seconds("import weightsmith") - cpu_seconds("pass") < 0.06


PUBLIC = dir(weightsmith)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name):
    value = getattr(weightsmith, name)
    assert callable(value)
    assert value.__doc__


def test_only_public_names_are_listed_loaded_or_not():
    assert weightsmith.__all__ == PUBLIC
    assert not [name for name in PUBLIC if name.startswith("_")]
    assert set("merge plan inspect diff rollback report pack_delta extract_adapter".split()) <= set(
        PUBLIC
    )
    # Once all are loaded, nothing has come to them.
    assert dir(weightsmith) == PUBLIC


def test_a_star_import_gives_the_public_names():
    names = loaded_names("from weightsmith import *")
    assert names >= set(PUBLIC)


def loaded_names(statement: str) -> set[str]:
    """Names that a statement gives to an empty namespace."""
    namespace: dict[str, object] = {}
    exec(statement, namespace)
    return set(namespace)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'mergee'"):
        _ = weightsmith.mergee


def doors() -> dict[str, ast.Module]:
    """The packages that hand on names, with their source."""
    trees = {
        ".".join(("weightsmith", *file.relative_to(SOURCE).parent.parts)): ast.parse(
            file.read_text()
        )
        for file in sorted(SOURCE.rglob("__init__.py"))
    }
    return {name: tree for name, tree in trees.items() if "door(" in ast.unparse(tree)}


@pytest.mark.parametrize("package", doors())
def test_type_checkers_see_the_names_that_are_handed_out(package):
    guarded = next(node for node in doors()[package].body if isinstance(node, ast.If))
    declared = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = importlib.import_module(package)
    assert sorted(declared) == loaded.__all__
    for name, place in declared.items():
        module, _, own = place.partition(":")
        assert getattr(loaded, name) is getattr(importlib.import_module(module), own)
        # A module of that name would take the name's place once it is imported.
        if importlib.util.find_spec(f"{package}.{name}") is not None:
            assert getattr(loaded, name) is importlib.import_module(f"{package}.{name}")


def test_the_version_is_the_one_that_was_installed():
    assert version("weightsmith") == weightsmith.__version__


def test_the_package_is_marked_as_typed():
    assert (SOURCE / "py.typed").exists()


@pytest.mark.skipif(
    not shutil.which("c++") or bool(os.environ.get("WEIGHTSMITH_NO_NATIVE")),
    reason="there is no C++ compiler, or the native kernels are not wanted",
)
def test_the_native_kernels_are_built_where_a_compiler_is():
    assert (SOURCE / "tensors" / "_native.so").exists()


def modules() -> list[str]:
    return [
        ".".join(("weightsmith", *file.relative_to(SOURCE).with_suffix("").parts))
        for file in sorted(SOURCE.rglob("*.py"))
        if file.name not in {"__init__.py", "__main__.py"}
    ]


@pytest.mark.parametrize("module", modules())
def test_every_module_can_be_imported(module):
    importlib.import_module(module)


def top_level_imports(tree: ast.Module) -> set[str]:
    """Top-level packages that a module imports when it is loaded, type-checking blocks aside."""
    found = set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]
    return found


def test_optional_packages_are_imported_only_where_they_are_used():
    offenders = {
        str(file.relative_to(SOURCE)): sorted(offending)
        for file in sorted(SOURCE.rglob("*.py"))
        if file not in TORCH_LIVES_IN
        and (offending := top_level_imports(ast.parse(file.read_text())) & OPTIONAL)
    }
    assert not offenders


def test_no_file_is_longer_than_the_house_allows():
    lengths = {
        str(file.relative_to(SOURCE)): len(file.read_text().splitlines())
        for file in SOURCE.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 500}
