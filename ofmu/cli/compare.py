"""``ofmu compare``: several methods at equal budget, with error bars; continues after a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ofmu.errors import ConfigError

if TYPE_CHECKING:
    from tune.compare.console import CompareView

DEFAULT_BENCHMARK = "quickstart"


@click.command("compare")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--methods", metavar="A,B,…", help="The methods, such as ofmu,npo,graddiff.")
@click.option("--benchmark", metavar="NAME|FILE", help="A preset's name or a YAML config; default: quickstart.")
@click.option("--trials", type=int, metavar="N", help="Trials of each method's search; default: the config's.")
@click.option("--seeds", type=int, metavar="S", help="Seeds on which each chosen point is run again; default 3.")
@click.option("--points", type=int, metavar="P", help="At most so many points of each front are run again; default 5.")
@click.option(
    "--budget",
    metavar="trials|evaluations|N",
    help="What is equal: trials; as many gradient evaluations as OFMU's trials need; or N of them.",
)
@click.option("--resume", metavar="RUN", type=click.Path(), help="Continue the comparison in this run directory.")
@click.option("--run-dir", metavar="DIR", type=click.Path(), help="Where to write; default: a new one under runs/.")
def compare_command(
    overrides: tuple[str, ...],
    methods: str | None,
    benchmark: str | None,
    trials: int | None,
    seeds: int | None,
    points: int | None,
    budget: str | None,
    resume: str | None,
    run_dir: str | None,
) -> None:
    """Search each of several methods, run their fronts again on several seeds, and say which is better.

    Leaves a table (compare.csv, compare.md), a picture of all fronts (compare.png) and every number's origin
    (compare.json). What is named here stands in the config's compare section as well.
    """
    asked = {"methods": methods, "seeds": seeds, "points": points, "budget": budget}
    entries = [f"compare.{name}={value}" for name, value in asked.items() if value is not None]
    if trials is not None:
        entries.append(f"search.num_trials={trials}")
    if resume is not None and (benchmark or run_dir or entries):
        raise ConfigError("--resume reads what its run directory holds: leave the other options out, or set overrides")

    # Imported here: Ray and Optuna take seconds, and the command line's start must not.
    from tune.compare.console import CompareView

    view = CompareView()
    try:
        if resume is not None:
            _resume(resume, overrides, view)
        else:
            _compare(benchmark or DEFAULT_BENCHMARK, (*overrides, *entries), run_dir, view)
    except KeyboardInterrupt:
        hint = f": ofmu compare --resume {view.run_dir} continues it" if view.run_dir else ""
        click.echo(f"Interrupted{hint}", err=True)
        raise SystemExit(130) from None


def _compare(source: str, overrides: tuple[str, ...], run_dir: str | None, view: CompareView) -> None:
    from ofmu.config.files import read_mapping
    from ofmu.run_config import override
    from tune.compare.comparison import Comparison

    Comparison(override(read_mapping(source), overrides), run_dir=run_dir, listener=view).run()


def _resume(run_dir: str, overrides: tuple[str, ...], view: CompareView) -> None:
    from tune.compare.comparison import Comparison

    Comparison.resume(run_dir, overrides, listener=view)
