"""Four authors of TOFU ask one after the other to be forgotten, by a tiny model that was trained on all of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from chain_case import measured
from erasure_case import SETTINGS, trials_in_this_process
from ofmu.cli.main import main
from ofmu.data.records import json_lines
from ofmu.data.tofu import load_tofu
from ofmu.erasure.evidence import Evidence
from ofmu.erasure.verify import read_intact
from ofmu.io.cache import model_hashes
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AUTHORS, ROWS, TOFU_ROWS = 4, 4, 20
LENGTH = 160
NAMES = ("first", "second", "third", "fourth")


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    trials_in_this_process(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """Rows of four authors each, a corpus of these and others, and a model that was trained on the corpus."""
    folder = tmp_path_factory.mktemp("chain")
    config = UnlearnConfig.model_validate({"data": {"source": "tofu", "path": str(shared_data / "tofu")}})
    rows = load_tofu(config.data).forget.rows
    chosen = [rows[author * TOFU_ROWS + number] for author in range(AUTHORS + 2) for number in range(ROWS)]
    for author, name in enumerate(NAMES):
        (folder / f"{name}.jsonl").write_text(json_lines(chosen[author * ROWS : (author + 1) * ROWS]))
    (folder / "corpus.jsonl").write_text(json_lines(chosen))
    (folder / "others.jsonl").write_text(json_lines(chosen[ROWS:]))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    trained = {
        "model": {"scratch": shape},
        "data": {"source": "files", "forget": "first.jsonl", "retain": "others.jsonl", "max_length": LENGTH},
        "engine": {"device": "cpu", "threads": 1},
        "evaluation": {"max_new_tokens": 4},
        "training": {"epochs": 2},
        "reference": {"source": "none"},
    }
    trained["data"] |= {name: str(folder / trained["data"][name]) for name in ("forget", "retain")}
    prepare(UnlearnConfig.model_validate(trained)).target.rename(folder / "model")
    return folder


def words(name: str, model: str, *more: str) -> list[str]:
    given = ["forget", model, "--rows", f"{name}.jsonl", "--corpus", "corpus.jsonl", "--output", name]
    return [
        *given,
        "--request-id",
        name,
        "--trials",
        "3",
        "--confirm",
        "0",
        "--min-utility",
        "0",
        *more,
        *SETTINGS,
        f"data.max_length={LENGTH}",
    ]


def lines_of(path: Path) -> set[str]:
    return {json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()}


def test_four_authors_one_after_the_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    assert main(words("first", "model")) == 0
    first = read_intact(place / "first" / "evidence")
    assert first.chain is None
    for before, name in itertools.pairwise(NAMES):
        command = words(name, f"{before}/model", "--after", before)
        if name == "second":  # interrupted after the search, as by Ctrl-C
            with monkeypatch.context() as patch:
                patch.setattr("tune.erasure.forget.candidates", _interrupt)
                with pytest.raises(SystemExit):
                    main(command)
            assert not (place / name / "evidence").exists()
        assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 earlier request: first" in said
    assert "Neither forgotten nor retained because of earlier requests: 4 rows of the corpus" in said
    assert "all requests" in said
    assert "for the first target" in said

    # No author who was forgotten comes back as a retain row.
    for number, name in enumerate(NAMES, start=1):
        retained = lines_of(place / name / "rows" / "retain.jsonl")
        assert retained
        for earlier in NAMES[:number]:
            assert retained.isdisjoint(lines_of(place / f"{earlier}.jsonl"))
        for later in NAMES[number:]:
            assert not retained.isdisjoint(lines_of(place / f"{later}.jsonl"))

    record = read_intact(place / "fourth" / "evidence")
    check_drift(place, record)
    check_utility(place, record)
    assert record.chain is not None
    costs = [read_intact(place / name / "evidence").cost.gradient_evaluations for name in NAMES]
    assert [each.gradient_evaluations for each in record.chain.requests] == costs[:3]
    assert record.chain.gradient_evaluations == sum(costs)
    assert min(costs) > 0

    # Signed afterwards, each request is still the one that the next followed.
    key = ["--key", str(write_key(place))]
    for before, name in zip((None, *NAMES), NAMES, strict=False):
        model, after = ("model", []) if before is None else (f"{before}/model", ["--after", before])
        assert main(words(name, model, *after, *key)) == 0
    capsys.readouterr()
    assert main(["verify", "fourth"]) == 0
    assert "that which it followed: first, second, third" in capsys.readouterr().out

    # The same request after another one is another request.
    assert main(words("fourth", "second/model", "--after", "second")) == 1
    assert "holds another request, which differs in settings (model.path), model, after" in capsys.readouterr().err
    # Signed evidence says when an earlier request is no longer the one that it followed.
    (place / "second" / "evidence").rename(place / "second_evidence")
    assert main(["verify", "fourth"]) == 0
    assert "was not checked: first, second; give it with --earlier DIR" in capsys.readouterr().out
    assert main(["verify", "fourth", "--earlier", "second_evidence", "--earlier", "first"]) == 0


def check_drift(place: Path, record: Evidence) -> None:
    """Check the numbers on earlier rows against whole evaluations of each result."""
    assert record.chain is not None
    assert [each.id for each in record.chain.requests] == list(NAMES[:3])
    for number, request in enumerate(record.chain.requests):
        forget = place / f"{request.id}.jsonl"
        retain = place / request.id / "rows" / "retain.jsonl"
        metrics = {each.name: each for each in request.metrics}
        models = [place / name / "model" for name in NAMES[number:]]
        expected = [measured(model, forget, retain, LENGTH)["forget_probability"] for model in models]
        assert metrics["forget_probability"].values == pytest.approx(expected, rel=1e-4)
        start = place / "model" if number == 0 else place / NAMES[number - 1] / "model"
        assert metrics["forget_probability"].before == pytest.approx(
            measured(start, forget, retain, LENGTH)["forget_probability"], rel=1e-4
        )
        assert metrics["extraction_strength"].better == "lower"
        assert metrics["forget_rouge"].now is not None


def check_utility(place: Path, record: Evidence) -> None:
    """Utility is compared with the model before all requests, on the rows of the last."""
    rows = (place / "fourth.jsonl", place / "fourth" / "rows" / "retain.jsonl")
    first, target = (measured(place / name, *rows, LENGTH) for name in ("model", "third/model"))
    for name in ("model_utility", "retain_probability"):
        utility = next(each for each in record.metrics if each.name == name)
        assert (utility.first_target, utility.target) == pytest.approx((first[name], target[name]), rel=1e-4)
    assert utility.first_target != pytest.approx(utility.target, rel=1e-4)
    assert "of the first target's" in record.search.rule
    files = {model.role: model.files for model in record.models}
    assert files["first_target"].items() <= model_hashes(place / "model").items()


def write_key(place: Path) -> Path:
    key = Ed25519PrivateKey.generate()
    (place / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return place / "key.pem"


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
