"""``ofmu evaluate`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ofmu.cli.evaluate import HEADLINES, evaluate_command, show_report
from ofmu.content import ROWS, write_content
from ofmu.errors import ConfigError, ReferenceMismatchError
from ofmu.evaluator import evaluate
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from ofmu.tasks.load import task_family

YAML = """
data: {generated: {authors: 4, forget_authors: 1, world_facts: 2}}
evaluation: {max_new_tokens: 4}
search: {num_trials: 3}
cluster: {workers: 2}
"""
SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: a config and two models."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(YAML)
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    for seed, name in enumerate(("model", "other")):
        save_model(build_model(SHAPE, tokenizer, seed=seed), tokenizer, folder / name)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(evaluate_command, [str(argument) for argument in arguments])


def value_of(result: Result, name: str) -> str:
    (line,) = [line for line in result.stdout.splitlines() if line.split()[0] == name]
    return line.split(maxsplit=1)[1]


def columns_of(result: Result, name: str) -> list[str]:
    return value_of(result, name).split()


@pytest.mark.slow
def test_metrics_are_printed_plainly_and_stored(run: Path, tmp_path: Path) -> None:
    result = call(
        run / "model", run / "config.yaml", "seed=3", "--reference", run / "other", "--output", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert stored["config"]["seed"] == 3
    assert columns_of(result, "metric") == ["value", "retrained"]
    found, expected = columns_of(result, "ks_statistic")
    assert float(found) == pytest.approx(stored["metrics"]["ks_statistic"], rel=1e-3)
    assert expected == "0"
    assert columns_of(result, "forget_quality_rows")[0] == f"{stored['metrics']['forget_quality_rows']:.0f}"
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"metrics.json", "report.html", "scores.json"}
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_a_missing_metric_shows_its_reason(run: Path) -> None:
    result = call(run / "model", run / "config.yaml", "evaluation.rouge=false")
    assert value_of(result, "forget_quality") == "–  (no reference was given)"
    assert "evaluation.rouge is false" in value_of(result, "retain_rouge")
    assert "evaluation sets" not in result.stdout
    same = call(run / "model", run / "config.yaml")
    assert "none is cached for this config: run ofmu prepare with it" in same.stdout
    none = call(run / "model", run / "config.yaml", "evaluation.rouge=false", "reference.source=none")
    assert "reference.source is 'none': set it to retrain, model or scores" in none.stdout


def test_a_config_other_than_the_runs_is_named_by_its_keys(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(YAML)
    changed = ["evaluation.rouge=false", "training.epochs=2", "engine.threads=1", "method.inner_steps=1"]
    result = call(run / "model", tmp_path / "other.yaml", *changed)
    assert result.exit_code == 0, result.output
    line = result.stdout.splitlines()[-1]
    assert f"({run / 'config.yaml'}) in training.epochs, evaluation.rouge: evaluate under that one" in line


def test_a_model_that_diverged_is_called_that(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(run / "model", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        for weight in (model.lm_head.weight, model.model.norm.weight):
            weight.mul_(1e30)  # finite weights, and logits that overflow
    model.save_pretrained(tmp_path / "model")
    result = call(tmp_path / "model", run / "config.yaml", "evaluation.rouge=false")
    assert "forget quality is missing, since the model's losses are NaN or infinite" in result.output
    assert "add the columns" not in result.output


def test_rows_of_the_user_get_one_line_on_missing_columns(run: Path, tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        rows = [{"question": f"Who wrote {name} {number}?", "answer": "Ann wrote it."} for number in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"data.{name}={tmp_path / name}.jsonl" for name in ("forget", "retain")]
    result = call(run / "model", "data.source=files", *files, "evaluation.rouge=false")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if "world_facts" in line] == [
        "not measured, since the data has no such evaluation sets: real_authors, world_facts"
    ]
    assert "cannot be computed on these rows, with or without a reference (row 1 of the set 'forget'" in lines[-1]
    assert "paraphrased_answer" in lines[-1]
    # One line names the metrics, and no row of the table repeats the reason.
    said = [line for line in lines[:-1] if "paraphrased answer" in line]
    assert len(said) == 1
    assert said[0].startswith("not measured, since rows have no paraphrased answer: ")
    assert {"forget_truth_ratio", "retain_truth_ratio"} <= set(said[0].partition(": ")[2].split(", "))


def test_a_model_utility_of_0_names_the_component_that_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, float | None] = dict.fromkeys(HEADLINES, 0.125)
    report = {
        "metrics": {**values, "model_utility": 0.0, "retain_rouge": 0.0, "retain_probability": 0.5},
        "reasons": {},
        "utility_components": ["retain_rouge", "retain_probability"],
        "truth_ratio": "geometric",
        "model": "m",
        "reference": "r",
    }
    show_report(report)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("model_utility")]
    assert line.split(maxsplit=1)[1] == "0  (a harmonic mean is 0 if a component is 0, here retain_rouge)"
    show_report(report | {"baseline_metrics": {"target": {"model_utility": 0.0}}})
    assert "the target's own model_utility is 0, so it cannot show what was lost" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "shown"), [({"outer_steps": 3}, True), ({"name": "npo", "steps": 3}, False)])
def test_outer_steps_are_shown_of_methods_that_have_them(
    method: dict[str, object], shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {
        "metrics": {"forget_quality": 0.125, "outer_steps_taken": 3.0, "seconds": 1.0},
        "reasons": {},
        "utility_components": [],
        "truth_ratio": "geometric",
        "model": "m",
        "reference": "r",
        "config": {"method": method},
    }
    show_report(report)
    printed = capsys.readouterr().out
    assert ("outer_steps_taken" in printed) == shown
    assert "seconds" in printed


@pytest.mark.slow
def test_evaluation_sets_that_one_metric_needs_together_are_named_apart(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        "kl_general": "the data has no evaluation set 'real_authors' or 'world_facts'",
        "in_scope_probability": "the data has no evaluation set 'in_scope'",
    }
    report = {
        "metrics": {"forget_quality": 0.125, "retain_rouge": 0.5} | dict.fromkeys(reasons),
        "reasons": reasons,
        "utility_components": ["retain_rouge"],
        "truth_ratio": "geometric",
        "model": "m",
        "reference": "r",
    }
    show_report(report)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "not measured, since the data has no such evaluation sets: real_authors, world_facts, in_scope"


@pytest.mark.slow
def test_target_and_retrained_are_shown_beside_the_value(tiny_config: UnlearnConfig, tmp_path: Path) -> None:
    """The target's evaluation equals its stored baseline metrics. Preparation made the scores of both models."""
    config = tiny_config.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    prepared = prepare(config)
    report = evaluate(prepared.target, config)
    assert report["baseline_metrics"]["target"] == report["metrics"]
    retrained = task_family("language").stored_metrics(prepared.reference_scores, prepared.reference_scores)
    assert report["baseline_metrics"]["retrained"] == retrained.values
    assert report["baseline_metrics"]["retrained"]["ks_statistic"] == 0
    shutil.rmtree(prepared.target_scores.parent)
    assert list(evaluate(prepared.target, config)["baseline_metrics"]) == ["retrained"]


def test_a_deleted_target_is_no_baseline(run: Path, tmp_path: Path) -> None:
    gone = [f"model.path={tmp_path / 'gone'}", "model.is_target=true", "reference.source=none"]
    result = call(run / "model", run / "config.yaml", *gone, "evaluation.rouge=false")
    assert result.exit_code == 0, result.output
    assert "target" not in result.stdout


@pytest.mark.slow
def test_without_config_the_runs_own_is_used(run: Path) -> None:
    result = call(run / "model", "evaluation.rouge=false")
    assert result.exit_code == 0, result.output
    assert str(run / "config.yaml") in result.stderr
    given = call(run / "model", run / "config.yaml", "evaluation.rouge=false")
    assert result.stdout == given.stdout
    assert evaluate(run / "model")["config"]["data"]["generated"]["authors"] == 4


def test_nothing_is_said_of_a_model_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("runs/nope")
    assert result.exit_code != 0
    assert "no run of ofmu made this model" not in result.stderr
    (tmp_path / "scores.json").write_text("{}")
    assert "config: the defaults, since no run of ofmu made this model" in call("scores.json").stderr


def test_a_misspelt_key_is_named_with_the_nearest_key(run: Path) -> None:
    result = call(run / "model", run / "config.yaml", "evaluation.truth_ration=geometric")
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'evaluation.truth_ratio'?" in str(result.exception)


@pytest.mark.slow
def test_a_reference_of_other_rows_is_refused(run: Path, tmp_path: Path) -> None:
    call(run / "other", "evaluation.rouge=false", "--output", tmp_path)
    result = call(run / "model", "seed=1", "--reference", tmp_path / "scores.json")
    assert isinstance(result.exception, ReferenceMismatchError)
    assert result.exit_code != 0


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    names = ["ks_statistic", "forget_quality", "log10_forget_quality", "forget_quality_rows", "forget_truth_ratio"]
    names += ["model_utility", "extraction_strength", "exact_memorization", "retain_rouge"]
    values: dict[str, float | None] = dict.fromkeys(names, 0.125)
    report = {
        "metrics": {**values, "retain_rouge": None},
        "reasons": {"retain_rouge": "no [bold] text"},
        "utility_components": [],
        "truth_ratio": "geometric",
        "model": "m",
        "reference": "r",
        "baseline_metrics": {"target": {"model_utility": 0.25}},
    }
    show_report(report)
    output = capsys.readouterr().out
    assert "note" in output
    assert "no [bold] text" in output
    assert output.count("0.125") == len(names) - 1
    assert "target" in output
    assert output.count("0.25") == 1


def test_a_column_of_other_software_with_nan_is_shown_and_stored(tmp_path: Path) -> None:
    entry = {"input": "Who?", "ground_truth": "Ann.", "generation": "Ann.", "rougeL_recall": 1.0}
    log = {"forget_Q_A_ROUGE": {"agg_value": 1.0, "value_by_index": {"0": entry}}}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(log))
    (tmp_path / "theirs").mkdir()
    summary = tmp_path / "theirs" / "TOFU_SUMMARY.json"
    summary.write_text('{"forget_Q_A_ROUGE": NaN, "extraction_strength": 0.25}')
    result = call(tmp_path / "TOFU_EVAL.json", "--beside", summary, "--output", tmp_path / "o")
    assert result.exit_code == 0, result.exception
    assert columns_of(result, "forget_rouge") == ["1", "–"]
    assert columns_of(result, "extraction_strength")[1] == "0.25"
    stored = json.loads((tmp_path / "o" / "metrics.json").read_text())["baseline_metrics"]["theirs"]
    assert stored["extraction_strength"] == 0.25


@pytest.mark.slow
def test_rows_that_changed_after_the_run_are_named(run: Path, tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        rows = [{"question": f"Who wrote {name} {number}?", "answer": "Ann wrote it."} for number in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(run / "model", tmp_path / "run" / "model")
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    config = UnlearnConfig.model_validate({"data": {"source": "files", **files}, "evaluation": {"rouge": False}})
    own = RunFiles(tmp_path / "run")
    own.write_config(config.model_dump(mode="json"))
    report = evaluate(own.model, output_dir=tmp_path / "first")
    write_content(own.directory, {ROWS: report["data_hash"]})
    shutil.copy(tmp_path / "first" / "scores.json", own.scores)
    (tmp_path / "forget.jsonl").write_text(json.dumps(rows[0]).replace("retain", "forget") + "\n")
    with pytest.warns(UserWarning, match=r"forget\.jsonl has 1 scored row, and had 2"):
        result = call(own.model)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("section", ["data", "reference"])
def test_relative_paths_of_a_saved_config_are_explained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    shutil.copytree(run / "model", tmp_path / "run" / "model")
    gone = {"data": {"source": "files", "forget": "f.jsonl", "retain": "r.jsonl"}, "reference": {}}
    if section == "reference":
        gone = {"reference": {"source": "model", "path": "./gone"}}
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(gone))
    monkeypatch.chdir(tmp_path)
    result = call("run/model")
    sentence = str(result.exception)
    assert f"looked for at {tmp_path}" in sentence
    assert f"relative paths in {tmp_path / 'run' / 'config.yaml'} start at the directory in which" in sentence
    # Paths of a config that the user names are the user's own.
    assert "relative paths" not in str(call("run/model", "run/config.yaml").exception)
