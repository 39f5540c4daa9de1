"""Vocabularies of many checkpoints, each distinct tokenizer read once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from weightsmith.checkpoints import Checkpoint
from weightsmith.tokenizers.tokenizer_reading import read_vocabulary
from weightsmith.tokenizers.tokenizer_settings import read_settings
from weightsmith.tokenizers.vocabulary import Vocabulary

# They hold chat templates and settings; the tokens in them are in tokenizer.json too.
_ABOUT_CHAT = frozenset({"chat_template.jinja", "chat_template.json", "tokenizer_config.json"})


@dataclass(eq=False)
class Library:
    """Reads the tokenizers of checkpoints; fine-tunes of one model mostly have the same files."""

    _by_digest: dict[tuple[tuple[str, str], ...], Vocabulary | None] = field(default_factory=dict)
    _digests: dict[str, dict[str, str]] = field(default_factory=dict)

    def digests(self, checkpoint: Checkpoint) -> dict[str, str]:
        """SHA-256 of each of a checkpoint's tokenizer files, by relative path."""
        key = str(checkpoint.tokenizer_folder)
        if key not in self._digests:
            self._digests[key] = {
                name.as_posix(): hashlib.sha256(
                    (checkpoint.tokenizer_folder / name).read_bytes()
                ).hexdigest()
                for name in checkpoint.tokenizer_files
            }
        return self._digests[key]

    def read(self, checkpoint: Checkpoint) -> Vocabulary | None:
        """The vocabulary of a checkpoint (see `read_vocabulary`)."""
        key = tuple(sorted(self.digests(checkpoint).items()))
        if key not in self._by_digest:
            self._by_digest[key] = read_vocabulary(checkpoint)
        return _named(self._by_digest[key], checkpoint)

    @property
    def tokens(self) -> int:
        """Tokens of all vocabularies that were read whole, each counted once."""
        return sum(len(found.ids) for found in self._by_digest.values() if found is not None)

    def outline(self, checkpoint: Checkpoint) -> Vocabulary | None:
        """A vocabulary of the added tokens alone, which is all that a template or a special id asks about.

        Read from tokenizer_config.json, in no time and memory; the whole vocabulary where that does not list them.
        """
        settings = read_settings(checkpoint.tokenizer_folder)
        if not settings.declared:
            return self.read(checkpoint)
        ids = {token.text: index for index, token in sorted(settings.declared.items())}
        return Vocabulary(
            identity=checkpoint.identity,
            model="",
            ids=ids,
            added={token.text: token.flags for token in settings.declared.values()},
            special={role: text for role, text in settings.special.items() if text in ids},
            additional=tuple(text for text in settings.additional if text in ids),
            chat_templates=settings.chat_templates,
            document={"model": {}},
            settings=settings.config,
        )

    def share_tokens(self, checkpoints: Sequence[Checkpoint]) -> bool:
        """Whether the files that say which tokens there are have the same bytes in all checkpoints."""
        every = [
            {name: digest for name, digest in self.digests(c).items() if name not in _ABOUT_CHAT}
            for c in checkpoints
        ]
        return all(digests == every[0] for digests in every)


def _named(found: Vocabulary | None, checkpoint: Checkpoint) -> Vocabulary | None:
    if found is None or found.identity == checkpoint.identity:
        return found
    return replace(found, identity=checkpoint.identity)
