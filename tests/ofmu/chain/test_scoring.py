"""A model is loaded once, however many earlier requests it is measured on, and rows are loaded once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ofmu.chain import run as chain_run
from ofmu.chain.rows import EarlierRows
from ofmu.chain.run import count_left_out, measure_chain
from ofmu.chain.scoring import MeasuredModel, scoring_of
from ofmu.data.load import load_data
from ofmu.data.records import json_lines
from ofmu.errors import DataError
from ofmu.evaluator import evaluate
from ofmu.io.cache import content_key, model_hashes
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language import forgotten, reference
from ofmu.tasks.preparation import Prepared
from tune.erasure import chained


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    return prepare(tiny_config)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded to be scored, in order."""
    found, load = [], reference.load_model

    def counted(path: Any, *rest: Any, **options: Any) -> Any:
        found.append(str(path))
        return load(path, *rest, **options)

    monkeypatch.setattr(reference, "load_model", counted)
    return found


def earlier_requests(config: UnlearnConfig) -> tuple[EarlierRows, ...]:
    rows, scoring = load_data(config.data, config.seed).forget.rows, scoring_of(config)
    short = {**scoring, "evaluation": {**scoring["evaluation"], "rouge": False}}
    return (
        EarlierRows(id="one", forget=rows[:2], scoring=scoring),
        EarlierRows(id="two", forget=rows[2:4], scoring=short),
        EarlierRows(id="three", forget=rows[1:3], scoring=scoring),
    )


@pytest.mark.slow
def test_a_model_is_loaded_once_and_measures_as_each_request_did(
    tiny_config: UnlearnConfig, prepared: Prepared, loads: list[str], tmp_path: Path
) -> None:
    requests, model = earlier_requests(tiny_config), MeasuredModel(str(prepared.target), tiny_config)
    assert loads == [], "a model that nothing measures is not loaded"
    found = [model.forget_metrics(each) for each in requests]
    assert loads == [str(prepared.target)]
    assert found[0]["forget_rouge"] is not None
    assert found[1]["forget_rouge"] is None, "the second request scored no generated answers"
    # The same rows by ofmu evaluate, in another order of models.
    for request, values in zip(requests[::-1], found[::-1], strict=True):
        (tmp_path / "forget.jsonl").write_text(json_lines(request.forget))
        (tmp_path / "retain.jsonl").write_text(json.dumps({"question": "What is the moon?", "answer": "A stone."}))
        data = {"source": "files", "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")}
        mapping = tiny_config.model_dump(mode="json") | {"reference": {"source": "none"}}
        mapping["data"] = {**request.scoring["data"], **data}
        mapping["evaluation"] |= request.scoring["evaluation"]
        expected = evaluate(prepared.target, UnlearnConfig.model_validate(mapping))["metrics"]
        assert dict(values) == pytest.approx({name: expected[name] for name in values}, rel=1e-5)


@pytest.mark.slow
def test_a_result_of_several_requests_is_loaded_once(
    tiny_config: UnlearnConfig, prepared: Prepared, loads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions that measure a chain, of which only the numbers of a run and of its target are made up."""
    requests = earlier_requests(tiny_config)
    monkeypatch.setattr(chain_run, "measured_requests", lambda known, own, before, then, now: [])
    (tmp_path / "model").symlink_to(prepared.target)
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {"model_utility": 0.5, "retain_rouge": None}}))
    chain: Any = SimpleNamespace(
        earlier=requests, config=tiny_config, model=prepared.retrain, known=(), own=None, first_path=None
    )
    chain.first_target = prepared.target
    record = measure_chain(tiny_config, chain, tmp_path, {"model_utility": 0.7})
    assert record.chain.requests == []
    # The first target gives its utility and the values before the first run, and is loaded once.
    assert loads == [str(tmp_path / "model"), str(prepared.retrain), str(prepared.target)]
    (utility,) = record.utility
    expected = evaluate(prepared.target, tiny_config)["metrics"]["model_utility"]
    assert [utility.name, utility.target, utility.result] == ["model_utility", 0.7, 0.5]
    assert utility.first_target == pytest.approx(expected, rel=1e-5)

    loads.clear()
    model, key = MeasuredModel(str(prepared.target), tiny_config), content_key(model_hashes(prepared.target))
    files = [tmp_path / f"earlier_{number}.json" for number in range(3)]
    values = [chained._values(model, key, *each) for each in zip(files, requests, strict=True)]
    assert loads == [str(prepared.target)]
    # Another process reads what is stored, and loads nothing.
    again = MeasuredModel(str(prepared.target), tiny_config)
    assert [chained._values(again, key, *each) for each in zip(files, requests, strict=True)] == values
    assert loads == [str(prepared.target)]


def test_rows_are_loaded_once_to_count_those_that_are_left_out(
    tiny_mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"Where is {name}?", "answer": f"In {name}land."} for name in "abcdef"]

    def written(name: str, *chosen: int) -> str:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(rows[each]) + "\n" for each in chosen))
        return str(file)

    data = {"source": "files", "forget": written("forget", 0), "retain": written("retain", 1, 2, 3, 4)}

    def config(*earlier: str) -> UnlearnConfig:
        mapping = {**tiny_mapping, "data": {**data, "earlier": list(earlier)}, "reference": {"source": "none"}}
        return UnlearnConfig.model_validate(mapping)

    calls, load = [], forgotten.load_data
    monkeypatch.setattr(forgotten, "load_data", lambda *given: calls.append(given) or load(*given))
    first, second, rest = written("first", 1, 5), written("second", 2, 1), written("rest", 3, 4)
    for before, after, count in (
        (config(), config(first), 1),
        (config(), config(first, second), 2),
        (config(first), config(first, second), 1),
        (config(), config(), 0),
    ):
        calls.clear()
        assert count_left_out(before, after) == count
        assert len(calls) == 1
        lost = len(load(before.data, 0).retain) - len(load(after.data, 0).retain)
        assert count == lost
    with pytest.raises(DataError, match="no row is left to retain"):
        count_left_out(config(), config(first, second, rest))
