"""Every option and every argument of every command with what does not belong there."""

from __future__ import annotations

from collections.abc import Iterator

import click

from weightsmith.cli.main import weightsmith

from .running import Input
from .world import CONTROLS

NUMBERS = (
    "",
    "x",
    "-1",
    "0",
    "1.5",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "99999999999999999999",
    "9" * 5000,
    "0x10",
    "1_000",
    "٣",
    "1,2",
    " ",
    "true",
    "\x1b[31m1",
    "1/0",
    "--",
)
TEXTS = (
    "",
    " ",
    "x" * 5000,
    "\x1b[31mred\x1b[0m",
    "\u202etxt.exe",
    "no/such",
    "=",
    "a=",
    "=b",
    "a=b=c",
    "[" * 3000,
    "'",
    "\n",
    "../..",
    "-",
    "nan",
)
SIZES = ("", "0", "-1", "1e9", "1XB", "9" * 400 + "GB", "nan", "0.0001B", "1 GB GB", "٣GB", "inf")
PLACES = (
    "",
    ".",
    "..",
    "folder",
    "empty",
    "garbage",
    "pipe",
    "loop",
    "nowhere",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    "x" * 300,
    "x/" * 3000,
    "base/",
    "base/config.json",
    "base/model.safetensors/x",
    "\udcff\udcfe",
    "\x1b[2Jx",
    "-",
    "--",
    "~nobody-here/x",
    "hf://no/such",
    "no/such@rev@rev",
    "base+",
    "+lora",
    "base+lora:nan",
    "base+lora:1e999",
    "base+lora++lora",
    "base+base",
    "base#x",
    "bundle#",
    "bundle#no",
    "package+lora",
    "lora",
    "merged/weightsmith-manifest.json",
    "ok.yaml",
    "basis.safetensors",
    "one.json",
    "colours.npz",
    "text.jsonl",
    "small.yaml",
    "https://example.org/model",
    "C:\\models\\x",
)


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its words."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, (*path, name))
    else:
        yield " ".join(path), command


def inputs() -> Iterator[Input]:
    for name, command in walk(weightsmith):
        control = CONTROLS[name].split()
        yield Input("commands", f"{name}, nothing else", tuple(name.split()), may=frozenset({0}))
        yield Input("commands", f"{name}, one argument more", (*control, "more"))
        yield Input("commands", f"{name}, an option that is none", (*control, "--no-such-option"))
        for option in command.params:
            if isinstance(option, click.Option):
                yield from _of_option(name, control, option)
        yield from _of_arguments(name, control)


def _of_option(name: str, control: list[str], option: click.Option) -> Iterator[Input]:
    flag = option.opts[-1]
    if option.is_flag:
        yield Input("options", f"{name} {flag} twice", (*control, flag, flag))
        if flag != "--json" or name not in ("evaluate", "compare", "league"):
            yield Input("options", f"{name} {flag}=x", (*control, f"{flag}=x"), may=frozenset())
        return
    if flag in ("--report", "--output", "--pictures", "--out", "--save"):
        return  # These are outputs, which have inputs of their own.
    kind = option.type.name
    values = (
        SIZES
        if kind == "size"
        else NUMBERS
        if kind in ("integer range", "float", "float range")
        else TEXTS
    )
    for value in values:
        yield Input("options", f"{name} {flag} {value[:20]!r}", (*control, f"{flag}={value}"))
    if kind == "text" and flag in ("--base", "--suite", "--parents"):
        for place in PLACES:
            yield Input("places", f"{name} {flag} {place[:20]!r}", (*control, f"{flag}={place}"))


def _of_arguments(name: str, control: list[str]) -> Iterator[Input]:
    first = len(name.split())
    for at in range(first, len(control)):
        word = control[at]
        if word.startswith(("-", "{case}")) or control[at - 1].startswith("-"):
            continue
        for place in PLACES:
            # There is a family of that name, which would be trained.
            if (name, place) == ("testbed build", "lora"):
                continue
            argv = (*control[:at], place, *control[at + 1 :])
            yield Input("places", f"{name}, {word} as {place[:20]!r}", argv)
