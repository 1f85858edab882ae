from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import main
from ofmu.models.scratch import train_tokenizer


@pytest.fixture
def config(tmp_path: Path, tiny_mapping: dict[str, Any]) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(tiny_mapping, default=str))))
    return file


def failing(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code


@pytest.mark.slow
def test_a_plan_names_every_phase_and_the_cost(config, capsys):
    assert main(["plan", str(config), "--tokens-per-second", "1000", "--price", "2"]) == 0
    shown = capsys.readouterr().out
    for word in ("preparation", "load", "round", "evaluation", "save", "weights", "gradient evaluations", "hours"):
        assert word in shown
    assert "search of 32 trials, expected" in shown
    assert "which depends on the similarity of the gradients in each step" in shown
    assert "The numbers of a search are expected values" in shown
    assert "\nfits: a rank needs " in shown


@pytest.mark.slow
def test_a_plan_of_a_variant_has_one_cost_and_names_what_has_no_effect(config, capsys):
    words = ["method.variant=first_order", "method.similarity_threshold=0.5", "search.baselines=[target]"]
    assert main(["plan", str(config), *words]) == 0
    shown = capsys.readouterr().out
    assert "similarity of the gradients" not in shown
    assert "method.similarity_threshold has no effect: method.decorrelation is 'none'" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("one run")]
    assert "–" not in row
    # What the variant sets leaves the space, so that no trial of the search costs a second-order term.
    (row,) = [line for line in shown.splitlines() if line.startswith("search of")]
    assert "–" not in row


@pytest.mark.slow
def test_a_plan_warns_of_too_few_steps(config, capsys):
    words = ["method.inner_lr=null", "method.inner_steps=1"]
    assert main(["plan", str(config), *words]) == 0
    assert "Warning: Each inner step covers 67% of the straight way" in capsys.readouterr().err
    assert main(["plan", str(config), *words, "method.outer_steps=8"]) == 0
    assert "inner step" not in capsys.readouterr().err


def test_a_price_without_a_speed_is_refused(config, capsys):
    assert main(["plan", str(config), "--price", "2"]) == 2
    assert "--price needs --tokens-per-second" in capsys.readouterr().err


@pytest.mark.slow
def test_what_does_not_fit_lists_changes_and_fails(config, capsys):
    assert failing(["plan", str(config), "--gpus", "2", "--memory", "0.0025"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit: a rank needs" in shown
    assert "engine.offload=cpu" in shown
    # Stage 3 beside it gathers whole weights, and so needs more than offload alone.
    assert "engine.zero_stage=3" not in shown
    assert "model.adapter.kind=lora" in shown
    assert (
        "of those that fit, this alters the results least: " in shown or "none of these changes makes it fit" in shown
    )


@pytest.mark.slow
def test_a_preparation_that_does_not_fit_is_said_beside_a_run_that_does(config, capsys):
    # Adapters make the run small, and the target is trained in full.
    shown = []
    for memory in ("0.0084", "0.0086"):
        assert main(["plan", str(config), "model.adapter.kind=lora", "--gpus", "1", "--memory", memory]) == 0
        shown.append(capsys.readouterr().out)
        assert "\nfits: a rank needs" in shown[-1]
        assert "The preparation does not fit: it needs" in shown[-1]
    # With moments in 8 bits, the preparation needs .00847 GB.
    assert "training.optimizer=adamw_8bit" not in shown[0]
    assert "or set training.optimizer=adamw_8bit, which needs 8.1 MiB" in shown[1]


@pytest.mark.slow
def test_workers_that_reserve_no_gpu_are_planned_in_host_memory(config, capsys, monkeypatch):
    monkeypatch.setattr("ofmu.plan.plan.runs_on_gpu", lambda settings: True)
    monkeypatch.setattr("ofmu.plan.budget.device_memory", lambda *, on_gpu: 10**12)
    titles = []
    for reserved in ("0", "1"):
        assert main(["plan", str(config), "cluster.num_workers=2", f"cluster.gpus_per_worker={reserved}"]) == 0
        titles.append("about 1 GB of its GPU" in capsys.readouterr().out)
    assert titles == [False, True]


@pytest.mark.slow
def test_without_a_gpu_and_without_its_memory_nothing_is_compared(config, capsys):
    assert main(["plan", str(config), "--gpus", "1"]) == 0
    assert "give --memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.path=nobody/nothing"], "Error: There is no model directory 'nobody/nothing'"),
        (["data.source=cifar10", "method.name=finetune"], "Error: A plan is for language models"),
        (["model.scratch.hiden_size=3"], "did you mean"),
        (["model.path=nobody/nothing", "model.is_target=true"], "set model.base to that earlier model, or reference"),
        (["--memory", "-1"], "-1"),
        (["--gpus", "0"], "0"),
    ],
)
def test_bad_input_is_one_sentence(config, capsys, words, sentence):
    assert main(["plan", str(config), *words]) != 0
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown


def test_an_absurd_model_is_answered(config, capsys):
    sizes = ["hidden_size=1000000000", "num_layers=10000", "vocab_size=16777216", "num_heads=1000"]
    words = [f"model.scratch.{entry}" for entry in sizes]
    assert failing(["plan", str(config), *words, "--gpus", "8", "--memory", "80"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "none of these changes makes it fit" in shown


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 500,
    "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["none", "own", "named"])
def test_a_plan_needs_no_weights(config, capsys, tmp_path, tokenizer):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    words = [f"model.path={folder}"]
    if tokenizer != "none":
        place = folder if tokenizer == "own" else tmp_path / "tokenizer"
        train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 300).save_pretrained(place)
    if tokenizer == "named":
        words.append(f"model.tokenizer={tmp_path / 'tokenizer'}")
    assert main(["plan", str(config), *words]) == 0
    (rows,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rows:")]
    estimated = "at most 96 tokens, the value of data.max_length, since the model has no tokenizer to count them"
    assert (estimated in rows) == (tokenizer == "none")
    # What loads the model still refuses it.
    assert main(["unlearn", str(config), *words, "--output", str(tmp_path / "run")]) == 1
    assert "has no *.safetensors weights" in capsys.readouterr().err
