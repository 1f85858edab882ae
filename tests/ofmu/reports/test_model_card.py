"""The card of an unlearned model, as the hub's own library reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from ofmu.errors import RunError
from ofmu.reports.model_card import CARD, model_card, write_card_or_warn, write_model_card
from ofmu.reports.stored import StoredRun
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from report_runs import SCRIPT, write_run


def metrics_of(directory: Path) -> dict[str, float]:
    return json.loads((directory / "metrics.json").read_text())["metrics"]


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method={"name": "npo"})
    data = ModelCard(model_card(StoredRun(run))).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["machine-unlearning", "ofmu", "npo"]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    expected = metrics_of(run)
    assert results["forget_quality"] == expected["forget_quality"]
    assert results["model_utility"] == expected["model_utility"]


def test_metrics_stand_beside_the_target_and_the_retrained_model(tmp_path: Path) -> None:
    run = StoredRun(write_run(tmp_path / "run"))
    card = model_card(run)
    assert "| metric | better | this model | target | retrained |" in card
    (line,) = [line for line in card.splitlines() if line.startswith("| forget_probability ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "lower"
    models = [metrics_of(run.directory), *run.baseline_metrics.values()]
    assert [float(cell) for cell in cells[2:]] == pytest.approx([m["forget_probability"] for m in models], rel=1e-3)
    assert "reads 8 rows" in card
    alone = model_card(StoredRun(write_run(tmp_path / "alone", baselines=False)))
    assert "it is not known how such a model would answer" in alone


def test_rates_that_the_config_leaves_open_are_in_the_card(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "learning rates" not in model_card(StoredRun(run))
    report = json.loads((run / "metrics.json").read_text())
    RunFiles(run).write_report(report | {"learning_rates": {"inner_lr": 0.0125}})
    assert "learning rates, from range tests and scales: inner_lr 0.0125" in model_card(StoredRun(run))


def test_the_card_of_a_request_leaves_attacks_to_the_evidence(tmp_path: Path) -> None:
    run = StoredRun(write_run(tmp_path / "run"))
    report = json.loads((run.directory / "metrics.json").read_text())
    for name in ("membership_min_k", "relearning_probability"):
        report["metrics"].pop(name, None)
    RunFiles(run.directory).write_report(report)
    claims = ("It was not tested whether", "No membership attack was run", " was run. Other seeds")
    own, of_request = model_card(StoredRun(run.directory)), model_card(StoredRun(run.directory), of_request=True)
    for claim in claims:
        assert claim in own
        assert claim not in of_request
    assert "is in the evidence of its erasure request" in of_request
    assert "is in the evidence" not in own


def test_the_card_reproduces_the_run_without_telling_places(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method={"name": "npo", "lr": 0.007})
    card = model_card(StoredRun(run))
    block = card[card.index("```yaml") + 7 :].partition("```")[0]
    config = UnlearnConfig.model_validate(yaml.safe_load(block))
    assert config.method.model_dump() == UnlearnConfig.read(run / "config.yaml").method.model_dump()
    assert config.cache_dir == "cache"
    assert str(tmp_path) not in card
    assert "What is forget" not in card, "rows are no part of a card"


def test_names_that_look_like_markup_stay_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    report = json.loads((run / "metrics.json").read_text())
    path = f"/models/a|b`{SCRIPT}"
    report["config"]["model"] |= {"path": path, "is_target": True}
    report["config"]["data"]["prompt_template"] = "```\n{question} ````"
    RunFiles(run).write_report(report)
    card = model_card(StoredRun(run))
    body = card[: card.index("<details>")]
    assert "<script" not in body
    assert "\\<" in body
    fence = next(line for line in card.splitlines() if line.endswith("yaml") and line.startswith("`"))
    assert fence == "`````yaml"
    assert card.count("`````") == 2


def test_a_card_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    run = StoredRun(write_run(tmp_path / "run"))
    folder = tmp_path / "model"
    folder.mkdir()
    write_model_card(run, folder)
    ours = (folder / CARD).read_text()
    write_model_card(run, folder)
    assert (folder / CARD).read_text() == ours
    (folder / CARD).write_text("my notes")
    with pytest.raises(RunError, match="is not of ofmu"):
        write_model_card(run, folder)
    with pytest.warns(UserWarning, match="the model is complete without it"):
        assert write_card_or_warn(run, folder) is None
    assert (folder / CARD).read_text() == "my notes"
    (folder / CARD).unlink()
    (folder / CARD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        write_model_card(run, folder)
    assert not (tmp_path / "elsewhere").exists()


def test_an_incomplete_run_has_no_card(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    with pytest.raises(RunError, match="holds no complete run"):
        model_card(StoredRun(run))
