"""How a recipe names a checkpoint: `PATH`, `PATH@REVISION`, `PATH+ADAPTER`, or a mapping of the same parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic_core.core_schema import ValidationInfo

RECIPE_SUFFIXES = (".yaml", ".yml")


class ModelRef(BaseModel):
    """A checkpoint by path or Hub id. A local path that exists is taken as it is, `@` and `+` included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    revision: str | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def short_name(self) -> str:
        """The Hub id, or the last component of a local path."""
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") != 1
        if looks_local or Path(self.path).expanduser().exists():
            return Path(self.path).name or self.path
        return self.path

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """A model is written as a text, or as a mapping around one."""
        return {"anyOf": [{"type": "string"}, {"type": "object", "required": ["model"]}]}

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, given: Any, info: ValidationInfo) -> Any:
        base_dir = (info.context or {}).get("base_dir") if isinstance(info.context, dict) else None
        if isinstance(given, str):
            return parse_reference(given, base_dir)
        if isinstance(given, dict) and "model" in given:
            return _from_mapping(given, base_dir)
        if not isinstance(given, (dict, ModelRef)):
            raise ValueError(f"a model is a path, a Hub id or a mapping, not {given!r}")
        return given

    @model_serializer
    def _to_recipe(self) -> Any:
        plain = "@" not in self.path and "+" not in self.path
        if plain and self.override_architecture is None:
            return str(self)
        path: dict[str, Any] = {"path": self.path}
        if self.revision is not None:
            path["revision"] = self.revision
        reference: dict[str, Any] = {"model": path}
        if self.override_architecture is not None:
            reference["override_architecture"] = self.override_architecture
        return reference


def parse_reference(text: str, base_dir: Path | None = None) -> dict[str, Any]:
    """The parts of `PATH[@REVISION][+ADAPTER]`.

    Raises ValueError for an adapter, an empty path, and more than one `@`.
    """
    if not text.strip():
        raise ValueError("A model is given as an empty text; give a path or a Hub id.")
    if exists_locally(text, base_dir):
        return {"path": text}
    path, plus, adapter = text.partition("+")
    if plus:
        raise ValueError(
            f"Model {text!r} asks for the adapter {adapter!r}, but adapters are not supported yet; merge the adapter "
            "into its model first and name the result here."
        )
    path, at, revision = path.partition("@")
    if at and (not revision or "@" in revision or not path):
        raise ValueError(
            f"Model {text!r} is not of the form PATH@REVISION; write one path and one revision."
        )
    return {"path": path, "revision": revision or None}


def exists_locally(text: str, base_dir: Path | None) -> bool:
    """Whether a path exists, taken from the working directory or from the recipe's folder."""
    try:
        path = Path(text).expanduser()
        return path.exists() or (base_dir is not None and (base_dir / path).exists())
    except (OSError, ValueError, RuntimeError):
        return False


def locate(text: str, base_dir: Path | None) -> str:
    """The path to open: relative to the working directory, else to the recipe's folder, else the text as it is."""
    if base_dir is None or Path(text).expanduser().exists():
        return text
    # The task of a bundle is no part of its path.
    for path in (Path(text).expanduser(), Path(text.partition("#")[0]).expanduser()):
        if not path.exists() and not path.is_absolute() and (base_dir / path).exists():
            return str(base_dir / Path(text).expanduser())
    return text


def _from_mapping(given: dict[str, Any], base_dir: Path | None) -> dict[str, Any]:
    unknown = set(given) - {"model", "lora", "override_architecture"}
    if unknown:
        raise ValueError(
            f"A model mapping has the unknown key {min(unknown)!r}; it may have model, lora and "
            "override_architecture."
        )
    if given.get("lora") is not None:
        raise ValueError(
            f"Model {given['model']!r} asks for the adapter {given['lora']!r}, but adapters are not supported yet; "
            "merge the adapter into its model first and name the result here."
        )
    inner = given["model"]
    if isinstance(inner, str):
        parts = parse_reference(inner, base_dir)
    elif (
        isinstance(inner, dict)
        and set(inner) <= {"path", "revision"}
        and isinstance(inner.get("path"), str)
    ):
        parts = dict(inner)
    else:
        raise ValueError(
            f"A model must be a path or a mapping of path and revision, not {inner!r}."
        )
    if given.get("override_architecture") is not None:
        parts["override_architecture"] = given["override_architecture"]
    return parts
