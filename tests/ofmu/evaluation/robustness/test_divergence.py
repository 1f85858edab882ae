"""The divergence from the target equals a plain computation, token by token, on any layout of the parameters."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ofmu.data.encoding import encode_example
from ofmu.data.load import load_data
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.kept_parameters import KeptParameters
from ofmu.evaluation.robustness import divergence as module
from ofmu.evaluation.robustness.divergence import divergence
from ofmu.evaluation.scores import hash_sample
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
CONFIG = UnlearnConfig.model_validate(
    {
        "data": {"generated": {"authors": 4, "forget_authors": 2, "world_facts": 3}},
        "evaluation": {"rouge": False, "batch_size": 3, "max_rows": 5},
    }
)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    return (*(build_model(SHAPE, tokenizer, seed=seed).eval() for seed in (0, 1)), tokenizer)


def by_hand(model: Any, target: Any, tokenizer: Any, names: tuple[str, ...]) -> float:
    """Read one row at a time, and sum over the vocabulary and the answer tokens in float64."""
    model, target = copy.deepcopy(model).double(), copy.deepcopy(target).double()
    total, tokens = 0.0, 0
    for name in names:
        rows = load_data(CONFIG.data, CONFIG.seed).evaluation[name].rows
        for index in hash_sample(rows, 5):
            example = encode_example(tokenizer, rows[index].question, rows[index].answer, CONFIG.data)
            ids = torch.tensor([example.input_ids])
            with torch.no_grad():
                p, q = (torch.softmax(each(input_ids=ids).logits[0], dim=-1) for each in (target, model))
            for place in range(example.answer_start, len(example.input_ids)):
                total += float(sum(a * (a.log() - b.log()) for a, b in zip(p[place - 1], q[place - 1], strict=True)))
                tokens += 1
    return total / tokens


def measured(model: Any, open_target: Any, tokenizer: Any) -> dict[str, float | None]:
    data = load_data(CONFIG.data, CONFIG.seed)
    return dict(divergence(model, open_target, tokenizer, data, CONFIG.evaluation, CONFIG.data).metrics)


@pytest.mark.slow
def test_it_is_the_mean_over_answer_tokens_of_the_sum_over_the_vocabulary(models: tuple[Any, Any, Any]) -> None:
    model, target, tokenizer = models
    found = measured(model, lambda: nullcontext(target), tokenizer)
    assert found["kl_retain"] == pytest.approx(by_hand(model, target, tokenizer, ("retain",)), rel=1e-4)
    general = by_hand(model, target, tokenizer, ("real_authors", "world_facts"))
    assert found["kl_general"] == pytest.approx(general, rel=1e-4)
    reverse = measured(target, lambda: nullcontext(model), tokenizer)
    assert reverse["kl_retain"] != pytest.approx(found["kl_retain"], rel=1e-3), "the two directions differ"


def test_a_model_does_not_diverge_from_itself(models: tuple[Any, Any, Any]) -> None:
    model, _, tokenizer = models
    assert measured(model, lambda: nullcontext(model), tokenizer) == {"kl_retain": 0.0, "kl_general": 0.0}


def test_the_target_is_opened_for_each_portion_that_fits_the_memory(
    models: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, target, tokenizer = models
    whole = measured(model, lambda: nullcontext(target), tokenizer)
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    opened = []

    @contextmanager
    def count() -> Any:
        opened.append(1)
        yield target

    assert measured(model, count, tokenizer) == whole
    assert len(opened) > 3


def test_an_engine_becomes_the_target_and_gets_its_parameters_back(
    models: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    model, target, tokenizer = models
    engine = build_engine(copy.deepcopy(target), EngineConfig(device="cpu", backend="torch"), CostTracker())
    kept = KeptParameters(engine.space, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == [], "the file has no name"
    with torch.no_grad():
        for weight, other in zip(engine.model.parameters(), model.parameters(), strict=True):
            weight.copy_(other)

    @contextmanager
    def in_place() -> Any:
        with kept.in_place():
            yield engine.model

    assert measured(engine.model, in_place, tokenizer) == measured(model, lambda: nullcontext(target), tokenizer)
    for weight, other in zip(engine.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_rows_that_are_missing_have_a_reason(models: tuple[Any, Any, Any]) -> None:
    model, _, tokenizer = models
    data = load_data(CONFIG.data, CONFIG.seed)
    sets = {name: rows for name, rows in data.evaluation.items() if name != "retain"}
    result = divergence(
        model,
        lambda: nullcontext(model),
        tokenizer,
        replace(data, evaluation=sets),
        CONFIG.evaluation,
        CONFIG.data,
    )
    assert result.metrics["kl_retain"] is None
    assert result.reasons["kl_retain"] == "the data has no evaluation set 'retain'"


def test_what_is_held_of_the_target_is_the_logits_of_answers_alone(
    models: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of a row's answer would keep the logits of the whole batch in memory, with prompts and padding."""
    model, target, tokenizer = models
    compare, seen = module.summed_divergence, []

    def watched(before: torch.Tensor, after: torch.Tensor) -> float:
        seen.append(before.untyped_storage().nbytes() == before.numel() * before.element_size())
        return compare(before, after)

    monkeypatch.setattr(module, "summed_divergence", watched)
    measured(model, lambda: nullcontext(target), tokenizer)
    assert len(seen) > 3
    assert all(seen)
