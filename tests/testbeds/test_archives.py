"""Many members of an archive in one pass; the archives of the language families are pinned."""

from __future__ import annotations

import re
import tarfile
import zipfile

import pytest

from weightsmith.errors import VerificationError
from weightsmith.testbeds.data.sources import read_members
from weightsmith.testbeds.families import embedding, smollm
from weightsmith.testbeds.families import language_family as language

FILES = {"a/2.json": b"two", "a/1.json": b"one", "b/1.json": b"other", "a/1.txt": b"text"}


def packed(path):
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
        return path
    for name, content in FILES.items():
        file = path.parent / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with tarfile.open(path, "w:gz") as archive:
        for name in FILES:
            archive.add(path.parent / "tree" / name, name)
    return path


@pytest.mark.parametrize("name", ["data.whl", "data.tgz"])
def test_matching_members_come_sorted_and_whole_names_must_match(tmp_path, name):
    archive = packed(tmp_path / name)
    assert read_members(archive, r"a/.*\.json") == [("a/1.json", b"one"), ("a/2.json", b"two")]
    assert read_members(archive, r"a/1") == []


def test_a_broken_archive_is_refused(tmp_path):
    for name in ("data.whl", "data.tgz"):
        (tmp_path / name).write_bytes(b"not an archive")
        with pytest.raises(VerificationError, match="cannot be read"):
            read_members(tmp_path / name, ".*")


def test_every_source_is_pinned_by_version_file_and_digest():
    for blueprint in (language.language(), embedding.embedding(), smollm.smollm()):
        assert blueprint.sources
        for source in blueprint.sources:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", source.digest)
            assert source.version in source.file
