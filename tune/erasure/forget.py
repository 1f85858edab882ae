"""The verb forget: from an erasure request through rows, plan, search, choice and attacks to evidence."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.chain.rows import EarlierRows
from ofmu.chain.scoring import scoring_of
from ofmu.config.files import apply_overrides, validate
from ofmu.data.files import check_data_file
from ofmu.erasure.chain import forgotten_before_chain, open_chain
from ofmu.erasure.choice import Candidate, ChoiceRule
from ofmu.erasure.evidence_files import write_evidence
from ofmu.erasure.measure import Report, evaluation_config, measure
from ofmu.erasure.request import ErasureRequest
from ofmu.erasure.request_rows import RequestRows, build_rows
from ofmu.erasure.signature import read_private_key
from ofmu.erasure.signing import restore_evidence, sign_once
from ofmu.erasure.verify import read_intact
from ofmu.erasure.workspace import Workspace
from ofmu.errors import RunError
from ofmu.io.cache import content_key, model_hashes
from ofmu.io.files import file_hash
from ofmu.io.library_logging import silence_libraries
from ofmu.io.lock import locked
from ofmu.io.text import counted
from ofmu.models.files import check_model_directory, check_tokenizer
from ofmu.models.hub import local_directory
from ofmu.run_config import UnlearnConfig
from tune.callbacks.callback_list import Callback
from tune.config import SearchConfig
from tune.erasure.chained import earlier_requests, first_target_report, run_of
from tune.erasure.fit import check_device_of, plan_of
from tune.erasure.models import is_copy, models_of, reference_of
from tune.erasure.pick import affordable, candidates, confirmed, rule_of
from tune.erasure.record import asked_of, compose_record, cost_record
from tune.erasure.settings import absolute_place, check_settings, request_settings, run_settings, search_settings
from tune.results.result import Point, SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.search import ParetoSearch

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TRIALS = 20
"""Number of trials of a request without a budget in hours."""
MAX_TRIALS = 200
"""Upper bound on the trials of a request with a budget in hours."""


@dataclass(frozen=True, kw_only=True)
class ForgetOptions:
    """How a request is worked on. All of it may differ when the request is continued."""

    budget_hours: float | None = None
    """Hours for the whole request. It is a bound on starts: what has started runs to its end. None: no bound."""
    trials: int | None = None
    """Number of trials. None: 20, or at most 200 with a budget."""
    confirm_seeds: int = 2
    """Number of further seeds on which the best trials run again. 0: none."""
    min_utility: float = 0.9
    """Least utility of the result, as a share of the target's."""
    key: Path | None = None
    """PEM file of the Ed25519 private key that signs the evidence. None: the evidence is unsigned."""
    show_rows: bool = False
    """Whether the evidence holds the texts of the forget rows and the person's name."""


@dataclass(frozen=True, kw_only=True)
class ForgetCallbacks:
    """What follows the work."""

    print_line: Callable[[str], None] = field(default=lambda line: None)
    """Called with one line at each step."""
    search: Sequence[Callback] = ()
    """Callbacks of the search."""


def forget(
    model: str,
    request: ErasureRequest,
    output: str | Path,
    *,
    after: str | Path | None = None,
    base: str | None = None,
    settings: Mapping[str, Any] | None = None,
    options: ForgetOptions | None = None,
    request_id: str | None = None,
    callbacks: ForgetCallbacks | None = None,
) -> Path:
    """Make a model forget what a request names, and write evidence of what was done and measured.

    An interrupted request continues when the same call is made again. A request that is complete returns at once, and
    is signed if ``options.key`` is given and the evidence is unsigned.

    Args:
        model: directory or hub name of the model that must forget.
        request: what it must forget.
        output: a directory for this request only.
        after: directory of the request before this one, whose result ``model`` is. Its forget rows, and those of the
            requests before it, are not retained and are measured again. None: there is none.
        base: the model before training on the rows, from which a reference is retrained.
        settings: sections of a config, such as ``{"engine": {"device": "cpu"}}``.
        options: budget, bounds, key.
        request_id: the request's name in the evidence. None: a random one.
        callbacks: what follows the work.

    Returns:
        The evidence directory.

    Raises:
        RunError: ``output`` holds another request or other files, ``after`` holds no complete request, or no trial
            keeps enough utility.
        EvidenceError: the evidence in ``after`` was altered, or is not signed although this one will be.
        OfmuError: an error of the request, the rows, the models, the key or the disk. What was done stays.
    """
    work = _Forgetting(
        model,
        request,
        Workspace.open(output),
        after=after,
        base=base,
        settings=settings or {},
        options=options or ForgetOptions(),
        callbacks=callbacks or ForgetCallbacks(),
    )
    busy = f"Another process works on the request in {output}: wait for it, or name another directory"
    with locked(Path(output), busy, remove_unused=True):
        return work.run(request_id)


class _Forgetting:
    """One attempt at a request, in reading order."""

    def __init__(
        self,
        model: str,
        request: ErasureRequest,
        home: Workspace,
        *,
        after: str | Path | None,
        base: str | None,
        settings: Mapping[str, Any],
        options: ForgetOptions,
        callbacks: ForgetCallbacks,
    ) -> None:
        check_settings(settings)
        self._model, self._base, self._request, self._home = model, base, request, home
        self._options, self._callbacks, self._say = options, callbacks, callbacks.print_line
        self._key: Ed25519PrivateKey | None = None if options.key is None else read_private_key(options.key)
        self._chain = None if after is None else open_chain(after, model, signs=self._key is not None)
        self._mapping = request_settings(model, base, settings, self._chain)
        self._modules: frozenset[str] = frozenset()

    def run(self, request_id: str | None) -> Path:
        home = self._home
        restore_evidence(home.evidence)
        if not home.evidence.is_dir():
            check_device_of(self._mapping)
        rows = self._rows(request_id)
        if home.evidence.is_dir():
            self._sign_if_asked()
            return home.evidence
        mapping = self._fitting(self._search_mapping(rows))
        # The directory may come from somebody else, so only modules that these settings name are imported.
        self._modules = frozenset(validate(SearchConfig, mapping).plugins)
        with home.timed("search"):
            result = self._search(mapping)
        first = self._measure_first_target(result)
        rule = rule_of(result, self._options.min_utility, first)
        found = candidates(result, rule)
        with home.timed("further seeds"):
            result = self._confirm(result, found)
        ordered = confirmed(result, found, rule) if self._options.confirm_seeds else found
        point = self._export(result, ordered[0], rule)
        return self._write_evidence(rows, result, rule, ordered, point, first)

    def _measure_first_target(self, result: SearchResult) -> Report | None:
        if self._chain is None:
            return None
        with self._home.timed("first target"):
            return first_target_report(self._home, self._chain, result, self._modules, self._say)

    def _rows(self, request_id: str | None) -> RequestRows:
        """Return the rows of the request. A new request is stored with its rows."""
        home, key = self._home, self._home.hash_key()
        # The rows are not known yet, and the model may have to answer questions under this config.
        config = validate(UnlearnConfig, run_settings(self._mapping))
        hashes = self._hashes()
        check_tokenizer(self._model, config.model.tokenizer)
        asked = asked_of(self._request, self._mapping, key, hashes)
        if not home.has_run and home.changes(asked, request_id):
            self._say(f"Nothing has run for the request in {home.path}, so the request begins anew")
            home.discard()
            key = home.hash_key()
            asked = asked_of(self._request, self._mapping, key, hashes)
        home.check(asked, request_id)
        rows = home.read_rows()
        if rows is not None:
            return rows
        silence_libraries()
        if self._chain is not None:
            self._chain.check_first_target()  # an hour of search would end without it
        earlier = (*self._runs_before(), *self._earlier)
        rows = build_rows(self._request, str(local_directory(self._model)), config, earlier)
        home.start(asked, request_id, key, self._places())
        home.write_rows(rows, person=self._request.person, earlier=earlier)
        self._say(f"{counted(len(rows.forget), 'row')} to forget: {rows.origins['forget']}")
        self._say(f"{counted(len(rows.retain), 'row')} to retain: {rows.origins['retain']}")
        for note in rows.notes:
            self._say(f"  {note}")
        if self._earlier:
            self._say(
                f"{counted(len(self._earlier), 'earlier request')}: {', '.join(each.id for each in self._earlier)}"
            )
        if rows.review:
            self._say(f"Review these {counted(len(rows.review), 'row')}: {home.review}")
        return rows

    def _hashes(self) -> dict[str, str]:
        """Return the hashes of the given files and of the models."""
        hashes = {}
        for name, path in self._request.files.items():
            check_data_file(path.expanduser())
            hashes[name] = file_hash(path.expanduser())
        for name, place in (("model", self._model), ("base", self._base)):
            if place is not None:
                check_model_directory(place)
                hashes[name] = content_key(model_hashes(local_directory(place)))
        if self._chain is not None:
            hashes["after"] = self._chain.hash
        return hashes

    @property
    def _earlier(self) -> tuple[EarlierRows, ...]:
        return () if self._chain is None else self._chain.earlier

    def _runs_before(self) -> tuple[EarlierRows, ...]:
        """Return the rows that were forgotten before the first request, which training would bring back."""
        if self._chain is not None:
            return self._chain.runs
        found = forgotten_before_chain(self._model)
        if found:
            count = counted(sum(len(each.forget) for each in found), "row")
            self._say(
                f"MODEL is that of {found[-1].id}, which with what ran before it forgot {count}: none is retained"
            )
        return found

    def _places(self) -> dict[str, str | None]:
        """Return what a later request must find: the first target of the chain, and the request before this one."""
        if self._chain is None:
            return {"first_target": absolute_place(self._model), "after": None}
        return {"first_target": self._chain.first_target, "after": str(self._chain.path)}

    def _sign_if_asked(self) -> None:
        """Sign the evidence of a complete request, if it is unsigned and there is a key.

        Raises:
            EvidenceError: the evidence was altered.
        """
        home, record = self._home, read_intact(self._home.evidence)
        self._say(f"The request in {home.path} was already complete: nothing was run")
        if self._key is not None:
            sign_once(record, home.evidence, self._key)

    def _search_mapping(self, rows: RequestRows) -> dict[str, Any]:
        hours, trials = self._options.budget_hours, self._options.trials
        return search_settings(
            self._mapping,
            self._home,
            has_holdout=rows.holdout is not None,
            trials=trials or (TRIALS if hours is None else MAX_TRIALS),
            hours=hours,
        )

    def _fitting(self, mapping: dict[str, Any]) -> dict[str, Any]:
        """Return the config with the smallest change that makes a trial fit this machine, if it needs one.

        Raises:
            MemoryLimitError: no change makes it fit.
        """
        config = validate(SearchConfig, mapping)
        if (config.cluster.address or os.environ.get("RAY_ADDRESS") or "local") not in ("local", ""):
            return mapping  # the machines of a cluster elsewhere are unknown
        shown = plan_of(config, self._options.budget_hours)
        self._say(shown.sentence)
        if shown.change:
            self._say(f"It does not fit as it is, so these settings are added: {' '.join(shown.change)}")
        return apply_overrides(mapping, shown.change)

    def _search(self, mapping: dict[str, Any]) -> SearchResult:
        """Start the search, or continue it with the trials and hours of this attempt."""
        home, followers = self._home, self._callbacks.search
        run = RunDirectory(home.search)
        if not (run.config_file.is_file() and run.trials.is_dir()):
            return ParetoSearch(mapping, run_dir=home.search, callbacks=followers).run()
        search = mapping["search"]
        overrides = [f"search.num_trials={search['num_trials']}", f"search.max_hours={search.get('max_hours', 'null')}"]
        # An earlier attempt may have stored further seeds, which may be more than those of this one.
        overrides.append("search.confirm_seeds=0")
        return ParetoSearch.resume(home.search, overrides, callbacks=followers, allow_code=self._modules)

    def _confirm(self, result: SearchResult, found: list[Candidate]) -> SearchResult:
        """Run the candidates on further seeds, as many of them as the budget holds."""
        seeds, hours = self._options.confirm_seeds, self._options.budget_hours
        if not seeds:
            return result
        count = len(found) if hours is None else affordable(result, seeds, hours)
        numbers = [candidate.trial for candidate in found[:count]]
        noun = "trial" if len(numbers) == 1 else "trials"
        self._say(f"Running {noun} {', '.join(map(str, numbers))} again on {counted(seeds, 'further seed')}")
        overrides = [f"search.confirm_seeds={seeds}", f"search.confirm_trials={numbers}"]
        return ParetoSearch.resume(
            result.run_dir, overrides, callbacks=self._callbacks.search, allow_code=self._modules
        )

    def _export(self, result: SearchResult, chosen: Candidate, rule: ChoiceRule) -> Point:
        """Copy the model of the chosen trial, unless it is there already."""
        home, point = self._home, result.pick(chosen.trial)
        self._say(f"{rule.sentence}: trial {chosen.trial}")
        if not home.result.is_dir():
            point.export(home.result, of_request=True)
        elif not is_copy(home.result, point):
            raise RunError(
                f"{home.result} holds another model than trial {chosen.trial}, which the rule chooses now: move it "
                f"away with {home.evaluation('result')}, then run the same command again"
            )
        return point

    def _write_evidence(
        self,
        rows: RequestRows,
        result: SearchResult,
        rule: ChoiceRule,
        ordered: list[Candidate],
        point: Point,
        first: Report | None,
    ) -> Path:
        # This import loads Ray, which takes seconds.
        from cluster.train.evaluation import evaluations

        home = self._home
        run = run_of(result, point.number, self._modules)
        models = models_of(self._model, self._base, home.result, self._chain, run)
        with home.timed("attacks"):
            # The workers are gone before this process loads models for the earlier requests.
            with evaluations(run, result.config.cluster) as evaluate:
                measured = measure(
                    {role: str(path) for role, path in models.items() if role in ("target", "result", "retrained")},
                    evaluation_config(run, rows),
                    reference_of(run, models),
                    home.evaluation,
                    lambda role: self._say(f"Measuring and attacking the model: {role}"),
                    evaluate,
                )
            measured = replace(measured, first_target=first)
            cost = cost_record(result, home)
            chain = None if self._chain is None else earlier_requests(home, self._chain, run, cost, self._say)
        # A later request scores these forget rows as this one did.
        home.note(scoring=scoring_of(run))
        record = compose_record(
            home,
            self._request,
            rows,
            result,
            rule,
            ordered,
            measured,
            models,
            run,
            chain=chain,
            show_rows=self._options.show_rows,
        )
        write_evidence(record, home.evidence, self._key)
        return home.evidence
