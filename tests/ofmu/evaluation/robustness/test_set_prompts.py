"""Attacks and comparisons read a set with the prompts that its benchmark fixes, as its scores do."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from ofmu.data.load import load_data
from ofmu.data.rows import Prompting, UnlearnData
from ofmu.evaluation.robustness import attacks
from ofmu.evaluation.robustness.alignment import alignment
from ofmu.evaluation.robustness.attacks import relearning
from ofmu.evaluation.robustness.divergence import divergence
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
OWN = Prompting("{question}", 3)


def config(template: str | None = None, tokens: int = 12) -> UnlearnConfig:
    """Return a config. ``template``: another one than the default."""
    data: dict[str, Any] = {"generated": {"authors": 4, "forget_authors": 2, "world_facts": 2}}
    evaluation = {"batch_size": 4, "max_new_tokens": tokens}
    return UnlearnConfig.model_validate(
        {"data": data | ({} if template is None else {"prompt_template": template}), "evaluation": evaluation}
    )


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    return (*(build_model(SHAPE, tokenizer, seed=seed).eval() for seed in (0, 1)), tokenizer)


def with_own_prompts(data: UnlearnData) -> UnlearnData:
    return replace(data, evaluation={name: replace(rows, prompting=OWN) for name, rows in data.evaluation.items()})


@pytest.mark.slow
@pytest.mark.parametrize("part", ["alignment", "divergence", "relearning"])
def test_a_set_with_prompts_of_its_own_is_read_with_them(models: tuple[Any, Any, Any], part: str) -> None:
    model, other, tokenizer = models

    def measured(data: UnlearnData, settings: UnlearnConfig) -> dict[str, float | None]:
        evaluation, encoding = settings.evaluation, settings.data
        if part == "alignment":
            return dict(alignment(model, other, tokenizer, data, evaluation, encoding).metrics)
        if part == "divergence":
            found = divergence(model, lambda: nullcontext(other), tokenizer, data, evaluation, encoding)
            return dict(found.metrics)
        rate = {"learning_rate": 0.01, "seed": 0, "steps": 2, "rows": 2}
        return dict(relearning(model, tokenizer, data, evaluation, encoding, **rate).metrics)

    plain = load_data(config().data, 0)
    own = measured(with_own_prompts(plain), config())
    assert own == measured(plain, config(OWN.template, OWN.max_new_tokens))
    assert own != measured(plain, config())


def test_sampled_answers_have_the_prompts_and_the_length_of_the_set(
    models: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, tokenizer = models
    seen, sample = [], attacks.sample_answers

    def recorded(*given: Any) -> Any:
        seen.append(sample(*given))
        return seen[-1]

    monkeypatch.setattr(attacks, "sample_answers", recorded)
    plain = load_data(config().data, 0)
    for data, settings in (
        (with_own_prompts(plain), config()),
        (plain, config(OWN.template, OWN.max_new_tokens)),
        (plain, config(tokens=OWN.max_new_tokens)),
    ):
        attacks.sampling(model, tokenizer, data, settings.evaluation, settings.data, seed=0, samples=2, rows=3)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
