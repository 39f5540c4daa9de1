"""Places that no output can have, for every command that writes, and what earlier runs may have left beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import click

from weightsmith.cli.main import weightsmith

from .commands import walk
from .companions import copied
from .running import Input, Make
from .world import CONTROLS

OPTIONS = ("--report", "--output", "--pictures", "--out", "--save")
# {case} is an empty folder; what is put there is gone with it, and nothing may appear anywhere else.
PLACES = (
    "",
    "/",
    "//",
    ".",
    "..",
    "../..",
    "a",
    "a/model.safetensors",
    "a/model.safetensors/x",
    "merged",
    "merged/x",
    "merged/weightsmith-manifest.json",
    "package",
    "bundle/x.json",
    "garbage",
    "loop",
    "loop/x",
    "nowhere",
    "no/such/x",
    "ok.yaml",
    "ok.yaml/x",
    "colours.npz",
    "basis.safetensors",
    "x" * 300,
    "{case}/" + "x" * 245 + ".json",
    "x/" * 3000,
    "\udcff\udcfe/x",
    "~nobody-here/x",
    "/proc/x",
    "/proc/self/x.json",
    "/dev/x",
    "/dev/null",
    "/dev/full",
    "/sys/x.html",
    "{case}",
    "{case}/",
    "{case}/.",
    "{case}/..",
    "{case}/a\nb",
    "{case}/\x1b[2Jx",
    "{case}/\u202ex.html",
    "{case}/\udcff",
    "{case}/-",
    "{case}/.hidden",
    "{case}/x.partial",
    "{case}/x.safetensors",
    "{case}/x.yaml",
)
LEFT: dict[str, bytes | Make] = {
    "a file": b"x",
    "a link": lambda path: path.symlink_to("elsewhere"),
    "a link to an input": lambda path: path.symlink_to("../a"),
    "a pipe": os.mkfifo,
    "a folder of somebody's": lambda path: _made(path, "mine", b"precious"),
    "a lock that is a folder": lambda path: (path / "lock").mkdir(parents=True),
    "a lock that is a link": lambda path: _linked(path / "lock"),
    "a lock that is a pipe": lambda path: (path.mkdir(), os.mkfifo(path / "lock"), None)[2],
    "a checkpoint that is a file": lambda path: _made(path, "checkpoint", b"x"),
    "a checkpoint that is a link": lambda path: _linked(path / "checkpoint"),
    "a replaced that is a file": lambda path: _made(path, "replaced", b"x"),
    "a replaced of somebody's": lambda path: _made(path / "replaced", "mine", b"precious"),
    "a discarded that is a link": lambda path: _linked(path / "discarded"),
}
JOURNALS = (
    b"",
    b"{",
    b"[]\n",
    b"null\n",
    b"{}\n",
    b'{"schema": 1}\n',
    b'{"schema": 1, "plan": 5}\n',
    b'{"schema": 10000000000000000000000000}\n',
    b'{"tensor": "x"}\n',
    b"\xff\n",
    b"[" * 100_000 + b"\n",
    b"9" * 5000 + b"\n",
    b'{"sealed": {}}\n',
)
# Commands whose output is a folder, with it as the last word.
FOLDERS = (
    "merge ok.yaml {case}/out --quiet",
    "adapter extract a base {case}/out --rank 2 --quiet",
    "adapter resize lora {case}/out --rank 1 --quiet",
    "adapter combine lora lora2 --out {case}/out --quiet",
    "delta pack a {case}/out --base base --quiet",
    "bundle create bundle.yaml {case}/out --quiet",
)


def _made(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


def _linked(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("/etc/passwd")


def inputs() -> Iterator[Input]:
    for name, command in walk(weightsmith):
        control = CONTROLS[name].split()
        for option in command.params:
            if isinstance(option, click.Option) and option.opts[-1] in OPTIONS:
                flag = option.opts[-1]
                rest = _without(control, option)
                # A folder for pictures is made where there is none, and may be one that is there.
                made = (
                    "",
                    ".",
                    "..",
                    "../..",
                    "no/such/x",
                    "~nobody-here/x",
                    "\udcff\udcfe/x",
                    "{case}/..",
                )
                for place in PLACES:
                    if flag == "--pictures" and place in made:
                        continue
                    yield _output(name, flag, place, (*rest, f"{flag}={place}"))
        for at, word in enumerate(control):
            if word.startswith("{case}") and not control[at - 1].startswith("-"):
                for place in PLACES:
                    # A library may be any folder.
                    if word == "{case}" and place in ("", ".", "..", "../..", "{case}/.."):
                        continue
                    yield _output(name, word, place, (*control[:at], place, *control[at + 1 :]))
    yield from _leftovers()


def _output(name: str, word: str, place: str, argv: tuple[str, ...]) -> Input:
    # What was to be shown is written beside the work, which stays where it cannot be.
    is_beside = word in ("--report", "--save", "--pictures")
    return Input("outputs", f"{name}, {word} at {place[:24]!r}", argv, leaves=is_beside)


def _without(control: list[str], option: click.Option) -> list[str]:
    """A command line without an option and its value."""
    at = next((at for at, word in enumerate(control) if word in option.opts), None)
    return control if at is None else [*control[:at], *control[at + 2 :]]


def _leftovers() -> Iterator[Input]:
    for line in FOLDERS:
        argv = tuple(line.split())
        words = " ".join(argv[:2])
        for name, make in LEFT.items():
            yield Input(
                "leftovers", f"{words}: {name} in the way", argv, {"out.partial": make}, leaves=True
            )
            yield Input(
                "leftovers",
                f"{words}, --force: {name} as output",
                (*argv, "--force"),
                {"out": make},
            )
    for number, journal in enumerate(JOURNALS):
        for line in (FOLDERS[0], FOLDERS[5]):
            argv = tuple(line.split())
            files = {"out.partial/journal.jsonl": journal}
            name = f"{argv[0]}: journal {number}"
            yield Input("leftovers", name, argv, files, leaves=True)
            yield Input("leftovers", f"{name}, --fresh", (*argv, "--fresh"), files, leaves=True)
    for source in ("merged", "package", "bundle", "lora"):
        changed = json.dumps({"mine": True}).encode()
        for line in FOLDERS:
            argv = (*line.split(), "--force")
            files = {"out": copied(source, "mine.json", changed)}
            name = f"{' '.join(argv[:2])}, --force over {source} with a file of somebody's"
            yield Input("leftovers", name, argv, files, may=frozenset())
