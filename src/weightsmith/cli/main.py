"""The command `weightsmith`: which commands there are, and how every way to fail ends."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.interruption import INTERRUPTED, is_interrupted
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import abridged, harmless, shown
from weightsmith.errors import ResourceError, WeightsmithError
from weightsmith.version import __version__
from weightsmith.wording import advice_on

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

UNEXPECTED = 3

# What click says of a text that is no number, and what that means.
_NUMBERS = {
    "is not a valid integer range": "is no whole number",
    "is not a valid integer": "is no whole number",
    "is not a valid float range": "is no number",
    "is not a valid float": "is no number",
}

# In the order of use, with what the help says of each.
COMMANDS = {
    "plan": "Show what a merge will read, compute and write.",
    "merge": "Make a checkpoint from a recipe.",
    "verify": "Check that an output is still what its manifest says.",
    "replay": "Make an output again from its manifest, bit for bit.",
    "rollback": "Take a contributor out of a merge again.",
    "inspect": "Show what a checkpoint's headers and config say.",
    "diff": "Show how two checkpoints differ, per layer and role.",
    "seams": "Measure the boundaries between stacked layers.",
    "methods": "List the merge methods and modifiers, or explain one.",
    "adapter": "Combine, extract, convert, merge and look at adapters.",
    "bundle": "Keep many fine-tunes of one base in one folder.",
    "delta": "Keep a fine-tune as small changes of its base.",
    "transplant": "Give a model another model's tokenizer.",
    "untie": "Give a tied model an output head of its own.",
    "collect": "Measure a model over data: Fisher, Gram, gradients, channels.",
    "testbed": "Build real model families to merge and to evaluate.",
    "evaluate": "Score a checkpoint or a recipe on the tasks of a suite.",
    "compare": "Compare two versions: scores, flips, retained skill, gates.",
    "league": "Rank merge methods on your models, or on a family.",
    "report": "Write a report as one HTML file.",
}

# The folder of each command's module, which has the command's name.
_FOLDERS = {
    command: folder
    for folder, commands in {
        "merging": "plan merge verify replay rollback transplant untie",
        "looking": "inspect diff seams methods",
        "adapters": "adapter",
        "keeping": "bundle delta",
        "measuring": "collect",
        "judging": "testbed evaluate compare league report",
    }.items()
    for command in commands.split()
}


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for, and none to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"weightsmith.cli.{_FOLDERS[cmd_name]}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with a sentence each."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, or options of the group."""
        from click.shell_completion import CompletionItem

        named = [
            CompletionItem(name, help=sentence)
            for name, sentence in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from weightsmith.naming import nearest

            near = nearest(args[0], COMMANDS)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`weightsmith COMMAND --help` explains a command.",
)
@click.version_option(__version__, message="weightsmith %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def weightsmith() -> None:
    """Merge neural-network checkpoints: planned, streamed, resumed, verified and replayed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    STREAMS.guard()
    code = execute(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(STREAMS.exit_code(code))


def execute(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every error is told in one line on stderr."""
    is_debug, rest = _without_debug(arguments)
    try:
        code: Any = weightsmith.main(
            rest or ["--help"], prog_name="weightsmith", standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _write_error(_usage_sentence(error), error.exit_code)
    except click.Abort:
        return _report_interruption()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    except WeightsmithError as error:
        if is_debug:
            traceback.print_exc()
        return _write_error(str(error), error.exit_code)
    except MemoryError:
        return _write_error(
            "memory ran out; give fewer --threads or a smaller --memory, or free some and raise `ulimit -v`.",
            ResourceError.exit_code,
        )
    except OSError as error:
        if is_debug:
            traceback.print_exc()
        place = f" at {shown(error.filename)}" if error.filename is not None else ""
        reason = error.strerror or str(error)
        return _write_error(
            f"the system refused an operation{place}: {reason}; {advice_on(error)}.",
            ResourceError.exit_code,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line
        if is_interrupted(error):
            return _report_interruption()
        if is_debug:
            traceback.print_exc()
        if isinstance(error, ImportError) and not _is_own(error):
            return _write_error(_of_import(error), ResourceError.exit_code)
        if "can't start new thread" in str(error):
            return _write_error(
                "the system allows no more threads; give fewer --threads, or raise `ulimit -u` and `ulimit -v`.",
                ResourceError.exit_code,
            )
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _write_error(
            f"unexpected {what}; run again with --debug, and report what it shows.", UNEXPECTED
        )


def _is_own(error: ImportError) -> bool:
    return (error.name or "").partition(".")[0] == "weightsmith"


def _of_import(error: BaseException) -> str:
    """What to say where a package cannot be loaded: one that is missing or broken, or for which there is no memory."""
    while isinstance(error.__cause__, ImportError):
        error = error.__cause__
    reason = str(error).strip().splitlines()
    why = f" ({reason[0].rstrip('.')})" if reason else ""
    return (
        f"a package that this command needs cannot be loaded{why}; install weightsmith again, or allow more memory if "
        "`ulimit -v` is low."
    )


def _report_interruption() -> int:
    print("weightsmith: interrupted.", file=sys.stderr)
    return INTERRUPTED


def _without_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` was given, and the other arguments: it counts wherever it stands before `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    return len(rest) < end, rest + arguments[end:]


def _usage_sentence(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    # click lists what can be chosen line by line.
    sentence = " ".join(error.format_message().split())
    for theirs, ours in _NUMBERS.items():
        sentence = sentence.replace(theirs, ours)
    if context is None:
        return sentence
    return f"{sentence.rstrip('.')}{'' if sentence.endswith('?') else '.'} See `{context.command_path} --help`."


def _write_error(sentence: str, code: int) -> int:
    print(f"weightsmith: error: {harmless(abridged(sentence), keep_lines=True)}", file=sys.stderr)
    return code
