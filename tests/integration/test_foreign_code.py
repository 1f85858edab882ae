"""A run directory, or a model's folder, that comes from somebody else: no command runs its code unasked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from ofmu.errors import ConfigError
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from tune import AskTell, ParetoSearch, SearchResult
from tune.compare.comparison import Comparison
from tune.compare.directory import CompareDirectory

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from typing import Literal
from ofmu.methods import register
from ofmu.methods.gradascent import GradAscent

class TheirConfig(GradAscent.Config):
    name: Literal[{method!r}] = {method!r}

@register({method!r})
class Theirs(GradAscent):
    Config = TheirConfig

def metric(scores, reference):
    return 0.5
"""
METRICS = {"ks_statistic": 0.5, "model_utility": 0.5, "extraction_strength": 0.5}
SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)

Names = Callable[[dict[str, Any], str], None]


def as_method(config: dict[str, Any], module: str) -> None:
    config["method"] = {"name": module.partition(".")[2], "module": module, "steps": 3}


def beside_a_built_in_method(config: dict[str, Any], module: str) -> None:
    config["method"]["module"] = module


def as_metric(config: dict[str, Any], module: str) -> None:
    config["evaluation"]["custom_metrics"] = [f"{module}:metric"]


def as_objective(config: dict[str, Any], module: str) -> None:
    config["search"]["objectives"] = {f"{module}:metric": "min", "model_utility": "max"}


WAYS: tuple[Names, ...] = (as_method, beside_a_built_in_method, as_metric, as_objective)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the evil module makes. The module lies beside its run directory, below the working directory."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "theirs").mkdir()
    return marker


def module_of(marker: Path) -> str:
    """Write an evil module that was not imported before, and return its name."""
    name = f"evil_{os.urandom(6).hex()}"
    Path("theirs", f"{name}.py").write_text(EVIL.format(marker=str(marker), method=name))
    return f"theirs.{name}"


def search_of(names: Names | None, marker: Path, run_dir: str = "theirs/run") -> Path:
    """Make a finished search, and let its config name the evil module."""
    with AskTell({"search": {"num_trials": 3}}, run_dir=run_dir) as search:
        while (trial := search.ask()) is not None:
            trial.directory.joinpath("model").mkdir(parents=True)
            trial.directory.joinpath("model", "config.json").write_text("{}")
            search.tell(trial, METRICS)
    run = Path(run_dir)
    config = yaml.safe_load((run / "config.yaml").read_text())
    if names is not None:
        names(config, module_of(marker))
        if names is as_method:
            config["search"]["space"] = {"method.lr": {"low": 1e-5, "high": 1e-3}}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    # Whoever edits a config can edit the study, which holds the config of the start.
    lines = (run / "study.log").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "ofmu:config" not in json.loads(line).get("system_attr", {})]
    (run / "study.log").write_text("".join(kept))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("names", WAYS)
def test_reading_results_runs_no_code(marker: Path, names: Names, capsys: pytest.CaptureFixture[str]) -> None:
    run = search_of(None, marker)
    before = SearchResult.load(run).front["trial"].tolist()
    shutil.rmtree(run)
    search_of(names, marker)
    assert main(["report", str(run)]) == (1 if names is as_objective else 0), capsys.readouterr().err
    if names is not as_objective:  # no trial has the objective
        assert SearchResult.load(run).front["trial"].tolist() == before
        assert main(["runs", "theirs"]) == 0
        assert "unreadable" not in capsys.readouterr().out
        assert main(["show", str(run), str(before[0])]) == 0
        assert main(["export", str(run), "--pick", str(before[0]), "--output", "taken"]) == 0
        assert Path("taken/config.json").is_file()
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("names", WAYS)
def test_a_resume_runs_code_only_when_it_is_allowed(
    marker: Path, names: Names, capsys: pytest.CaptureFixture[str]
) -> None:
    run = search_of(names, marker)
    assert main(["search", "--resume", str(run)]) == 1
    assert not marker.exists()
    error = capsys.readouterr().err
    assert f"{run.absolute()}/config.yaml names the module 'theirs." in error
    assert "--allow-code" in error
    assert error.count("\n") == 1
    for resume in (ParetoSearch.resume, AskTell.resume):
        with pytest.raises(ConfigError, match="runs its code"):
            resume(run)
    assert not marker.exists()
    if names in (as_method, beside_a_built_in_method):
        plugin = yaml.safe_load((run / "config.yaml").read_text())["method"]["module"]
        with pytest.raises(ConfigError, match="runs its code"):
            AskTell.resume(run, allow_code=["another_module"])
        AskTell.resume(run, allow_code=[plugin]).close()
        assert AskTell.resume(run, allow_code=True).config.plugins == {plugin: "method.module"}
        assert marker.exists() == (names is as_method), "the module of a built-in method is not needed"


@pytest.mark.slow
def test_a_space_of_modules_runs_no_code(marker: Path) -> None:
    run = search_of(None, marker)
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("method.module", "method.name"):
        config["search"]["space"][key] = {"choices": [module_of(marker), module_of(marker)]}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["search", "--resume", str(run)]) == 1
    assert main(["report", str(run)]) in (0, 1)
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("names", WAYS)
def test_a_warm_start_imports_only_what_the_new_search_names(marker: Path, names: Names) -> None:
    run = search_of(names, marker)
    theirs = yaml.safe_load((run / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="runs its code"):
        AskTell({"search": {"num_trials": 3, "warm_start": [str(run)]}}, run_dir="mine")
    assert not marker.exists()
    if names is as_method:
        search = {"num_trials": 3, "space": theirs["search"]["space"], "warm_start": [str(run)]}
        AskTell({"method": theirs["method"], "search": search}, run_dir="mine").close()
        assert marker.exists()


@pytest.mark.slow
def test_settings_of_a_study_name_no_module(marker: Path) -> None:
    """The overrides of a stored trial are applied when its settings are used again."""
    run = search_of(None, marker)
    lines = (run / "study.log").read_text().splitlines()
    for index, line in enumerate(lines):
        entry = json.loads(line)
        overrides = entry.get("user_attr", {}).get("overrides")
        if overrides is not None:
            module = module_of(marker)
            overrides |= {"method.module": module, "method.name": module.partition(".")[2]}
            lines[index] = json.dumps(entry)
    (run / "study.log").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="are left out"):
        AskTell({"search": {"num_trials": 3, "warm_start": [str(run)]}}, run_dir="mine").close()
    assert not marker.exists()


def test_a_resumed_comparison_runs_code_only_when_it_is_allowed(marker: Path) -> None:
    made = Comparison({"search": {"num_trials": 3}}, ["ofmu", "npo"], run_dir="theirs/compare")
    directory = CompareDirectory(Path("theirs/compare").absolute())
    directory.mkdir()
    module = module_of(marker)
    mapping = {**made.mapping, "method": {"name": module.partition(".")[2], "module": module}}
    mapping["compare"] = {**mapping["compare"], "methods": ["ofmu", module.partition(".")[2]]}
    directory.write_mapping(mapping, replace_environment=True)
    assert main(["compare", "--resume", "theirs/compare"]) == 1
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("names", [as_method, beside_a_built_in_method, as_metric])
def test_an_evaluation_runs_only_code_that_its_command_names(
    marker: Path, names: Names, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    save_model(build_model(SHAPE, tokenizer, seed=1), tokenizer, Path("theirs/model"))
    config: dict[str, Any] = {
        "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}},
        "evaluation": {"max_new_tokens": 2},
        "method": {},
    }
    module = module_of(marker)
    names(config, module)
    Path("theirs/model/config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", "theirs/model"]) == (1 if names is as_metric else 0)
    assert not marker.exists()
    if names is as_metric:
        assert f"theirs/model/config.yaml names the module '{module}'" in capsys.readouterr().err
        assert main(["evaluate", "theirs/model", "evaluation.custom_metrics=[]"]) == 0
        assert not marker.exists()
        assert main(["evaluate", "theirs/model", f"evaluation.custom_metrics=['{module}:metric']"]) == 0
        assert marker.exists()
        marker.unlink()
        assert main(["evaluate", "theirs/model", "--allow-code"]) == 0


def tasks_of(marker: Path) -> str:
    """Write a folder of lm-eval's tasks, of which one names a function. Return the folder's name."""
    folder = Path("theirs/tasks")
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef f(doc): return 'a'\n"
    )
    data = {"data_files": {"test": str(folder / "test.json")}}
    (folder / "test.json").write_text('{"a": "b"}\n')
    task = yaml.safe_dump({"task": "evil", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"})
    (folder / "evil.yaml").write_text(
        f"{task}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: !function evil.f\n"
        "metric_list: [{metric: word_perplexity}]\n"
    )
    return str(folder)


def test_an_evaluation_reads_only_a_folder_of_tasks_that_its_command_names(
    marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    save_model(build_model(SHAPE, tokenizer, seed=1), tokenizer, Path("theirs/model"))
    folder = tasks_of(marker)
    config = {
        "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}},
        "evaluation": {"rouge": False, "lm_eval": ["evil"], "lm_eval_path": folder},
    }
    Path("theirs/model/config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", "theirs/model"]) == 1
    error = capsys.readouterr().err
    assert f"theirs/model/config.yaml names the folder '{folder}' in evaluation.lm_eval_path" in error
    assert "--allow-code" in error
    assert not marker.exists()
    pytest.importorskip("lm_eval", reason="the package lm-eval is not installed")
    assert main(["evaluate", "theirs/model", f"evaluation.lm_eval_path={folder}"]) == 0
    assert "lm_eval/evil/word_perplexity" in capsys.readouterr().out
    assert marker.exists()
    marker.unlink()
    assert main(["evaluate", "theirs/model", "--allow-code"]) == 0


@pytest.mark.slow
def test_a_resume_reads_a_folder_of_tasks_only_when_it_is_allowed(marker: Path) -> None:
    run = search_of(None, marker)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluation"] |= {"lm_eval": ["evil"], "lm_eval_path": tasks_of(marker)}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["report", str(run)]) == 0
    with pytest.raises(ConfigError, match=r"the folder 'theirs/tasks' in evaluation.lm_eval_path, whose tasks may run"):
        AskTell.resume(run)
    assert not marker.exists()


@pytest.mark.parametrize("names", [as_method, beside_a_built_in_method, as_metric])
@pytest.mark.parametrize("kind", ["run", "evaluation"])
def test_the_page_of_a_run_or_an_evaluation_runs_no_code(
    marker: Path, names: Names, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config: dict[str, Any] = {"method": {}, "evaluation": {}, "data": {}}
    module = module_of(marker)
    names(config, module)
    run = Path("theirs/run")
    run.mkdir()
    prepared = {"target_scores": "0" * 32, "reference_scores": "1" * 32}
    report: dict[str, Any] = {"metrics": METRICS, "config": config, "prepared": prepared, "reasons": {}}
    if kind == "run":
        (run / "environment.json").write_text(json.dumps({"python": "", "platform": "", "host": "", "versions": {}}))
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "history.jsonl").write_text('{"outer_step": 1}\n')
    else:
        report |= {"model": "theirs", "environment": {}, "baseline_metrics": {}, "reference": None}
    (run / "metrics.json").write_text(json.dumps(report))
    assert main(["report", str(run)]) == 0, capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert kind == "evaluation" or (module.partition(".")[2] in page) == (names is as_method), "the method's name"
    assert main(["runs", "theirs"]) == 0
    assert not marker.exists()


@pytest.mark.slow
def test_a_module_that_the_users_own_program_has_imported_stays_allowed(marker: Path) -> None:
    run = search_of(as_method, marker)
    AskTell.resume(run, allow_code=True).close()
    marker.unlink()
    AskTell.resume(run).close()
