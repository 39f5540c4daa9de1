"""Where a file can be mutated: every expression and statement that computes, and nothing that only describes."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from mutation import changes

# Parameters of calls that describe, or that change how something is done and never what comes out.
_DESCRIPTIONS = {
    *("doc", "title", "paper", "cost", "generalises"),
    *("slots", "frozen", "repr", "maxsize", "strict", "copy"),
}
_CALLS_LEFT_OUT = {"TypeVar"}
_BASES_LEFT_OUT = {"Protocol"}
_FUNCTIONS_LEFT_OUT = {"__repr__"}


@dataclass(frozen=True)
class Function:
    """A function that no other function encloses, as its compiled code is found: by name and first line."""

    name: str
    first_line: int


@dataclass(frozen=True)
class Mutant:
    """A file with one mistake.

    `start` and `stop` are offsets of what is replaced, in bytes of UTF-8. `function` is None for what runs when the
    module is imported, `statement` the place (line and column) of the innermost statement.
    """

    path: str
    where: str
    line: int
    start: int
    stop: int
    replacement: str
    change: str
    function: Function | None
    statement: tuple[int, int]

    def applied(self, source: bytes) -> bytes:
        """The source with the mistake; its lines keep their numbers."""
        replaced = source[self.start : self.stop]
        padding = "\n" * replaced.count(b"\n")
        text = self.replacement.format(padding=padding).encode()
        return source[: self.start] + text + source[self.stop :]


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of the file."""
    visitor = _Visitor(path, source)
    visitor.walk(ast.parse(source).body)
    return visitor.found


@dataclass
class _Visitor:
    path: str
    source: bytes
    found: list[Mutant] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    function: Function | None = None
    bound: set[str] = field(default_factory=set)
    local: set[str] = field(default_factory=set)
    returns: list[ast.Return] = field(default_factory=list)
    statement: ast.stmt = field(default_factory=ast.Pass)

    def __post_init__(self) -> None:
        self._lines = [0]
        for line in self.source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def walk(self, body: Sequence[ast.stmt]) -> None:
        for i, node in enumerate(body):
            if not (i == 0 and _is_text(node)):
                self.visit_statement(node)

    def visit_statement(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.Pass)):
            return
        self.statement = node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._visit_function(node)
            return
        if isinstance(node, ast.ClassDef):
            self._visit_class(node)
            return
        if _is_left_out(node):
            return
        for other in changes.statements(node, self.bound):
            self._add(node, other)
        self._visit_return(node)
        self._visit_parts(node)
        self.bound |= _names_bound_by(node)

    def _visit_return(self, node: ast.stmt) -> None:
        """What another branch returns, where all that it needs is known."""
        if not isinstance(node, ast.Return) or node.value is None:
            return
        for other in self.returns:
            if other is node or other.value is None or _same(other.value, node.value):
                continue
            if _names_of(other.value) & self.local <= self.bound:
                self._add(node.value, other.value)

    def _visit_parts(self, node: ast.stmt) -> None:
        for name, part in ast.iter_fields(node):
            if name in ("annotation", "pattern", "type_comment"):
                continue
            if name == "test" and isinstance(part, ast.expr):
                self._visit_condition(part)
            for child in part if isinstance(part, list) else [part]:
                if isinstance(child, ast.stmt):
                    self.visit_statement(child)
                    self.statement = node
                elif isinstance(child, ast.expr):
                    self.visit_expression(child)
                elif isinstance(child, ast.AST):
                    self._visit_clause(child)

    def _visit_clause(self, node: ast.AST) -> None:
        """Parts of statements that are neither: `with` items, cases, handlers, parameters of a call."""
        outer = self.statement
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.visit_statement(child)
                self.statement = outer
            elif isinstance(child, ast.expr) and not isinstance(node, ast.ExceptHandler):
                self.visit_expression(child)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults, *node.decorator_list]:
            if default is not None:
                self.visit_expression(default)
        if node.name in _FUNCTIONS_LEFT_OUT:
            return
        outer = (self.function, self.bound, self.local, self.returns)
        first_line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        self.function = self.function or Function(node.name, first_line)
        self.bound = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
        self.local = self.bound | _names_bound_by(node)
        self.returns = [n for n in ast.walk(node) if isinstance(n, ast.Return)]
        self.names.append(node.name)
        self.walk(node.body)
        self.names.pop()
        self.function, self.bound, self.local, self.returns = outer

    def _visit_class(self, node: ast.ClassDef) -> None:
        if any(isinstance(b, ast.Name) and b.id in _BASES_LEFT_OUT for b in node.bases):
            return
        for decorator in node.decorator_list:
            self.visit_expression(decorator)
        self.names.append(node.name)
        self.walk(node.body)
        self.names.pop()

    def visit_expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _is_text_made(node)):
            return
        for other in changes.expressions(node):
            if not _drops_description(node, other):
                self._add(node, other)
        if isinstance(node, ast.IfExp):
            self._visit_condition(node.test)
        if isinstance(node, ast.Lambda):
            self.visit_expression(node.body)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.visit_expression(child)
            elif isinstance(child, ast.keyword):
                if child.arg not in _DESCRIPTIONS:
                    self.visit_expression(child.value)
            elif isinstance(child, ast.comprehension):
                self._visit_comprehension(child)

    def _visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit_expression(node.iter)
        for test in node.ifs:
            self._visit_condition(test)
            self.visit_expression(test)

    def _visit_condition(self, test: ast.expr) -> None:
        for other in changes.condition(test):
            self._add(test, other)

    def _add(self, node: ast.stmt | ast.expr, other: ast.stmt | ast.expr) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        before, after = _on_one_line(node), _on_one_line(other)
        is_slice = isinstance(node, ast.Slice)
        text = after.replace("{", "{{").replace("}", "}}") + ("" if is_slice else "{padding}")
        if isinstance(node, ast.expr) and not is_slice:
            text = f"({text})"
        self.found.append(
            Mutant(
                path=self.path,
                where=".".join(self.names),
                line=node.lineno,
                start=self._lines[node.lineno - 1] + node.col_offset,
                stop=self._lines[node.end_lineno - 1] + node.end_col_offset,
                replacement=text,
                change=f"{before} -> {after}",
                function=self.function,
                statement=(self.statement.lineno, self.statement.col_offset),
            )
        )


def _on_one_line(node: ast.AST) -> str:
    first, *rest = ast.unparse(ast.fix_missing_locations(node)).splitlines()
    return f"{first} ..." if rest else first


def _is_text_made(node: ast.Call) -> bool:
    """Errors with their texts, and variables of types."""
    name = changes.called_name(node)
    return name.endswith("Error") or name in _CALLS_LEFT_OUT


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_left_out(node: ast.stmt) -> bool:
    """Slots, aliases of types, and what is read by type checkers alone."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if not isinstance(node, ast.Assign):
        return False
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    is_union = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
    is_type = is_union or isinstance(node.value, ast.Subscript)
    return "__slots__" in names or (is_type and bool(names) and names[0][0].isupper())


def _drops_description(node: ast.expr, other: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(other, ast.Call):
        return False
    dropped = {k.arg for k in node.keywords} - {k.arg for k in other.keywords}
    return bool(dropped & _DESCRIPTIONS)


def _names_bound_by(node: ast.stmt) -> set[str]:
    return {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _names_of(node: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _same(a: ast.AST, b: ast.AST) -> bool:
    return ast.dump(a) == ast.dump(b)
