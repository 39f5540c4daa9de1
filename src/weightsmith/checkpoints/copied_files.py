"""The files that a merged checkpoint takes over from one of its parents, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from weightsmith.checkpoints.module_folders import module_settings
from weightsmith.tensors import may_lead_to, shown, way_out

# What a tokenizer and its chat template are made of, over all families.
_TOKENIZER = frozenset(
    """tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json
    tokenizer.model tokenizer.model.v1 tokenizer.model.v2 tokenizer.model.v3 spiece.model
    sentencepiece.bpe.model sentencepiece.model source.spm target.spm spm.model bpe.codes vocab.json
    vocab.txt vocab.bpe merges.txt vocab-src.json vocab-tgt.json target_vocab.json dict.txt
    entity_vocab.json prophetnet.tokenizer normalizer.json tekken.json qwen.tiktoken
    tiktoken.model""".split()
)
_TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
_OTHER = frozenset(
    """generation_config.json preprocessor_config.json processor_config.json
    image_processor_config.json video_preprocessor_config.json video_processor_config.json
    audio_preprocessor_config.json feature_extractor_config.json audio_tokenizer_config.json
    modules.json model_index.json config_sentence_transformers.json
    sentence_bert_config.json""".split()
)
# Evaluation pools by it even where no list of modules names it.
_POOLING = "1_Pooling/config.json"
_TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
# A model that reads a question twice has a second tokenizer (InstructBLIP).
_SECOND_TOKENIZER = "qformer_tokenizer"


def companion_paths(folder: Path) -> tuple[Path, ...]:
    """The files to carry over, as paths relative to `folder`, sorted.

    Tokenizer, chat templates, generation and processor configurations, and those of modules in
    folders of their own: never code, weights or indices, and no link that is not followed.
    """
    second = [f"{_SECOND_TOKENIZER}/{name}" for name in _TOKENIZER]
    names = [*sorted(_TOKENIZER | _TEMPLATES | _OTHER), *second, *module_settings(folder), _POOLING]
    return tuple(sorted({*_own(folder, names), *_templates(folder)}))


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of the tokenizer and its chat templates, relative to `folder`, sorted."""
    return tuple(sorted({*_own(folder, _TOKENIZER | _TEMPLATES), *_templates(folder)}))


def _own(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Those of `names` that the folder has as files of its own, for which it is listed once."""
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    found = (Path(name) for name in names)
    return (path for path in found if path.parts[0] in present and is_inside(folder / path, folder))


def left_out(folder: Path) -> tuple[Path, ...]:
    """What has the name of a file to carry over but is none of the folder's own, relative to it, sorted.

    Such are links that leave the folder or lead nowhere, and whatever is no regular file.
    """
    present = set(os.listdir(folder))
    names = [name for name in (*_TOKENIZER, *_TEMPLATES, *_OTHER) if name in present]
    if _SECOND_TOKENIZER in present:
        names += [f"{_SECOND_TOKENIZER}/{name}" for name in _TOKENIZER]
    names += [_POOLING, *module_settings(folder)]
    for templates in _TEMPLATE_FOLDERS:
        if templates in present:
            found = (folder / templates).glob("*.jinja")
            names += [file.relative_to(folder).as_posix() for file in found]
    return tuple(
        sorted(
            Path(name)
            for name in names
            if os.path.lexists(folder / name) and not is_inside(folder / name, folder)
        )
    )


def absence(folder: Path, name: str, wanted: str) -> str:
    """What is wrong with a folder that has no file of its own called `name`, which makes one what is `wanted`."""
    if not os.path.lexists(folder):
        return f"There is no folder {shown(folder)}: give {wanted}."
    if not folder.is_dir():
        return f"{shown(folder)} is no folder: give {wanted}."
    if os.path.lexists(folder / name):
        return f"{shown(folder / name)} {way_out(folder / name)}."
    return f"{shown(folder)} has no {name}: give {wanted}."


def is_template(name: Path) -> bool:
    """Whether a file, given relative to its checkpoint's folder, holds a chat template and nothing else."""
    return name.as_posix() in _TEMPLATES or name.parts[0] in _TEMPLATE_FOLDERS


def is_inside(file: Path, folder: Path) -> bool:
    """Whether `file` is a regular file that lies under `folder`, or where links of it may lead (`may_lead_to`)."""
    return file.is_file() and may_lead_to(file.resolve(), folder.resolve())


def _templates(folder: Path) -> list[Path]:
    return [
        file.relative_to(folder)
        for name in _TEMPLATE_FOLDERS
        for file in sorted((folder / name).glob("*.jinja"))
        if is_inside(file, folder)
    ]
