"""The `tokenizer:` section of a recipe carried out: every checkpoint is put into the order of the target vocabulary.

After that the checkpoints have ordinary tables of one size, and the rest of resolution knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.adapters import Reference
from weightsmith.checkpoints import Checkpoint, vocabulary_size_of
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.mentioned import (
    base_reference,
    config_source_of,
    merged_references,
    other_references,
    tokenizer_references,
)
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.language.recipe import Recipe
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.vocabulary_sections import (
    BORROW,
    MissingRows,
    ModelToken,
    Tokenizer,
    ZeroRow,
)
from weightsmith.recipes.resolution.input_chain import Views, with_tensors
from weightsmith.recipes.resolution.untying import untied_views
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import LazyTensor, shown
from weightsmith.tokenizers import (
    AddedFlags,
    Library,
    TargetVocabulary,
    TokenizerMember,
    Vocabulary,
    copy_target,
    resolve_chat_template,
    union_target,
)
from weightsmith.vocabularies import (
    Aligned,
    Aligner,
    MissingRule,
    Outcome,
    Rules,
    SpecialToken,
    TokenChoice,
    TokenizedModel,
    VocabularyChange,
    Zero,
    carried_files,
    default_match,
    rule_named,
)
from weightsmith.wording import counted


def aligned_views(
    recipe: Recipe, section: Tokenizer, views: Views, problems: Problems
) -> tuple[Views, Outcome | None]:
    """The chain that ends with every checkpoint in the order of the target vocabulary, and what was decided.

    All checkpoints are opened, in the order in which they are merged. Nothing is decided where none has a tokenizer.
    Raises RecipeError for a section that means nothing for these checkpoints, and TokenizerError for a tokenizer that
    cannot be read.
    """
    document = recipe.document
    merged = merged_references(document)
    others = other_references(document) + tokenizer_references(section)
    every = list(dict.fromkeys([*merged, *others]))
    opened = [views.view(reference) for reference in every]
    if document.untie:
        # A head has rows of its own to align, so it must be there before.
        views = untied_views(views, opened[: len(merged)])
    library = Library()
    vocabularies = {r: library.read(views.view(r).checkpoint) for r in every}
    work = _Section(
        document, section, views, problems, recipe.semantics, merged, library, vocabularies
    )
    return work.aligned() if work.has_tokenizers() else (views, None)


@dataclass(frozen=True, slots=True)
class AlignedTables:
    """A step of the chain: the tables of checkpoints, by label, that have the target's rows."""

    tables: Mapping[str, Mapping[str, LazyTensor]]

    def __call__(self, view: View) -> View:
        """The view with its aligned tables; the view itself where those that it has need no change."""
        tensors = self.tables.get(view.label)
        return with_tensors(view, tensors) if tensors else view


@dataclass(frozen=True, eq=False)
class _Section:
    """One tokenizer section at work; checkpoints are known by what the recipe calls them.

    `vocabularies` has all of them in the order in which they are opened, `merged` the first of these.
    """

    document: RecipeDocument
    section: Tokenizer
    views: Views
    problems: Problems
    semantics: str
    merged: Sequence[Reference]
    library: Library
    vocabularies: Mapping[Reference, Vocabulary | None]

    @property
    def is_native(self) -> bool:
        return self.semantics != "mergekit"

    @property
    def base(self) -> Reference:
        return base_reference(self.document)

    def checkpoint(self, reference: Reference) -> Checkpoint:
        return self.views.view(reference).checkpoint

    def label(self, reference: Reference) -> str:
        return self.views.view(reference).label

    def has_tokenizers(self) -> bool:
        """Whether there is anything to align; a source without a tokenizer is refused unless nobody has one.

        Raises RecipeError where the source has none and others do, or the section asks for a change.
        """
        source = self.section.source
        wanted = source if isinstance(source, Reference) else self.base
        if self.vocabularies[wanted] is not None:
            return True
        sizes = {self.checkpoint(reference).vocab_size for reference in self.vocabularies}
        section = self.section
        changes = (
            section.tokens or section.pad_to_multiple_of or section.missing or source == "union"
        )
        if changes or len(sizes) > 1 or any(self.vocabularies.values()):
            raise RecipeError(
                f"tokenizer: {self.label(wanted)!r} has no tokenizer files, so there is no vocabulary to align to; add "
                "its tokenizer to the folder, or name another source."
            )
        self.problems.add(
            Finding(
                Severity.NOTE,
                "no-tokenizer",
                self.label(wanted),
                "None of the models has a tokenizer, so nothing is aligned",
            )
        )
        return False

    def aligned(self) -> tuple[Views, Outcome]:
        """The chain with the tables of all checkpoints aligned, and what was decided."""
        target, tokenizer_source = self._target()
        models = {reference: self._model(reference, target) for reference in self.vocabularies}
        aligner = self._aligner(target, models, tokenizer_source)
        aligned = [aligner.align(model) for model in models.values()]
        self._refuse_bundle(aligned)
        self._note(target, aligner, aligned)
        step = AlignedTables({one.model.label: one.tensors for one in aligned if one.tensors})
        return self.views.then(step), self._described(target, tokenizer_source, aligner, aligned)

    def _member(self, reference: Reference, vocabulary: Vocabulary) -> TokenizerMember:
        checkpoint = self.checkpoint(reference)
        return TokenizerMember(
            vocabulary, checkpoint.tokenizer_folder, checkpoint.vocab_size, self.label(reference)
        )

    def _target(self) -> tuple[TargetVocabulary, Reference]:
        """The target and the checkpoint whose tokenizer it is, or grew from."""
        source = self.section.source
        tokens = list(self.section.tokens or ())
        pad = self.section.pad_to_multiple_of
        tokenizer_source = source if isinstance(source, Reference) else self.base
        own = self.vocabularies[tokenizer_source]
        assert own is not None
        config_source = self._member(tokenizer_source, own)
        if source == "union":
            members = [config_source]
            for reference in self.merged:
                vocabulary = self.vocabularies[reference]
                if reference != tokenizer_source and vocabulary is not None:
                    members.append(self._member(reference, vocabulary))
            target = union_target(
                members, tokens=tokens, flags=self._flags(), pad_to_multiple_of=pad
            )
        else:
            target = copy_target(
                config_source,
                source="base" if source == "base" else config_source.label,
                tokens=tokens,
                flags=self._flags(),
                pad_to_multiple_of=pad,
                strip=source == "base",
            )
        return target, tokenizer_source

    def _flags(self) -> dict[str, AddedFlags]:
        """How models that have a token of `tokens:` as an added one find it in text; mergekit forgets it."""
        found: dict[str, AddedFlags] = {}
        known = [v for v in self.vocabularies.values() if v is not None]
        for text in (self.section.tokens or ()) if self.is_native else ():
            flags = next((v.added[text] for v in known if text in v.added), None)
            if flags is not None:
                found[text] = flags
        return found

    def _model(self, reference: Reference, target: TargetVocabulary) -> TokenizedModel:
        """A checkpoint with its tokenizer; one that lacks it is taken to have the base's, as in mergekit."""
        view = self.views.view(reference)
        vocabulary = self.vocabularies[reference]
        if vocabulary is None:
            vocabulary = self.vocabularies[self.base]
            whose = self.label(self.base)
            if vocabulary is None:
                vocabulary, whose = target.vocabulary, "the result"
            fits = view.checkpoint.vocab_size == self.checkpoint(self.base).vocab_size
            self.problems.add(
                Finding(
                    Severity.NOTE if fits else Severity.WARNING,
                    "tokenizer-assumed",
                    view.label,
                    f"{view.label!r} has no tokenizer, and is taken to have the one of {whose!r}"
                    + ("" if fits else ", although its table has another number of rows"),
                    "add its tokenizer to the folder if it is another",
                )
            )
        match = self.section.match or default_match(
            target.vocabulary, vocabulary, native=self.is_native
        )
        return TokenizedModel.of(
            view.label, view.checkpoint, vocabulary, merged=reference in self.merged, match=match
        )

    def _aligner(
        self,
        target: TargetVocabulary,
        models: Mapping[Reference, TokenizedModel],
        tokenizer_source: Reference,
    ) -> Aligner:
        has_base = self.document.base_model is not None or self.document.expression is not None
        aligner = Aligner(
            target=target,
            models=list(models.values()),
            base=models[self.base] if has_base else None,
            config_source=models[config_source_of(self.document)],
            tokenizer_source=models[tokenizer_source],
            choices={},
            rules=rules_of(self.section.missing),
            keeps_padding=self.is_native or self.section.pad_to_multiple_of is None,
        )
        choices = {
            text: self._choice(text, row.source, row.force, models, aligner)
            for text, row in (self.section.tokens or {}).items()
            if text in target.vocabulary.ids
        }
        return replace(aligner, choices=choices)

    def _choice(
        self,
        text: str,
        source: ModelToken | ZeroRow | Reference | None,
        force: bool,
        models: Mapping[Reference, TokenizedModel],
        aligner: Aligner,
    ) -> TokenChoice:
        if source is None or isinstance(source, ZeroRow):
            return TokenChoice(None, is_zero=source is not None, force=force)
        model = models[source.model if isinstance(source, ModelToken) else source]
        if isinstance(source, ModelToken):
            row = source.token_id
            if row is None:
                row = model.vocabulary.ids.get(source.token or "")
        else:
            index = aligner.target.vocabulary.ids[text]
            found = int(aligner.ids(model)[index])
            row = found if found >= 0 else None
        if row is None:
            wanted = source.token if isinstance(source, ModelToken) else text
            raise RecipeError(
                f"tokenizer.tokens: {model.label!r} has no token {shown(wanted)} whose row {shown(text)} could take; "
                "name one that it has, or another model."
            )
        return TokenChoice(model, row, force=force)

    def _refuse_bundle(self, aligned: Sequence[Aligned]) -> None:
        if self.document.bundle is not None and any(one.tensors for one in aligned):
            raise RecipeError(
                "bundle: the members of a bundle are told apart from a base as it is stored, and the tokenizer section "
                "would move its rows; leave one of the two out."
            )

    def _note(self, target: TargetVocabulary, aligner: Aligner, aligned: Sequence[Aligned]) -> None:
        problems = self.problems
        for reference in self.vocabularies:
            vocabulary = self.vocabularies[reference]
            for finding in () if vocabulary is None else vocabulary.findings:
                problems.add(finding)
        for finding in target.findings:
            problems.add(finding)
        merged = [one for one in aligned if one.model.is_merged]
        unresolved = list(
            dict.fromkeys(text for one in merged for r in one.reports for text in r.unresolved)
        )
        if unresolved:
            problems.add(self._unresolved(unresolved))
        for one in merged:
            lost = max((report.dropped for report in one.reports), default=0)
            if lost:
                problems.add(
                    Finding(
                        Severity.NOTE,
                        "tokens-dropped",
                        one.model.label,
                        f"{lost} tokens of {one.model.label!r} are not in the vocabulary of the result, so their rows "
                        "are left out",
                        "take `source: union` to keep them",
                    )
                )

    def _unresolved(self, texts: Sequence[str]) -> Finding:
        named = ", ".join(map(shown, texts[:3])) + (", ..." if len(texts) > 3 else "")
        is_asked = self.section.missing is not None
        severity = Severity.ERROR if self.is_native and not is_asked else Severity.WARNING
        return Finding(
            severity,
            "token-nowhere",
            "tokenizer",
            f"{counted(len(texts), 'token')} of the result ({named}): none of the merged models has a row for it"
            + ("" if severity is Severity.ERROR else ", so it is a row of zeros"),
            "say under `tokens:` where their rows come from, or give `missing:` a rule such as subtokens or mean",
        )

    def _described(
        self,
        target: TargetVocabulary,
        tokenizer_source: Reference,
        aligner: Aligner,
        aligned: Sequence[Aligned],
    ) -> Outcome:
        config_source = config_source_of(self.document)
        whose = tokenizer_source if self._has_template(tokenizer_source) else config_source
        parents = [v for r in self.merged if (v := self.vocabularies[r]) is not None]
        form = self.document.chat_template
        template, findings = resolve_chat_template(
            form, parents, self.vocabularies[whose], target.vocabulary
        )
        for finding in findings:
            self.problems.add(finding)
        if template is None and whose != config_source:
            vocabulary = self.vocabularies[whose]
            assert vocabulary is not None
            template = vocabulary.chat_templates.get("default")
        files = target.files
        if files is None and tokenizer_source != config_source:
            files = tokenizer_source_files(self.checkpoint(tokenizer_source))
        change = VocabularyChange(
            old=self.vocabularies[config_source] or self.vocabularies[self.base],
            new=target.vocabulary,
            rows=declared_rows(aligner),
            tokenizer=files,
            template=template,
        )
        smallest = min((r.rows for one in aligned for r in one.reports), default=target.rows)
        return Outcome(
            source=target.source,
            tokens=len(target.vocabulary.ids),
            rows=target.rows,
            beyond=sum(index >= smallest for index in target.vocabulary.ids.values()),
            tables=tuple(r for one in aligned if one.model.is_merged for r in one.reports),
            special=special_tokens(aligner),
            template=_template_words(form, self.label(whose), template, self._has_template(whose)),
            inputs={
                self.label(r): self.library.digests(self.checkpoint(r)) for r in self.vocabularies
            },
            read_tokens=self.library.tokens,
            change=change,
        )

    def _has_template(self, reference: Reference) -> bool:
        vocabulary = self.vocabularies[reference]
        return vocabulary is not None and bool(vocabulary.chat_templates)


def rules_of(missing: MissingRows | None) -> Rules:
    """The rules of a `missing:` key; biases of tokens that a rule makes are zero unless it says otherwise."""
    if missing is None:
        return Rules()
    main = _rule(missing)
    head = main if missing.head is None else _rule(missing.head)
    bias: MissingRule | None = None if main is None else Zero()
    if missing.bias is not None:
        bias = _rule(missing.bias)
    return Rules(main, head, bias)


def _rule(missing: MissingRows) -> MissingRule | None:
    return None if missing.rule == BORROW else rule_named(missing.rule, missing.parameters)


def tokenizer_source_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The tokenizer's files of a checkpoint, its chat templates included, by relative path."""
    wanted = {name.as_posix() for name in checkpoint.tokenizer_files}
    return {name: data for name, data in carried_files(checkpoint).items() if name in wanted}


def declared_rows(aligner: Aligner) -> int:
    """The `vocab_size` of the result: its rows, or those of the table whose size the configuration declares."""
    checkpoint = aligner.config_source.checkpoint
    declared, main = vocabulary_size_of(checkpoint.config), checkpoint.vocab_size
    sizes = {table.table.count for table in aligner.config_source.tables.values()}
    extra = declared - main if declared in sizes and declared is not None and main else 0
    return aligner.target.rows + extra


def special_tokens(aligner: Aligner) -> tuple[SpecialToken, ...]:
    """The special tokens of the result with the rows that the merged checkpoints have for them."""
    found = []
    for role, text in aligner.target.vocabulary.special.items():
        index = aligner.target.vocabulary.ids[text]
        rows: dict[str, int | None] = {}
        for model in aligner.models:
            if model.is_merged:
                own = int(aligner.ids(model)[index])
                count = model.checkpoint.vocab_size or 0
                rows[model.label] = own if 0 <= own < count else None
        found.append(SpecialToken(role, text, index, rows))
    return tuple(found)


def _template_words(form: str | None, whose: str, template: str | None, exists: bool) -> str:
    if form is None:
        return f"that of {whose!r}" if exists else "none"
    if template is None:
        return f"{'auto' if form == 'auto' else 'as asked'}: that of {whose!r}, unchanged"
    return "auto: the most common one" if form == "auto" else "replaced by the recipe's"
