"""Whole erasure requests on a tiny model. Trials run in this process, one after the other, in place of Ray's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from erasure_case import SETTINGS, person_of, trials_in_this_process, write_case
from ofmu.cli.main import main
from ofmu.erasure import evidence_files
from ofmu.erasure.choice import Candidate
from ofmu.erasure.request import ErasureRequest
from ofmu.erasure.verify import read_intact, verify_evidence
from ofmu.erasure.workspace import Workspace
from ofmu.io.cache import model_hashes
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.run_files import RunFiles
from tune.erasure.forget import ForgetCallbacks, ForgetOptions, _Forgetting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("forget"))


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    trials_in_this_process(monkeypatch)


def test_a_gpu_that_is_not_here_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["forget", "model", "--rows", "rows.jsonl", "--output", str(tmp_path / "request"), "engine.device=cuda"]
    assert main(words) == 1
    sentence = "Error: engine.device is 'cuda', but no GPU is visible: use 'auto' or 'cpu'\n"
    assert capsys.readouterr().err == sentence
    assert not (tmp_path / "request").exists()


@pytest.mark.parametrize(
    ("trials", "seeds", "line"),
    [
        ([3], 1, "Running trial 3 again on 1 further seed"),
        ([3, 0], 2, "Running trials 3, 0 again on 2 further seeds"),
    ],
)
def test_the_runs_on_further_seeds_are_counted_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[int], seeds: int, line: str
):
    said: list[str] = []
    monkeypatch.setattr("tune.erasure.forget.ParetoSearch.resume", lambda *arguments, **options: arguments[1])
    work = _Forgetting(
        "model",
        ErasureRequest(rows=tmp_path / "rows.jsonl"),
        Workspace(tmp_path),
        after=None,
        base=None,
        settings={},
        options=ForgetOptions(confirm_seeds=seeds),
        callbacks=ForgetCallbacks(print_line=said.append),
    )
    found = [Candidate(trial=number, forgetting=0.1, utility=0.9) for number in trials]
    overrides = work._confirm(SimpleNamespace(run_dir=tmp_path), found)  # type: ignore[arg-type]
    assert said == [line]
    assert overrides == [f"search.confirm_seeds={seeds}", f"search.confirm_trials={trials}"]


def test_a_person_is_forgotten_and_the_evidence_says_what_was_done(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    card = " ".join((output / "model" / "README.md").read_text(encoding="utf-8").split())
    assert "is in the evidence of its erasure request" in card
    assert "It was not tested" not in card
    assert record.search.seconds == record.cost.seconds["search"]
    assert {attack.name for attack in record.attacks} >= {
        *("membership", "relearning", "quantization_4", "sampling", "few_shot"),
    }
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
    check_an_interrupted_signing(output, [*words, "--key", "key.pem"], monkeypatch)
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


def check_an_interrupted_signing(output: Path, signing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The evidence outlives Ctrl-C, and also a power cut while the unsigned evidence has its other name."""
    before = {path.name: path.read_bytes() for path in (output / "evidence").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(evidence_files, "print_to_pdf", _interrupt)
        with pytest.raises(SystemExit):
            main(signing)
    assert {path.name: path.read_bytes() for path in (output / "evidence").iterdir()} == before
    (output / "evidence").rename(output / ".evidence.unsigned")


def test_without_a_base_the_evidence_says_what_cannot_be_known(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    words = ["forget", "model", "--rows", "rows.jsonl", "--corpus", "corpus.jsonl", "--output", str(tmp_path / "out")]
    words += ["--budget", "0.006", "--confirm", "1", "--min-utility", "0", "--key", "key.pem", "--show-rows", *SETTINGS]
    assert main(words) == 0
    record = verify_evidence(tmp_path / "out").record
    assert any("cannot be known without a retrained model" in sentence for sentence in record.limits)
    assert all(metric.retrained is None for metric in record.metrics)
    forget = next(rows for rows in record.request.rows if rows.role == "forget")
    assert forget.texts
    assert next(rows for rows in record.request.rows if rows.role == "retain").texts is None
    assert record.search.complete < 200


def test_without_further_seeds_the_search_decides_though_an_earlier_attempt_had_some(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    output = tmp_path / "request"
    words = ["forget", "model", "--rows", "rows.jsonl", "--corpus", "corpus.jsonl", "--output", str(output)]
    words += ["--trials", "4", "--min-utility", "0", *SETTINGS, "--confirm"]
    with monkeypatch.context() as patch:
        patch.setattr("tune.erasure.forget.confirmed", _interrupt)
        with pytest.raises(SystemExit):
            main([*words, "2"])
    further = sorted((output / "search" / "confirmation").iterdir())
    paid = [RunFiles(run).read_metrics() or {} for run in further[1:]]
    shutil.rmtree(further[0])  # as if it had not finished
    assert main([*words, "0"]) == 0
    assert not further[0].exists()
    record = read_intact(output / "evidence")
    assert {candidate.runs for candidate in record.search.candidates} == {0}
    assert {metric.runs for metric in record.metrics} == {0}
    trials = pd.read_csv(output / "search" / "trials.csv")["gradient_evaluations"].sum()
    assert paid
    expected = trials + sum(metrics["gradient_evaluations"] for metrics in paid)
    assert record.cost.gradient_evaluations == expected


def test_a_request_of_which_nothing_ran_begins_anew(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("tune.erasure.forget._Forgetting._search", _interrupt)
    output = tmp_path / "request"

    def forget(*further: str) -> None:
        words = ["forget", "model", "--rows", "rows.jsonl", "--corpus", "corpus.jsonl", "--output", str(output)]
        with pytest.raises(SystemExit):
            main([*words, *further, *SETTINGS])

    forget()
    first = json.loads((output / "request.json").read_text())
    forget("--base", "base")
    assert f"Nothing has run for the request in {output}, so the request begins anew" in capsys.readouterr().out
    second = json.loads((output / "request.json").read_text())
    assert first["id"] != second["id"]
    assert "base" in second["asked"]["settings"] or first["asked"] != second["asked"]
    (output / "search").mkdir()
    assert main(["forget", "model", "--rows", "rows.jsonl", "--output", str(output), *SETTINGS]) == 1
    assert "holds another request" in capsys.readouterr().err


def test_the_directory_of_a_run_is_no_place_for_a_request(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    write_json(tmp_path / "environment.json", environment())
    before = [*tmp_path.iterdir()]
    assert main(["forget", "model", "--rows", "rows.jsonl", "--output", str(tmp_path), *SETTINGS]) == 1
    assert f"{tmp_path} holds a run and no request: name a new directory" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == before


@pytest.mark.parametrize("budget", ["nan", "inf", "0"])
def test_a_budget_that_is_no_number_of_hours_is_refused(
    budget: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["forget", "model", "--rows", "rows.jsonl", "--output", str(tmp_path / "request"), "--budget", budget]
    assert main([*words, *SETTINGS]) == 2
    assert "--budget" in capsys.readouterr().err
    assert not (tmp_path / "request").exists()


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
