"""The companion files beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json,
templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import is_inside
from weightsmith.errors import CheckpointError, TokenizerError
from weightsmith.tensors import collection_paused, parse_json, read_small, shown
from weightsmith.tokenizers.vocabulary import AddedFlags

CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
ROLES = tuple("bos_token eos_token unk_token sep_token pad_token cls_token mask_token".split())
# The classes of model types whose checkpoints often name none; those that are read from plain files here.
_CLASSES = {
    "LlamaTokenizer": "llama mistral mixtral",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text",
    "T5Tokenizer": "t5 mt5 umt5 longt5",
    "XLMRobertaTokenizer": "xlm-roberta xlm-roberta-xl",
    "GPT2Tokenizer": "gpt2 gpt_neo gptj gpt_bigcode opt phi codegen gpt_neox",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen2_vl qwen2_5_vl",
    "RobertaTokenizer": "roberta bart longformer led",
    "BertTokenizer": "bert distilbert electra mobilebert convbert squeezebert layoutlm lxmert dpr",
}
_CLASS_OF = {kind: name for name, kinds in _CLASSES.items() for kind in kinds.split()}
_LARGEST_BYTES = 200_000_000
_FLAGS = tuple(AddedFlags.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An added token as a file declares it."""

    text: str
    flags: AddedFlags


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """What the companion files say; `config` is tokenizer_config.json as it is.

    `declared` are added tokens by their id; `special` the texts by role, `declarations` those with flags of their own.
    """

    config: Mapping[str, Any]
    declared: Mapping[int, AddedToken]
    special: Mapping[str, str]
    declarations: Mapping[str, AddedFlags]
    additional: tuple[str, ...]
    chat_templates: Mapping[str, str]
    model_type: str | None

    @property
    def tokenizer_class(self) -> str | None:
        """The class without its ending: T5Tokenizer for T5TokenizerFast.

        Where none is named it follows from config.json's model type (which stands for itself where its class is not
        known here), and is None where there is no model type either.
        """
        name = self.config.get("tokenizer_class")
        if isinstance(name, str) and name:
            return name.removesuffix("Fast")
        if self.model_type is None:
            return None
        return _CLASS_OF.get(self.model_type, self.model_type)


def read_text(file: Path) -> str:
    """The UTF-8 text of a tokenizer's file; raises TokenizerError where it is none or above 200 MB."""
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise TokenizerError(
            f"{shown(file)} is not UTF-8 at its byte {problem.start}: fetch it again."
        ) from None


def read_bytes(file: Path) -> bytes:
    """The bytes of a tokenizer's file, of at most 200 MB."""
    try:
        return read_small(file, _LARGEST_BYTES)
    except OSError as problem:
        raise TokenizerError(
            f"{shown(file)} cannot be read ({problem.strerror}): check that it is a readable file."
        ) from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a tokenizer's file, without duplicate keys; raises TokenizerError."""
    try:
        with collection_paused():
            document = parse_json(read_bytes(file), shown(file))
    except TokenizerError:
        raise
    except CheckpointError as problem:
        raise TokenizerError(str(problem)) from None
    if not isinstance(document, dict):
        raise TokenizerError(f"{shown(file)} does not hold a JSON object: fetch it again.")
    return document


def read_settings(folder: Path) -> TokenizerSettings:
    """All companion files of a tokenizer, by the rules of transformers.

    tokenizer_config.json's `added_tokens_decoder` replaces special_tokens_map.json and added_tokens.json; without
    it the map's special tokens win over the configuration's.
    """
    config = _optional_object(folder, CONFIG)
    values = dict(config)
    declared = _declared(config.get("added_tokens_decoder"), folder / CONFIG)
    if "added_tokens_decoder" not in config:
        values |= _optional_object(folder, SPECIAL_MAP)
    special, declarations = _special_tokens(values, folder)
    additional = _additional(values, folder, special, declarations)
    if "added_tokens_decoder" not in config:
        declared = _added_tokens(folder, {*special.values(), *additional})
    templates = _chat_templates(folder, config)
    model_type = _optional_object(folder, "config.json").get("model_type")
    return TokenizerSettings(
        config=config,
        declared=declared,
        special=special,
        declarations=declarations,
        additional=additional,
        chat_templates=templates,
        model_type=model_type if isinstance(model_type, str) else None,
    )


def _optional_object(folder: Path, name: str) -> dict[str, Any]:
    return read_object(folder / name) if is_inside(folder / name, folder) else {}


def flags_of(entry: Mapping[str, Any], where: str) -> AddedFlags:
    """The flags of an added token; those left out have the library's defaults."""
    special = entry.get("special", False)
    given = {name: entry[name] for name in _FLAGS if name in entry}
    given.setdefault("normalized", not special)
    wrong = next((name for name, value in given.items() if not isinstance(value, bool)), None)
    if wrong is not None:
        raise TokenizerError(
            f"{where}: `{wrong}` of an added token is {shown(given[wrong])}, but it must be true or false."
        )
    return AddedFlags(**given)


def text_of(value: object, where: str) -> str:
    """A token's text: a string that is not empty and can be written as UTF-8."""
    if isinstance(value, str) and value:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise TokenizerError(
                f"{where}: the token {shown(value)} holds half a surrogate pair: fetch the file again."
            ) from None
        return value
    raise TokenizerError(
        f"{where}: {shown(value)} is no token, which must be a text: fetch the file again."
    )


def _declared(value: object, file: Path) -> dict[int, AddedToken]:
    where = f"{shown(file)}: added_tokens_decoder"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TokenizerError(f"{where} is not an object of tokens by id: fetch the file again.")
    found: dict[int, AddedToken] = {}
    for key, entry in value.items():
        if not key.isdecimal() or not isinstance(entry, dict):
            raise TokenizerError(
                f"{where}: {shown(key)} is not the id of a token: fetch the file again."
            )
        found[int(key)] = AddedToken(text_of(entry.get("content"), where), flags_of(entry, where))
    return found


def _added_tokens(folder: Path, special: set[str]) -> dict[int, AddedToken]:
    where = shown(folder / ADDED)
    found: dict[int, AddedToken] = {}
    for text, index in _optional_object(folder, ADDED).items():
        if not is_id(index):
            raise TokenizerError(
                f"{where}: the id of {shown(text)} is {shown(index)}: fetch the file again."
            )
        if index in found:
            raise TokenizerError(
                f"{where} gives the id {index} to both {shown(found[index].text)} and {shown(text)}: remove one."
            )
        is_special = text in special
        flags = AddedFlags(normalized=not is_special, special=is_special)
        found[index] = AddedToken(text_of(text, where), flags)
    return found


def is_id(value: object) -> bool:
    """Whether a value read from JSON can be a token's id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _special_tokens(
    values: Mapping[str, Any], folder: Path
) -> tuple[dict[str, str], dict[str, AddedFlags]]:
    """Texts by role, in the order of `ROLES` and then of the file, and the flags of those given as objects."""
    where = shown(folder)
    names = [name for name in values if name.endswith("_token") and name not in ROLES]
    special: dict[str, str] = {}
    declarations: dict[str, AddedFlags] = {}
    for name in (*ROLES, *names):
        value = values.get(name)
        if isinstance(value, dict) and "content" in value:
            text = text_of(value["content"], f"{where}: {name}")
            declarations[text] = flags_of({**value, "special": True}, f"{where}: {name}")
        elif isinstance(value, str):
            if not value:
                continue
            text = text_of(value, f"{where}: {name}")
        elif name in ROLES and value is not None:
            raise TokenizerError(
                f"{where}: {name} is {shown(value)}, but it must be a token's text."
            )
        else:
            continue
        special[name] = text
    return special, declarations


def _additional(
    values: Mapping[str, Any],
    folder: Path,
    special: dict[str, str],
    declarations: dict[str, AddedFlags],
) -> tuple[str, ...]:
    """Special tokens without a role; those that have a name of their own go to `special`."""
    where = f"{shown(folder / CONFIG)}: additional_special_tokens"
    given = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    if isinstance(given, dict):
        special.update({name: text_of(_content(text), where) for name, text in given.items()})
        return ()
    if not isinstance(given, list):
        raise TokenizerError(f"{where} is {shown(given)}, but it must be a list of tokens.")
    texts = [text_of(_content(entry), where) for entry in given]
    for text, entry in zip(texts, given, strict=True):
        if isinstance(entry, dict):
            declarations.setdefault(text, flags_of({**entry, "special": True}, where))
    return tuple(dict.fromkeys(texts))


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Template by name: files go before tokenizer_config.json, whose key is a text or a list of named texts."""
    found: dict[str, str] = {}
    for name in ("additional_chat_templates", "chat_templates"):
        for file in sorted((folder / name).glob("*.jinja")):
            if is_inside(file, folder):
                found[file.stem] = read_text(file)
    jinja, old = folder / "chat_template.jinja", folder / "chat_template.json"
    if is_inside(jinja, folder):
        found["default"] = read_text(jinja)
    if found:
        return found
    where = shown(folder / CONFIG)
    given = config.get("chat_template")
    if given is None and is_inside(old, folder):
        where, given = shown(old), read_object(old).get("chat_template")
    return _named_templates(given, where)


def _named_templates(given: object, where: str) -> dict[str, str]:
    if given is None:
        return {}
    if isinstance(given, str):
        return {"default": given}
    entries = [(name, text) for name, text in given.items()] if isinstance(given, dict) else None
    if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        entries = [(entry.get("name"), entry.get("template")) for entry in given]
    if entries is None or not all(isinstance(part, str) for entry in entries for part in entry):
        raise TokenizerError(
            f"{where}: chat_template is neither a text nor a list of named texts: fetch the file again."
        )
    return dict(entries)
