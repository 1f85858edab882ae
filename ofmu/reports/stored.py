"""What a directory holds of one run or one evaluation, and the scores of the target and of the retrained model."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ofmu.errors import OfmuError, PruningRecord, RunError
from ofmu.io.cache import Cache, cache_root
from ofmu.io.plugins import results_only
from ofmu.methods.registry import method_class
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, check_is_no_link, check_no_links
from ofmu.tasks.family import TaskFamily
from ofmu.tasks.load import task_family

TARGET, RETRAINED = "target", "retrained"
"""The names of the two models that a run is compared with, as in ``baseline_metrics``."""


@dataclass(frozen=True)
class StoredRun:
    """The files of one run or one evaluation. Files that are not there yet read as empty.

    A directory may come from somebody else. So no module that its config names is imported, unless it is the caller's.

    Raises:
        RunError: the directory holds a link.
    """

    directory: Path
    is_ours: bool = False
    """Whether the caller's own config made the run, so that its modules may be imported."""

    def __post_init__(self) -> None:
        check_no_links(self.directory, depth=1)

    @classmethod
    def open(cls, directory: str | Path, *, is_ours: bool = False) -> StoredRun:
        """Return the run or the evaluation in a directory.

        Raises:
            RunError: the directory holds neither, or it holds a link.
        """
        found = cls(Path(directory), is_ours)
        if not is_run(found.directory):
            raise RunError(f"{directory} holds no run, evaluation, search or comparison: check the path")
        return found

    @cached_property
    def files(self) -> RunFiles:
        """The files by name."""
        return RunFiles(self.directory)

    @cached_property
    def report(self) -> dict[str, Any]:
        """What ``metrics.json`` holds; empty if the run is not complete."""
        return self.files.read_report() or {}

    @cached_property
    def is_evaluation(self) -> bool:
        """Whether ``ofmu evaluate`` wrote the directory."""
        return "baseline_metrics" in self.report

    @cached_property
    def config(self) -> UnlearnConfig | None:
        """The config; None if there is none, or if another version wrote it."""
        stored = self.report.get("config") or self.files.read_config()
        with suppress(OfmuError, ValueError), self._restricted():
            return None if stored is None else UnlearnConfig.model_validate(stored)
        return None

    @cached_property
    def method_title(self) -> str:
        """The name that papers use for the method, and the variant in brackets; empty without a config."""
        if self.config is None:
            return ""
        method = self.config.method
        with self._restricted():
            title = method_class(method.name, method.module).title
        variant = getattr(method, "variant", None)
        return f"{title} ({variant})" if variant else title

    def _restricted(self) -> AbstractContextManager[None]:
        return nullcontext() if self.is_ours else results_only(str(self.files.config))

    @cached_property
    def family(self) -> TaskFamily | None:
        """The kind of task; None without a config."""
        return None if self.config is None else task_family(self.config.data.kind)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One record per round. A line that a killed process left unfinished is left out."""
        check_is_no_link(self.files.history)
        if not self.files.history.is_file():
            return []
        records = []
        for line in self.files.history.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                records.append(dict(json.loads(line)))
        return records

    @cached_property
    def pruned(self) -> PruningRecord | None:
        """The record of a run that early stopping ended; None for any other run."""
        return self.files.read_pruning_record()

    @cached_property
    def scores(self) -> Any:
        """The model's scores; None if there are none."""
        check_is_no_link(self.files.scores)
        return self._load(self.files.scores)

    @cached_property
    def baseline_scores(self) -> dict[str, Any]:
        """The scores of ``target`` and ``retrained`` that can still be read, by name."""
        loaded = {name: self._load(path) for name, path in self._baseline_files().items()}
        return {name: scores for name, scores in loaded.items() if scores is not None}

    @cached_property
    def baseline_metrics(self) -> dict[str, dict[str, float | None]]:
        """The metrics of ``target`` and ``retrained``, by name, where they are known."""
        if self.is_evaluation:
            return dict(self.report["baseline_metrics"])
        config, family, files = self.config, self.family, self._baseline_files()
        found: dict[str, dict[str, float | None]] = {}
        if config is None or family is None:
            return found
        custom = config.evaluation.custom_metrics if self.is_ours else ()
        for name, path in files.items():
            # A file may be gone from the cache, and a user's module of custom metrics may be gone as well.
            with suppress(OfmuError):
                found[name] = family.stored_metrics(path, files.get(RETRAINED), custom).values
        return found

    def _baseline_files(self) -> dict[str, Path]:
        """Return the files of scores of the two models, as far as their places are known."""
        if self.config is None:
            return {}
        if self.is_evaluation:
            stored = self.report.get("baseline_scores") or {}
            return {name: Path(stored[name]) for name in (TARGET, RETRAINED) if stored.get(name)}
        keys, cache = self.report.get("prepared") or {}, Cache(cache_root(self.config.cache_dir))
        parts = {TARGET: "target_scores", RETRAINED: "reference_scores"}
        return {name: cache.scores_file(keys[part]) for name, part in parts.items() if part in keys}

    def _load(self, path: Path) -> Any:
        if self.family is None or not path.is_file():
            return None
        with suppress(OfmuError):
            return self.family.load_scores(path)
        return None


def is_run(directory: Path) -> bool:
    """Return whether a directory holds a run or an evaluation, complete or not."""
    files = RunFiles(directory)
    return files.metrics.is_file() or files.history.is_file() or files.pruned.is_file() or files.environment.is_file()
