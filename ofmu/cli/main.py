"""The command ``ofmu``. Each command imports the packages that it needs, and only then."""

from __future__ import annotations

import errno
import io
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

import click

from ofmu import __version__
from ofmu.cli.progress import ProgressPrinter
from ofmu.cli.usage import usage_sentence
from ofmu.errors import OfmuError, nearest_name
from ofmu.io.progress import reporting_to
from ofmu.io.ranks import drop_stale_ranks, launched_ranks

COMMANDS = {
    "prepare": ("prepare", "Train the target and the retrain reference, once."),
    "unlearn": ("unlearn", "Run one method once (default: OFMU), and score and save the model."),
    "evaluate": ("evaluate", "Score any saved model."),
    "search": ("search", "Search a Pareto front of forgetting against utility."),
    "compare": ("compare", "Compare methods at equal budget, with error bars."),
    "report": ("report", "Write or serve the HTML report of a run, a search or a comparison."),
    "runs": ("runs", "List run directories with state, result and cost."),
    "show": ("show", "Show settings, metrics and answers of one trial."),
    "export": ("export", "Copy the model of one trial of a search."),
    "forget": ("forget", "Make a model forget rows, a person or answers, and write evidence."),
    "verify": ("verify", "Check the signature and the hashes of evidence."),
    "plan": ("plan", "Compute memory, passes and tokens of a run before anything is loaded."),
    "doctor": ("doctor", "Check this machine, or a cluster, for what a search needs."),
    "submit": ("submit", "Run one of these commands as a job on a Ray cluster."),
    "jobs": ("jobs", "List a cluster's jobs."),
    "logs": ("logs", "Show what a job prints."),
    "stop": ("stop", "Stop a job."),
}
"""Each command's module under ofmu.cli, and its line in ``ofmu --help``, which imports no module."""


class LazyCommands(click.Group):
    """Imports a command's module when the command is called, so that the help takes no time."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order of a new user's first steps."""
        return list(COMMANDS)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names.

        Raises:
            UsageError: there is no such command. The message names the nearest one.
        """
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            context.fail(f"There is no command '{args[0]}': {nearest_name(args[0], COMMANDS)}")
        return super().resolve_command(context, args)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import and return one command."""
        if name not in COMMANDS:
            return None
        module, _ = COMMANDS[name]
        command: click.Command = getattr(import_module(f"ofmu.cli.{module}"), f"{name}_command")
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from :data:`COMMANDS`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyCommands)
@click.version_option(__version__, prog_name="ofmu")
def cli() -> None:
    """Make a model forget, and measure the costs.

    Most commands take a YAML config (or a preset's name) and dotted overrides such as method.inner_steps=5.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. An error of the user is one sentence on standard error."""
    warnings.showwarning = WarningPrinter()
    _print_any_character()
    try:
        with reporting_to(ProgressPrinter() if launched_ranks().rank == 0 else None):
            cli.main(args=None if arguments is None else list(arguments), prog_name="ofmu", standalone_mode=False)
    except click.ClickException as error:
        click.UsageError(usage_sentence(error), getattr(error, "ctx", None)).show()
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("Interrupted", file=sys.stderr)
        return 130
    except OfmuError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            name, reason = str(error.filename), error.strerror
            name = name if len(name) <= 60 else f"{name[:60]}…"
            print(f"Error: '{name}' cannot be a path ({reason}): check what was given as a path", file=sys.stderr)
            return 1
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ESTALE, errno.EACCES):
            raise
        from ofmu.io.files import storage_fix

        verb = "open" if error.errno == errno.EACCES else "write"
        fix = "check its owner and mode" if error.errno == errno.EACCES else storage_fix(error)
        print(f"Error: Cannot {verb} {error.filename or 'a file'} ({error.strerror}): {fix}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        from ofmu.engine.device import out_of_memory

        sentence = out_of_memory(error)
        if sentence is None:
            raise
        print(f"Error: {sentence}", file=sys.stderr)
        return 1
    return 0


def entry_point() -> None:
    """Exit with :func:`main`'s status.

    SIGTERM, which preempted nodes and stopped jobs send, acts like Ctrl-C, and so does SIGHUP, which a closed terminal
    sends. A command under nohup ignores SIGHUP, and goes on.
    """
    stale = drop_stale_ranks()
    if stale is not None:
        print(f"Warning: {stale}", file=sys.stderr)
    if launched_ranks().world_size == 1:
        # Ranks of a launcher may hang in a collective, where no Python handler runs, so SIGTERM must kill them there.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.default_int_handler)
    sys.exit(main())


def _print_any_character() -> None:
    """Print a question mark for a character that the terminal's encoding lacks, such as ∇ in Latin-1.

    By default Python raises UnicodeEncodeError, and a line of progress would end a run of hours.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


class WarningPrinter:
    """Prints each UserWarning of one command as one sentence, once. Libraries' other warnings are not shown.

    A command that evaluates several models on the same rows gives the same warning for each of them. Python's own
    filter forgets what it has shown whenever a library changes the filters for a moment.
    """

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Print a warning, in the form of ``warnings.showwarning``."""
        text = str(message)
        if issubclass(category, UserWarning) and text not in self._shown:
            self._shown.add(text)
            print(f"Warning: {text}", file=file or sys.stderr)
