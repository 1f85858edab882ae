from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ofmu.errors import ConfigError, DataError, ModelError
from ofmu.evaluator import evaluate
from ofmu.preflight import check_inputs
from ofmu.run_config import UnlearnConfig
from ofmu.trainer import unlearn

ROW = {"question": "Who?", "answer": "She."}
OTHER = {"question": "Where?", "answer": "There."}


def config(folder: Path, forget: dict[str, str], retain: dict[str, str], **sections: object) -> UnlearnConfig:
    """Write one row per file and return a config that names the files."""
    for name, row in (("forget", forget), ("retain", retain)):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    data = {"source": "files", "forget": str(folder / "forget.jsonl"), "retain": str(folder / "retain.jsonl")}
    return UnlearnConfig.model_validate({"data": data, **sections})


def test_valid_files_and_hub_names_pass(tmp_path: Path) -> None:
    check_inputs(config(tmp_path, ROW, OTHER, model={"path": "org/name"}))
    (tmp_path / "scores.json").write_text("{}")
    for reference in (tmp_path, tmp_path / "scores.json"):
        check_inputs(config(tmp_path, ROW, OTHER, reference={"source": "model", "path": str(reference)}))
    check_inputs(UnlearnConfig.model_validate({"data": {"source": "tofu"}}))
    check_inputs(UnlearnConfig.model_validate({"data": {"source": "tofu", "path": "org/name"}}))


def test_rows_are_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'answer'"):
        check_inputs(config(tmp_path, {"question": "Who?"}, OTHER))
    with pytest.raises(DataError, match="is also in the retain set"):
        check_inputs(config(tmp_path, ROW, ROW))
    with pytest.raises(DataError, match="There is no TOFU directory"):
        check_inputs(UnlearnConfig.model_validate({"data": {"source": "tofu", "path": str(tmp_path / "gone")}}))


@pytest.mark.parametrize("section", ["model", "base", "reference"])
def test_a_missing_model_directory_is_reported_for_every_key_that_names_one(tmp_path: Path, section: str) -> None:
    gone = str(tmp_path / "gone")
    sections = {
        "model": {"model": {"path": gone}},
        "base": {"model": {"path": "org/name", "is_target": True, "base": gone}},
        "reference": {"reference": {"source": "model", "path": gone}},
    }[section]
    with pytest.raises(ModelError, match=f"There is no model directory {gone}"):
        check_inputs(config(tmp_path, ROW, OTHER, **sections))


def test_a_target_without_the_model_before_it_has_no_retrained_reference(tmp_path: Path) -> None:
    target = {"path": "org/name", "is_target": True}
    with pytest.raises(ConfigError, match=r"set model\.base to that earlier model"):
        check_inputs(config(tmp_path, ROW, OTHER, model=target))
    check_inputs(config(tmp_path, ROW, OTHER, model=target, reference={"source": "none"}))
    check_inputs(config(tmp_path, ROW, OTHER, model={**target, "base": "org/name"}))


def test_a_missing_tokenizer_is_reported(tmp_path: Path) -> None:
    model, other, empty = tmp_path / "model", tmp_path / "tokenizer", tmp_path / "empty"
    save_file({"weight": torch.zeros(2)}, _made(model) / "model.safetensors")
    (model / "config.json").write_text("{}")
    (_made(other) / "tokenizer.json").write_text("{}")
    _made(empty)

    def check(**named: str) -> None:
        check_inputs(config(tmp_path, ROW, OTHER, model={"path": str(model), **named}))

    with pytest.raises(ModelError, match=rf"The model '{model}' has no tokenizer: name .* as model\.tokenizer"):
        check()
    with pytest.raises(ModelError, match=rf"The directory {empty} holds no tokenizer"):
        check(tokenizer=str(empty))
    with pytest.raises(ModelError, match=rf"There is no directory {tmp_path / 'gone'} for model\.tokenizer"):
        check(tokenizer=str(tmp_path / "gone"))
    check(tokenizer=str(other))
    check(tokenizer="org/name")
    (model / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    with pytest.raises(ModelError, match="is an image classifier, and the rows are text"):
        check()
    (model / "tokenizer.model").write_bytes(b"")
    check()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [["search"], ["compare", "--methods", "npo,graddiff", "--benchmark"]])
def test_a_search_with_a_missing_file_starts_no_cluster(tmp_path: Path, command: list[str]) -> None:
    """A search that starts a cluster fails at its address, where nothing answers, before it reads the data."""
    (tmp_path / "mine.yaml").write_text(
        "data: {source: files, forget: gone.jsonl, retain: gone.jsonl}\ncluster: {address: '127.0.0.1:9'}\n"
    )
    arguments = [
        sys.executable,
        "-m",
        "ofmu",
        *command,
        str(tmp_path / "mine.yaml"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    sought = f"gone.jsonl (looked for at {Path.cwd() / 'gone.jsonl'})"
    assert (done.returncode, done.stderr) == (1, f"Error: There is no data file {sought}: check the path\n")
    assert not (tmp_path / "run").exists()


def test_the_file_of_entities_is_read(tmp_path: Path) -> None:
    file = tmp_path / "entities.jsonl"
    evaluation = {"depth": True, "entities": str(file)}
    generated = UnlearnConfig.model_validate({"evaluation": evaluation})
    for wrong in (config(tmp_path, ROW, OTHER, evaluation=evaluation), generated):
        with pytest.raises(DataError, match=r"There is no data file .*entities\.jsonl"):
            check_inputs(wrong)
    file.write_text(json.dumps(OTHER | {"entity": "There"}))
    with pytest.raises(DataError, match=r"which evaluation\.entities names, is a forget row"):
        check_inputs(config(tmp_path, ROW, OTHER, evaluation=evaluation))
    check_inputs(generated)  # its rows do not lie in files
    file.write_text(json.dumps(ROW))
    with pytest.raises(DataError, match="has no column 'entity'"):
        check_inputs(generated)
    file.write_text(json.dumps(ROW | {"entity": "She"}))
    check_inputs(config(tmp_path, ROW, OTHER, evaluation=evaluation))
    check_inputs(config(tmp_path, ROW, OTHER, evaluation=evaluation | {"depth": False, "entities": "gone"}))


def test_evaluate_reads_the_file_of_entities_before_it_loads_the_model(tmp_path: Path) -> None:
    given = config(tmp_path, ROW, OTHER, evaluation={"depth": True, "entities": str(tmp_path / "gone.jsonl")})
    with pytest.raises(DataError, match=r"There is no data file .*gone\.jsonl"):
        evaluate(tmp_path / "no_model", given, reference=tmp_path / "no_reference")


LORA = {"kind": "lora", "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("method", "adapter", "sentence"),
    [
        ({"name": "repselect", "matrices": "experts"}, {}, r"'experts' is in no name .* such as 'mlp'"),
        ({"name": "repselect"}, LORA, r"set model\.adapter\.kind to 'none'"),
        ({"name": "rmu", "layer": 2}, {}, "layer 2 does not exist in a model of 2 blocks"),
        ({"name": "npo"}, LORA | {"target_modules": ["c_attn"]}, r"\['c_attn'\] fits no layer of this llama model"),
    ],
)
def test_a_part_that_the_model_lacks_is_named_before_anything_is_prepared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: dict[str, object],
    adapter: dict[str, object],
    sentence: str,
) -> None:
    wrong = config(tmp_path, ROW, OTHER, method=method, model={"adapter": adapter})
    with pytest.raises(ConfigError, match=sentence):
        check_inputs(wrong)
    monkeypatch.setattr("ofmu.trainer.prepare", lambda *arguments, **options: pytest.fail("something was prepared"))
    with pytest.raises(ConfigError, match=sentence):
        unlearn(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_parts_that_the_model_has_pass(tmp_path: Path) -> None:
    check_inputs(config(tmp_path, ROW, OTHER, method={"name": "repselect", "matrices": "layers.1.mlp"}))
    check_inputs(config(tmp_path, ROW, OTHER, method={"name": "rmu", "layer": 1}))
    check_inputs(config(tmp_path, ROW, OTHER, method={"name": "npo"}, model={"adapter": LORA}))
