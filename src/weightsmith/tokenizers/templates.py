"""The chat template of a result: the source model's, the parents' most common one, a built-in one, or a text.

A template is text in jinja2's language; here it is read, compared and checked, and never rendered.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import json_bytes
from weightsmith.errors import RecipeError, TokenizerError
from weightsmith.findings import Finding, Severity
from weightsmith.naming import nearest
from weightsmith.tokenizers.built_in_templates import BUILT_IN
from weightsmith.tokenizers.template_lint import lint, literals, names_used

if TYPE_CHECKING:
    from weightsmith.tokenizers.vocabulary import Vocabulary

AUTO = "auto"
_DEFAULT = "default"
# What is shorter than this cannot be a template; mergekit draws the line here too.
_SHORTEST = 20
_SUBJECT = "chat_template"
_JINJA = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE_KEY = "chat_template"
# JSON files in which a template can stand under the key `chat_template`.
_JSON_FILES = (_TOKENIZER_CONFIG, "chat_template.json", "processor_config.json")
_CONTROL = re.compile(
    r"<\|[^<>|\s]+\|?>|<｜[^<>｜\s]+｜>|\[\|[^|\[\]\s]+\|\]|<(?:start|end)_of_\w+>|</?s>|<(?:bos|eos|pad)>"
)
_TOKEN_VARIABLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def check_form(form: str) -> None:
    """Raise RecipeError where `chat_template:` is none of auto, a built-in name and a template that parses."""
    if form == AUTO or form in BUILT_IN:
        return
    if len(form) < _SHORTEST or "{" not in form:
        near = nearest(form, (AUTO, *BUILT_IN))
        hint = f"write auto, {', '.join(BUILT_IN)}, or a jinja template of {_SHORTEST} characters and more."
        raise RecipeError(
            f"chat_template: {form!r} is neither a built-in template nor the text of one; "
            + (f"did you mean {near!r}?" if near else hint)
        )
    for finding in lint(form, "the recipe"):
        if finding.severity is Severity.ERROR:
            raise RecipeError(f"chat_template: {finding.message}; {finding.fix}.")


def resolve_chat_template(
    form: str | None,
    parents: Sequence[Vocabulary],
    origin: Vocabulary | None,
    target: Vocabulary | None = None,
) -> tuple[str | None, list[Finding]]:
    """The text that replaces the source model's default template, and what is noteworthy about the result's.

    `form` is the recipe's `chat_template:`: None keeps the source model's byte for byte; `auto` takes the most common
    template of the parents, compared without surrounding whitespace (of equally common ones the first in the order of
    the recipe); a name takes a built-in one; any other text is the template itself. None is returned where the source
    model's files stay as they are. `target` is the vocabulary of the result, which must have the control tokens that
    the template writes (default: the source model's). Raises RecipeError for a form that means nothing or does not
    parse.
    """
    if form is not None:
        check_form(form)
    own = _default_of(origin)
    chosen, subject, findings = _chosen(form, parents, own, origin)
    replaces = chosen is not None and chosen != own
    if form is not None and origin is not None and replaces:
        findings += _stale_names(origin)
    if chosen is not None:
        findings += lint(chosen, subject)
        findings += _lacking_tokens(chosen, subject, target or origin, parents)
    if form is None and origin is not None:
        for name, text in origin.chat_templates.items():
            if name != _DEFAULT:
                findings += lint(text, f"{origin.identity} named {name!r}")
    findings += _differing(chosen, subject, parents)
    return (chosen if replaces else None), findings


def with_template(files: Mapping[str, bytes], text: str) -> dict[str, bytes]:
    """The files of a tokenizer and processor with another default template, in every place where one stood.

    `files` are the bytes by name relative to the checkpoint's folder. Where no file had a template it goes into
    tokenizer_config.json, which every version of transformers reads, or without that into chat_template.jinja.
    Only the files that change are returned. Raises TokenizerError for JSON that cannot be read.
    """
    changed: dict[str, bytes] = {}
    if _JINJA in files:
        changed[_JINJA] = text.encode()
    for name in _JSON_FILES:
        if name not in files:
            continue
        content = _read(files[name], name)
        given = content.get(_TEMPLATE_KEY)
        if given is not None:
            replaced = _replaced(given, text)
            # A file that says the same already keeps its bytes.
            is_same = replaced == given
            changed[name] = (
                files[name] if is_same else json_bytes({**content, _TEMPLATE_KEY: replaced})
            )
    if not changed and _TOKENIZER_CONFIG in files:
        content = _read(files[_TOKENIZER_CONFIG], _TOKENIZER_CONFIG)
        changed[_TOKENIZER_CONFIG] = json_bytes({**content, _TEMPLATE_KEY: text})
    if not changed:
        changed[_JINJA] = text.encode()
    return {name: data for name, data in changed.items() if files.get(name) != data}


def _chosen(
    form: str | None, parents: Sequence[Vocabulary], own: str | None, origin: Vocabulary | None
) -> tuple[str | None, str, list[Finding]]:
    """The template of the result, whose it is in messages, and findings about the choice."""
    whose = origin.identity if origin is not None else "the origin"
    if form is None:
        return own, whose, []
    if form != AUTO:
        text = BUILT_IN.get(form)
        return (form, "the recipe", []) if text is None else (text, f"the name {form!r}", [])
    common = _most_common(parents)
    if common is None:
        return own, whose, [_no_template()]
    if own is not None and own.strip() == common[0].strip():
        return own, whose, []
    return *common, []


def _most_common(parents: Sequence[Vocabulary]) -> tuple[str, str] | None:
    texts = [(t, parent.identity) for parent in parents if (t := _default_of(parent)) is not None]
    counts = Counter(text.strip() for text, _ in texts)
    # max keeps the first of equals, so ties go to the order of the recipe.
    return max(texts, key=lambda one: counts[one[0].strip()], default=None)


def _no_template() -> Finding:
    return Finding(
        Severity.WARNING,
        "template-missing",
        _SUBJECT,
        "chat_template: auto finds no chat template in any of the models",
        f"name a built-in one ({', '.join(BUILT_IN)}) or leave the key out",
    )


def _default_of(vocabulary: Vocabulary | None) -> str | None:
    text = vocabulary.chat_templates.get(_DEFAULT) if vocabulary is not None else None
    return text if text is not None and text.strip() else None


def _stale_names(origin: Vocabulary) -> list[Finding]:
    named = [name for name in origin.chat_templates if name != _DEFAULT]
    if not named:
        return []
    return [
        Finding(
            Severity.WARNING,
            "template-named",
            origin.identity,
            f"Only the default chat template is replaced; {origin.identity} keeps those named "
            f"{', '.join(map(repr, named))}, of which transformers prefers 'tool_use' where tools are given",
            "remove them from the result if they speak another format",
        )
    ]


def _lacking_tokens(
    text: str, subject: str, target: Vocabulary | None, parents: Sequence[Vocabulary]
) -> list[Finding]:
    """Warnings for control tokens that the template writes and the vocabulary would cut into pieces."""
    if target is None:
        return []
    printed = literals(text)
    wanted = [token for piece in printed for token in _CONTROL.findall(piece)]
    specials = [text for p in parents for text in (*p.special.values(), *p.additional)]
    wanted += [one for one in specials if any(one in piece for piece in printed)]
    lacking = [token for token in dict.fromkeys(wanted) if token not in target.ids]
    findings = []
    if lacking:
        findings.append(
            Finding(
                Severity.WARNING,
                "template-tokens",
                subject,
                f"The chat template of {subject} writes {', '.join(map(repr, lacking))}, which the vocabulary of the "
                "result does not have as tokens of their own",
                "take a tokenizer that has them (`tokenizer: {source: ...}`), add them under `tokens:`, or choose "
                "another template",
            )
        )
    used = names_used(text)
    unset = [name for name in _TOKEN_VARIABLES if name in used and name not in target.special]
    if unset:
        findings.append(
            Finding(
                Severity.WARNING,
                "template-tokens",
                subject,
                f"The chat template of {subject} uses {', '.join(unset)}, which the tokenizer of the result does not "
                "define",
                "choose another template, or a tokenizer that defines them",
            )
        )
    return findings


def _differing(chosen: str | None, subject: str, parents: Sequence[Vocabulary]) -> list[Finding]:
    wanted = chosen.strip() if chosen is not None else None
    without = [p.identity for p in parents if _default_of(p) is None and wanted is not None]
    others = [
        p.identity
        for p in parents
        if (text := _default_of(p)) is not None and text.strip() != wanted
    ]
    if not others and not without:
        return []
    parts = []
    if others:
        parts.append(f"{', '.join(others)} {'has' if len(others) == 1 else 'have'} another")
    if without:
        parts.append(f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} none")
    mine = f"The chat template of the result is that of {subject}"
    return [
        Finding(
            Severity.NOTE,
            "template-differs",
            _SUBJECT,
            f"{mine if chosen is not None else 'The result has no chat template'}; {' and '.join(parts)}",
            "choose with `chat_template:`",
        )
    ]


def _read(data: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise TokenizerError(
            f"{name} is not JSON ({problem}): correct the source model's file."
        ) from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{name} holds no JSON object: correct the source model's file.")
    return content


def _replaced(given: Any, text: str) -> Any:
    """The value of `chat_template` with another default: a text, or a list of named ones."""
    if not isinstance(given, list):
        return text
    others = [one for one in given if not (isinstance(one, dict) and one.get("name") == _DEFAULT)]
    return [{"name": _DEFAULT, "template": text}, *others]
