"""Tensors of a model that lie in files of their own beside its main set of weights (see `naming.beside`).

They are merged into safetensors like all others. Files of torch.save are made of those at the end, since an archive
has checksums of what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightsmith.naming import beside
from weightsmith.publishing import staged_file
from weightsmith.tensors import (
    DType,
    ShardLayout,
    check_torch_dtype,
    read_header,
    sync_folder,
    write_torch_file,
)

Entry = tuple[str, DType, tuple[int, ...]]

_SAFETENSORS = ".safetensors"
_UNTIL_THEN = ".weightsmith.safetensors"


def by_file(entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, dict[str, Entry]]]:
    """The entries of the main set, and by file those of all others under the names that they have there.

    What becomes a file of torch.save has another name until then. Raises OutputError for dtypes that such a
    file cannot hold.
    """
    main: list[Entry] = []
    files: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        found = beside(entry[0])
        if found is None:
            main.append(entry)
            continue
        file, stored = found
        if not file.endswith(_SAFETENSORS):
            check_torch_dtype(entry[0], entry[1])
            file += _UNTIL_THEN
        files.setdefault(file, {})[stored] = entry
    return main, files


def write_torch_files(layout: ShardLayout, folder: Path) -> None:
    """Put files of torch.save in the places of those that are to become such, durably."""
    for shard in layout.shards:
        if not (shard.is_beside and shard.file_name.endswith(_UNTIL_THEN)):
            continue
        name = shard.file_name.removesuffix(_UNTIL_THEN)
        made = folder / shard.file_name
        with staged_file(folder / name) as staged:
            with open(staged.descriptor, "wb", closefd=False) as file:
                write_torch_file(file, read_header(made))
            staged.replace()
        made.unlink()
        sync_folder(made.parent)
