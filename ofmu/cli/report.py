"""``ofmu report``: a search's front as a table, and its picture drawn again."""

from __future__ import annotations

import click


@click.command("report")
@click.argument("run", type=click.Path())
def report_command(run: str) -> None:
    """Print the front of the search in RUN and redraw its front.png; an error where no trial is complete."""
    from tune.callbacks.console import make_view
    from tune.results.result import SearchResult

    result = SearchResult.load(run)
    result.require_front()
    result.plot(result.run_dir / "front.png")
    if result.uri is not None:
        from cluster.storage.mirror import Mirror

        Mirror(result.uri, result.run_dir).push_file("front.png")
    make_view().show_result(result)
