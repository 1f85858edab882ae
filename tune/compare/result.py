"""The result of a comparison: its summary, table and plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydantic import ValidationError

from ofmu.errors import RunError
from ofmu.io.files import write_text
from ofmu.io.text import shell_word
from ofmu.run_files import check_is_no_link
from tune.compare.directory import SUMMARY
from tune.compare.plot import fronts_figure
from tune.compare.summary import Summary
from tune.compare.tables import wide_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison and its directory."""

    run_dir: Path
    summary: Summary

    @classmethod
    def load(cls, run_dir: str | Path) -> ComparisonResult:
        """Read the comparison in ``run_dir``.

        Raises:
            RunError: there is no comparison, or it is not finished.
        """
        path = Path(run_dir).absolute() / SUMMARY
        check_is_no_link(path)
        if not path.is_file():
            raise RunError(
                f"{run_dir} holds no finished comparison: continue one with ofmu compare --resume {shell_word(run_dir)}"
            )
        try:
            summary = Summary.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError):
            raise RunError(
                f"{path} was not written by this version of ofmu compare: run the comparison again"
            ) from None
        return cls(path.parent, summary)

    def save(self) -> None:
        """Write ``compare.json``.

        Raises:
            StorageError: the disk refuses the write.
        """
        write_text(self.run_dir / SUMMARY, self.summary.to_json())

    @property
    def table(self) -> pd.DataFrame:
        """One row per method, sorted by mean rank: the content of ``compare.csv``."""
        return wide_table(self.summary)

    def plot(self, path: str | Path | BinaryIO | None = None) -> Figure:
        """Plot all methods' fronts with their ranges over the seeds. Save the plot if ``path`` is given."""
        figure = fronts_figure(self.summary)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure
