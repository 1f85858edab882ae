"""Whether the rows that a config names are still those of the run that made a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ofmu.content import ROWS, read_content
from ofmu.data.rows import UnlearnData, row_key
from ofmu.errors import OfmuError
from ofmu.evaluation.scores import Scores
from ofmu.io.text import counted, listed, shell_word
from ofmu.provenance import config_of_run
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles


def changed_rows(model: str | Path, config: UnlearnConfig, data: Any) -> str | None:
    """Return a sentence if the rows are not those of the model's run, although the config names the same rows.

    None: they are the same, no run made the model, or the config names other rows than the run's config.

    Args:
        model: the model's directory or hub name.
        config: the config of the evaluation.
        data: the rows that the config names.
    """
    source = config_of_run(model)
    if source is None:
        return None
    files = RunFiles(source.parent)
    with suppress(OfmuError):  # An evaluation needs nothing of the run, so a damaged file there does not end it.
        stored = files.read_config() or {}
        wanted = config.model_dump(mode="json")
        if any(stored.get(key, wanted[key]) != wanted[key] for key in ("data", "seed")):
            return None
        # The directory of an exported model has no file of hashes, but the metrics name the rows too.
        earlier = read_content(files.directory).get(ROWS) or (files.read_report() or {}).get("data_hash")
        if earlier in (None, data.content_hash):
            return None
        return (
            f"The rows are not those of the run that made this model ({source}){_what_changed(files, data)}. So the "
            "metrics cannot be compared with those of that run, and the target and the retrained model stand beside "
            "them only if they were scored on these rows: restore the rows, or run "
            f"'ofmu prepare {shell_word(source)}' to score both on the new ones"
        )
    return None


def _what_changed(files: RunFiles, data: Any) -> str:
    """Return which files or sets of rows changed, as the end of a clause. Empty: the run's directory does not say."""
    if not isinstance(data, UnlearnData) or not files.scores.is_file():
        return ""
    scored = Scores.load(files.scores).sets
    changes = list(_changed_sets(scored, data))
    return f": {listed(changes)}" if changes else ": only rows that are not scored changed"


def _changed_sets(scored: Any, data: UnlearnData) -> Iterator[str]:
    for name, rows in data.evaluation.items():
        before = [row.row_hash for row in scored.get(name, ())]
        now = [row_key(row) for row in rows.rows]
        if before == now:
            continue
        trained = {"forget": data.forget, "retain": data.retain}.get(name)
        file = rows.file or (trained.file if trained is not None else "")
        place = file or f"the set '{name}'"
        if len(before) != len(now):
            yield f"{place} has {counted(len(now), 'scored row')}, and had {len(before)}"
        else:
            yield f"{place} has other rows, or another order"
