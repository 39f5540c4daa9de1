"""The index of methods: complete, and what it saves from being imported."""

from __future__ import annotations

import importlib.machinery
import json
import pkgutil
import py_compile
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import import_module

import pytest

import weightsmith.methods
from weightsmith.errors import RecipeError, UsageError
from weightsmith.graph.graph import Value
from weightsmith.methods.parts import method_index as index
from weightsmith.methods.parts import modifiers, registry
from weightsmith.methods.parts.registry import Base, method


def fresh(program):
    """What a program prints as JSON in an interpreter of its own."""
    finished = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


IMPORTED = (
    "print(json.dumps([m.rpartition('.')[2] for m in sys.modules if m.startswith("
    "'weightsmith.methods.')]))"
)


def test_every_method_and_modifier_is_in_the_index_under_the_module_that_registers_it():
    for found in pkgutil.walk_packages(weightsmith.methods.__path__, "weightsmith.methods."):
        import_module(found.name)
    for kind, registered in (("method", registry._REGISTRY), ("modifier", modifiers._REGISTRY)):
        own = {
            name: spec.implementation.__module__
            for name, spec in registered.items()
            if spec.implementation.__module__.startswith("weightsmith.methods.")
        }
        assert own == index.modules_of(kind)


def test_naming_the_methods_imports_none():
    program = (
        "from weightsmith.methods import modifiers, registry\n"
        "assert 'ties' in registry.names() and 'clip' in modifiers.names()\n"
    )
    assert set(fresh(program + IMPORTED)) == {"parts", "method_index", "modifiers", "registry"}


def test_a_wrong_name_is_answered_without_importing_a_method():
    program = (
        "from weightsmith.methods import modifiers, registry\n"
        "from weightsmith.errors import RecipeError\n"
        "for get, name, meant in ((registry.get, 'tiess', 'ties'), (modifiers.get, 'clipp', 'clip')):\n"
        "    try:\n"
        "        get(name)\n"
        "    except RecipeError as error:\n"
        "        assert f'did you mean {meant}' in str(error), error\n"
    )
    assert set(fresh(program + IMPORTED)) == {"parts", "method_index", "modifiers", "registry"}


def test_one_method_imports_its_own_module_and_what_that_shares():
    program = "from weightsmith.methods import registry\nregistry.get('ties')\n"
    imported = set(fresh(program + IMPORTED))
    assert "ties" in imported
    assert len(imported) < 12


@dataclass(frozen=True, slots=True)
class First:
    """The first expert."""

    def combine(self, base, experts, site) -> Value:
        return experts[0]


def register(name):
    return method(name, title="First", paper="none, 2026", base=Base.IGNORED)(First)


def test_a_method_of_another_package_is_found_once_its_module_is_imported():
    with pytest.raises(RecipeError, match="no merge method called 'first_of_all'"):
        registry.get("first_of_all")
    register("first_of_all")
    try:
        assert registry.get("first_of_all").implementation is First
        assert "first_of_all" in registry.names()
        register("first_of_all")
    finally:
        del registry._REGISTRY["first_of_all"]


@pytest.mark.parametrize(("name", "place"), [("ties", "conflicts"), ("linear", "averages")])
def test_a_name_that_a_method_has_is_not_given_to_another(name, place):
    with pytest.raises(UsageError, match=f"'{name}', which weightsmith.methods.{place}.{name} has"):
        register(name)


def test_sources_are_read_from_folders_and_archives_and_missing_where_only_compiled_files_are(
    tmp_path,
):
    (tmp_path / "old.py").write_text("soups = 1\n")
    py_compile.compile(str(tmp_path / "old.py"), cfile=str(tmp_path / "new.pyc"))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("packed.py", "soups = 2\n")
    folder, archive = str(tmp_path), str(tmp_path / "archive.zip")
    spec = importlib.machinery.PathFinder.find_spec
    assert index._source(spec("old", [folder])) == b"soups = 1\n"
    assert index._source(spec("packed", [archive])) == b"soups = 2\n"
    assert index._source(spec("new", [folder])) is None
