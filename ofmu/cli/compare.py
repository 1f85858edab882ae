"""``ofmu compare``: several methods at equal budget, with error bars; resumes after an interruption."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from typing import Any

import click

from ofmu.cli.params import ALLOW_CODE_HELP, ConfigChoice, run_dir_option
from ofmu.errors import ConfigError
from ofmu.io.text import listed


@click.command("compare")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--methods", metavar="A,B,…", help="The methods, such as ofmu,npo,graddiff.")
@click.option("--benchmark", metavar="NAME|FILE", help="A preset's name or a YAML config; default: quickstart.")
@click.option("--trials", type=int, metavar="N", help="Trials of each method's search; default: the config's.")
@click.option("--seeds", type=int, metavar="S", help="Seeds on which each chosen point is run again; default 3.")
@click.option("--points", type=int, metavar="P", help="Maximum points of each front that are run again; default 5.")
@click.option(
    "--retain-draws",
    type=int,
    metavar="R",
    help="Draws of the retain rows on which each chosen point is run again; default 0.",
)
@click.option(
    "--budget",
    metavar="trials|evaluations|N",
    help="What is equal: trials; the number of gradient evaluations that OFMU's trials need; or N of them.",
)
@click.option("--resume", metavar="RUN", type=click.Path(), help="Continue the comparison in this run directory.")
@run_dir_option
@click.option("--allow-code", is_flag=True, help=ALLOW_CODE_HELP)
def compare_command(
    overrides: tuple[str, ...],
    methods: str | None,
    benchmark: str | None,
    trials: int | None,
    seeds: int | None,
    points: int | None,
    retain_draws: int | None,
    budget: str | None,
    resume: str | None,
    run_dir: str | None,
    allow_code: bool,
) -> None:
    """Search with each of several methods, run their fronts again on several seeds, and say which is better.

    Writes a table (compare.csv, compare.md), a plot of all fronts (compare.png) and every number with its run
    (compare.json). The config's compare section has the same settings as the options here.
    """
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"'{word}' is no setting of the form section.key=value: a config is named by --benchmark")
    options = {
        "methods": methods,
        "seeds": seeds,
        "points": points,
        "retain_draws": retain_draws,
        "budget": budget,
    }
    entries = [f"compare.{name}={value}" for name, value in options.items() if value is not None]
    if trials is not None:
        entries.append(f"search.num_trials={trials}")
    if allow_code and resume is None:
        raise ConfigError("--allow-code is for --resume: the modules that your own config names are imported anyway")
    if resume is not None and (benchmark or run_dir or entries):
        raise ConfigError("--resume reads what its run directory holds: leave the other options out, or set overrides")

    # Ray and Optuna take seconds to import, and the help and the errors above do not need them.
    from tune.compare.comparison import Comparison
    from tune.compare.console import CompareConsoleCallback
    from tune.compare.directory import CompareDirectory
    from tune.config import searched_and_named

    console = CompareConsoleCallback()
    try:
        if resume is not None:
            Comparison.resume(resume, overrides, callback=console, allow_code=allow_code)
        else:
            choice = ConfigChoice(benchmark, (*overrides, *entries))
            mapping = choice.read_mapping()
            for key in searched_and_named(mapping, overrides):
                method = (mapping.get("method") or {}).get("name", "ofmu")
                raise ConfigError(
                    f"Every search draws {key}, so its value on the command line has no effect: leave it out, or "
                    f"narrow its range by compare.spaces.{method}.{key}.low and .high"
                )
            comparison = Comparison(mapping, run_dir=run_dir, callback=console)
            _warn_of_unused_settings(choice, mapping)
            comparison.run()
    except KeyboardInterrupt:
        hint = ""
        if console.run_dir is not None:
            home = CompareDirectory(console.run_dir)
            hint = f": {shlex.join(home.resume_words(home.read_mapping()))} continues it"
        click.echo(f"Interrupted{hint}", err=True)
        raise SystemExit(130) from None


def _warn_of_unused_settings(choice: ConfigChoice, mapping: Mapping[str, Any]) -> None:
    """Warn of settings that the user wrote for a method that is not compared."""
    from ofmu.config.files import apply_overrides, is_preset
    from tune.compare.plan import unused_settings

    # A preset's settings are not the user's words.
    theirs = {name: mapping.get(name) or {} for name in ("method", "search", "compare")}
    if is_preset(choice.source):
        named = apply_overrides({}, choice.overrides)
        theirs = {**theirs, "method": named.get("method") or {}, "search": named.get("search") or {}}
        theirs["method"] = {"name": (mapping.get("method") or {}).get("name", "ofmu"), **theirs["method"]}
    unused = unused_settings(theirs)
    if unused:
        warnings.warn(
            f"{listed(unused)} {'has' if len(unused) == 1 else 'have'} no effect: no compared method is "
            f"'{theirs['method'].get('name', 'ofmu')}', the method of the config",
            stacklevel=2,
        )
