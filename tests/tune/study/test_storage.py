from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ofmu.config.files import validate
from tune.config import SearchConfig
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import STUDY_NAME, StudySearcher, open_study, storage_url
from tune.study.storage import SoleWriterStorage


def make_run(path: Path) -> RunDirectory:
    run = RunDirectory.create_new(path)
    run.mkdir()
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


@pytest.fixture
def config() -> SearchConfig:
    return validate(SearchConfig, {"search": {"num_trials": 9}, "seed": 5})


def in_file(run: RunDirectory) -> list[FrozenTrial]:
    """What any other program reads."""
    return list(optuna.load_study(study_name=STUDY_NAME, storage=storage_url(run.study_file)).trials)


def told(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in vars(trial).items() if "datetime" not in name}


def drive(found: StudySearcher) -> list[Any]:
    handed: list[Any] = [found.suggest("0"), found.suggest("1")]
    for number in range(2, 9):
        rate = handed[number - 2]["run"]["method"]["inner_lr"]
        outcome: dict[str, Any] = {"metrics": {"ks_statistic": rate, "model_utility": 1 - rate, "seconds": 1.5}}
        if number == 4:
            outcome = {"failure": "a reason"}
        if number == 5:
            outcome = {"pruned": {"round": 2, "total": 8, "rung": 0.25, "metrics": {"gradient_evaluations": 30.0}}}
        found.on_trial_complete(str(number - 2), {"outcome": json.dumps(outcome)})
        handed.append(found.suggest(str(number)))
    return handed


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_file_holds_what_optunas_own_storage_writes(tmp_path, config, sampler):
    config = config.model_copy(update={"search": config.search.model_copy(update={"sampler": sampler})})
    mine, plain = make_run(tmp_path / "mine"), make_run(tmp_path / "plain")
    handed = drive(StudySearcher(open_study(mine.study_file, config), config, lambda number: tmp_path / str(number)))
    open_study(plain.study_file, config)
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage_url(plain.study_file))
    assert drive(StudySearcher(study, config, lambda number: tmp_path / str(number))) == handed
    assert [told(trial) for trial in in_file(mine)] == [told(trial) for trial in in_file(plain)]


def test_memory_says_what_the_file_does(run, config):
    study = open_study(run.study_file, config)
    drive(StudySearcher(study, config, run.trial))
    assert [vars(trial) for trial in open_study(run.study_file, config).trials] == [
        vars(trial) for trial in in_file(run)
    ]
    assert [told(trial) for trial in study.trials] == [told(trial) for trial in in_file(run)]
    for states in ((TrialState.RUNNING,), (TrialState.COMPLETE, TrialState.RUNNING), (TrialState.WAITING,)):
        expected = [trial.number for trial in in_file(run) if trial.state in states]
        assert [trial.number for trial in study.get_trials(states=states)] == expected


def test_what_is_handed_out_stands_in_the_file(run, config):
    found = StudySearcher(open_study(run.study_file, config), config, run.trial)
    for name in "abc":
        handed = found.suggest(name)
        stored = in_file(run)[-1 if name == "c" else handed["number"]]
        assert stored.state is TrialState.RUNNING
        assert stored.params
        assert set(stored.user_attrs) == {"role", "overrides"}


def test_what_was_not_handed_out_never_happened(run, config):
    study = open_study(run.study_file, config)
    for _ in range(3):
        study.ask().suggest_float("method.inner_lr", 0.02, 0.1)
    assert [trial.state for trial in in_file(run)] == [TrialState.WAITING] * 2


def test_an_end_is_written_whole_or_not_at_all(run, config):
    study = open_study(run.study_file, config)
    StudySearcher(study, config, run.trial).suggest("a")
    storage = study._storage
    with storage._file.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    @sqlalchemy.event.listens_for(storage._file.engine, "begin")
    def _fill_the_disk(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    trial = optuna.Trial(study, study.trials[0]._trial_id)
    trial.set_user_attr("seconds", 1.5)
    trial.set_user_attr("metrics", "x" * 1_000_000)
    with pytest.raises(StorageInternalError):
        study.tell(trial, [0.5, 0.5])
    stored = in_file(run)[0]
    assert stored.state is TrialState.RUNNING
    assert set(stored.user_attrs) == {"role", "overrides"}


def test_a_second_writer_is_noticed(run, config):
    study = open_study(run.study_file, config)
    optuna.load_study(study_name=STUDY_NAME, storage=storage_url(run.study_file)).enqueue_trial({})
    study.ask()
    study.ask()
    study.ask()
    with pytest.raises(StorageInternalError, match="another program"):
        study._storage.flush()


def test_lists_that_were_given_out_do_not_change(run, config):
    study = optuna.create_study(
        study_name="a", storage=SoleWriterStorage(RDBStorage(storage_url(run.path / "other.db")))
    )
    trial = study.ask()
    before = study.get_trials(deepcopy=False)
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 0.5)
    assert before[0].state is TrialState.RUNNING
    assert before[0].params == {}
