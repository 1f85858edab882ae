"""``ofmu report``: print a search's front as a table, and redraw its plot."""

from __future__ import annotations

import click


@click.command("report")
@click.argument("run", type=click.Path())
def report_command(run: str) -> None:
    """Print the front of the search in RUN and redraw its front.png. At least one trial must be complete."""
    # Ray and Optuna take seconds to import, and the help does not need them.
    from tune.callbacks.console import console_callback
    from tune.results.report import write_plot
    from tune.results.result import SearchResult

    result = SearchResult.load(run)
    result.require_front()
    plot = write_plot(result)
    if result.uri is not None:
        from cluster.storage.mirror import Mirror

        Mirror(result.uri, result.run_dir).push_file(plot.name)
    console_callback().show_result(result)
