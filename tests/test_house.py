"""The structure of the source: rooms are entered through their doors, nothing imports in a circle, names are unique."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
# A command's file has the name of the command, which may be that of what it calls.
COMMANDS = SOURCE / "weightsmith" / "cli"


@cache
def modules() -> dict[str, Path]:
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def is_room(module: str) -> bool:
    return modules()[module].name == "__init__.py"


@cache
def imports(module: str) -> tuple[tuple[str, str], ...]:
    """What a module imports, types alone included: (module, the module itself or the one that hands on the name)."""
    found = []
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("weightsmith"):
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((node.module, full if full in modules() else node.module))
    return tuple(found)


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def past_doors(module: str) -> Iterator[str]:
    for named, target in imports(module):
        if room_of(target) != room_of(module) and is_room(room_of(target)) and named.count(".") > 1:
            yield f"{module} -> {named}"


def test_rooms_are_entered_through_their_doors() -> None:
    inside = [module for module in modules() if module != "weightsmith"]
    assert not [found for module in inside for found in past_doors(module)]


def test_nothing_is_imported_in_a_circle_not_even_for_types() -> None:
    # A door names what it hands on, for type checkers, and imports nothing.
    graph = {
        module: {target for _, target in imports(module) if not is_room(target)}
        for module in modules()
        if not is_room(module)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        raise AssertionError(" -> ".join(circle.args[1])) from None


def test_no_two_files_have_one_name() -> None:
    places = defaultdict(list)
    for file in modules().values():
        if file.name != "__init__.py" and not file.is_relative_to(COMMANDS):
            places[file.name].append(str(file.relative_to(SOURCE)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for module, file in modules().items():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_room_says_what_lives_in_it() -> None:
    rooms = [module for module in modules() if is_room(module)]
    assert not [
        room for room in rooms if not ast.get_docstring(ast.parse(modules()[room].read_text()))
    ]


def test_no_room_has_more_files_side_by_side_than_one_looks_through() -> None:
    files = Counter(file.parent for file in modules().values() if file.name != "__init__.py")
    crowded = {str(folder.relative_to(SOURCE)): n for folder, n in files.items() if n > 30}
    assert not crowded, "sub-rooms say what somebody looks for"
