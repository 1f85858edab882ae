from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState

from ofmu.config.files import validate
from ofmu.errors import RunError, StorageError
from tune.config import SearchConfig
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import StudySearcher, open_study
from tune.study.storage import STUDY_NAME, BufferedJournalStorage, flush, read_study


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


def optunas_study(run: RunDirectory) -> optuna.Study:
    """The study as any other program opens it."""
    return optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(run.study_file))))


def in_file(run: RunDirectory) -> list[FrozenTrial]:
    return list(optunas_study(run).trials)


def without_times(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in vars(trial).items() if "datetime" not in name}


def drive(found: StudySearcher, start: int = 0) -> list[Any]:
    """Return the specifications of nine trials, of which two run at a time and the last two have not ended."""
    handed: list[Any] = [found.suggest(str(start)), found.suggest(str(start + 1))]
    for number in range(start + 2, 9):
        found.on_trial_complete(str(number - 2), {"outcome": json.dumps(outcome_of(handed[number - 2 - start]))})
        handed.append(found.suggest(str(number)))
    return handed


def outcome_of(specification: Any) -> dict[str, Any]:
    if specification["number"] == 2:
        return {"failure": "a reason"}
    if specification["number"] == 3:
        return {"pruned": {"round": 2, "total": 8, "rung": 0.25, "metrics": {"gradient_evaluations": 30.0}}}
    rate = specification["run"]["method"]["inner_lr_scale"] / 40
    return {"metrics": {"ks_statistic": rate, "model_utility": 1 - rate, "seconds": 1.5}}


@contextmanager
def disk_with(free: int, path: Path) -> Iterator[None]:
    """Refuse what goes beyond ``free`` more bytes of a file: the write before that is cut short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestOptunasContract(StorageTestCase):
    """Optuna's own tests of storages, by which those of others are checked."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> BufferedJournalStorage:
        return BufferedJournalStorage(tmp_path / "study.log")

    def test_pickle_storage(self, storage: Any) -> None:
        """One process writes the file, so a copy in another process is refused."""
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(storage)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_file_holds_what_optunas_own_storage_writes(tmp_path, config, sampler):
    config = config.model_copy(update={"search": config.search.model_copy(update={"sampler": sampler})})
    mine, plain = make_run(tmp_path / "mine"), make_run(tmp_path / "plain")
    handed = drive(StudySearcher(open_study(mine.study_file, config), config, lambda number: tmp_path / str(number)))
    open_study(plain.study_file, config)
    study = optunas_study(plain)
    assert drive(StudySearcher(study, config, lambda number: tmp_path / str(number))) == handed
    assert [without_times(trial) for trial in in_file(mine)] == [without_times(trial) for trial in in_file(plain)]
    entries = [
        [
            {key: value for key, value in json.loads(line).items() if not key.startswith(("datetime", "worker"))}
            for line in each.study_file.read_text().splitlines()
        ]
        for each in (mine, plain)
    ]
    assert entries[0] == entries[1]


def test_memory_and_file_agree(run, config):
    study = open_study(run.study_file, config)
    drive(StudySearcher(study, config, run.trial))
    stored = [vars(trial) for trial in in_file(run)]
    assert [vars(trial) for trial in study.trials] == stored
    assert [vars(trial) for trial in read_study(run.study_file).trials] == stored
    assert [vars(trial) for trial in open_study(run.study_file, config).trials] == stored
    assert [trial.number for trial in study.trials] == list(range(9))
    study.enqueue_trial({})
    flush(study)
    for states in ((TrialState.RUNNING,), (TrialState.COMPLETE, TrialState.RUNNING), (TrialState.WAITING,)):
        expected = [trial.number for trial in in_file(run) if trial.state in states]
        assert expected
        assert [trial.number for trial in study.get_trials(states=states)] == expected


def test_a_second_open_adds_nothing(run, config):
    open_study(run.study_file, config)
    before = run.study_file.read_bytes()
    open_study(run.study_file, config)
    read_study(run.study_file)
    assert run.study_file.read_bytes() == before


def test_a_trial_that_is_handed_out_is_in_the_file(run, config):
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


def test_a_trial_costs_two_writes(run, config, monkeypatch):
    found = StudySearcher(open_study(run.study_file, config), config, run.trial)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for number in range(4):
        handed = found.suggest(str(number))
        assert len(synced) == 2 * number + 1
        found.on_trial_complete(str(number), {"outcome": json.dumps(outcome_of(handed))})
        assert len(synced) == 2 * number + 2


def test_an_end_is_written_whole_or_not_at_all(run, config):
    study = open_study(run.study_file, config)
    StudySearcher(study, config, run.trial).suggest("a")
    before = run.study_file.read_bytes()
    trial = optuna.Trial(study, study.trials[0]._trial_id)
    trial.set_user_attr("seconds", 1.5)
    trial.set_user_attr("metrics", "x" * 1_000_000)
    with disk_with(5000, run.study_file), pytest.raises(StorageError, match=r"Cannot write .*study\.log"):
        study.tell(trial, [0.5, 0.5])
    assert run.study_file.read_bytes() == before
    assert in_file(run)[0].state is TrialState.RUNNING
    assert study.trials[0].state is TrialState.RUNNING
    study.tell(trial, [0.5, 0.5])
    stored = in_file(run)[0]
    assert stored.state is TrialState.COMPLETE
    assert set(stored.user_attrs) == {"role", "overrides", "seconds", "metrics"}
    assert [vars(trial) for trial in study.trials] == [vars(trial) for trial in in_file(run)]


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("open", errno.EROFS, "choose a directory that can be written"),
        ("write", errno.ENOSPC, "free some space there"),
        ("fsync", errno.EIO, "choose a directory that can be written"),
        ("fsync", errno.EDQUOT, "free some space there"),
    ],
)
@pytest.mark.parametrize("moment", ["ask", "tell"])
def test_a_disk_that_refuses_stops_the_search_and_a_resume_loses_nothing(
    run, config, monkeypatch, call, number, words, moment
):
    found = StudySearcher(open_study(run.study_file, config), config, run.trial)
    first = [found.suggest(name) for name in "ab"]
    before = run.study_file.read_bytes()

    def refuse(*arguments: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        if moment == "ask":
            assert found.suggest("c") == "FINISHED"
        else:
            found.on_trial_complete("a", {"outcome": json.dumps(outcome_of(first[0]))})
    assert isinstance(found.stopped_by, StorageError)
    assert words in str(found.stopped_by)
    assert run.study_file.read_bytes() == before
    assert found.suggest("d") == "FINISHED"

    resumed = StudySearcher(open_study(run.study_file, config), config, run.trial)
    assert [resumed.suggest(name) for name in "xy"] == first
    undisturbed = make_run(run.path.with_name("undisturbed"))
    other = StudySearcher(open_study(undisturbed.study_file, config), config, run.trial)
    assert [other.suggest(name) for name in "abc"] == [*first, resumed.suggest("z")]


def test_another_program_that_adds_a_trial_is_noticed(run, config):
    study = open_study(run.study_file, config)
    optunas_study(run).enqueue_trial({})
    found = StudySearcher(study, config, run.trial)
    assert found.suggest("a") == "FINISHED"
    assert isinstance(found.stopped_by, StorageError)
    assert "Another program" in str(found.stopped_by)
    with pytest.raises(StorageError, match="Another program"):
        flush(study)
    assert [trial.state for trial in in_file(run)] == [TrialState.WAITING] * 3
    resumed = StudySearcher(open_study(run.study_file, config), config, run.trial)
    assert [resumed.suggest(name)["number"] for name in "abc"] == [0, 1, 2]


def test_a_file_that_another_program_cuts_or_replaces_is_noticed(run, config):
    study = open_study(run.study_file, config)
    run.study_file.write_bytes(run.study_file.read_bytes()[:-20])
    study.ask()
    with pytest.raises(StorageError, match="Another program"):
        flush(study)


def test_a_dashboard_may_set_attributes_of_the_study_during_a_search(run, config):
    study = open_study(run.study_file, config)
    found = StudySearcher(study, config, run.trial)
    found.suggest("a")
    optunas_study(run).set_user_attr("note", "looks good")
    found.suggest("b")
    dashboard = optunas_study(run)
    dashboard._storage.set_study_system_attr(dashboard._study_id, "dashboard:note_ver:1", 1)
    found.on_trial_complete("b", {"outcome": json.dumps({"failure": "a reason"})})
    found.suggest("c")
    assert found.stopped_by is None
    for each in (study, optunas_study(run), read_study(run.study_file), open_study(run.study_file, config)):
        assert each.user_attrs == {"note": "looks good"}
        assert each._storage.get_study_system_attrs(each._study_id)["dashboard:note_ver:1"] == 1
        states = [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]
        assert [trial.state for trial in each.trials] == states


@pytest.mark.slow
def test_a_kill_at_any_byte_loses_only_the_last_write(tmp_path, config):
    run = make_run(tmp_path / "run")
    drive(StudySearcher(open_study(run.study_file, config), config, run.trial))
    whole, trials = run.study_file.read_bytes(), in_file(run)
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    around = {end + step for end in ends[:-1:5] for step in (-1, 0, 1)}
    for size in sorted({*around, *range(len(whole) - 600, len(whole), 97)}):
        run.study_file.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        if lines == 0:
            with pytest.raises(RunError, match="holds no trial yet"):
                read_study(run.study_file)
            continue
        left = read_study(run.study_file).trials
        assert run.study_file.read_bytes() == whole[:size], "reading changes nothing"
        resumed = open_study(run.study_file, config)
        assert [vars(trial) for trial in resumed.trials[: len(left)]] == [vars(trial) for trial in left]
        found = StudySearcher(resumed, config, run.trial)
        handed = found.suggest("a")
        assert found.stopped_by is None
        if isinstance(handed, dict):
            assert trials[handed["number"]].params == in_file(run)[handed["number"]].params
        entries = [json.loads(line) for line in run.study_file.read_bytes().splitlines()]
        assert entries[:lines] == [json.loads(line) for line in whole.splitlines()[:lines]]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"op_code": 5, "trial_', b"no journal\n", b"[1, 2]\n", b"\xff\xfe\n"])
def test_a_damaged_last_line_is_ignored_and_then_removed(run, config, tail):
    study = open_study(run.study_file, config)
    StudySearcher(study, config, run.trial).suggest("a")
    whole = run.study_file.read_bytes()
    run.study_file.write_bytes(whole + tail)
    assert [vars(trial) for trial in read_study(run.study_file).trials] == [vars(trial) for trial in study.trials]
    resumed = StudySearcher(open_study(run.study_file, config), config, run.trial)
    assert resumed.suggest("a")["number"] == 0
    assert resumed.suggest("b")["number"] == 1
    assert run.study_file.read_bytes().startswith(whole + b'{"op_code"')
    assert [trial.state for trial in in_file(run)] == [TrialState.RUNNING] * 2


def test_a_damaged_line_in_the_middle_is_refused(run, config):
    open_study(run.study_file, config)
    lines = run.study_file.read_bytes().splitlines(keepends=True)
    run.study_file.write_bytes(b"".join([*lines[:2], b"broken\n", *lines[2:]]))
    for read in (read_study, lambda path: open_study(path, config)):
        with pytest.raises(RunError, match=r"Line 3 of .*study\.log is damaged: restore"):
            read(run.study_file)


def test_a_file_without_a_study_is_refused_by_readers_alone(run, config):
    with pytest.raises(RunError, match="holds no trial yet"):
        read_study(run.study_file)
    assert not run.study_file.exists()
    run.study_file.touch()
    with pytest.raises(RunError, match="holds no trial yet"):
        read_study(run.study_file)
    assert len(open_study(run.study_file, config).trials) == 2


def test_lists_that_were_returned_do_not_change(run):
    study = optuna.create_study(study_name="a", storage=BufferedJournalStorage(run.path / "other.log"))
    trial = study.ask()
    before = study.get_trials(deepcopy=False)
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 0.5)
    assert before[0].state is TrialState.RUNNING
    assert before[0].params == {}
