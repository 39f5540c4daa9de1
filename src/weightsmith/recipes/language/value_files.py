"""Files with values of free numbers: names to numbers, and to files of masks beside it, in YAML or JSON."""

from __future__ import annotations

from pathlib import Path

from weightsmith.errors import RecipeError
from weightsmith.recipes.language.document import (
    MOST_BYTES,
    DocumentKind,
    number,
    parse_documents,
)
from weightsmith.tensors import read_small
from weightsmith.wording import literal, shown

_KIND = DocumentKind("file of values", "names of free numbers")


def read_values(path: Path) -> dict[str, float | str]:
    """The numbers, and files of masks, in a file by their names.

    Raises RecipeError, with line and column, for anything else.
    """
    try:
        text = read_small(path, MOST_BYTES, pipes=True).decode()
    except UnicodeDecodeError:
        raise RecipeError(f"{shown(path)} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as problem:
        raise RecipeError(
            f"The values {shown(path)} cannot be read ({problem.strerror}); give a YAML or JSON file, or `start`."
        ) from None
    documents = parse_documents(text, str(path), _KIND)
    if len(documents) != 1:
        raise RecipeError(f"{shown(path)} has more than one document; keep one.")
    found: dict[str, float | str] = {}
    for name, given in documents[0].data.items():
        if isinstance(given, str) and given.endswith(".safetensors"):
            found[name] = str(path.parent / given)
            continue
        spelled = number(given) if isinstance(given, str) else given
        if isinstance(spelled, bool) or not isinstance(spelled, (int, float)):
            where = documents[0].where((name,))
            what = "a mask's file (.safetensors)" if name.endswith(".mask") else "a number"
            raise RecipeError(f"{where}: {shown(name)} is {what}, not {literal(given)}.")
        found[name] = float(spelled)
    return found
