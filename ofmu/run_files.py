"""The files of one run's directory: their names and formats. All other code reads and writes them through this file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ofmu.errors import OfmuError, PruningRecord, RunError
from ofmu.io.files import check_regular, write_json, write_text

CONFIG = "config.yaml"
CONTENT = "content.json"
"""Hashes of the rows, the models, the reference and the user's modules: see :mod:`ofmu.content`."""
ENVIRONMENT = "environment.json"
HISTORY = "history.jsonl"
METRICS = "metrics.json"
PRUNED = "pruned.json"
SCORES = "scores.json"
MODEL = "model"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"
"""The page of a run, an evaluation, a search or a comparison: see :mod:`ofmu.reports`."""
RETAIN_ROWS = "retain_rows"
"""The entry of ``metrics.json`` that says which retain rows a run with a ``method.retain_share`` below 1 used."""
RUN_NAMES = (CONFIG, CONTENT, ENVIRONMENT, HISTORY, METRICS, PRUNED, SCORES, MODEL, CHECKPOINTS, REPORT)
"""Everything that a run writes into its directory."""


@dataclass(frozen=True)
class RunFiles:
    """Typed readers and writers of a run directory.

    ``metrics.json`` is written last, so its presence says that the run is complete. Every writer raises StorageError
    if the disk refuses the write.
    """

    directory: Path

    @property
    def config(self) -> Path:
        """The run's config, as YAML."""
        return self.directory / CONFIG

    @property
    def environment(self) -> Path:
        """Versions of packages and of the machine."""
        return self.directory / ENVIRONMENT

    @property
    def history(self) -> Path:
        """One JSON line per round."""
        return self.directory / HISTORY

    @property
    def metrics(self) -> Path:
        """Metrics, costs, and what they depend on."""
        return self.directory / METRICS

    @property
    def scores(self) -> Path:
        """Per-row scores."""
        return self.directory / SCORES

    @property
    def pruned(self) -> Path:
        """The record of a run that ended early."""
        return self.directory / PRUNED

    @property
    def model(self) -> Path:
        """Directory that ``from_pretrained`` loads."""
        return self.directory / MODEL

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints. It is deleted when the run is complete."""
        return self.directory / CHECKPOINTS

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write a config's JSON values as YAML."""
        write_text(self.config, yaml.safe_dump(dict(config), sort_keys=False))

    def read_config(self) -> dict[str, Any] | None:
        """Return the stored config; None if there is none. Raise RunError if the file is damaged."""
        check_is_no_link(self.config)
        if not self.config.is_file():
            return None
        with stored_values(self.config):
            return dict(yaml.safe_load(self.config.read_text(encoding="utf-8")) or {})

    def write_history(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write one JSON line per round."""
        write_text(self.history, "".join(json.dumps(dict(line)) + "\n" for line in lines))

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write ``metrics.json``: the entry ``metrics`` and what the metrics depend on."""
        write_json(self.metrics, dict(report))

    def read_report(self) -> dict[str, Any] | None:
        """Return what ``metrics.json`` holds; None if the run is not complete. Raise RunError if it is damaged."""
        return read_stored(self.metrics)

    def read_metrics(self) -> dict[str, Any] | None:
        """Return the metrics of a complete run; None if the run is not complete."""
        report = self.read_report()
        with stored_values(self.metrics):
            return None if report is None else dict(report["metrics"])

    def read_retain_rows_hash(self) -> str | None:
        """Return the hash of the retain rows that the method used; None if it used all, or the run is not complete."""
        with stored_values(self.metrics):
            drawn = (self.read_report() or {}).get(RETAIN_ROWS)
            return None if drawn is None else str(drawn["hash"])

    def read_reasons(self) -> dict[str, str]:
        """Return, by metric, why the evaluation left a metric out. Empty if the run is not complete."""
        with stored_values(self.metrics):
            return dict((self.read_report() or {}).get("reasons") or {})

    def write_pruning_record(self, record: PruningRecord) -> None:
        """Write that the run ended early."""
        write_json(self.pruned, record.to_json())

    def read_pruning_record(self) -> PruningRecord | None:
        """Return the record of a run that ended early; None for any other run. Raise RunError if it is damaged."""
        stored = read_stored(self.pruned)
        with stored_values(self.pruned):
            return None if stored is None else PruningRecord.from_json(stored)


def read_stored(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file of a run directory; None if there is no such file.

    Raises:
        RunError: the file is a link, or is damaged.
    """
    check_is_no_link(path)
    if not path.is_file():
        return None
    with stored_values(path):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise TypeError(f"it holds a {type(stored).__name__}")
        return stored


@contextmanager
def stored_values(path: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged file of a run directory into one sentence.

    Raises:
        RunError: the block raised an error of the file's content.
    """
    try:
        yield
    except OfmuError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise RunError(f"{path} is damaged ({reason}): restore it from a copy, or delete it") from error


def check_is_no_link(path: Path) -> None:
    """Check that a name in a run directory is not a link. A missing file passes.

    Raises:
        RunError: it is a link.
    """
    if path.is_symlink():
        raise RunError(
            f"{path} is a link to {os.readlink(path)}, and nothing outside of a run directory is read, replaced or "
            "deleted through it: put a copy in place of the link"
        )


def check_no_links(directory: Path, depth: int | None = None) -> None:
    """Check that what lies in a run directory does not link to other places.

    Args:
        directory: the run directory, which may itself be a link. A missing directory passes.
        depth: how many levels of names are checked. None: all.

    Raises:
        RunError: something in the directory is a link.
    """
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        check_is_no_link(entry)
        if depth is None or depth > 1:
            check_no_links(entry, None if depth is None else depth - 1)


def made_by_ofmu(directory: Path) -> bool:
    """Return whether a run, a search or a comparison made ``directory``. Each of them writes its environment first."""
    try:
        stored = json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and stored.keys() >= {"python", "platform", "host", "versions"}


def started_at(directory: Path) -> str:
    """Return when the run in a directory started, as ISO 8601; empty if nothing has started there.

    Older versions stored no time of a single run. Its environment was written at its start, and again by a resume.

    Raises:
        RunError: the file is damaged.
    """
    place = RunFiles(directory).environment
    stored = read_stored(place)
    if stored is None:
        return ""
    written = datetime.fromtimestamp(place.stat().st_mtime).astimezone().isoformat(timespec="seconds")
    return str(stored.get("time") or written)


REPORT_MARK = '<meta name="generator" content="ofmu '
"""Every report has this text near its start. A file without this text is not ours."""


def is_report(path: Path) -> bool:
    """Return whether a file is a report that ofmu made."""
    try:
        check_regular(path)
        with path.open(encoding="utf-8", errors="replace") as stream:
            return REPORT_MARK in stream.read(4096)
    except OSError:
        return False


def check_output(directory: str | Path, names: Iterable[str] = RUN_NAMES) -> None:
    """Check that writing into a directory replaces nothing of the user's.

    Args:
        directory: a directory that may not exist yet.
        names: the files and folders that will be written or deleted. An empty folder does not count.

    Raises:
        RunError: ``directory`` is a file, or holds one of ``names`` and was not made by ofmu, or one of them is a link
            or holds one.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{directory} is a file: name a directory for the output")
    if made_by_ofmu(folder):
        for name in names:
            check_is_no_link(folder / name)
            check_no_links(folder / name)
        return
    for name in names:
        place = folder / name
        if place.is_symlink() or place.is_file() or (place.is_dir() and any(place.iterdir())):
            raise RunError(
                f"{directory} holds {name}, which ofmu did not make and would replace: name a new directory for the "
                "output"
            )


def finite_only(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics with None in place of NaN and infinities, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in metrics.items()
    }
