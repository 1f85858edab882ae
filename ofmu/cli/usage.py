"""Wrong arguments as one sentence that names the fix, in place of Click's own words."""

from __future__ import annotations

from typing import Any

import click


def usage_sentence(error: click.ClickException) -> str:
    """Return what is wrong with the arguments, and what to do about it."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    help_words = f"see {context.command_path if context else 'ofmu'} --help"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return _missing(error.param, help_words)
    if isinstance(error, click.BadParameter):
        wanted = None if error.param is None else _bounds(error.param.type)
        return message if wanted is None else f"{message}: give {wanted}"
    if isinstance(error, click.NoSuchOption):
        near = " or ".join(error.possibilities or ())
        return f"There is no option {error.option_name}: {f'did you mean {near}?' if near else help_words}"
    if isinstance(error, click.BadOptionUsage):
        return f"{message}: write it after {error.option_name}"
    return message if ": " in message else f"{message}: {help_words}"


def _missing(parameter: click.Parameter, help_words: str) -> str:
    metavar = parameter.metavar or parameter.human_readable_name.upper()
    if not isinstance(parameter, click.Option):
        return f"{metavar} is missing: {help_words}"
    option = max(parameter.opts, key=len)
    purpose = f" ({parameter.help[:1].lower()}{parameter.help[1:].rstrip('.')})" if parameter.help else ""
    return f"The option {option} is missing: add {option} {metavar}{purpose}"


def _bounds(kind: Any) -> str | None:
    """Return the numbers that an option takes, in words; None for an option that takes other values."""
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return None
    noun = "a whole number" if isinstance(kind, click.IntRange) else "a number"
    low, high = kind.min, kind.max
    if low is not None and high is not None and not (kind.min_open or kind.max_open):
        return f"{noun} from {low} to {high}"
    lower = None if low is None else f"{'above' if kind.min_open else 'of at least'} {low}"
    upper = None if high is None else f"{'below' if kind.max_open else 'of at most'} {high}"
    return " ".join((noun, " and ".join(filter(None, (lower, upper)))))
