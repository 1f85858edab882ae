"""What lies at ``reference.path``: a saved model, a file of scores, or a run directory with scores."""

from __future__ import annotations

from pathlib import Path

from ofmu.errors import DataError
from ofmu.io.files import expanded, looked_for
from ofmu.run_files import RunFiles


def reference_scores_file(path: str | Path) -> Path | None:
    """Return the file of scores at ``path``; None if ``path`` names a saved model or a hub model.

    Raises:
        DataError: ``path`` names a JSON file that does not exist.
    """
    place = expanded(path)
    run_scores = RunFiles(place).scores
    # A saved model is a directory with config.json. A file of scores beside that config is not read.
    if place.is_dir() and not (place / "config.json").is_file() and run_scores.is_file():
        return run_scores
    if place.is_file():
        return place
    if place.suffix == ".json":
        raise DataError(f"There is no reference file {looked_for(path)}: check the name")
    return None
