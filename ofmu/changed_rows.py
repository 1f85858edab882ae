"""Whether the rows that a config names are still those of the run that made a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.content import ROWS, read_content
from ofmu.data.rows import UnlearnData, row_key
from ofmu.errors import OfmuError
from ofmu.evaluation.metrics.registry import GROUPS
from ofmu.evaluation.scores import RowScores, Scores
from ofmu.evaluation.sets import FORGET, RETAIN
from ofmu.io.cache import Cache, cache_root
from ofmu.io.text import counted, listed, shell_word
from ofmu.provenance import config_of_run
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from ofmu.tasks.family import TaskFamily


@dataclass(frozen=True, kw_only=True)
class ChangedRows:
    """How the rows of a model's run changed after it."""

    files: RunFiles
    """The run's directory."""
    sets: frozenset[str] | None
    """The evaluation sets that changed. None: the run's directory does not say."""
    sentence: str
    """What changed, what follows, and the fix."""

    def target_metrics(self, config: UnlearnConfig, family: TaskFamily) -> dict[str, float | None]:
        """Return the metrics of the run's target on the sets that did not change; empty without such sets or scores.

        Only metrics of one set, and model utility, are kept. The target's scores are those that the run started with.
        """
        report = self.files.read_report() or {}
        key = (report.get("prepared") or {}).get("target_scores")
        # Scores of another evaluation, such as with shorter answers, do not compare.
        scored_alike = (report.get("config") or {}).get("evaluation") == config.evaluation.model_dump(mode="json")
        if self.sets is None or key is None or not scored_alike:
            return {}
        kept = () if FORGET in self.sets else GROUPS["Forgetting"]
        names = {info.name for info in (*kept, *(GROUPS["Utility"] if self.sets <= {FORGET} else ()))}
        path = Cache(cache_root(config.cache_dir)).scores_file(str(key))
        if not names or not path.is_file():
            return {}
        # Without a reference, metrics that compare with it are None.
        values = family.metrics_of(family.load_scores(path), None).values
        return {name: value for name, value in values.items() if name in names and value is not None}


def changed_rows(model: str | Path, config: UnlearnConfig, data: Any) -> ChangedRows | None:
    """Return how the rows differ from those of the model's run, although the config names the same rows.

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
        changes = _changes(files, data)
        sentence = (
            f"The rows are not those of the run that made this model ({source}){_in_words(changes)}. So the metrics "
            "cannot be compared with those of that run, and the target and the retrained model stand beside them only "
            "where they were scored on the same rows: restore the rows, or run "
            f"'ofmu prepare {shell_word(source)}' to score both on the new ones"
        )
        return ChangedRows(files=files, sets=None if changes is None else frozenset(changes), sentence=sentence)
    return None


def _changes(files: RunFiles, data: Any) -> dict[str, str] | None:
    """Return in words how each evaluation set changed. None: the run's directory does not say."""
    if not isinstance(data, UnlearnData) or not files.scores.is_file():
        return None
    return dict(_changed_sets(Scores.load(files.scores).sets, data))


def _in_words(changes: Mapping[str, str] | None) -> str:
    if changes is None:
        return ""
    return f": {listed(list(changes.values()))}" if changes else ": only rows that are not scored changed"


def _changed_sets(scored: Mapping[str, Sequence[RowScores]], data: UnlearnData) -> Iterator[tuple[str, str]]:
    for name, rows in data.evaluation.items():
        before = [row.row_hash for row in scored.get(name, ())]
        now = [row_key(row) for row in rows.rows]
        if before == now:
            continue
        trained = {FORGET: data.forget, RETAIN: data.retain}.get(name)
        file = rows.file or (trained.file if trained is not None else "")
        place = file or f"the set '{name}'"
        if len(before) != len(now):
            yield name, f"{place} has {counted(len(now), 'scored row')}, and had {len(before)}"
        else:
            yield name, f"{place} has other rows, or another order"
