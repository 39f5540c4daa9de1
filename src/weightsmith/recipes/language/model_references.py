"""How a recipe names a checkpoint: `BASE[@REVISION][+ADAPTER[@REVISION][:STRENGTH]]`, or a mapping of the parts.

Either is read once, into a `Reference`, which is what all that follows is given.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationInfo
from pydantic_core import CoreSchema, core_schema

from weightsmith.adapters import (
    AdapterReference,
    Reference,
    is_ambiguous,
    parse_adapter,
    parse_reference,
)
from weightsmith.tensors import expanded
from weightsmith.wording import literal

RECIPE_SUFFIXES = (".yaml", ".yml")


def is_recipe_file(given: str | Path) -> bool:
    """Whether what may be a model or a recipe is named like the file of a recipe, there or not, and is no folder."""
    return Path(given).suffix in RECIPE_SUFFIXES and not expanded(given).is_dir()


_TEXT = core_schema.str_schema()
_REVISION = core_schema.typed_dict_field(core_schema.nullable_schema(_TEXT), required=False)
_ADAPTER_PARTS = core_schema.typed_dict_schema(
    {
        "path": core_schema.typed_dict_field(_TEXT),
        "revision": _REVISION,
        "scale": core_schema.typed_dict_field(core_schema.float_schema(), required=False),
        "component": _REVISION,
    },
    extra_behavior="forbid",
)
_PARTS = core_schema.typed_dict_schema(
    {
        "path": core_schema.typed_dict_field(_TEXT),
        "revision": _REVISION,
        "override_architecture": _REVISION,
        "adapters": core_schema.typed_dict_field(
            core_schema.tuple_variable_schema(_ADAPTER_PARTS), required=False
        ),
    },
    extra_behavior="forbid",
)


class _ReferenceForm:
    """What pydantic is told of a `Reference`: how it is read, written, and described to editors."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> CoreSchema:
        return core_schema.with_info_wrap_validator_function(
            _read,
            _PARTS,
            serialization=core_schema.plain_serializer_function_ser_schema(reference_data),
            ref="ModelRef",
            # Where pydantic keeps the hook of a model, whose result is one definition that others refer to.
            metadata={"pydantic_js_functions": [_described]},
        )


def _described(*_: Any) -> dict[str, Any]:
    """The JSON Schema of a reference: a text, or a mapping around one."""
    path = {
        "type": "object",
        "required": ["path"],
        "properties": {"path": {"type": "string"}, "revision": {"type": "string"}},
        "additionalProperties": False,
    }
    more = {"scale": {"type": "number"}, "component": {"type": "string"}}
    scaled = {**path, "properties": {**path["properties"], **more}}  # type: ignore[dict-item]
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


# A local path that exists is taken as it is, `@` and `+` included.
ModelReference = Annotated[Reference, _ReferenceForm]


def _read(given: Any, parts: Any, info: ValidationInfo) -> Reference:
    """A reference from a text, from a mapping around one, or from its parts, which `parts` checks."""
    base_dir = (info.context or {}).get("base_dir") if isinstance(info.context, dict) else None
    if isinstance(given, Reference):
        return given
    if isinstance(given, str):
        return parse_reference(given, base_dir)
    if not isinstance(given, dict):
        raise ValueError(f"a model is a path, a Hub id or a mapping, not {literal(given)}")
    if "model" in given:
        return _from_mapping(given, parts, base_dir)
    known = parts(given)
    adapters = tuple(
        AdapterReference(
            one["path"], one.get("revision"), one.get("scale", 1.0), one.get("component")
        )
        for one in known.get("adapters", ())
    )
    return Reference(
        known["path"], known.get("revision"), adapters, known.get("override_architecture")
    )


def reference_data(reference: Reference) -> Any:
    """A reference as recipes have it: a text, or a mapping where that could be read otherwise."""
    paths = (
        "@" in reference.path or "+" in reference.path,
        *(is_ambiguous(adapter.path) for adapter in reference.adapters),
        *(adapter.component is not None for adapter in reference.adapters),
    )
    if not any(paths) and reference.override_architecture is None:
        return str(reference)
    path: dict[str, Any] = {"path": reference.path}
    if reference.revision is not None:
        path["revision"] = reference.revision
    mapping: dict[str, Any] = {"model": path}
    if reference.adapters:
        adapters = [_adapter_mapping(adapter) for adapter in reference.adapters]
        mapping["lora"] = adapters[0] if len(adapters) == 1 else adapters
    if reference.override_architecture is not None:
        mapping["override_architecture"] = reference.override_architecture
    return mapping


def _adapter_mapping(adapter: AdapterReference) -> dict[str, Any]:
    """The parts that are not left to defaults."""
    parts: dict[str, Any] = {"path": adapter.path}
    if adapter.revision is not None:
        parts["revision"] = adapter.revision
    if adapter.strength != 1.0:
        parts["scale"] = adapter.strength
    if adapter.component is not None:
        parts["component"] = adapter.component
    return parts


def _from_mapping(given: dict[str, Any], parts: Any, base_dir: Path | None) -> Reference:
    unknown = set(given) - {"model", "lora", "override_architecture"}
    if unknown:
        raise ValueError(
            f"A model mapping has the unknown key {min(unknown)!r}; it may have model, lora and "
            "override_architecture."
        )
    inner, lora = given["model"], given.get("lora")
    if isinstance(inner, str):
        found = parse_reference(inner, base_dir)
    elif _is_path(inner, {"path", "revision"}):
        found = Reference(inner["path"], inner.get("revision"))
    else:
        raise ValueError(
            f"A model must be a path or a mapping of path and revision, not {literal(inner)}."
        )
    if lora is not None and found.adapters:
        raise ValueError(
            f"Model {literal(inner)} has adapters behind `+` and under `lora:`; write them in one of the "
            "two places."
        )
    listed = list(lora) if isinstance(lora, (list, tuple)) else [] if lora is None else [lora]
    adapters = found.adapters or tuple(_adapter(adapter, base_dir) for adapter in listed)
    architecture = given.get("override_architecture")
    if architecture is not None:
        architecture = parts({"path": found.path, "override_architecture": architecture})
        architecture = architecture["override_architecture"]
    return Reference(found.path, found.revision, adapters, architecture)


def _adapter(given: Any, base_dir: Path | None) -> AdapterReference:
    """One adapter of `lora:`: a text as after a `+`, or a mapping of path, revision, scale and component."""
    if isinstance(given, str) and given.strip():
        return parse_adapter(given, base_dir)
    if not _is_path(given, {"path", "revision", "scale", "component"}):
        raise ValueError(
            "An adapter must be a path or a mapping of path, revision, scale and component, not "
            f"{literal(given)}."
        )
    component = given.get("component")
    if component is not None and not (isinstance(component, str) and component):
        raise ValueError(
            f"The component of adapter {given['path']!r} must be a name such as unet, not {literal(component)}."
        )
    scale = given.get("scale", 1.0)
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not is_number or not math.isfinite(scale):
        raise ValueError(
            f"The scale of adapter {given['path']!r} must be a finite number, not {literal(scale)}."
        )
    return AdapterReference(given["path"], given.get("revision"), float(scale), component)


def _is_path(given: Any, keys: set[str]) -> bool:
    if not isinstance(given, dict) or not set(given) <= keys:
        return False
    path, revision = given.get("path"), given.get("revision")
    return isinstance(path, str) and bool(path.strip()) and isinstance(revision, str | None)
