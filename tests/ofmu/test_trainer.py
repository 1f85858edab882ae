"""Whole runs of the trainer on the tiny generated benchmark."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from fixed_weight_models import differing, fixed_names, write_source
from ofmu import UnlearnConfig, evaluate, unlearn
from ofmu.cli.main import main
from ofmu.config.files import validate
from ofmu.errors import ClusterError, ConfigError, ModelError, NonFiniteLossError, RunError
from ofmu.models.language import load_model
from ofmu.preparer import prepare
from ofmu.reports.numbers import number
from ofmu.reports.run import run_page
from ofmu.run_config import override
from ofmu.run_files import started_at
from ofmu.tasks.preparation import Prepared

COSTS = ("seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    return prepare(tiny_config)


def changed(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, overrides))


def scores_of(metrics: dict[str, float | None]) -> dict[str, float]:
    """The metrics that the data allows; what is missing reads as not a number."""
    return {name: math.nan if value is None else value for name, value in metrics.items() if name not in COSTS}


@pytest.mark.slow
def test_a_run_leaves_everything_that_its_numbers_are_traced_by(
    tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path
) -> None:
    heard: list[dict[str, Any]] = []
    result = unlearn(tiny_config, tmp_path, prepared=prepared, callback=heard.append)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert [record["outer_step"] for record in heard] == [1, 2, 3]
    assert report["cost"]["gradient_evaluations"] == 3 * (2 * 6 + 18) + (4 + 12)
    assert set(report["cost"]["seconds"]) == {"start_up", "inner", "outer", "evaluation"}
    assert report["cost"]["peak_memory_bytes"][0]["host"] > 10**8
    assert report["environment"]["versions"]["torch"]
    assert report["config"] == tiny_config.model_dump(mode="json")
    assert len(report["data_hash"]) == 64
    assert report["learning_rates"] == {}
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3
    AutoTokenizer.from_pretrained(result.model_dir)
    AutoModelForCausalLM.from_pretrained(result.model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("inner_lr", "outer_lr"), ("outer_lr",)])
def test_rates_that_a_range_test_found_are_stored_and_shown(
    names: tuple[str, ...], tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    open_rates = [f"method.{name}=null" for name in names]
    unlearn(changed(tiny_mapping, *open_rates, "method.outer_steps=1", "method.inner_lr_scale=2"), tmp_path)
    rates = json.loads((tmp_path / "metrics.json").read_text())["learning_rates"]
    (round_record,) = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert rates == {name: round_record[name] for name in names}
    assert ", ".join(f"{name} {number(rate, 3)}" for name, rate in rates.items()) in run_page(tmp_path)


@pytest.mark.slow
def test_evaluate_prints_what_the_run_reported(tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path) -> None:
    result = unlearn(tiny_config, tmp_path, prepared=prepared)
    report = evaluate(result.model_dir, tiny_config, reference=prepared.reference_scores)
    for name, value in report["metrics"].items():
        assert result.metrics[name] == (value if value is None else pytest.approx(value, rel=1e-6)), name


@pytest.mark.slow
def test_evaluate_finds_the_prepared_reference_by_itself(
    tiny_mapping: dict[str, Any], tiny_config: UnlearnConfig, prepared: Prepared
) -> None:
    found = evaluate(prepared.target, tiny_config)
    assert found["reference"] == str(prepared.reference_scores)
    assert found["metrics"]["ks_statistic"] is not None
    unprepared = evaluate(prepared.target, changed(tiny_mapping, "training.epochs=5"))
    assert unprepared["reference"] is None
    assert unprepared["metrics"]["ks_statistic"] is None


@pytest.mark.slow
def test_no_outer_steps_leave_the_target_untouched(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    config = changed(tiny_mapping, "method.outer_steps=0")
    result = unlearn(config, tmp_path, prepared=prepared)
    target = evaluate(prepared.target, config, reference=prepared.reference_scores)["metrics"]
    assert {name: result.metrics[name] for name in target} == pytest.approx(target, rel=1e-6)
    assert result.metrics["gradient_evaluations"] == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_does_not(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    first = unlearn(changed(tiny_mapping), tmp_path / "a", prepared=prepared).metrics
    again = unlearn(changed(tiny_mapping), tmp_path / "b", prepared=prepared).metrics
    other = unlearn(changed(tiny_mapping, "seed=1"), tmp_path / "c", prepared=prepare(changed(tiny_mapping, "seed=1")))
    assert scores_of(first) == scores_of(again)
    assert first["forget_probability"] != other.metrics["forget_probability"]


@pytest.mark.slow
def test_a_process_that_ran_another_trial_gives_what_a_fresh_one_gives(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    """Bit for bit: the same metrics and the same saved weights, after a run of another stage, method and seed."""
    config = changed(tiny_mapping)
    script = (
        "import json, sys; from ofmu import UnlearnConfig, unlearn\n"
        "unlearn(UnlearnConfig.model_validate(json.loads(sys.argv[1])), sys.argv[2])\n"
    )
    arguments = [config.model_dump_json(), str(tmp_path / "cold")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    other = changed(tiny_mapping, "method.name=npo", "method.steps=3", "engine.zero_stage=3")
    unlearn(other, tmp_path / "other", prepared=prepared)
    warm = unlearn(config, tmp_path / "warm", prepared=prepared)
    cold = json.loads((tmp_path / "cold" / "metrics.json").read_text())["metrics"]
    assert scores_of(warm.metrics) == scores_of(cold)
    weights = "model/model.safetensors"
    assert (tmp_path / "warm" / weights).read_bytes() == (tmp_path / "cold" / weights).read_bytes()


@pytest.mark.slow
def test_forward_and_exact_reach_the_same_point_within_the_noise_of_seeds(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    """The two objectives' smooth parts, against their spread when only the minibatches' seed changes."""

    def point(name: str, *overrides: str) -> tuple[float, float]:
        config = changed(tiny_mapping, "method.outer_steps=5", *overrides)
        metrics = unlearn(config, tmp_path / name, prepared=prepared).metrics
        return float(metrics["forget_probability"] or 0), float(metrics["retain_probability"] or 0)

    exact, forward = point("exact", "method.derivative=exact"), point("forward", "method.derivative=forward")
    data_seed_kept = [point(f"batch{size}", f"method.batch_size={size}") for size in (3, 5)]
    for axis in (0, 1):
        noise = max(abs(exact[axis] - other[axis]) for other in data_seed_kept)
        assert abs(exact[axis] - forward[axis]) < 0.25 * noise


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_the_same(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    config = changed(tiny_mapping, "method.outer_steps=5")
    expected = unlearn(config, tmp_path / "whole", prepared=prepared).metrics
    script = tmp_path / "killed.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from ofmu import UnlearnConfig, unlearn\n"
        "def listen(record):\n"
        "    if record['outer_step'] == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "unlearn(UnlearnConfig.model_validate(json.loads(sys.argv[1])), sys.argv[2], callback=listen)\n"
    )
    run_dir = tmp_path / "cut"
    killed = subprocess.run([sys.executable, str(script), config.model_dump_json(), str(run_dir)], check=False)
    assert killed.returncode == -9
    heard: list[int] = []
    result = unlearn(config, run_dir, prepared=prepared, callback=lambda record: heard.append(record["outer_step"]))
    assert heard == [4, 5]
    assert scores_of(result.metrics) == pytest.approx(scores_of(expected), rel=1e-6, nan_ok=True)
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path) -> None:
    config = changed(tiny_mapping, "method.outer_steps=4")

    class StopError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["outer_step"] == 3:
            raise StopError

    with pytest.raises(StopError):
        unlearn(config, tmp_path, prepared=prepared, callback=stop)
    newest = sorted((tmp_path / "checkpoints").glob("step_*"))[-1] / "rank_00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    environment = tmp_path / "environment.json"
    started = json.loads(environment.read_text())
    assert started["time"] == started_at(tmp_path)
    environment.write_text(json.dumps(started | {"time": "2026-01-02T03:04:05+00:00"}))
    heard: list[int] = []
    unlearn(config, tmp_path, prepared=prepared, callback=lambda record: heard.append(record["outer_step"]))
    assert started_at(tmp_path) == "2026-01-02T03:04:05+00:00", "a resume is no start"
    assert heard == [3, 4]


@pytest.mark.slow
def test_a_finished_run_returns_at_once_and_another_config_is_refused(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    first = unlearn(changed(tiny_mapping), tmp_path, prepared=prepared)
    again = unlearn(changed(tiny_mapping), tmp_path, prepared=prepared, callback=lambda _: pytest.fail("ran again"))
    assert again.metrics == first.metrics
    with pytest.raises(RunError, match="under another config"):
        unlearn(changed(tiny_mapping, "method.inner_steps=1"), tmp_path, prepared=prepared)


@pytest.mark.slow
def test_a_diverging_run_ends_with_one_sentence(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLossError, match="Outer step 1 of 3 failed because a loss became nan"):
        unlearn(changed(tiny_mapping, "method.inner_lr=1e30"), tmp_path, prepared=prepared)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_a_run_whose_method_cannot_be_made_gives_its_process_group_back(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        assert torch.distributed.is_initialized()
        raise RunError("refused")

    monkeypatch.setattr("ofmu.trainer.build_method", refuse)
    with pytest.raises(RunError, match="refused"):
        unlearn(changed(tiny_mapping, "engine.backend=deepspeed"), tmp_path, prepared=prepared)
    assert not torch.distributed.is_initialized()


@pytest.mark.usefixtures("second_of_two")
def test_ranks_for_an_engine_of_one_process_are_refused_before_anything_is_written(
    tiny_mapping: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each rank would take all rows, and would write to the files of the other ones."""
    keys = ("engine.backend=torch", f"cache_dir={tmp_path / 'cache'}")
    config, file, run = changed(tiny_mapping, *keys), tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    sentence = "engine.backend 'torch' is for one process, and this run has 2 ranks"
    starts: list[Callable[[], Any]] = [lambda: unlearn(config, run), lambda: prepare(config)]
    for start in starts:
        with pytest.raises(ConfigError, match=sentence):
            start()
    for arguments in (["unlearn", str(file), "--output", str(run)], ["prepare", str(file)]):
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith(f"Error: {sentence}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    # An evaluation looks into the cache before it scores.
    with pytest.raises(ConfigError, match=sentence):
        evaluate(tmp_path, config, output_dir=run)
    assert not run.exists()


def test_processes_of_srun_that_cannot_find_each_other_write_nothing(
    tiny_mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process would be the only rank, and all would write the same files."""
    step = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # a run of this process has set them
        monkeypatch.delenv(name, raising=False)
    config, file, run = changed(tiny_mapping, f"cache_dir={tmp_path / 'cache'}"), tmp_path / "config.yaml", "run"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    sentence = "srun has started 4 processes, which cannot find each other without MASTER_ADDR and MASTER_PORT"
    starts: list[Callable[[], Any]] = [lambda: unlearn(config, tmp_path / run), lambda: prepare(config)]
    for start in starts:
        with pytest.raises(ClusterError, match=sentence):
            start()
    for arguments in (["unlearn", str(file), "--output", str(tmp_path / run)], ["prepare", str(file)]):
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith(f"Error: {sentence}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["source", "fp32"])
def test_a_model_in_bf16_is_scored_and_saved_in_bf16(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path, saved: str
) -> None:
    target = tmp_path / "target"
    source = AutoModelForCausalLM.from_pretrained(prepared.target, dtype=torch.bfloat16)
    source.save_pretrained(target)
    AutoTokenizer.from_pretrained(prepared.target).save_pretrained(target)
    config = changed(
        tiny_mapping, f"model.path={target}", "model.is_target=true", f"model.saved_dtype={saved}",
        "reference.source=none", "method.outer_steps=1",
    )  # fmt: skip
    result = unlearn(config, tmp_path / "run")
    expected = torch.bfloat16 if saved == "source" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(result.model_dir, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert any(not torch.equal(x, y) for x, y in zip(model.parameters(), source.parameters(), strict=True))
    again = evaluate(result.model_dir, config)["metrics"]
    for name, value in scores_of(result.metrics).items():
        if name in again and not math.isnan(value):
            assert again[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma4_text", "deepseek_v3"])
def test_a_saved_model_keeps_the_buffers_of_the_target(kind: str, tiny_mapping: dict[str, Any], tmp_path: Path) -> None:
    target = write_source(kind, tmp_path / "target")
    given = (f"model.path={target}", "model.is_target=true", "reference.source=none", "method.name=simnpo")

    def saved(name: str, *overrides: str, callback: Any = None) -> dict[str, torch.Tensor]:
        result = unlearn(changed(tiny_mapping, *given, *overrides), tmp_path / name, callback=callback)
        return load_model(result.model_dir).state_dict()

    def stop(record: dict[str, Any]) -> None:
        if record["outer_step"] == 2:
            raise KeyboardInterrupt

    source = load_model(target)
    for adapters in ("none", "lora"):
        assert not differing(
            saved(adapters, "method.steps=0", f"model.adapter.kind={adapters}"), source.state_dict()
        ), adapters
    steps = ("method.steps=3", "method.round_steps=1", "method.lr=0.01")
    whole = saved("whole", *steps)
    moved = differing(whole, source.state_dict())
    assert moved
    assert fixed_names(source).isdisjoint(moved)
    with pytest.raises(KeyboardInterrupt):
        saved("stopped", *steps, callback=stop)
    assert not differing(saved("stopped", *steps), whole)


@pytest.mark.slow
def test_a_model_without_a_tokenizer_runs_with_the_one_that_is_named(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    whole, bare, tokenizer = prepared.target, tmp_path / "bare", tmp_path / "tokenizer"
    for folder, is_kept in ((bare, False), (tokenizer, True)):
        folder.mkdir()
        for file in whole.iterdir():
            if file.name.startswith("tokenizer") is is_kept:
                shutil.copyfile(file, folder / file.name)
    given = ("model.is_target=true", "reference.source=none", "method.outer_steps=1")
    with pytest.raises(ModelError, match=rf"The model '{bare}' has no tokenizer .* as model\.tokenizer"):
        unlearn(changed(tiny_mapping, f"model.path={bare}", *given), tmp_path / "refused")
    config = changed(tiny_mapping, f"model.path={bare}", f"model.tokenizer={tokenizer}", *given)
    result = unlearn(config, tmp_path / "run")
    expected = unlearn(changed(tiny_mapping, f"model.path={whole}", *given), tmp_path / "whole")
    assert scores_of(result.metrics) == scores_of(expected.metrics)
    saved, named = (AutoTokenizer.from_pretrained(place) for place in (result.model_dir, tokenizer))
    assert saved.get_vocab() == named.get_vocab()

    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    with pytest.raises(RunError, match=r"since the tokenizer at model\.tokenizer changed after its start"):
        unlearn(config, tmp_path / "run")
