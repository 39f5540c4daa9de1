"""Do the methods of a recipe exist, and does every parameter in it reach one of them?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.methods import METRICS, modifiers, registry
from weightsmith.naming import nearest
from weightsmith.recipes.language import dialect
from weightsmith.recipes.language.free_checks import check_free
from weightsmith.recipes.language.schema import MethodStep, Module, RecipeDocument, Slice

if TYPE_CHECKING:
    from weightsmith.recipes.language.expression_reading import Combination


@dataclass(frozen=True, slots=True)
class Use:
    """A method that a level's parameters reach, under the semantics that hold there."""

    method: str
    semantics: str


def check_methods(
    document: RecipeDocument, inherited: str, where: Callable[[str], str], path: str = ""
) -> list[Finding]:
    """Findings about parameters that have no effect, in a recipe and those inside it.

    `where` turns a path such as `models[0].parameters.weight` into words for messages. Raises
    RecipeError for an unknown method and, in native semantics, for every parameter without effect;
    in mergekit's semantics a parameter of another method is a warning, and one of no method at all
    an error.
    """
    semantics = document.semantics or inherited
    check = _Check(path, where)
    check.recipe(document, semantics)
    for nested, inner in _nested(document):
        check.findings += check_methods(nested, semantics, where, f"{path}{inner}.")
    return check.findings


_OUTERMOST = {
    "tokenizer": "whose result is the only one with a tokenizer",
    "tokenizer_source": "whose result is the only one with a tokenizer",
    "chat_template": "whose result is the only one with a tokenizer",
    "equal_magnitudes": "and is one rule for all that it contains",
    "adapter": "whose result is the only one that is stored",
}


def refuse_outermost_keys(document: RecipeDocument, path: str = "") -> None:
    """Raise RecipeError for a key of a recipe inside a recipe that only the outermost one can have."""
    for nested, inner in _nested(document):
        for key, why in _OUTERMOST.items():
            if getattr(nested, key) is not None:
                raise RecipeError(
                    f"{path}{inner}.{key}: `{key}` belongs to the outermost recipe, {why}; move it there."
                )
        refuse_outermost_keys(nested, f"{path}{inner}.")


@dataclass(slots=True)
class _Check:
    path: str
    where: Callable[[str], str]
    findings: list[Finding] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    # Whether a modifier goes by statistics.
    is_weighed: bool = False

    def recipe(self, document: RecipeDocument, semantics: str) -> None:
        self._require_method(document.merge_method, "merge_method")
        self._modify(document.modify, "modify")
        top = Use(document.merge_method, semantics) if document.merge_method else None
        uses: list[Use] = []
        if document.models:
            assert top is not None
            uses.append(top)
            self._sources(document.models, [top], "models")
        for i, part in enumerate(document.slices or ()):
            uses += self._slice(part, top, semantics, f"slices[{i}]")
        for name, module in (document.modules or {}).items():
            uses += self._module(module, top, semantics, f"modules.{name}")
        rules: list[Use] = []
        for i, rule in enumerate(document.rules or ()):
            self._require_method(rule.merge_method, f"rules[{i}].merge_method")
            self._modify(rule.modify, f"rules[{i}].modify")
            changed = [
                Use(rule.merge_method or use.method, rule.semantics or use.semantics)
                for use in dict.fromkeys(uses)
            ]
            self._level(rule.parameters, changed, f"rules[{i}]", per_expert_allowed=True)
            self._require_preset(rule.semantics, _methods(changed), f"rules[{i}].semantics")
            if rule.keep is None:
                rules += changed
        self._level(
            document.parameters,
            [*uses, *rules],
            "",
            per_expert_allowed=True,
            sources=document.models,
        )
        self._require_use_of_statistics([*uses, *rules])
        methods = _methods([*uses, *rules])
        if document.expression is not None:
            from weightsmith.recipes.language.expression_reading import (
                called_methods,
                parse_expression,
            )

            read = parse_expression(document.expression, document.checkpoints or {}, semantics)
            methods += called_methods(read)
            self._measured_operands(read, document)
        for i, step in enumerate(document.then or ()):
            self._require_method(step.method, f"then[{i}]")
            self._level(
                step.parameters,
                [Use(step.method, semantics)],
                f"then[{i}]",
                per_expert_allowed=True,
            )
            methods.append(step.method)
            self._step_statistics(step, f"then[{i}]")
        self._require_preset(document.semantics, methods, "semantics")

    def _module(self, module: Module, top: Use | None, semantics: str, where: str) -> list[Use]:
        self._require_method(module.merge_method, f"{where}.merge_method")
        self._modify(module.modify, f"{where}.modify")
        here = _changed(top, module.merge_method, module.semantics, semantics)
        uses: list[Use] = []
        if module.models:
            uses = [here] if here else []
            self._sources(module.models, uses, f"{where}.models")
        for i, part in enumerate(module.slices or ()):
            uses += self._slice(part, here, module.semantics or semantics, f"{where}.slices[{i}]")
        self._level(module.parameters, uses, where, per_expert_allowed=True, sources=module.models)
        self._require_preset(module.semantics, _methods(uses), f"{where}.semantics")
        return uses

    def _slice(self, part: Slice, above: Use | None, semantics: str, where: str) -> list[Use]:
        self._require_method(part.merge_method, f"{where}.merge_method")
        self._modify(part.modify, f"{where}.modify")
        here = _changed(above, part.merge_method, part.semantics, semantics)
        uses = [here] if here else []
        self._sources(part.sources, uses, f"{where}.sources")
        self._level(part.parameters, uses, where, per_expert_allowed=True, sources=part.sources)
        self._require_preset(part.semantics, _methods(uses), f"{where}.semantics")
        return uses

    def _sources(self, sources: Iterable[Any], uses: list[Use], where: str) -> None:
        for i, source in enumerate(sources):
            self._level(source.parameters, uses, f"{where}[{i}]", per_expert_allowed=False)
            if source.statistics:
                self.measured.append(f"{where}[{i}].statistics")

    def _level(
        self,
        parameters: Mapping[str, Any] | None,
        uses: list[Use],
        where: str,
        *,
        per_expert_allowed: bool,
        sources: object = None,
    ) -> None:
        # `per_expert_allowed` is False for models: there, only parameters with one value per expert have a place.
        # `sources` are those that are listed right below the level.
        specs = [registry.get(use.method) for use in dict.fromkeys(uses)]
        lenient = any(use.semantics == "mergekit" for use in uses)
        for key, given in (parameters or {}).items():
            shared = [s for s in specs if key in s.parameters and not s.parameters[key].per_expert]
            reached = any(
                key in s.parameters and (per_expert_allowed or s.parameters[key].per_expert)
                for s in specs
            )
            place = f"{self.path}{where}.parameters.{key}".replace("..", ".").lstrip(".")
            for spec in specs:
                if key in spec.parameters:
                    above = bool(sources) and per_expert_allowed
                    check_free(given, spec.parameters[key], place, self.where, above_models=above)
            if not reached:
                self._unused(key, place, [s.name for s in specs], bool(shared), lenient)

    def _modify(self, steps: Iterable[MethodStep] | None, where: str) -> None:
        for i, step in enumerate(steps or ()):
            place = f"{self.path}{where}[{i}]"
            try:
                spec = modifiers.get(step.method)
            except RecipeError as problem:
                raise RecipeError(f"{self.where(place)}: {problem}") from None
            if step.statistics:
                raise RecipeError(
                    f"{self.where(place)}: statistics that modifier {spec.name} goes by stand under `statistics:` "
                    "of the models; move them there."
                )
            self.is_weighed |= bool(spec.statistics)
            for key, given in step.parameters.items():
                if key not in spec.parameters:
                    known = ", ".join(spec.parameters) or "none"
                    raise RecipeError(
                        f"{self.where(f'{place}.{key}')}: modifier {spec.name} has no parameter {key!r}; "
                        f"it has {known}."
                    )
                at = f"{place}.{key}"
                check_free(given, spec.parameters[key], at, self.where, above_models=False)

    def _step_statistics(self, step: MethodStep, path: str) -> None:
        """A step has statistics of the base where its method needs them, and no others."""
        spec = registry.get(step.method)
        kinds = [kind for kind in spec.statistics if kind != METRICS]
        is_of_base = spec.measured_on is registry.MeasuredOn.BASE
        if kinds and not is_of_base:
            raise RecipeError(
                f"{self.where(self.path + path)}: {spec.name} needs statistics of every model, which have no place "
                "here; merge `models:` with it, as a recipe of its own."
            )
        if kinds and not step.statistics:
            raise RecipeError(
                f"{self.where(self.path + path)}: {spec.name} needs statistics of the base; name their file beside it, "
                f"as in `- {{{spec.name}: {{}}, statistics: FILE}}`."
            )
        if step.statistics and not kinds:
            raise RecipeError(
                f"{self.where(self.path + path)}: {spec.name} takes no statistics; leave them out."
            )

    def _measured_operands(self, read: Combination, document: RecipeDocument) -> None:
        """Every checkpoint that a method weighs by its statistics has some, and all that are given are used."""
        from weightsmith.recipes.language.expression_reading import measured_names

        try:
            used = measured_names(read)
        except RecipeError as problem:
            raise RecipeError(f"{self.where(self.path + 'expression')}: {problem}") from None
        given = document.statistics or {}
        for name, spec in used:
            if name not in given and METRICS not in spec.statistics:
                whom = "the base" if spec.measured_on is registry.MeasuredOn.BASE else "every model"
                raise RecipeError(
                    f"{self.where(self.path + 'expression')}: {spec.name} needs statistics of {whom}; name the file "
                    f"of {name!r} under `statistics:`."
                )
        for name in given:
            if all(name != other for other, _ in used):
                raise RecipeError(
                    f"{self.where(self.path + 'statistics.' + name)}: no method of the expression takes statistics of "
                    f"{name!r}; leave them out."
                )

    def _require_use_of_statistics(self, uses: list[Use]) -> None:
        weighing = any(registry.get(use.method).statistics for use in uses)
        if self.measured and not (weighing or self.is_weighed):
            named = " and ".join(dict.fromkeys(_methods(uses)))
            raise RecipeError(
                f"{self.where(self.path + self.measured[0])}: {named} takes no statistics; leave them out, or use a "
                "method that does."
            )

    def _require_method(self, method: str | None, path: str) -> None:
        try:
            if method is not None:
                registry.get(method)
        except RecipeError as problem:
            raise RecipeError(f"{self.where(self.path + path)}: {problem}") from None

    def _require_preset(self, semantics: str | None, methods: list[str], path: str) -> None:
        """Refuse semantics that none of the methods they are for has; the others take the paper's defaults."""
        if semantics is None or semantics in registry.GENERAL_PRESETS:
            return
        specs = [registry.get(name) for name in dict.fromkeys(methods)]
        if any(semantics in spec.presets for spec in specs):
            return
        renamed = next((spec for spec in specs if semantics in spec.former_presets), None)
        if renamed is not None:
            self._note_renamed(renamed, semantics, path)
            return
        own = {preset for spec in specs for preset in spec.presets} - set(registry.GENERAL_PRESETS)
        known = ", ".join((*registry.GENERAL_PRESETS, *sorted(own)))
        named = " and ".join(spec.name for spec in specs) or "an expression without methods"
        raise RecipeError(
            f"{self.where(self.path + path)}: {named} has no preset {semantics!r}; write one of {known}."
        )

    def _note_renamed(self, spec: registry.MethodSpec, semantics: str, path: str) -> None:
        now = spec.former_presets[semantics]
        message = (
            f"{self.where(self.path + path)}: the preset {semantics!r} of {spec.name} is called {now.name!r} now, "
            f"because {now.why}"
        )
        advice = f"write `semantics: {now.name}`"
        place = f"{self.path}{path}"
        self.findings.append(Finding(Severity.WARNING, "renamed-preset", place, message, advice))

    def _unused(
        self, key: str, place: str, methods: list[str], is_shared: bool, lenient: bool
    ) -> None:
        named = " and ".join(methods) or "no method"
        located = self.where(place)
        if is_shared:
            why = f"{located}: {key} is one value for the whole merge in {named}, so a model cannot have its own"
            advice = "put it under the recipe's `parameters:`"
        else:
            why = f"{located}: {named} has no parameter {key!r}"
            advice = _advice(key, methods)
        idle = dialect.without_effect(key, methods)
        if idle is not None:
            self._note_idle(key, place, idle, lenient)
            return
        if not lenient:
            raise RecipeError(f"{why}; {advice}.")
        theirs = [m for m in methods if key in dialect.PARAMETERS.get(m, ())]
        if theirs and not is_shared:
            raise RecipeError(
                f"{located}: {key} of mergekit's {theirs[0]} is not supported; leave it out."
            )
        if is_shared or key in _every_parameter() or key in dialect.LEGACY:
            self.findings.append(
                Finding(
                    Severity.WARNING,
                    "unused-parameter",
                    place,
                    f"{why}, and mergekit ignores it too",
                    advice,
                )
            )
        else:
            raise RecipeError(f"{why}, which mergekit would ignore without a word; {advice}.")

    def _note_idle(self, key: str, place: str, why: str, lenient: bool) -> None:
        """A parameter of mergekit's that does nothing, there or here: a note in its dialect, else a warning."""
        severity = Severity.NOTE if lenient else Severity.WARNING
        message = f"{self.where(place)}: {key} has no effect, because {why}"
        advice = "" if lenient else "leave it out"
        self.findings.append(Finding(severity, "unused-parameter", place, message, advice))


def _methods(uses: Iterable[Use]) -> list[str]:
    return [use.method for use in uses]


def _changed(above: Use | None, method: str | None, own: str | None, semantics: str) -> Use | None:
    name = method or (above.method if above else None)
    return Use(name, own or (above.semantics if above else semantics)) if name else None


def _every_parameter() -> frozenset[str]:
    known = {key for keys in dialect.PARAMETERS.values() for key in keys}
    return frozenset(
        known | {key for name in registry.names() for key in registry.get(name).parameters}
    )


def _advice(key: str, methods: list[str]) -> str:
    known = {k for m in methods for k in registry.get(m).parameters}
    near = nearest(key, known)
    if near is not None:
        return f"write {near!r} if that is meant, or leave it out"
    return f"leave it out (known are {', '.join(sorted(known)) or 'none'})"


def _nested(document: RecipeDocument) -> list[tuple[RecipeDocument, str]]:
    """Every recipe directly inside a recipe, with its path."""
    found: list[tuple[RecipeDocument, str]] = []

    def visit(value: Any, path: str) -> None:
        if isinstance(value, RecipeDocument) and path:
            found.append((value, path))
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                visit(item, f"{path}[{i}]")
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{path}.{key}")
        elif hasattr(type(value), "model_fields"):
            for name in type(value).model_fields:
                if name != "parameters":
                    visit(getattr(value, name), f"{path}.{name}" if path else name)

    visit(document, "")
    return found
