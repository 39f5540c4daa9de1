"""What a chat template does, read from its syntax tree: it is never rendered.

The language is that of transformers: jinja2 with blocks trimmed, `break` and `continue`, a `generation` tag,
and the functions `raise_exception` and `strftime_now`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from weightsmith.findings import Finding, Severity

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

# Longer than any template in use by two orders of magnitude, and still parsed in seconds.
_LONGEST = 1_000_000
# Ways from a value to the interpreter that do not start with an underscore.
_HOSTILE_ATTRIBUTES = frozenset(
    """mro subclasses func_globals func_code func_closure func_defaults gi_frame gi_code gi_yieldfrom cr_frame
    cr_code ag_frame ag_code f_globals f_locals f_builtins f_back tb_frame tb_next co_code environment""".split()
)
_HOSTILE_NAMES = frozenset({"self", "context", "environment"})
# Functions of jinja2 itself that have no use in a conversation.
_ODD_GLOBALS = frozenset({"cycler", "joiner", "lipsum"})
_FUNCTIONS = frozenset(
    {"range", "dict", "namespace", "raise_exception", "strftime_now", "caller", "loop", "varargs"}
)
_METHODS = frozenset(
    """capitalize casefold center count encode endswith expandtabs find format get index isalnum isalpha
    isascii isdecimal isdigit isidentifier islower isnumeric isspace istitle isupper items join keys ljust
    lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split
    splitlines startswith strip swapcase title translate upper values zfill copy union intersection difference
    cycle changed strftime isoformat""".split()
)
# Methods that change a list or mapping, which the sandbox of transformers refuses.
_CHANGES = frozenset(
    "append extend insert pop remove clear sort reverse update setdefault popitem add discard".split()
)
_DUNDER = re.compile(r"__\w")
_FIELD = re.compile(r"[{%][^{}]*[.\[]_")


def lint(text: str, subject: str) -> list[Finding]:
    """Findings about a template, in the order of its lines; `subject` says whose it is.

    Errors: it does not parse (`template-syntax`), or reaches for what only an attack needs (`template-hostile`):
    attributes with a leading underscore and other ways into the interpreter, other templates, `self`.
    Warnings: functions, filters, tests and methods that transformers does not offer (`template-unknown`).
    """
    from jinja2 import TemplateSyntaxError

    if len(text) > _LONGEST:
        return [_syntax(subject, f"has {len(text)} characters, which no template needs")]
    try:
        tree = _environment().parse(text)
        walk = _Walk(subject, _own_names(tree))
        walk.visit(tree)
    except TemplateSyntaxError as problem:
        return [_syntax(subject, f"does not parse: line {problem.lineno}: {problem.message}")]
    except RecursionError:
        return [_syntax(subject, "is nested too deeply to be read")]
    return walk.found()


def literals(text: str) -> list[str]:
    """The pieces of text that a template prints or compares, in order; none for one that does not parse."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = _environment().parse(text)
        found = list(tree.find_all((nodes.TemplateData, nodes.Const)))
    except (TemplateSyntaxError, RecursionError):
        return []
    texts = (
        n.data if isinstance(n, nodes.TemplateData) else getattr(n, "value", None) for n in found
    )
    return [one for one in texts if isinstance(one, str)]


def names_used(text: str) -> frozenset[str]:
    """The names that a template reads and does not set; none for one that does not parse."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = _environment().parse(text)
        used = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
        return frozenset(used - _own_names(tree))
    except (TemplateSyntaxError, RecursionError):
        return frozenset()


def _syntax(subject: str, what: str) -> Finding:
    return Finding(
        Severity.ERROR,
        "template-syntax",
        subject,
        f"The chat template of {subject} {what}",
        "correct it, or give another with `chat_template:`",
    )


@functools.cache
def _environment() -> Environment:
    """The syntax of transformers' environment; nothing is ever rendered with this one."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """`{% generation %}`: marks what the assistant says."""

        def __init__(self, environment: Environment) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = str
    return environment


def _own_names(tree: nodes.Node) -> frozenset[str]:
    """Every name that the template gives a value: by `set`, `for`, macros and their parameters."""
    from jinja2 import nodes

    names = {node.name for node in tree.find_all(nodes.Name) if node.ctx in ("store", "param")}
    names |= {node.name for node in tree.find_all(nodes.Macro)}
    return frozenset(names)


class _Walk:
    """Visits every node of a template and keeps what is wrong with it."""

    def __init__(self, subject: str, own: frozenset[str]) -> None:
        self._subject = subject
        self._own = own
        self._found: dict[tuple[str, str], Finding] = {}

    def found(self) -> list[Finding]:
        return list(self._found.values())

    def visit(self, node: nodes.Node) -> None:
        """Judge a node, then those inside it."""
        check = getattr(self, f"_on_{type(node).__name__.lower()}", None)
        if check is not None:
            check(node)
        for child in node.iter_child_nodes():
            self.visit(child)

    def _on_import(self, node: Any) -> None:
        self._hostile(node, "another template (`import`)")

    def _on_fromimport(self, node: Any) -> None:
        self._hostile(node, "another template (`from ... import`)")

    def _on_include(self, node: Any) -> None:
        self._hostile(node, "another template (`include`)")

    def _on_extends(self, node: Any) -> None:
        self._hostile(node, "another template (`extends`)")

    def _on_getattr(self, node: Any) -> None:
        self._attribute(node, node.attr)

    def _on_nsref(self, node: Any) -> None:
        if _DUNDER.match(node.attr):
            self._hostile(node, f"the attribute {node.attr!r}")

    def _on_getitem(self, node: Any) -> None:
        for text in _texts(node.arg):
            if _DUNDER.search(text) or text in _HOSTILE_ATTRIBUTES:
                self._hostile(node, f"the item {text!r}")

    def _on_name(self, node: Any) -> None:
        if node.ctx != "load" or node.name in self._own:
            return
        if node.name in _HOSTILE_NAMES or node.name.startswith("__"):
            self._hostile(node, f"the name {node.name!r}")
        elif node.name in _ODD_GLOBALS:
            self._unknown(node, f"{node.name!r}, which has no use in a conversation")

    def _on_filter(self, node: Any) -> None:
        if node.name not in _environment().filters:
            self._unknown(node, f"the filter {node.name!r}, which transformers does not have")
        if node.name == "attr":
            self._attr_filter(node)
        if node.name in ("map", "selectattr", "rejectattr", "groupby", "sum", "sort", "unique"):
            self._dotted_arguments(node)
        if node.name == "format" and node.node is not None:
            self._format(node, node.node)

    def _on_test(self, node: Any) -> None:
        if node.name not in _environment().tests:
            self._unknown(node, f"the test {node.name!r}, which transformers does not have")

    def _on_call(self, node: Any) -> None:
        target = node.node
        name = getattr(target, "name", None)
        if name is not None and hasattr(target, "ctx") and not hasattr(target, "attr"):
            if name not in self._own | _FUNCTIONS | _ODD_GLOBALS | _HOSTILE_NAMES:
                self._unknown(node, f"the function {name!r}, which transformers does not have")
            return
        method = getattr(target, "attr", None)
        if not isinstance(method, str) or method in _METHODS:
            if method == "format":
                self._format(node, target.node)
            return
        if method in _CHANGES:
            self._unknown(node, f"the method {method!r}, which the sandbox of transformers refuses")
        elif not method.startswith("_") and method not in _HOSTILE_ATTRIBUTES:
            self._unknown(
                node, f"the method {method!r}, which values in a conversation do not have"
            )

    def _attr_filter(self, node: Any) -> None:
        from jinja2 import nodes

        for argument in node.args:
            if isinstance(argument, nodes.Const):
                self._attribute(node, str(argument.value))
            else:
                self._hostile(node, "an attribute whose name is computed")

    def _dotted_arguments(self, node: Any) -> None:
        for argument in (*node.args, *(keyword.value for keyword in node.kwargs)):
            for text in _texts(argument):
                for step in text.split("."):
                    self._attribute(node, step)

    def _format(self, node: Any, pattern: Any) -> None:
        """A format string has an attribute access of its own: `{0.__class__}`."""
        if any(_FIELD.search(text) for text in _texts(pattern)):
            self._hostile(node, "an attribute inside a format string")

    def _attribute(self, node: Any, name: str) -> None:
        if name.startswith("_") or name in _HOSTILE_ATTRIBUTES:
            self._hostile(node, f"the attribute {name!r}")

    def _hostile(self, node: Any, what: str) -> None:
        self._add(
            Severity.ERROR,
            "template-hostile",
            f"The chat template of {self._subject} reaches for {what} (line {node.lineno}), which no conversation "
            "needs and attacks do",
            "do not trust it; give another with `chat_template:`",
            what,
        )

    def _unknown(self, node: Any, what: str) -> None:
        self._add(
            Severity.WARNING,
            "template-unknown",
            f"The chat template of {self._subject} uses {what} (line {node.lineno})",
            "render a conversation before you publish the result",
            what,
        )

    def _add(self, severity: Severity, code: str, message: str, fix: str, what: str) -> None:
        self._found.setdefault((code, what), Finding(severity, code, self._subject, message, fix))


def _texts(node: Any) -> Iterator[str]:
    """The constant texts in an expression, and those that come of joining them."""
    from jinja2 import nodes

    if isinstance(node, nodes.Const):
        if isinstance(node.value, str):
            yield node.value
        return
    constants = [n.value for n in node.find_all(nodes.Const) if isinstance(n.value, str)]
    yield from constants
    if isinstance(node, (nodes.Add, nodes.Concat)):
        yield "".join(constants)
