"""``ofmu search``: find a Pareto front, follow its progress, and resume after an interruption."""

from __future__ import annotations

import click

from ofmu.cli.params import ALLOW_CODE_HELP, ConfigChoice, config_argument, run_dir_option
from ofmu.errors import ConfigError


@click.command("search")
@config_argument
@click.option("--preset", metavar="NAME", help="Search a config that ships with ofmu.")
@click.option("--resume", metavar="RUN", type=click.Path(), help="Continue the search in this run directory.")
@run_dir_option
@click.option("--trials", metavar="N", type=click.IntRange(min=1), help="Trials of the search; default: the config's.")
@click.option(
    "--confirm", metavar="S", type=click.IntRange(min=0), help="Run the best points again on S further seeds."
)
@click.option("--allow-code", is_flag=True, help=ALLOW_CODE_HELP)
def search_command(
    config: ConfigChoice,
    preset: str | None,
    resume: str | None,
    run_dir: str | None,
    trials: int | None,
    confirm: int | None,
    allow_code: bool,
) -> None:
    """Search for the best trade-offs of forgetting against utility.

    CONFIG is a YAML file or a preset's name; without one the embedded quickstart is searched.
    """
    if config.name is not None and preset is not None:
        raise ConfigError(f"Name either the config '{config.name}' or --preset {preset}, not both")
    if allow_code and resume is None:
        raise ConfigError("--allow-code is for --resume: the modules that your own config names are imported anyway")
    if resume is not None and (config.name or preset or run_dir):
        raise ConfigError("--resume reads the config that its run directory holds: leave CONFIG and --run-dir out")

    options = {"num_trials": trials, "confirm_seeds": confirm}
    entries = [f"search.{name}={value}" for name, value in options.items() if value is not None]
    config = ConfigChoice(config.name, (*config.overrides, *entries))

    # Ray and Optuna take seconds to import, and the help and the errors above do not need them.
    from tune.callbacks.console import console_callback
    from tune.config import with_named_settings
    from tune.search import ParetoSearch

    console = console_callback()
    try:
        with console:
            if resume is not None:
                result = ParetoSearch.resume(resume, config.overrides, callbacks=[console], allow_code=allow_code)
            else:
                chosen = ConfigChoice(config.name or preset, config.overrides)
                mapping, notes = with_named_settings(chosen.read_mapping(), config.overrides)
                for note in notes:
                    console.print_line(note)
                result = ParetoSearch(mapping, run_dir=run_dir, callbacks=[console]).run()
    except KeyboardInterrupt:
        hint = f": ofmu search --resume {console.resume_words} continues it" if console.resume_words else ""
        click.echo(f"Interrupted{hint}", err=True)
        raise SystemExit(130) from None
    console.show_result(result)
    result.require_front()
