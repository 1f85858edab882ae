"""Searches in the caller's own loop: which trials are asked for, what is stored, and what a resume finds."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ofmu.errors import ConfigError, PruningRecord, RunError, StorageError
from tune import AskTell, ParetoSearch, SearchResult
from tune.ask_tell import AskedTrial
from tune.execution.trial_records import TrialOutcome
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import StudySearcher, open_study
from tune.study.storage import read_study

CONFIG: dict[str, Any] = {"search": {"num_trials": 8}, "seed": 5}


def score(trial: AskedTrial) -> dict[str, float]:
    rate = trial.config.method.model_dump()["inner_lr_scale"] / 40
    return {"ks_statistic": 0.9 - 5 * rate, "model_utility": 0.6 - 3 * rate**2}


def run_all(search: AskTell) -> list[AskedTrial]:
    trials = []
    while (trial := search.ask()) is not None:
        search.tell(trial, score(trial))
        trials.append(trial)
    return trials


def states(run_dir: Path) -> list[str]:
    return [trial.state.name for trial in read_study(run_dir / "study.log").trials]


@pytest.mark.slow
def test_a_loop_asks_for_the_trials_of_a_search(tmp_path):
    with AskTell(CONFIG, run_dir=tmp_path / "mine") as search:
        asked = run_all(search)
        assert search.ask() is None
        result = search.result()
    assert [trial.role for trial in asked] == ["target", "published", *["sampled"] * 6]
    assert asked[0].config.method.model_dump()["outer_steps"] == 0
    assert [trial.directory for trial in asked] == [tmp_path / "mine" / "trials" / f"{n:05d}" for n in range(8)]

    other = RunDirectory.create_new(tmp_path / "other")
    other.mkdir()
    searcher = StudySearcher(open_study(other.study_file, search.config), search.config, other.trial)
    for trial in asked:
        spec = searcher.next_trial(str(trial.number))
        assert spec is not None
        assert spec.run == trial.config
        searcher.complete(str(trial.number), TrialOutcome(metrics=score(trial)))

    assert result.trials["state"].tolist() == ["complete"] * 8
    assert pd.read_csv(tmp_path / "mine" / "front.csv")["trial"].tolist() == result.front["trial"].tolist()
    assert (tmp_path / "mine" / "front.png").stat().st_size > 0
    assert SearchResult.load(tmp_path / "mine").hypervolume == result.hypervolume > 0


@pytest.mark.slow
def test_every_end_is_stored_with_its_reason(tmp_path):
    with AskTell(CONFIG, run_dir=tmp_path / "run") as search:
        asked = [search.ask() for _ in range(8)]
        assert search.ask() is None, "all trials of the search run"
        complete = search.tell(asked[0], {"ks_statistic": np.float32(0.5), "model_utility": 0.25, "seconds": 2})
        with pytest.warns(UserWarning, match="Trial 1 was told without model_utility and counts as failed"):
            missing = search.tell(asked[1], {"ks_statistic": 0.5})
        nan = search.tell(asked[2].number, {"ks_statistic": math.nan, "model_utility": 0.5})
        failed = search.fail(asked[3], "the cluster is on fire")
        pruned = search.prune(asked[4], round=2, total=8, metrics={"gradient_evaluations": 30})
        result = search.result()
    assert (complete.state, complete.objectives) == ("complete", {"ks_statistic": 0.5, "model_utility": 0.25})
    assert (missing.state, missing.reason) == ("failed", "the run reported no model_utility")
    assert (nan.state, nan.reason) == ("failed", "ks_statistic is nan, not a finite number")
    assert (failed.state, failed.reason) == ("failed", "the cluster is on fire")
    assert (pruned.state, pruned.reason) == ("pruned", PruningRecord(round=2, total=8).sentence)
    assert states(search.run_dir) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "PRUNED", *["RUNNING"] * 3]
    assert result.front["trial"].tolist() == [0]
    stored = json.loads((asked[0].directory / "metrics.json").read_text())["metrics"]
    assert stored == {"ks_statistic": 0.5, "model_utility": 0.25, "seconds": 2}


@pytest.mark.slow
def test_a_trial_is_told_once_and_only_if_it_was_asked_for(tmp_path):
    with AskTell(CONFIG, run_dir=tmp_path / "run") as search:
        trial = search.ask()
        search.tell(trial, score(trial))
        for again in (lambda: search.tell(trial, score(trial)), lambda: search.fail(trial, "x")):
            with pytest.raises(RunError, match="Trial 0 was told already, and is complete"):
                again()
        for unknown in (1, 99, -1):
            with pytest.raises(RunError, match=f"There is no trial {unknown}"):
                search.tell(unknown, score(trial))
        search.ask()
    message = "Trial 1 has not been asked for since"
    with AskTell.resume(tmp_path / "run") as search, pytest.raises(RunError, match=message):
        search.tell(1, score(trial))
    assert states(tmp_path / "run") == ["COMPLETE", "RUNNING"]


@pytest.mark.slow
def test_trials_that_were_never_told_are_asked_for_again(tmp_path):
    with AskTell(CONFIG, run_dir=tmp_path / "run") as search:
        first = [search.ask() for _ in range(5)]
        search.tell(first[0], score(first[0]))
        search.fail(first[1], "broken")
    # The run ended, but the trial was not told.
    first[2].directory.mkdir(parents=True)
    (first[2].directory / "metrics.json").write_text(json.dumps({"metrics": score(first[2])}))
    with AskTell.resume(tmp_path / "run") as search:
        again = run_all(search)
    assert again[:2] == first[3:]
    assert [trial.number for trial in again] == [3, 4, 5, 6, 7]
    assert states(tmp_path / "run") == ["COMPLETE", "FAIL", *["COMPLETE"] * 6]
    with AskTell.resume(tmp_path / "run") as search:
        assert search.ask() is None
    with AskTell.resume(tmp_path / "run", ["search.num_trials=9"]) as search:
        assert [trial.number for trial in run_all(search)] == [8]


@pytest.mark.slow
def test_a_directory_belongs_to_one_process(tmp_path):
    search = AskTell(CONFIG, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="Another search is running"):
        AskTell.resume(tmp_path / "run")
    search.close()
    AskTell.resume(tmp_path / "run").close()
    with pytest.raises(RunError, match="already holds a run"):
        AskTell(CONFIG, run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot change 'seed'"):
        AskTell.resume(tmp_path / "run", ["seed=1"])


@pytest.mark.slow
def test_threads_can_share_a_search(tmp_path):
    with AskTell(CONFIG, num_trials=16, run_dir=tmp_path / "run") as search:

        def work() -> list[int]:
            return [trial.number for trial in run_all(search)]

        with ThreadPoolExecutor(4) as pool:
            numbers = [number for done in [pool.submit(work) for _ in range(4)] for number in done.result()]
    assert sorted(numbers) == list(range(16))
    assert states(tmp_path / "run") == ["COMPLETE"] * 16


@pytest.mark.slow
def test_only_the_fronts_models_are_kept(tmp_path):
    with AskTell(CONFIG, num_trials=4, run_dir=tmp_path / "run") as search:
        for value in (0.5, 0.4, 0.6, 0.3):
            trial = search.ask()
            (trial.directory / "model").mkdir(parents=True)
            search.tell(trial, {"ks_statistic": value, "model_utility": 1 - value})
        assert search.result().knee.export(tmp_path / "model").is_dir()
    assert [path.parent.name for path in (tmp_path / "run").glob("trials/*/model")] == ["00003"]


def test_a_failed_write_is_reported_and_loses_no_trial(tmp_path):
    with AskTell(CONFIG, run_dir=tmp_path / "run") as search:
        trial = search.ask()
        trial.directory.parent.mkdir(exist_ok=True)
        trial.directory.write_text("a file where a folder should be")
        with pytest.raises(StorageError, match=r"metrics\.json"):
            search.tell(trial, score(trial))
    trial.directory.unlink()
    with AskTell.resume(tmp_path / "run") as search:
        assert search.ask() == trial


def test_early_stopping_is_left_to_the_caller(tmp_path):
    with pytest.raises(ConfigError, match=r"search.early_stopping.enabled to false.*prune"):
        AskTell({"search": {"early_stopping": {"enabled": True}}}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_no_number_leaves_the_trial_open(tmp_path):
    with AskTell(CONFIG, run_dir=tmp_path / "run") as search:
        trial = search.ask()
        for value, shown in (("x", "'x'"), ([0.5], r"\[0\.5\]"), (np.array([1.0, 2.0]), r"array\(\[1\., 2\.\]\)")):
            with pytest.raises(RunError, match=f"The metric 'ks_statistic' is {shown}, which is no number"):
                search.tell(trial, {"ks_statistic": value, "model_utility": None})
            with pytest.raises(RunError, match=f"The metric 'ks_statistic' is {shown}, which is no number"):
                search.prune(trial, round=1, total=2, metrics={"ks_statistic": value})
        with pytest.raises(RunError, match="The metric 'seconds' is '2 s', which is no number"):
            search.tell(trial, {**score(trial), "seconds": "2 s"})
        assert states(search.run_dir)[0] == "RUNNING"
        assert search.tell(trial, {**score(trial), "forget_rouge": None, "node": "gpu-7"}).state == "complete"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {"nothing": 1},
            "Trial 0 was told without ks_statistic and model_utility and counts as failed: tell every metric of "
            "search.objectives, or state others there in a new search, or give paraphrased and perturbed answers",
        ),
        (
            {"ks_statistic": 0.5, "model_utility": None, "kl_retain": 0.0},
            "Trial 0 was told without model_utility and counts as failed: tell every metric of search.objectives, or "
            "state others there in a new search",
        ),
        (
            {"ks_statistic": 0.5, "model_utility": 0.5},
            "Trial 0 was told without kl_retain and counts as failed: tell every metric of search.constraints, or "
            "state others there in a new search",
        ),
    ],
)
def test_metrics_that_a_trial_lacks_are_named_at_once(tmp_path, metrics, message):
    constraints = {"kl_retain": {"max": 0.1}} if "nothing" not in metrics else {}
    with AskTell({"search": {"constraints": constraints}}, run_dir=tmp_path / "run") as search:
        trial = search.ask()
        with pytest.warns(UserWarning, match="Trial 0 was told without") as caught:
            assert search.tell(trial, metrics).state == "failed"
    assert [str(warning.message) for warning in caught] == [message]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("search", [AskTell, ParetoSearch])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONFIG, "runs/at2"), "argument objectives is 'runs/at2': for a directory, write run_dir='runs/at2'"),
        ((CONFIG, Path("runs/at2")), "argument objectives is 'runs/at2': for a directory, write run_dir='runs/at2'"),
        ((CONFIG, None, "runs/at2"), "argument num_trials is 'runs/at2': for a directory, write run_dir='runs/at2'"),
        ((CONFIG, ["ks_statistic"]), r"argument objectives is \['ks_statistic'\]: give a mapping"),
        (("mine.yaml",), r"not 'mine.yaml': read a file with SearchConfig.read\(\)"),
    ],
)
def test_a_path_in_another_arguments_place_is_named(search, arguments, message):
    with pytest.raises(ConfigError, match=message):
        search(*arguments)


def test_checkpoint_selection_needs_runs_of_ofmu(tmp_path):
    with pytest.raises(ConfigError, match=r"set search.checkpoint_selection.enabled to false"):
        AskTell({"search": {"checkpoint_selection": {"enabled": True}}}, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def own_content(tmp_path: Path) -> dict[str, Any]:
    """A config with rows and a model of the user. No run is made, so the model need not be trained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "target")
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"question": "Who wrote {name}?", "answer": "Ann did."}}\n')
    return {
        "model": {"path": str(tmp_path / "target"), "is_target": True},
        "data": {"source": "files", "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")},
        "reference": {"source": "none"},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("forget.jsonl", '{"question": "Who wrote it?", "answer": "Bea did."}\n', "the rows"),
        ("target/generation_config.json", '{"max_length": 21}', "the model at model.path"),
    ],
)
def test_a_loop_does_not_continue_on_other_content(own_content, tmp_path, file, content, part):
    with AskTell(own_content, num_trials=3, run_dir=tmp_path / "run") as search:
        search.tell(search.ask(), {"extraction_strength": 0.5, "model_utility": 0.5})
    AskTell.resume(tmp_path / "run").close()
    before = (tmp_path / file).read_text()
    (tmp_path / file).write_text(content)
    for resume in (AskTell.resume, ParetoSearch.resume):
        with pytest.raises(RunError, match=f"holds a search on other content, since {part} changed after its start"):
            resume(tmp_path / "run")
    (tmp_path / file).write_text(before)
    with AskTell.resume(tmp_path / "run") as search:
        assert search.ask().number == 1


def test_a_resume_reads_each_file_of_a_model_once(own_content, tmp_path, monkeypatch):
    read, digest = [], hashlib.file_digest

    def counted(stream, *rest):
        read.append(Path(stream.name).name)
        return digest(stream, *rest)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    AskTell(own_content, num_trials=3, run_dir=tmp_path / "run").close()
    assert read.count("model.safetensors") == 1
    AskTell.resume(tmp_path / "run").close()
    assert read.count("model.safetensors") == 2
    assert len(read) == 2 * len(set(read))
    # A search on Ray passes the hashes on in the same way.
    run = RunDirectory.open_existing(tmp_path / "run")
    config = run.read_config().unlearn
    run.write_content(config, run.check_content(config))
    assert read.count("model.safetensors") == 3


def test_a_loop_whose_rows_cannot_be_read_is_no_error(tmp_path):
    data = {"source": "files", "forget": str(tmp_path / "none.jsonl"), "retain": str(tmp_path / "none.jsonl")}
    with AskTell({"data": data}, {"ks_statistic": "min", "model_utility": "max"}, 2, tmp_path / "run") as search:
        assert search.ask().number == 0
    AskTell.resume(tmp_path / "run").close()


@pytest.mark.slow
def test_the_documented_loop_runs(tmp_path, monkeypatch, capsys, tiny_mapping):
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "AskTell" in block)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny_mapping))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    said = capsys.readouterr().out
    assert said.split()[:3] == ["complete"] * 3
    assert "ks_statistic" in said
    assert (tmp_path / "runs" / "loop" / "front.csv").is_file()


def files_of_rows(folder: Path, **columns: Any) -> dict[str, Any]:
    """Write a forget row with further columns and a retain row. Return the section ``data``."""
    for name, row in (("forget", {"question": "Who?", "answer": "She.", **columns}), ("retain", {"text": "There."})):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return {"source": "files", **{name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")}}


def test_default_objectives_that_the_rows_do_not_allow_are_replaced_with_a_warning(tmp_path):
    config = {"data": files_of_rows(tmp_path), "search": {"num_trials": 3}}
    message = "searching extraction_strength in place of ks_statistic: forget row 1 has no paraphrased answer"
    with pytest.warns(UserWarning, match=message):
        search = AskTell(config, run_dir=tmp_path / "run")
    with search:
        assert search.config.objectives == {"extraction_strength": "min", "model_utility": "max"}
        ended = search.tell(search.ask(), {"extraction_strength": 0.5, "model_utility": 0.5})
    assert ended.state == "complete"
    with AskTell.resume(tmp_path / "run") as search:
        assert list(search.config.objectives) == ["extraction_strength", "model_utility"]


@pytest.mark.parametrize(
    ("columns", "objectives"),
    [
        ({"paraphrased_answer": "It was she.", "perturbed_answer": ["He."]}, None),
        ({}, {"ks_statistic": "min", "model_utility": "max"}),
    ],
)
def test_objectives_that_fit_or_that_the_caller_names_stay(tmp_path, columns, objectives):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = {"data": files_of_rows(tmp_path, **columns)}
        with AskTell(config, objectives, run_dir=tmp_path / "run") as search:
            assert list(search.config.objectives) == ["ks_statistic", "model_utility"]
