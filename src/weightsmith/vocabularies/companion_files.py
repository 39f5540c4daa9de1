"""The companion files of a merged checkpoint: every file beside its weights that it takes over from its config source.

Whatever the tokenizer, a result has its config source's generation settings, processors and templates; they are copied
byte for byte unless the vocabulary or the template changes what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import (
    Checkpoint,
    companion_paths,
    is_template,
    json_bytes,
    read_json,
    tokenizer_files,
)
from weightsmith.findings import Finding
from weightsmith.tokenizers import consistent

if TYPE_CHECKING:
    from weightsmith.tokenizers import Vocabulary

_GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class VocabularyChange:
    """What becomes of the vocabulary: the old and new one, the rows of the tables, and what is written anew.

    `tokenizer` are the new tokenizer's files by name (None: the config source's are carried), `template` the new
    default chat template (None: as it is). The default changes nothing.
    """

    old: Vocabulary | None = None
    new: Vocabulary | None = None
    rows: int | None = None
    tokenizer: Mapping[str, bytes] | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class CompanionFiles:
    """The configuration of the result, its other files by name (`/` between folders, sorted), and findings."""

    config: dict[str, Any] | None
    files: Mapping[str, bytes]
    findings: tuple[Finding, ...]


def companions(
    config_source: Checkpoint, config: dict[str, Any] | None, change: VocabularyChange | None = None
) -> CompanionFiles:
    """Everything that a result takes over from `config_source`, made true for a change of vocabulary.

    `config` is the result's configuration so far, whose ids are still the config source's. config.json itself is not
    among the files. A file whose content does not change keeps its bytes. Raises CheckpointError or TokenizerError for
    JSON of the config source that must be changed and cannot be read.
    """
    change = change or VocabularyChange()
    files = carried_files(config_source, replaced_tokenizer=change.tokenizer is not None)
    files |= change.tokenizer or {}
    generation = _generation_of(config_source) if _GENERATION in files else None
    made, carried, findings = consistent(
        config, generation, change.old, change.new, rows=change.rows
    )
    if carried is not None and carried != generation:
        files[_GENERATION] = json_bytes(carried)
    if change.template is not None:
        from weightsmith.tokenizers import with_template

        files |= with_template(files, change.template)
    return CompanionFiles(made, dict(sorted(files.items())), tuple(findings))


def carried_files(
    config_source: Checkpoint, *, replaced_tokenizer: bool = False
) -> dict[str, bytes]:
    """The config source's files as bytes by name; without its tokenizer where another is written.

    Chat templates in files of their own stay in either case: a new tokenizer does not change how turns are laid out.
    """
    if not config_source.is_folder:
        return {}
    own = config_source.tokenizer_place
    if own is not None and not replaced_tokenizer:
        rest = carried_files(config_source, replaced_tokenizer=True)
        return rest | {name.as_posix(): (own / name).read_bytes() for name in tokenizer_files(own)}
    names = list(companion_paths(config_source.path))
    if replaced_tokenizer:
        dropped = {name for name in tokenizer_files(config_source.path) if not is_template(name)}
        names = [name for name in names if name not in dropped]
    return {name.as_posix(): (config_source.path / name).read_bytes() for name in names}


def _generation_of(config_source: Checkpoint) -> dict[str, Any]:
    return read_json(config_source.path / Path(_GENERATION))
