from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from ofmu.cli.prepare import prepare_command, print_event
from ofmu.config.files import preset_names, read_mapping, validate
from ofmu.errors import ConfigError, DataError
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationEvent, TrainingEpoch

TINY = """
data: {generated: {authors: 2, forget_authors: 1, world_facts: 4}}
model: {scratch: {hidden_size: 16, intermediate_size: 32, num_layers: 1, num_heads: 2, vocab_size: 300}}
training: {epochs: 2}
engine: {device: cpu, threads: 1}
evaluation: {rouge: false}
search: {trials: 3}
cluster: {num_workers: 0}
"""


@pytest.mark.slow
def test_parts_are_made_once_and_then_found_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TINY)
    arguments = [str(tmp_path / "config.yaml"), f"cache_dir={tmp_path / 'cache'}", "training.epochs=1"]
    first = CliRunner().invoke(prepare_command, arguments, catch_exceptions=False)
    second = CliRunner().invoke(prepare_command, arguments, catch_exceptions=False)
    assert "target: epoch 1 of 1, loss" in first.output
    assert first.output.count(": made in") == second.output.count(": found in the cache in") == 5
    target = second.output.split("target            ")[1].splitlines()[0]
    assert (Path(target) / "model.safetensors").is_file()
    base = second.output.split("base              ")[1].splitlines()[0]
    assert (Path(base) / "model.safetensors").is_file()
    assert base != target


@pytest.mark.slow
def test_an_interrupted_preparation_says_what_is_kept_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(TINY)
    arguments = [str(tmp_path / "config.yaml"), f"cache_dir={tmp_path / 'cache'}", "training.epochs=4"]
    monkeypatch.setattr("ofmu.finetuning.checkpoints.CHECKPOINT_SECONDS", 0.0)

    def interrupt(event: PreparationEvent) -> None:
        print_event(event)
        if isinstance(event, TrainingEpoch) and event.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ofmu.cli.prepare.print_event", interrupt)
        stopped = CliRunner().invoke(prepare_command, arguments)
    assert stopped.exit_code == 130
    assert stopped.stderr == (
        "Interrupted: what is made stays in the cache, and the same command makes the rest. A training continues from "
        "its last checkpoint, if it was long enough to have one\n"
    )
    again = CliRunner().invoke(prepare_command, arguments, catch_exceptions=False)
    lines = [line for line in again.output.splitlines() if line.startswith(("base:", "target:"))]
    assert lines[0].startswith("base: found in the cache")
    assert lines[1] == "target: continues from the end of epoch 3 of 4"
    assert lines[2].startswith("target: epoch 4 of 4, loss")


@pytest.mark.slow
def test_the_printed_target_and_base_give_the_same_reference(tmp_path: Path) -> None:
    """The printed paths can be used as model.path and model.base of another config."""
    (tmp_path / "config.yaml").write_text(TINY)
    arguments = [str(tmp_path / "config.yaml"), f"cache_dir={tmp_path / 'cache'}", "training.epochs=1"]
    output = CliRunner().invoke(prepare_command, arguments, catch_exceptions=False).output
    place = {line[:18].strip(): line[18:] for line in output.splitlines() if str(tmp_path) in line}
    mine = [f"model.path={place['target']}", "model.is_target=true", f"model.base={place['base']}"]
    again = CliRunner().invoke(prepare_command, [*arguments, *mine], catch_exceptions=False).output
    assert again.count(": found in the cache in") == 3
    assert f"reference scores  {place['reference scores']}" in again


def test_the_presets_are_valid_and_start_with_their_command() -> None:
    assert {"quickstart", "tofu"} <= set(preset_names())
    for name in ("quickstart", "tofu"):
        mapping = read_mapping(name)
        settings = validate(
            UnlearnConfig, {key: mapping[key] for key in mapping if key not in ("search", "cluster", "compare")}
        )
        assert settings.data.source == {"quickstart": "generated", "tofu": "tofu"}[name]
        lines = (resources.files("ofmu") / "presets" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# ofmu search {name}")


def test_an_unknown_key_or_a_missing_file_raises_one_sentence(tmp_path: Path) -> None:
    runner = CliRunner()
    with pytest.raises(ConfigError, match=r"'training\.epoch'.*did you mean 'training\.epochs'\?"):
        runner.invoke(prepare_command, ["training.epoch=3"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="Cannot read the config"):
        runner.invoke(prepare_command, [str(tmp_path / "gone.yaml")], catch_exceptions=False)
    with pytest.raises(DataError, match="no TOFU directory"):
        runner.invoke(
            prepare_command,
            ["tofu", f"data.path={tmp_path / 'gone'}", f"cache_dir={tmp_path}"],
            catch_exceptions=False,
        )


@pytest.mark.ranks
@pytest.mark.timeout(180)
def test_under_torchrun_all_ranks_prepare_and_one_prints(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TINY)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "ofmu", "prepare", str(tmp_path / "config.yaml"), f"cache_dir={tmp_path / 'cache'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": made in") == 5
    target = Path(done.stdout.split("target            ")[1].splitlines()[0])
    assert json.loads((target / "complete.json").read_text())["cost"]["ranks"] == 2
