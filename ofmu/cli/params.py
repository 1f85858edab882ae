"""What several commands take: a config with overrides, and a folder on this machine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_CONFIG = "quickstart"
"""The preset that a command takes if the user names no config."""

ALLOW_CODE_HELP = "Import modules that the run directory's config names. Their code runs."

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass(frozen=True)
class ConfigChoice:
    """The config and the overrides that the user typed."""

    name: str | None
    """A YAML file or a preset; None if the user named none."""
    overrides: tuple[str, ...] = ()
    """Entries such as ``method.inner_steps=5``."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> ConfigChoice:
        """Split the words into a config and overrides. A first word with ``=`` is an override, not a config."""
        choice = cls(words[0], tuple(words[1:])) if words and "=" not in words[0] else cls(None, tuple(words))
        warn_if_given_twice(choice.overrides)
        return choice

    @property
    def source(self) -> str:
        """The config's name, or the default's."""
        return self.name or DEFAULT_CONFIG

    def read_mapping(self, unused: Collection[str] = ()) -> dict[str, Any]:
        """Return the config as a mapping, with the overrides applied.

        Args:
            unused: sections that the command does not read. They are left out.

        Raises:
            ConfigError: the file is missing, is not YAML, or an override is wrong.
        """
        # pydantic and YAML are slow to import, and the help of a command does not need them.
        from ofmu.run_config import read_overridden

        return read_overridden(self.source, self.overrides, unused)

    def words(self) -> list[str]:
        """Return what the user typed."""
        return [*([self.name] if self.name is not None else []), *self.overrides]


def warn_if_given_twice(overrides: Sequence[str]) -> None:
    """Warn of a key that has two values. The last one is taken, so that a script may append to a command."""
    values: dict[str, str] = {}
    for entry in overrides:
        key, sign, value = entry.partition("=")
        if sign and values.get(key, value) != value:
            warnings.warn(f"{key} is given twice, as {values[key]} and as {value}: the last one is taken", stacklevel=2)
        values[key] = value


def config_argument(command: CommandT) -> CommandT:
    """Add the arguments ``[CONFIG] [SECTION.KEY=VALUE]...`` to a command, as its parameter ``config``."""
    return click.argument(
        "config",
        nargs=-1,
        metavar="[CONFIG] [SECTION.KEY=VALUE]...",
        callback=lambda context, parameter, words: ConfigChoice.parse(words),
    )(command)


def run_dir_option(command: CommandT) -> CommandT:
    """Add the option ``--run-dir``, which is ``--output`` in the commands of single runs, to a search or comparison."""
    return click.option(
        "--run-dir",
        "--output",
        "run_dir",
        metavar="DIR",
        type=click.Path(),
        help="Where to write; default: a new one under runs/.",
    )(command)


def address_option(command: CommandT) -> CommandT:
    """Add the option ``--address`` of a cluster's job server to a command."""
    return click.option(
        "--address",
        metavar="URL",
        help="The cluster's job server; default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS, else this machine.",
    )(command)


class FiniteNumber(click.FloatRange):
    """A number within bounds. ``nan`` and ``inf`` are numbers for Click, and no amounts of anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fail on one that is not finite."""
        try:
            float(value)
        except ValueError:
            self.fail(f"'{value}' is no number", param, ctx)
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Folder(click.Path):
    """A path on this machine. A URI is an error, since ``s3://bucket`` as a path would be a folder ``s3:``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; fail on a URI."""
        if "://" in str(value):
            self.fail("this must be a folder: only a search's --run-dir may be a URI", param, ctx)
        return super().convert(value, param, ctx)
