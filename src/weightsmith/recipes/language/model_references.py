"""How a recipe names a checkpoint: `BASE[@REVISION][+ADAPTER[@REVISION][:STRENGTH]]`, or a mapping of the parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator
from pydantic_core.core_schema import ValidationInfo

from weightsmith.adapters import (
    AdapterReference,
    Reference,
    is_ambiguous,
    parse_adapter,
    parse_reference,
)
from weightsmith.wording import literal

RECIPE_SUFFIXES = (".yaml", ".yml")


class AdapterRef(BaseModel):
    """An adapter by path or Hub id; `scale` is what its change is multiplied with."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    path: str
    revision: str | None = None
    scale: float = 1.0

    def __str__(self) -> str:
        return str(AdapterReference(self.path, self.revision, self.scale))

    @property
    def as_mapping(self) -> dict[str, Any]:
        """The parts that are not left to defaults."""
        parts: dict[str, Any] = {"path": self.path}
        if self.revision is not None:
            parts["revision"] = self.revision
        if self.scale != 1.0:
            parts["scale"] = self.scale
        return parts


class ModelRef(BaseModel):
    """A checkpoint by path or Hub id, with the adapters that are applied to it as it is read.

    A local path that exists is taken as it is, `@` and `+` included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    path: str
    revision: str | None = None
    override_architecture: str | None = None
    adapters: tuple[AdapterRef, ...] = ()

    def __str__(self) -> str:
        adapters = tuple(AdapterReference(a.path, a.revision, a.scale) for a in self.adapters)
        return str(Reference(self.path, self.revision, adapters))

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        """A model is written as a text, or as a mapping around one."""
        path = {
            "type": "object",
            "required": ["path"],
            "properties": {"path": {"type": "string"}, "revision": {"type": "string"}},
            "additionalProperties": False,
        }
        scaled = {**path, "properties": {**path["properties"], "scale": {"type": "number"}}}  # type: ignore[dict-item]
        adapter = {"anyOf": [{"type": "string"}, scaled]}
        lora = {"anyOf": [*adapter["anyOf"], {"type": "array", "items": adapter, "minItems": 1}]}
        mapping = {
            "type": "object",
            "required": ["model"],
            "properties": {
                "model": {"anyOf": [{"type": "string"}, path]},
                "lora": lora,
                "override_architecture": {"type": "string"},
            },
            "additionalProperties": False,
        }
        return {"anyOf": [{"type": "string"}, mapping]}

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, given: Any, info: ValidationInfo) -> Any:
        base_dir = (info.context or {}).get("base_dir") if isinstance(info.context, dict) else None
        if isinstance(given, str):
            return _from_text(given, base_dir)
        if isinstance(given, dict) and "model" in given:
            return _from_mapping(given, base_dir)
        if not isinstance(given, (dict, ModelRef)):
            raise ValueError(f"a model is a path, a Hub id or a mapping, not {literal(given)}")
        return given

    @model_serializer
    def _to_recipe(self) -> Any:
        paths = (
            "@" in self.path or "+" in self.path,
            *(is_ambiguous(a.path) for a in self.adapters),
        )
        if not any(paths) and self.override_architecture is None:
            return str(self)
        path: dict[str, Any] = {"path": self.path}
        if self.revision is not None:
            path["revision"] = self.revision
        reference: dict[str, Any] = {"model": path}
        if self.adapters:
            adapters = [adapter.as_mapping for adapter in self.adapters]
            reference["lora"] = adapters[0] if len(adapters) == 1 else adapters
        if self.override_architecture is not None:
            reference["override_architecture"] = self.override_architecture
        return reference


def _from_text(text: str, base_dir: Path | None) -> dict[str, Any]:
    found = parse_reference(text, base_dir)
    parts: dict[str, Any] = {"path": found.path, "revision": found.revision}
    if found.adapters:
        parts["adapters"] = tuple(_adapter_parts(adapter) for adapter in found.adapters)
    return parts


def _adapter_parts(adapter: AdapterReference) -> dict[str, Any]:
    return {"path": adapter.path, "revision": adapter.revision, "scale": adapter.strength}


def _from_mapping(given: dict[str, Any], base_dir: Path | None) -> dict[str, Any]:
    unknown = set(given) - {"model", "lora", "override_architecture"}
    if unknown:
        raise ValueError(
            f"A model mapping has the unknown key {min(unknown)!r}; it may have model, lora and "
            "override_architecture."
        )
    inner = given["model"]
    if isinstance(inner, str):
        parts = _from_text(inner, base_dir)
    elif _is_path(inner, {"path", "revision"}):
        parts = dict(inner)
    else:
        raise ValueError(
            f"A model must be a path or a mapping of path and revision, not {literal(inner)}."
        )
    if given.get("lora") is not None:
        lora = given["lora"]
        if parts.get("adapters"):
            raise ValueError(
                f"Model {literal(inner)} has adapters behind `+` and under `lora:`; write them in one of the "
                "two places."
            )
        listed = list(lora) if isinstance(lora, (list, tuple)) else [lora]
        parts["adapters"] = tuple(_adapter(adapter, base_dir) for adapter in listed)
    if given.get("override_architecture") is not None:
        parts["override_architecture"] = given["override_architecture"]
    return parts


def _adapter(given: Any, base_dir: Path | None) -> dict[str, Any]:
    """One adapter of `lora:`: a text as after a `+`, or a mapping of path, revision and scale."""
    if isinstance(given, str) and given.strip():
        return _adapter_parts(parse_adapter(given, base_dir))
    if not _is_path(given, {"path", "revision", "scale"}):
        raise ValueError(
            f"An adapter must be a path or a mapping of path, revision and scale, not {literal(given)}."
        )
    scale = given.get("scale", 1.0)
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not is_number or not math.isfinite(scale):
        raise ValueError(
            f"The scale of adapter {given['path']!r} must be a finite number, not {literal(scale)}."
        )
    return {**given, "scale": float(scale)}


def _is_path(given: Any, keys: set[str]) -> bool:
    if not isinstance(given, dict) or not set(given) <= keys:
        return False
    path, revision = given.get("path"), given.get("revision")
    return isinstance(path, str) and bool(path.strip()) and isinstance(revision, str | None)
