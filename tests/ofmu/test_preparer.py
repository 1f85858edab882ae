from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ofmu.data.encoding import load_tokenizer
from ofmu.data.load import load_data
from ofmu.errors import ConfigError, DataError, ModelError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import score_model
from ofmu.models.language import load_model
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PartReady
from ofmu.tasks.preparation import Prepared

SETTINGS: dict[str, Any] = {
    "model": {
        "scratch": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
    },
    "data": {"generated": {"authors": 3, "forget_authors": 1, "world_facts": 4}, "max_length": 160},
    "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 2, "batch_size": 64},
}


def _config(cache: Path, **sections: Any) -> UnlearnConfig:
    settings = SETTINGS | {"cache_dir": str(cache)}
    for name, values in sections.items():
        settings = settings | {name: SETTINGS.get(name, {}) | values if isinstance(values, dict) else values}
    return UnlearnConfig.model_validate(settings)


def _model_bytes(prepared: Prepared) -> list[bytes]:
    assert prepared.retrain is not None
    return [(place / "model.safetensors").read_bytes() for place in (prepared.target, prepared.retrain)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds all of the default settings' parts; tests that damage it work on copies of the settings."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(cache: Path) -> Prepared:
    return prepare(_config(cache))


def test_the_second_call_makes_nothing(cache: Path, prepared: Prepared) -> None:
    events: list[Any] = []
    again = prepare(_config(cache), callback=events.append)
    assert set(prepared.created) == {"base", "target", "target_scores", "retrain", "reference_scores"}
    assert not any(again.created.values())
    assert again.keys == prepared.keys
    assert again.costs["target"]["seconds"] == prepared.costs["target"]["seconds"] > 0
    assert [type(event) for event in events] == [PartReady] * 5


@pytest.mark.slow
def test_the_scores_are_those_of_the_saved_models(cache: Path, prepared: Prepared) -> None:
    config = _config(cache)
    data = load_data(config.data, config.seed)
    assert prepared.reference_scores is not None
    assert prepared.retrain is not None
    for place, scores in ((prepared.target, prepared.target_scores), (prepared.retrain, prepared.reference_scores)):
        expected = score_model(load_model(place), load_tokenizer(str(place)), data, config.evaluation, config.data)
        assert Scores.load(scores).sets == expected.sets


@pytest.mark.slow
def test_the_target_saw_the_forget_rows_and_the_retrain_did_not(tmp_path: Path) -> None:
    config = _config(tmp_path, training={"epochs": 40})
    prepared = prepare(config)
    assert prepared.reference_scores is not None

    def mean_loss(path: Path, name: str) -> float:
        rows = Scores.load(path).sets[name]
        return sum(row.answer.mean for row in rows) / len(rows)

    gap = mean_loss(prepared.reference_scores, "forget") - mean_loss(prepared.target_scores, "forget")
    assert gap > 0.3
    assert abs(mean_loss(prepared.reference_scores, "retain") - mean_loss(prepared.target_scores, "retain")) < gap


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "kept"),
    [
        ({"seed": 1}, set()),
        ({"data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 4}, "max_length": 160}}, set()),
        ({"training": {"epochs": 1, "batch_size": 8}}, {"base"}),
        ({"evaluation": {"max_new_tokens": 3}}, set()),
        ({"evaluation": {"max_new_tokens": 2, "rouge": False}}, {"base", "target", "retrain"}),
        ({"method": {"outer_steps": 3}}, {"base", "target", "target_scores", "retrain", "reference_scores"}),
    ],
)
def test_a_changed_setting_changes_the_keys_that_depend_on_it(
    cache: Path, prepared: Prepared, sections: dict[str, Any], kept: set[str]
) -> None:
    keys = prepare(_config(cache, **sections)).keys
    assert {part for part in keys if keys[part] == prepared.keys[part]} == kept


KILLED = """
import json, signal, sys
from ofmu.run_config import UnlearnConfig
from ofmu.preparer import prepare
from ofmu.tasks.events import TrainingEpoch

def stop_in_the_first_epoch(event):
    if isinstance(event, TrainingEpoch) and event.part == sys.argv[2]:
        print("training", flush=True)
        signal.pause()

prepare(UnlearnConfig.model_validate_json(sys.argv[1]), callback=stop_in_the_first_epoch)
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["target", "retrain"])
def test_a_prepare_killed_while_it_trains_is_completed_by_the_next(
    tmp_path: Path, prepared: Prepared, part: str
) -> None:
    config = _config(tmp_path)
    command = [sys.executable, "-c", KILLED, config.model_dump_json(), part]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        assert b"training\n" in iter(process.stdout.readline, b"")
        os.kill(process.pid, signal.SIGKILL)
    assert list((tmp_path / "models").glob(".*.partial"))

    completed = prepare(config)

    assert completed.created["target"] == (part == "target")
    assert completed.created["retrain"]
    assert not list(tmp_path.glob("*/.*.partial"))
    assert _model_bytes(completed) == _model_bytes(prepared)


@pytest.mark.slow
def test_a_flipped_bit_in_a_cached_model_is_found_and_the_model_made_again(tmp_path: Path, prepared: Prepared) -> None:
    config = _config(tmp_path)
    weights = prepare(config).target / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)

    again = prepare(config)

    assert [part for part, created in again.created.items() if created] == ["target"]
    assert _model_bytes(again) == _model_bytes(prepared)


def test_a_given_target_is_used_as_it_is_and_retrained_from_its_base(cache: Path, prepared: Prepared) -> None:
    base = next(path for path in (cache / "models").iterdir() if path.name == prepared.keys["base"])
    given = {"path": str(prepared.target), "is_target": True, "base": str(base)}
    again = prepare(_config(cache, model=given))
    assert again.target == prepared.target
    assert again.retrain == prepared.retrain
    assert not any(again.created.values())


def test_a_retrain_without_a_base_is_refused(cache: Path, prepared: Prepared) -> None:
    given = {"path": str(prepared.target), "is_target": True}
    with pytest.raises(ConfigError, match=r"set model\.base"):
        prepare(_config(cache, model=given))
    without = prepare(_config(cache, model=given, reference={"source": "none"}))
    assert (without.retrain, without.reference_scores) == (None, None)


def test_a_local_model_is_fine_tuned(cache: Path, prepared: Prepared) -> None:
    base = cache / "models" / prepared.keys["base"]
    again = prepare(_config(cache, model={"path": str(base)}))
    assert again.keys["target"] == prepared.keys["target"]


def test_a_reference_may_be_a_model_or_scores(cache: Path, prepared: Prepared) -> None:
    assert prepared.reference_scores is not None
    target = Scores.load(prepared.target_scores)
    expected = metrics_of(target, Scores.load(prepared.reference_scores)).values
    for source, path in (("model", prepared.retrain), ("scores", prepared.reference_scores)):
        config = _config(cache, reference={"source": source, "path": str(path)})
        given = prepare(config)
        assert given.retrain is None
        assert given.reference_scores is not None
        assert metrics_of(target, Scores.load(given.reference_scores)).values == expected
        assert not prepare(config).created["reference_scores"]


def test_bad_input_leaves_the_cache_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no TOFU directory"):
        prepare(_config(tmp_path, data={"source": "tofu", "path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match="There is no model directory"):
        prepare(_config(tmp_path, model={"path": str(tmp_path / "gone")}))
    assert not list(tmp_path.iterdir())


def test_the_manifest_names_no_place_on_this_machine(prepared: Prepared, cache: Path) -> None:
    for manifest in cache.glob("*/*/complete.json"):
        assert str(Path.home()) not in json.dumps(json.loads(manifest.read_text())["made_from"])
        assert str(cache) not in manifest.read_text()
