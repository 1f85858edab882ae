from __future__ import annotations

import json
from pathlib import Path

import pytest

from evidence_records import record
from ofmu.cli.forget import _show
from ofmu.cli.main import main
from ofmu.erasure.evidence_files import write_evidence


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "Ana Silva writes."}) + "\n")
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("forget model", "The option --output is missing: add --output DIR (a directory for this request only)"),
        ("forget model --output out", "none of them is given: give one"),
        (
            "forget model --rows rows.jsonl --person Ana --corpus rows.jsonl --output out",
            "--rows and --person are given",
        ),
        ("forget model --person Ana --output out", "--person 'Ana' needs --corpus"),
        ("forget model --rows no.jsonl --output out", "There is no data file no.jsonl"),
        ("forget model --rows rows.jsonl --output out", "The directory model has no config.json"),
        ("forget none/at/all --rows rows.jsonl --output out", "There is no model directory none/at/all"),
        ("forget model --rows rows.jsonl --output out --key none.pem", "There is no private key none.pem"),
        ("forget model --rows rows.jsonl --output out --key rows.jsonl", "holds no private key in PEM"),
        ("forget model --rows rows.jsonl --output out --budget 0", "--budget"),
        ("forget model --rows rows.jsonl --output out --trials 2", "--trials"),
        ("forget model --rows rows.jsonl --output s3://bucket/out", "this must be a folder"),
        ("forget model --rows rows.jsonl --output rows.jsonl", "rows.jsonl is a file"),
        ("forget model --rows rows.jsonl --output out data.forget=x", "data.forget is set by ofmu forget (--rows"),
        ("forget model --rows rows.jsonl --output out nonsense", "nonsense"),
        ("forget model --rows rows.jsonl --output out --config none.yaml", "none.yaml"),
        ("forget model --rows rows.jsonl --output out methd.name=npo", "methd"),
        ("verify none", "There is no directory none"),
        ("verify model", "model holds no evidence.json"),
        ("verify model --public-key none.pem", "There is no public key none.pem"),
    ],
)
def test_bad_input_is_one_sentence(rows: Path, words: str, sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) != 0
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (rows / "out" / "request.json").exists()


def test_a_complete_request_shows_what_was_forgotten_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = record()
    lost = [
        metric.model_copy(update={"result": 0.02}) if metric.name == "model_utility" else metric
        for metric in kept.metrics
    ]
    for name, each in (("kept", kept), ("lost", kept.model_copy(update={"metrics": lost}))):
        write_evidence(each, tmp_path / name / "evidence", None)
        _show(tmp_path / name / "evidence", tmp_path / name)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[:2] == [
        "extraction_strength (lower is better): 0.1, and 0.9 before unlearning",
        "model_utility (higher is better): 0.75, and 0.8 before unlearning",
    ]
    assert lines[2].startswith("The model after unlearning is in")
    assert "model_utility (higher is better): 0.02, and 0.8 before unlearning" in lines
    assert shown.err == (
        "Warning: this model keeps 2 % of the target's model_utility: a higher --min-utility asks for more\n"
    )
