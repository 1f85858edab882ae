"""``ofmu report``: write the report of a run, an evaluation, a search or a comparison, or serve it while it grows."""

from __future__ import annotations

import warnings

import click

from ofmu.errors import StorageError

_NAMES_ITS_REPORT = ("search", "comparison")
"""The kinds whose printed result ends with the place of the report."""


@click.command("report")
@click.argument("run", type=click.Path())
@click.option("--serve", is_flag=True, help="Show a live page on this machine instead; Ctrl-C ends it.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", help="With --serve; default: a free port.")
def report_command(run: str, serve: bool, port: int | None) -> None:
    """Write report.html of what RUN holds: a search, a comparison, a run or an evaluation.

    The page is one file that opens offline. For a search, front.png is drawn again as well and the front is printed.
    Without --serve, at least one trial must be complete.
    """
    if port is not None and not serve:
        raise click.UsageError("--port needs --serve")

    # Ray and Optuna take seconds to import, and the help does not need them.
    from tune.reports import make_page, page_version, write_report
    from tune.rundir.kind import kind_of

    kind = kind_of(run)
    if serve:
        from ofmu.reports.server import PageServer

        server = PageServer(lambda: make_page(run, live=True), lambda: page_version(run), port or 0)
        click.echo(f"The page of {run} is at {server.url} (only on this machine; Ctrl-C ends it)")
        try:
            server.serve()
        except KeyboardInterrupt:
            click.echo("Ended", err=True)
        return
    try:
        page = write_report(run)
    except StorageError as error:
        # The result can be shown all the same, such as that of a search on a read-only disk.
        warnings.warn(f"the report is not written: {error}", stacklevel=1)
        _print_result(run, kind)
        return
    _print_result(run, kind)
    if kind not in _NAMES_ITS_REPORT:
        click.echo(f"The report is in {page}")


def _print_result(run: str, kind: str) -> None:
    from tune.callbacks.console import console_callback
    from tune.compare.console import CompareConsoleCallback
    from tune.compare.result import ComparisonResult
    from tune.results.result import SearchResult

    if kind == "search":
        console_callback().show_result(SearchResult.load(run))
    elif kind == "comparison":
        CompareConsoleCallback().on_end(ComparisonResult.load(run))
