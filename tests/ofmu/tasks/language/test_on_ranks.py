"""A preparation on two real ranks gives what one process prepares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fixed_weight_models import differing, fixed_names, write_source
from ofmu.evaluation.scores import Scores
from ofmu.evaluator import evaluate
from ofmu.models.language import load_model
from ofmu.preparer import Prepared, find_prepared, prepare
from ofmu.run_config import UnlearnConfig
from ofmu.testing import run_script_on_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(400)]

SCRIPT = """
import json, sys
from pathlib import Path
from ofmu.finetuning import checkpoints
from ofmu.errors import StorageError
from ofmu.io.ranks import launched_ranks
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import TrainingEpoch

rank, folder = launched_ranks().rank, Path(sys.argv[1])
config = json.loads(sys.argv[2])

def run(name, stage, callback=None, **more):
    settings = config | more | {"cache_dir": str(folder / name), "engine": {"zero_stage": stage}}
    return prepare(UnlearnConfig.model_validate(settings), callback=callback)

def die_in_epoch_2(event):
    if isinstance(event, TrainingEpoch) and event.epoch == 2:
        raise KeyboardInterrupt

for stage in (1, 3):
    run(f"stage {stage}", stage)
assert not any(run("stage 3", 3).created.values())
for base in sorted((folder / "bases").iterdir()):
    run(base.name, 3, model={"path": str(base)}, reference={"source": "none"})

checkpoints.CHECKPOINT_SECONDS = 0.0
try:
    run("interrupted", 2, die_in_epoch_2)
except KeyboardInterrupt:
    pass
assert list((folder / "interrupted" / "models").glob(".*.work/step_*")), "no checkpoint"
epochs = []
run("interrupted", 2, lambda event: epochs.append(event.epoch) if isinstance(event, TrainingEpoch) else None)
(folder / f"epochs {rank}.json").write_text(json.dumps(epochs))

# Only rank 0 writes, so only rank 0 meets a full disk. The other rank must hear of it.
(folder / "blocked").write_text("not a directory")
try:
    run("blocked", 2)
except StorageError as error:
    (folder / f"error {rank}.txt").write_text(str(error))
"""


KINDS = ("gemma4_text", "deepseek_v3", "pegasus")


@pytest.fixture(scope="module")
def mapping(tiny_mapping: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_mapping, "training": {**tiny_mapping.get("training", {}), "epochs": 3}}


@pytest.fixture(scope="module")
def on_two_ranks(mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "prepare.py"
    script.write_text(SCRIPT)
    for kind in KINDS:
        write_source(kind, folder / "bases" / kind)
    run_script_on_ranks(script, 2, str(folder), json.dumps(mapping))
    return folder


@pytest.fixture(scope="module")
def alone(mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(UnlearnConfig.model_validate(mapping | {"cache_dir": str(tmp_path_factory.mktemp("alone"))}))


def found(mapping: dict[str, Any], cache: Path, stage: int) -> Prepared:
    """Return what one process, which knows nothing of ranks, finds in the cache of the ranks."""
    settings = mapping | {"cache_dir": str(cache), "engine": {"zero_stage": stage}}
    prepared = find_prepared(UnlearnConfig.model_validate(settings))
    assert prepared is not None
    return prepared


@pytest.mark.parametrize(("name", "stage"), [("stage 1", 1), ("stage 3", 3), ("interrupted", 2)])
def test_models_and_scores_are_those_of_one_process(
    name: str, stage: int, mapping: dict[str, Any], on_two_ranks: Path, alone: Prepared
) -> None:
    together = found(mapping, on_two_ranks / name, stage)
    assert together.retrain is not None
    assert alone.retrain is not None
    for theirs, ours in ((alone.target, together.target), (alone.retrain, together.retrain)):
        expected, actual = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
        assert expected.keys() == actual.keys()
        for weight, value in expected.items():
            torch.testing.assert_close(actual[weight], value, rtol=1e-3, atol=2e-5)
        for file in ("config.json", "generation_config.json", "tokenizer.json"):
            assert (theirs / file).read_text() == (ours / file).read_text(), file
    for part in ("target_scores", "reference_scores"):
        expected_scores, actual_scores = Scores.load(getattr(alone, part)), Scores.load(getattr(together, part))
        assert expected_scores.sets.keys() == actual_scores.sets.keys()
        for row_set, rows in expected_scores.sets.items():
            theirs_nll = [row.answer.nll for row in rows]
            assert [row.answer.nll for row in actual_scores.sets[row_set]] == pytest.approx(theirs_nll, rel=1e-3)
            assert [row.row_hash for row in actual_scores.sets[row_set]] == [row.row_hash for row in rows]
    assert together.costs["target"]["ranks"] == 2
    assert together.costs["target"]["tokens"] == alone.costs["target"]["tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_keeps_the_buffers_and_the_frozen_parameters_of_its_base(
    kind: str, mapping: dict[str, Any], on_two_ranks: Path, tmp_path: Path
) -> None:
    base = on_two_ranks / "bases" / kind
    settings = mapping | {"model": {"path": str(base)}, "reference": {"source": "none"}}
    together = load_model(found(settings, on_two_ranks / kind, 3).target)
    alone = load_model(prepare(UnlearnConfig.model_validate(settings | {"cache_dir": str(tmp_path)})).target)
    expected, fixed = load_model(base).state_dict(), fixed_names(together)
    assert fixed
    for model in (together, alone):
        moved = differing(model.state_dict(), expected)
        assert fixed.isdisjoint(moved)
        assert len(moved) > len(expected) / 2
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-2, atol=1e-3)


def test_an_interrupted_training_continues_on_every_rank(mapping: dict[str, Any], on_two_ranks: Path) -> None:
    epochs = [json.loads((on_two_ranks / f"epochs {rank}.json").read_text()) for rank in (0, 1)]
    assert epochs[0] == epochs[1] == [3, 1, 2, 3]
    assert not list((on_two_ranks / "interrupted" / "models").glob(".*.work"))


def test_all_ranks_hear_of_an_error_that_rank_0_meets_alone(on_two_ranks: Path) -> None:
    first, second = ((on_two_ranks / f"error {rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert "cache" in first


def test_evaluate_on_two_ranks_gives_the_scores_of_one_process_and_one_rank_writes(
    alone: Prepared, mapping: dict[str, Any], tmp_path: Path
) -> None:
    settings = mapping | {"engine": {"zero_stage": 3}, "cache_dir": str(tmp_path / "cache")}
    settings |= {"evaluation": {**mapping.get("evaluation", {}), "attacks": ["quantization_8"]}}
    config, output = tmp_path / "config.yaml", tmp_path / "scored"
    config.write_text(json.dumps(settings))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ofmu"]
    command = ["evaluate", str(alone.target), str(config), "--reference", str(alone.retrain), "--output", str(output)]
    done = subprocess.run(
        [*launcher, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("model utility is")]) == 1, done.stdout
    single = evaluate(alone.target, UnlearnConfig.model_validate(settings), reference=alone.retrain)
    report = json.loads((output / "metrics.json").read_text())
    assert report["metrics"].keys() == single["metrics"].keys()
    for name, value in single["metrics"].items():
        assert report["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    scores = Scores.load(output / "scores.json")
    assert scores.data_hash == report["data_hash"]
