"""Make a page from a Jinja template, and write it. A page is one HTML file without any request to a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from ofmu.errors import RunError
from ofmu.io.environment import environment
from ofmu.io.files import write_text
from ofmu.io.text import shell_word
from ofmu.reports.charts import Chart
from ofmu.reports.numbers import big_number, duration, memory, number
from ofmu.run_files import REPORT, REPORT_MARK, check_is_no_link, is_report

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, folder: Path, *, charts: Sequence[Chart] = (), live: bool = False, **context: Any) -> str:
    """Return a page as HTML. Every text that a template inserts is escaped.

    Args:
        template: the template's file name.
        folder: the folder of the template. It may extend and import the templates of this room.
        charts: the charts that the template places. Without charts, the page holds no script of the plotting library.
        live: whether the page asks its server for changes. A page in a file asks for nothing.
        context: what the template reads. ``made`` is when the page was made; by default that is now.
    """
    # Jinja is slow to import, and a page is the last thing that a command makes.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    ours = environment()["versions"].get("ofmu", "")
    templates = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # BokehJS reads an object's keys in the order in which Bokeh wrote them.
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False}
    templates.filters |= {"number": number, "big": big_number, "duration": duration, "memory": memory}
    return templates.get_template(template).render(
        **{"made": datetime.now().astimezone().isoformat(timespec="seconds")} | context,
        version=ours,
        mark=_trusted(f'{REPORT_MARK}{ours}">'),
        style=_trusted(_own("report.css")),
        script=_trusted(_own("report.js")),
        plotting_script=_trusted(_plotting_script()) if charts else "",
        charts={chart.name: chart.item for chart in charts},
        live=live,
    )


def write_page(page: str, directory: Path) -> Path:
    """Write ``report.html`` in one step, and return its path.

    Raises:
        RunError: a file or a link of this name is there, and ofmu did not make it.
        StorageError: the disk refuses the write.
    """
    path = directory / REPORT
    check_is_no_link(path)
    if path.exists() and not is_report(path):
        raise RunError(
            f"{path} is not of ofmu, so it is not replaced: rename it, then run ofmu report {shell_word(directory)}"
        )
    write_text(path, page)
    return path


def write_page_or_warn(make_page: Callable[[], str], directory: Path) -> Path | None:
    """Write a report at the end of a finished run. What goes wrong becomes one warning, so the run stays finished."""
    try:
        return write_page(make_page(), directory)
    except Exception as error:  # A report reads what many versions and users' modules wrote, so anything may be raised.
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(
            f"The report {directory / REPORT} could not be written ({reason}); the results are complete without it",
            stacklevel=2,
        )
        return None


def _trusted(text: str) -> Any:
    """Mark text of this package or of the plotting library as HTML. Never call this with text from data."""
    from markupsafe import Markup

    return Markup(text)


@cache
def _own(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _plotting_script() -> str:
    # Bokeh takes a second to import.
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)
