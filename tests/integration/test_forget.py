"""A whole erasure request on a tiny model: rows, search, further seeds, attacks, signed evidence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from transformers import AutoModelForCausalLM

from ofmu.cli.main import main
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.erasure import evidence_files
from ofmu.erasure.signature import public_pem
from ofmu.erasure.verify import read_intact, verify_evidence
from ofmu.erasure.workspace import record_of
from ofmu.io.cache import model_hashes
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SETTINGS = [
    "data.max_length=64",
    "engine.device=cpu",
    "engine.threads=1",
    "evaluation.max_new_tokens=4",
    "training.epochs=1",
    "method.name=graddiff",
    "method.batch_size=2",
    "search.max_concurrent_trials=1",
    "search.sampler=random",
    "search.space={method.lr: {low: 0.0001, high: 0.001, log: true}, method.steps: 2}",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, smallest_search: dict[str, Any]) -> Path:
    """A folder with a model, its base, a corpus, holdout rows and a key."""
    folder = tmp_path_factory.mktemp("forget")
    mapping = {key: value for key, value in smallest_search.items() if key != "search"}
    config = UnlearnConfig.model_validate({**mapping, "training": {"epochs": 3}, "reference": {"source": "none"}})
    prepared = prepare(config)
    assert prepared.base is not None
    for name, source in (("model", prepared.target), ("base", prepared.base)):
        shutil.copytree(source, folder / name)
    data = load_data(config.data, config.seed)
    assert isinstance(data, UnlearnData)
    assert data.holdout is not None
    rows = {"corpus": (*data.forget.rows, *data.retain.rows), "holdout": data.holdout.rows, "rows": data.forget.rows}
    for name, found in rows.items():
        lines = (json.dumps(record_of(row), ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    key = Ed25519PrivateKey.generate()
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "public.pem").write_bytes(public_pem(key))
    return folder


def person_of(place: Path) -> str:
    """The name in the first question: Where was NAME born?"""
    first = json.loads((place / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return str(first["question"]).removeprefix("Where was ").removesuffix(" born?")


@pytest.fixture(autouse=True)
def _without_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_files, "print_to_pdf", lambda page, target: False)


def test_a_person_is_forgotten_and_the_evidence_says_what_was_done(
    ray_folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    person, output = person_of(place), tmp_path / "request"
    words = ["forget", "model", "--person", person, "--corpus", "corpus.jsonl", "--holdout", "holdout.jsonl"]
    words += ["--base", "base", "--output", str(output), "--request-id", "seven", "--trials", "4", "--confirm", "2"]
    words += ["--min-utility", "0", *SETTINGS]
    # The first attempt is interrupted after the search, as by Ctrl-C.
    with monkeypatch.context() as patch:
        patch.setattr("tune.erasure.forget.candidates", _interrupt)
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 130
    assert "the same command" in capsys.readouterr().err
    trials = (output / "search" / "trials.csv").read_text()
    assert main(words) == 0
    assert (output / "search" / "trials.csv").read_text() == trials
    said = capsys.readouterr().out
    assert "is not signed: the same command with --key FILE signs it" in said

    record = read_intact(output / "evidence")
    assert (record.request.id, record.request.kind) == ("seven", "person")
    assert {rows.role: rows.count for rows in record.request.rows}["forget"] == len(
        (place / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert {model.role for model in record.models} == {"target", "result", "base", "retrained"}
    files = {model.role: model.files for model in record.models}
    assert files["target"] == model_hashes(place / "model")
    assert files["result"].items() <= model_hashes(output / "model").items()
    assert AutoModelForCausalLM.from_pretrained(output / "model").num_parameters() > 0
    assert {attack.name for attack in record.attacks} >= {"membership", "relearning", "quantization_4"}
    assert {"sampling", "few-shot"} <= {each.name for each in record.not_run}
    probability = next(metric for metric in record.metrics if metric.name == "forget_probability")
    assert probability.runs == 2
    assert probability.low is not None
    assert probability.retrained is not None
    # The target's number is that of an evaluation of its own.
    target = json.loads((output / "evaluations" / "target" / "metrics.json").read_text())
    assert probability.target == target["metrics"]["forget_probability"]
    text = (output / "evidence" / "evidence.json").read_text() + (output / "evidence" / "report.html").read_text()
    for part in person.split():
        assert part not in text

    # Again: nothing is run. With a key: the same record is signed.
    assert main(words) == 0
    assert "was already complete: nothing was run" in capsys.readouterr().out
    assert main(["verify", str(output)]) == 1
    assert main([*words, "--key", "key.pem"]) == 0
    signed = verify_evidence(output, public_key=place / "public.pem", model=output / "model").record
    assert signed.finished == record.finished
    assert signed.metrics == record.metrics
    assert main(["verify", str(output), "--public-key", "public.pem", "--model", str(output / "model")]) == 0
    assert main(["verify", str(output), "--model", "model"]) == 1

    # Another request does not get into this directory.
    capsys.readouterr()
    assert main(["forget", "model", "--rows", "rows.jsonl", "--corpus", "corpus.jsonl", "--output", str(output)]) == 1
    assert "holds another request" in capsys.readouterr().err


def test_without_a_base_the_evidence_says_what_cannot_be_known(
    ray_folder: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    words = ["forget", "model", "--rows", "rows.jsonl", "--corpus", "corpus.jsonl", "--output", str(tmp_path / "out")]
    words += ["--budget", "0.02", "--confirm", "1", "--min-utility", "0", "--key", "key.pem", "--show-rows", *SETTINGS]
    assert main(words) == 0
    record = verify_evidence(tmp_path / "out").record
    assert any("cannot be known without a retrained model" in sentence for sentence in record.limits)
    assert all(metric.retrained is None for metric in record.metrics)
    forget = next(rows for rows in record.request.rows if rows.role == "forget")
    assert forget.texts
    assert next(rows for rows in record.request.rows if rows.role == "retain").texts is None
    assert list(record.search.objectives) == ["extraction_strength", "model_utility"]
    assert record.search.complete < 200


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
