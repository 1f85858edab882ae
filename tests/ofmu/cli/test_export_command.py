"""``ofmu export``: a model with its card in a folder, and on a small hub on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard, constants

from hub_server import hub_server
from ofmu.cli.export import export_command
from ofmu.errors import ConfigError, ModelError
from report_runs import write_run
from search_runs import write_search
from tune import AskTell
from tune.rundir.search_dir import RunDirectory


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search whose trial 3, the knee, has a model and the files of a run."""
    folder = tmp_path_factory.mktemp("search") / "run"
    write_search(folder)
    trial = RunDirectory(folder).trial(3)
    write_run(trial, method={"name": "npo"})
    (trial / "model" / "weights.safetensors").write_text("weights")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(export_command, [str(argument) for argument in arguments])


def test_an_exported_model_has_a_card(search: Path, tmp_path: Path) -> None:
    result = call(search, "--pick", 3, "--output", tmp_path / "model")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"weights.safetensors", "README.md", "config.yaml", "metrics.json"}
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.tags == ["machine-unlearning", "ofmu", "npo"]


def test_a_card_in_the_model_stays(search: Path, tmp_path: Path) -> None:
    own = RunDirectory(search).trial(3) / "model" / "README.md"
    own.write_text("mine")
    try:
        assert call(search, "--pick", 3, "--output", tmp_path / "model").exit_code == 0
    finally:
        own.unlink()
    assert (tmp_path / "model" / "README.md").read_text() == "mine"


def test_a_model_without_utility_is_exported_with_a_warning(tmp_path: Path) -> None:
    with AskTell(
        {"method": {"name": "npo"}, "search": {"num_trials": 3, "baselines": ["target"]}}, run_dir=tmp_path / "run"
    ) as loop:
        for utility in (0.8, 0.5, 0.0):
            trial = loop.ask()
            assert trial is not None
            loop.tell(trial, {"ks_statistic": utility, "model_utility": utility})
            (RunDirectory(tmp_path / "run").trial(trial.number) / "model").mkdir(parents=True)
    useful, useless = (call(tmp_path / "run", "--pick", pick, "--output", tmp_path / str(pick)) for pick in (1, 2))
    assert useless.exit_code == useful.exit_code == 0
    assert "Warning: trial 2 keeps 0 % of the target's model_utility: take another trial with --pick" in useless.stderr
    assert useful.stderr == ""


@pytest.mark.slow
def test_a_model_goes_to_the_hub_without_a_folder(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        result = call(search, "--pick", 3, "--push-to-hub", "me/model")
        assert result.exit_code == 0, result.output
        assert f"is at {hub.url}/me/model" in result.output
        assert set(hub.files["me/model"]) == {".gitattributes", "weights.safetensors", "README.md"}
        again = call(search, "--pick", 3, "--push-to-hub", "me/model")
        assert isinstance(again.exception, ModelError)


def test_what_cannot_be_exported_is_refused_first(tmp_path: Path) -> None:
    for arguments in ((), ("--output", tmp_path / "model", "--public")):
        assert isinstance(call(tmp_path / "gone", *arguments).exception, ConfigError)
    error = call(tmp_path / "gone", "--push-to-hub", "no-owner").exception
    assert isinstance(error, ModelError)
    assert "names no owner" in str(error)
