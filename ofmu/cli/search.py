"""``ofmu search``: find a Pareto front, watch it grow, continue it after a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ofmu.errors import ConfigError

if TYPE_CHECKING:
    from tune.callbacks.console import SearchView
    from tune.results.result import SearchResult

DEFAULT_PRESET = "quickstart"


@click.command("search")
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--preset", metavar="NAME", help="Search a config that ships with ofmu.")
@click.option("--resume", metavar="RUN", type=click.Path(), help="Continue the search in this run directory.")
@click.option("--run-dir", metavar="DIR", type=click.Path(), help="Where to write; default: a new one under runs/.")
def search_command(
    config: str | None, overrides: tuple[str, ...], preset: str | None, resume: str | None, run_dir: str | None
) -> None:
    """Search for the best trade-offs of forgetting against utility.

    CONFIG is a YAML file or a preset's name; without one the embedded quickstart is searched.
    """
    if config is not None and "=" in config:
        overrides, config = (config, *overrides), None
    if config is not None and preset is not None:
        raise ConfigError(f"Name either the config '{config}' or --preset {preset}, not both")
    if resume is not None and (config or preset or run_dir):
        raise ConfigError("--resume reads the config that its run directory holds: leave CONFIG and --run-dir out")

    # Imported here: Ray and Optuna take seconds, and the command line's start must not.
    from tune.callbacks.console import make_view

    view = make_view()
    try:
        with view:
            if resume is not None:
                result = _resume(resume, overrides, view)
            else:
                result = _search(config or preset or DEFAULT_PRESET, overrides, run_dir, view)
    except KeyboardInterrupt:
        where = view.run_dir
        hint = f": ofmu search --resume {where} continues it" if where else ""
        click.echo(f"Interrupted{hint}", err=True)
        raise SystemExit(130) from None
    view.show_result(result)
    result.require_front()


def _search(source: str, overrides: tuple[str, ...], run_dir: str | None, view: SearchView) -> SearchResult:
    from ofmu.config.files import read_mapping
    from ofmu.run_config import override
    from tune.search import ParetoSearch

    mapping = override(read_mapping(source), overrides)
    return ParetoSearch(mapping, run_dir=run_dir, callbacks=[view]).run()


def _resume(run_dir: str, overrides: tuple[str, ...], view: SearchView) -> SearchResult:
    from tune.search import ParetoSearch

    return ParetoSearch.resume(run_dir, overrides, callbacks=[view])
