"""Mistakes: what can stand in for an expression or a statement, each wrong in one way.

The usual ones (comparisons, arithmetic, constants one off, conditions turned round, statements left out), and those
that are easily made in this code: the scope of a reduction, the order of what does not commute, minimum for maximum, a
matrix that is not transposed.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_NOT_COMMUTATIVE = (ast.Sub, ast.Div, ast.MatMult)
_SCOPES = {
    "LITERAL": "TENSOR",
    "MODEL": "TENSOR",
    "TENSOR": "ROW",
    "ROW": "TENSOR",
    "COLUMN": "ROW",
}
# Functions and operations of the graph that are taken for each other.
_TWINS = (
    ("minimum", "maximum"),
    ("min", "max"),
    ("any", "all"),
    ("floor", "ceil"),
    ("ones", "zeros"),
    ("add", "sub"),
    ("mul", "div"),
    ("lt", "le"),
    ("gt", "ge"),
    ("and", "or"),
    ("total", "peak"),
    ("left", "right"),
)
_TWIN = {a: b for pair in _TWINS for a, b in (pair, pair[::-1])}
_UNWRAPPED = {"abs", "sqrt", "sign", "exp", "log", "sorted", "reversed", "set", "norm"}
# Where the order of two arguments changes nothing, or the type of an argument would stop the very first test.
_COMMUTATIVE = {
    *("minimum", "maximum", "min", "max", "dot", "column_dot", "linear_combination"),
    *("isinstance", "issubclass", "getattr", "hasattr", "setattr", "cast", "field"),
}
_COMMUTATIVE_OPERATIONS = {"add", "mul", "and", "or", "eq", "dot", "minimum", "maximum"}


def expressions(node: ast.expr) -> Iterator[ast.expr]:
    """What can stand in for an expression itself, its parts being right."""
    if isinstance(node, ast.Compare):
        yield from _compared(node)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.BinOp):
        yield from _computed(node)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _constants(node.value))
    elif isinstance(node, ast.Attribute):
        yield from _attribute(node)
    elif isinstance(node, ast.Slice):
        yield from _slice(node)
    elif isinstance(node, ast.Call):
        yield from _called(node)


def _compared(node: ast.Compare) -> Iterator[ast.expr]:
    for i, operator in enumerate(node.ops):
        for other in _COMPARISONS[type(operator)]:
            operators = [*node.ops[:i], other(), *node.ops[i + 1 :]]
            yield ast.Compare(node.left, operators, node.comparators)


def _computed(node: ast.BinOp) -> Iterator[ast.expr]:
    if type(node.op) in _OPERATORS:
        yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
    if isinstance(node.op, _NOT_COMMUTATIVE) and not _same(node.left, node.right):
        yield ast.BinOp(node.right, node.op, node.left)


def _constants(value: object) -> Iterator[bool | int | float | str]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value - 1)
    elif isinstance(value, str) and value in _TWIN:
        yield _TWIN[value]


def _attribute(node: ast.Attribute) -> Iterator[ast.expr]:
    if isinstance(node.value, ast.Name) and node.value.id == "Scope" and node.attr in _SCOPES:
        yield ast.Attribute(node.value, _SCOPES[node.attr], node.ctx)
    if node.attr == "T":
        yield node.value


def _slice(node: ast.Slice) -> Iterator[ast.expr]:
    for end in ("lower", "upper"):
        bound = getattr(node, end)
        if bound is not None and not isinstance(bound, (ast.Constant, ast.UnaryOp)):
            yield _with(node, **{end: ast.BinOp(bound, ast.Add(), ast.Constant(1))})


def _called(node: ast.Call) -> Iterator[ast.expr]:
    name = called_name(node)
    if name in _TWIN and isinstance(node.func, (ast.Name, ast.Attribute)):
        renamed = copy.copy(node.func)
        setattr(renamed, "id" if isinstance(renamed, ast.Name) else "attr", _TWIN[name])
        yield _with(node, func=renamed)
    if name in _UNWRAPPED and len(node.args) == 1 and isinstance(node.func, ast.Name):
        yield node.args[0]
    if name == "range":
        last = ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))
        yield _with(node, args=[*node.args[:-1], last])
    elif name not in _COMMUTATIVE:
        yield from _reordered(node)
    for i in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _reordered(node: ast.Call) -> Iterator[ast.expr]:
    """Neighbouring arguments exchanged, and the inputs of an operation of the graph."""
    arguments = node.args
    if len(arguments) >= 2 and isinstance(arguments[0], ast.Constant):
        operation, inputs = arguments[0].value, arguments[1]
        is_ordered = isinstance(operation, str) and operation not in _COMMUTATIVE_OPERATIONS
        if is_ordered and isinstance(inputs, ast.Tuple) and len(inputs.elts) == 2:
            turned = ast.Tuple(inputs.elts[::-1], inputs.ctx)
            yield _with(node, args=[arguments[0], turned, *arguments[2:]])
        return
    if any(isinstance(argument, ast.Starred) for argument in arguments):
        return
    for i in range(len(arguments) - 1):
        is_library = isinstance(arguments[i], ast.Name) and arguments[i].id == "linalg"
        if not is_library and not _same(arguments[i], arguments[i + 1]):
            swapped = [*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]]
            yield _with(node, args=swapped)


def called_name(node: ast.Call) -> str:
    """The last part of what is called."""
    function = node.func
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def condition(test: ast.expr) -> Iterator[ast.expr]:
    """A condition turned round, where no change of its own expression does that."""
    turns_itself = isinstance(test, ast.Compare) and len(test.ops) == 1
    if not turns_itself and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
        yield ast.UnaryOp(ast.Not(), test)


def statements(node: ast.stmt, bound: set[str]) -> Iterator[ast.stmt]:
    """What can stand in for a statement; `bound` are the names that have a value before it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
        if type(node.op) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(node.op)]())
    elif isinstance(node, ast.Assign):
        if all(_is_bound(target, bound) for target in node.targets):
            yield ast.Pass()
    elif isinstance(node, ast.If):
        leaves = isinstance(node.body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))
        if leaves and not node.orelse:
            yield ast.Pass()
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()


def _is_bound(target: ast.expr, bound: set[str]) -> bool:
    if isinstance(target, ast.Tuple):
        return all(_is_bound(element, bound) for element in target.elts)
    return isinstance(target, ast.Subscript) or (
        isinstance(target, ast.Name) and target.id in bound
    )


def _same(a: ast.AST, b: ast.AST) -> bool:
    return ast.dump(a) == ast.dump(b)


def _with(node: ast.AST, **parts: object) -> ast.AST:
    twin = copy.copy(node)
    for name, part in parts.items():
        setattr(twin, name, part)
    return twin
