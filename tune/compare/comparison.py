"""Comparison: search with every method, run the points of each front on several seeds, and compare the methods."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.capacity import check_trial_engine
from cluster.session import ray_session
from cluster.storage.uri import check_storage
from ofmu.config.files import validate
from ofmu.errors import RunError, StorageError
from ofmu.io.plugins import check_plugin, plugins_restricted
from ofmu.methods.registry import method_class
from ofmu.preflight import check_inputs, check_parts_of_model
from ofmu.reports.page import write_page_or_warn
from ofmu.run_config import UnlearnConfig, check_sections
from ofmu.tasks.events import PreparationStarted
from tune.callbacks.base import SearchCallback
from tune.compare.analysis import MethodRuns, SharedContext, summarise
from tune.compare.callback import CompareCallback
from tune.compare.config import CompareConfig, CompareOptions
from tune.compare.directory import CompareDirectory
from tune.compare.page import comparison_page
from tune.compare.plan import budget_reference, method_configs, split_variant, with_budget
from tune.compare.report import write_reports
from tune.compare.result import ComparisonResult
from tune.config import SearchConfig
from tune.confirmation.runs import PlannedRun, make_runs, plan_runs, read_runs, why_no_point
from tune.execution.trainable import Executor
from tune.results.importances import importances, load_trials
from tune.results.tables import complete_of_role, own_trials
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import TRIALS_TABLE
from tune.search import ParetoSearch
from tune.study.baselines import TARGET

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ofmu.tasks.preparation import Prepared
    from tune.results.result import SearchResult


class Comparison:
    """A comparison of several methods on one benchmark, at equal trials or equal gradient evaluations.

    Args:
        config: what :class:`tune.ParetoSearch` takes, with a ``compare`` section.
        methods, num_trials, seeds, points, retain_draws, budget: replace the config's values.
        run_dir: a new directory; None names one under ``runs/``.
        executor: runs one trial. The default runs prepared models: :func:`cluster.train.trainer.run_trial`, or
            :class:`cluster.train.worker_group.WorkerGroupPool` with worker groups.
        callback: follows the comparison.

    Raises:
        ConfigError: a method or a setting is unknown, or does not work on the task. Nothing has run then.
        RunError: ``run_dir`` already holds a run.
    """

    def __init__(
        self,
        config: SearchConfig | UnlearnConfig | Mapping[str, Any],
        methods: Sequence[str] | None = None,
        *,
        num_trials: int | None = None,
        seeds: int | None = None,
        points: int | None = None,
        retain_draws: int | None = None,
        budget: str | int | None = None,
        run_dir: str | Path | None = None,
        executor: Executor | None = None,
        callback: CompareCallback | None = None,
    ) -> None:
        given = {
            "methods": methods,
            "seeds": seeds,
            "points": points,
            "retain_draws": retain_draws,
            "budget": budget,
        }
        self.mapping = _mapping(config, {key: value for key, value in given.items() if value is not None}, num_trials)
        self.configs = method_configs(self.mapping)
        self._home = CompareDirectory.create_new(run_dir)
        self._executor, self._callback = executor, callback or CompareCallback()

    @property
    def run_dir(self) -> Path:
        """Return the directory the comparison writes to."""
        return self._home.path

    def run(self) -> ComparisonResult:
        """Search with every method, run the fronts' points on several seeds, and write the reports.

        Raises:
            ClusterError: the Ray cluster is unreachable or too small.
            RunError: no method has a complete trial, or the untouched target could not be scored.
            OfmuError: data or model cannot be prepared. Nothing has been written to the run directory then.
        """
        return _Session(self._home, self.mapping, self._executor, self._callback).start()

    @classmethod
    def resume(
        cls,
        run_dir: str | Path,
        overrides: Sequence[str] = (),
        executor: Executor | None = None,
        callback: CompareCallback | None = None,
        *,
        allow_code: bool = False,
    ) -> ComparisonResult:
        """Continue a comparison that was killed, or return the result of a finished one.

        Args:
            run_dir: the comparison's directory.
            overrides: entries that may change the number of seeds (``compare.seeds=5``) and of draws of the retain rows
                (``compare.retain_draws=3``), add methods
                (``compare.methods=...``, with ``compare.spaces.<method>`` for their spaces), and change the number of
                concurrent trials, the kept models and the cluster.
            executor: as for the constructor.
            callback: follows the comparison.
            allow_code: whether modules of the user that the directory's config names are imported.

        Raises:
            RunError: ``run_dir`` is no comparison, or another process holds its lock.
            ConfigError: an override changes anything else, since old and new results could not be compared, or a module
                of the user may not be imported.
        """
        home = CompareDirectory.open_existing(run_dir)
        mapping = home.read_mapping(overrides)
        if not allow_code:
            with plugins_restricted(str(home.config_file), ()):
                for config in method_configs(mapping).values():
                    for module, key in config.plugins.items():
                        check_plugin(module, key)
        return _Session(home, mapping, executor, callback or CompareCallback(), overrides).start()


class _Session:
    """One process that runs a comparison or a part of it. The methods are in the order of the calls."""

    def __init__(
        self,
        home: CompareDirectory,
        mapping: Mapping[str, Any],
        executor: Executor | None,
        callback: CompareCallback,
        overrides: Sequence[str] = (),
    ) -> None:
        check_storage(home.path)
        self._home, self._mapping, self._callback, self._overrides = home, mapping, callback, overrides
        self._configs = method_configs(mapping)
        self._settings = validate(CompareOptions, mapping["compare"])
        self._shared = next(iter(self._configs.values()))
        # The points are chosen on the config's own seed, where they look better than they are. Other seeds follow it.
        first = self._shared.seed + 1
        self._seeds = tuple(range(first, first + self._settings.seeds))
        self._executor = executor
        self._content: Mapping[str, str] | None = None
        """The hashes of what the comparison starts from, if they are known."""

    def start(self) -> ComparisonResult:
        """Run what is missing, write the reports, and return the result."""
        if self._executor is None:
            self._content = self._home.check_content(self._shared.unlearn)
        result = self._finished_result() or self._run_missing()
        write_reports(result)
        write_page_or_warn(lambda: comparison_page(result), result.run_dir)
        self._callback.on_end(result)
        return result

    def _finished_result(self) -> ComparisonResult | None:
        if not self._home.summary_file.is_file():
            return None
        result = ComparisonResult.load(self._home.path)
        has_all_methods = {method.name for method in result.summary.methods} == set(self._configs)
        has_all_runs = (result.summary.seeds, result.summary.retain_draws) == (self._seeds, self._settings.retain_draws)
        return result if has_all_methods and has_all_runs else None

    def _run_missing(self) -> ComparisonResult:
        if self._executor is None:
            check_inputs(self._shared.unlearn)
            for each in self._configs.values():
                check_parts_of_model(each.unlearn)
            check_trial_engine(self._shared.unlearn, self._shared.cluster)
        with ExitStack() as stack:
            is_new = not self._home.config_file.is_file()
            if not is_new:
                stack.enter_context(self._home.lock())
            session = ray_session(self._shared.cluster, self._shared.engine.device, self._resume_hint)
            self._shared = self._shared.model_copy(update={"cluster": stack.enter_context(session)})
            prepared = self._prepare()
            if is_new:
                self._home.mkdir()
                stack.enter_context(self._home.lock())
            self._home.write_mapping(self._mapping, replace_environment=False)
            if prepared is not None:
                self._home.write_content(self._shared.unlearn, self._content)
            self._callback.on_start(self._home.path, tuple(self._configs))
            try:
                searches = self._search_all()
                trials = {name: load_trials(RunDirectory(found.run_dir).study_file) for name, found in searches.items()}
                found = [self._run_points(name, searches[name], trials[name], prepared) for name in self._configs]
            except StorageError as error:
                sentence = str(error).partition("; then continue")[0]
                raise StorageError(f"{sentence}; then {self._resume_hint()}") from error
            shutil.rmtree(self._home.tune_storage, ignore_errors=True)
            context = self._shared_context(list(searches.values()))
            summary = summarise(found, context, self._settings, self._home.command())
            return ComparisonResult(self._home.path, summary)

    def _resume_hint(self) -> str:
        return f"continue with {shlex.join(self._home.resume_words(self._mapping))}"

    def _prepare(self) -> Prepared | None:
        """Prepare the target and the reference once. The searches then find both in the cache."""
        if self._executor is not None:
            return None
        # These import torch and Transformers, which take seconds and are not needed with an executor.
        from cluster.train.preparation import prepare
        from ofmu.io.library_logging import silence_libraries

        silence_libraries()
        self._callback.on_prepare(PreparationStarted())
        return prepare(self._shared.unlearn, self._shared.cluster, self._callback.on_prepare)

    def _search_all(self) -> dict[str, SearchResult]:
        names = tuple(self._configs)
        reference_method = budget_reference(names, [name for name in names if self._began_unlimited(name)])
        found: dict[str, SearchResult] = {}
        order = list(names)
        if self._settings.budget == "evaluations":
            # The search of the reference method sets the other methods' budget, so it comes first.
            order.sort(key=lambda name: name != reference_method)
        for index, name in enumerate(order, start=1):
            config = self._configs[name]
            limit = self._settings.budget
            if limit == "evaluations" and reference_method in found:
                limit = _spent(found[reference_method])
            config = config if isinstance(limit, str) else with_budget(config, limit)
            with self._callback.search(name, index, len(names)) as callbacks:
                found[name] = self._search(name, config, callbacks)
        return {name: found[name] for name in names}

    def _began_unlimited(self, name: str) -> bool:
        """Return whether a method's search has begun with no limit but that of the comparison's config."""
        run = RunDirectory(self._home.search(name))
        if not run.config_file.is_file():
            return False
        stored = run.read_mapping().get("search") or {}
        return bool(stored.get("max_gradient_evaluations") == self._configs[name].search.max_gradient_evaluations)

    def _search(self, name: str, config: SearchConfig, callbacks: Sequence[SearchCallback]) -> SearchResult:
        run_dir = self._home.search(name)
        if RunDirectory(run_dir).config_file.is_file():
            overrides = [entry for entry in self._overrides if not entry.startswith("compare.")]
            plugins = set(config.plugins)
            return ParetoSearch.resume(run_dir, overrides, self._executor, callbacks, allow_code=plugins)
        return ParetoSearch(config, run_dir=run_dir, executor=self._executor, callbacks=callbacks).run()

    def _run_points(
        self, name: str, search: SearchResult, trials: Sequence[FrozenTrial], prepared: Prepared | None
    ) -> MethodRuns:
        # These import Ray Train and torch, which take seconds.
        from cluster.train.trainer import run_trial
        from cluster.train.worker_group import WorkerGroupPool

        of_seeds = plan_runs(search, trials, self._seeds, self._settings.points, partial(self._home.run, name))
        drawn = self._draw_retain_rows(name, of_seeds)
        runs = [*of_seeds, *drawn]
        if runs:
            self._callback.on_runs(name, sum(run.is_done for run in runs), len(runs))
        else:
            self._callback.on_no_points(name, why_no_point(search))
        make_runs(
            runs,
            search.config.model_copy(update={"cluster": self._shared.cluster}),
            executor=self._executor or (WorkerGroupPool() if self._shared.cluster.num_workers else run_trial),
            prepared=prepared,
            storage=self._home.tune_storage,
            on_run_end=lambda done: self._callback.on_runs(name, done, len(runs)),
        )
        states = own_trials(search.trials)["state"]
        return MethodRuns(
            name=name,
            title=_title(name, search.config.method.module),
            search=self._home.search(name).relative_to(self._home.path).as_posix(),
            trials=int((states != "running").sum()),
            failed=int((states == "failed").sum()),
            pruned=int((states == "pruned").sum()),
            points=read_runs(of_seeds, search.config.measured, self._home.path),
            retain_points=read_runs(drawn, search.config.measured, self._home.path),
            importances=importances(trials, list(search.config.objectives.values())),
            search_gradient_evaluations=_total(search, "gradient_evaluations"),
            search_seconds=_total(search, "seconds"),
        )

    def _draw_retain_rows(self, name: str, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Return the runs of the same points on draws of the retain rows, at the first seed."""
        settings, first = self._settings, self._seeds[0]
        return [
            replace(
                run,
                settings=run.settings | {"method.retain_share": settings.retain_share, "method.retain_draw": draw},
                directory=self._home.retain_run(name, run.trial, draw),
                retain_draw=draw,
            )
            for run in runs
            if run.seed == first
            for draw in range(1, settings.retain_draws + 1)
        ]

    def _shared_context(self, searches: Sequence[SearchResult]) -> SharedContext:
        objectives = searches[0].config.objectives
        for search in searches:
            rows = complete_of_role(search.trials, TARGET)
            if len(rows):
                target = {name: float(rows.iloc[0][name]) for name in objectives}
                break
        else:
            raise RunError(
                f"The untouched target could not be scored in any search: the column 'reason' of the {TRIALS_TABLE} "
                f"files under {self._home.searches} says why"
            )
        reference = {name: value for name, value in searches[0].reference().items() if name in objectives}
        return SharedContext(
            objectives=objectives,
            seeds=self._seeds,
            target=target,
            reference=reference or None,
            seed=self._shared.seed,
            # The target is the same for all methods, so their bounds are the same.
            limits=next((search.limits for search in searches if search.limits), ()),
        )


def _mapping(
    config: SearchConfig | UnlearnConfig | Mapping[str, Any], given: Mapping[str, Any], num_trials: int | None
) -> dict[str, Any]:
    """Return the mapping that all searches are made from, with the defaults of the ``compare`` section filled in."""
    mapping = config.model_dump(mode="json") if isinstance(config, UnlearnConfig) else dict(config)
    check_sections(mapping)
    section: dict[str, Any] = dict(mapping.get("compare") or {})
    section = {**section, **given}
    search = dict(mapping.get("search") or {})
    if num_trials is not None:
        search["num_trials"] = num_trials
    whole = {**mapping, "search": search, "compare": section}
    compare = validate(CompareConfig, whole).compare
    return {**whole, "compare": compare.model_dump(mode="json")}


def _total(search: SearchResult, column: str) -> float:
    trials = own_trials(search.trials)
    return float(trials[column].sum()) if column in trials else 0.0


def _spent(search: SearchResult) -> int:
    spent = int(_total(search, "gradient_evaluations"))
    if spent < 1:
        raise RunError(
            f"The search in {search.run_dir} reports no gradient evaluations, which set the other methods' budget: "
            "compare at --budget trials, or name a number"
        )
    return spent


def _title(name: str, module: str | None) -> str:
    method, variant = split_variant(name)
    title = method_class(method, module).title
    return title if variant is None else f"{title} ({variant})"
