"""Changed code in a running interpreter: as a module is imported, or put into functions that are already there.

Nothing is written to disk. A function gets other code while its module, and whoever imported the function, keep it:
so a process that has imported everything and collected the tests can be forked for each mutant.
"""

from __future__ import annotations

import ast
import builtins
import functools
import gc
import importlib.machinery
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from mutation.sites import Function, Mutant

_Loader = importlib.machinery.SourceFileLoader
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Place(NamedTuple):
    """Where a statement begins."""

    path: str
    line: int
    column: int


class Probes:
    """Notes which statements have run: one byte for each, in the order of `places`."""

    def __init__(self, places: Iterable[Place]) -> None:
        self.places = list(places)
        self.ran = bytearray(len(self.places))
        builtins.__ran__ = self.ran  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Nothing has run."""
        self.ran[:] = bytes(len(self.ran))

    def seen(self) -> int:
        """What has run, as bits."""
        return int(bytes(self.ran[::-1]).translate(_DIGITS) or b"0", 2)

    def compiled(self, path: str, source: bytes) -> types.CodeType:
        """A module with a probe before every statement of its functions."""
        numbers = {place: i for i, place in enumerate(self.places) if place.path == path}
        tree = ast.fix_missing_locations(_Probing(path, numbers).visit(ast.parse(source)))
        return compile(tree, path, "exec", dont_inherit=True)


_DIGITS = bytes.maketrans(b"\0\1", b"01")


def places(path: str, source: bytes) -> Iterator[Place]:
    """Where the statements of a file's functions begin."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, _FUNCTIONS):
            for node in ast.walk(function):
                if isinstance(node, ast.stmt) and node is not function:
                    yield Place(path, node.lineno, node.col_offset)


class _Probing(ast.NodeTransformer):
    def __init__(self, path: str, numbers: Mapping[Place, int]) -> None:
        self._path = path
        self._numbers = numbers

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:  # type: ignore[override]
        found = self.generic_visit(node)
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, ast.stmt) or is_text:
            return found
        number = self._numbers.get(Place(self._path, node.lineno, node.col_offset))
        return found if number is None else [_probe(number, node), found]


def _probe(number: int, at: ast.stmt) -> ast.stmt:
    byte = ast.Subscript(ast.Name("__ran__", ast.Load()), ast.Constant(number), ast.Store())
    return ast.copy_location(ast.Assign([byte], ast.Constant(1)), at)


def substitute(code_of: Callable[[str], types.CodeType | None]) -> None:
    """Have modules imported from other code than that of their file, where `code_of` has some for its path."""
    original = _Loader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> types.CodeType | None:
        return code_of(self.path) or original(self, name)

    _Loader.get_code = get_code  # type: ignore[method-assign, assignment]


def compiled(mutant: Mutant, path: str, source: bytes) -> types.CodeType:
    """A module with a mistake."""
    return compile(mutant.applied(source), path, "exec", dont_inherit=True)


def is_exchangeable(mutant: Mutant, path: str, source: bytes) -> bool:
    """Whether a mutant lies in a function whose code closes over the same names with and without the mistake."""
    if mutant.function is None:
        return False
    before = _code_of(compile(source, path, "exec", dont_inherit=True), mutant.function)
    after = _code_of(compiled(mutant, path, source), mutant.function)
    return before.co_freevars == after.co_freevars


class Living:
    """The functions of some files that are there, and what remembers their results."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._functions: dict[tuple[str, Function], list[types.FunctionType]] = {}
        self.caches: list[functools._lru_cache_wrapper[object]] = []
        files = set(paths)
        for thing in gc.get_objects():
            # By exact type: asking some of torch's objects for their class gives a warning.
            if type(thing) is types.FunctionType and thing.__code__.co_filename in files:
                self._functions.setdefault(_key(thing.__code__), []).append(thing)
            elif type(thing) is functools._lru_cache_wrapper:
                code = getattr(thing.__wrapped__, "__code__", None)
                if code is not None and code.co_filename in files:
                    self.caches.append(thing)

    def exchange(self, function: Function, module: types.CodeType) -> None:
        """Give every copy of a function the code that it has in a newly compiled module."""
        for thing in self._functions[module.co_filename, function]:
            thing.__code__ = _code_of(module, function)


def _key(code: types.CodeType) -> tuple[str, Function]:
    return code.co_filename, Function(code.co_name, code.co_firstlineno)


def _code_of(module: types.CodeType, function: Function) -> types.CodeType:
    wanted = (module.co_filename, function)
    return next(code for code in _inside(module) if _key(code) == wanted)


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _inside(constant)
