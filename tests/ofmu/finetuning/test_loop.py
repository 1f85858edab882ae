from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ofmu.data.rows import Example
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning import checkpoints
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import Continued, EpochEnd, epoch_orders, finetune, rate_factor
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, vocab_size=300)
EXAMPLES = [
    Example((0, 40, 50, 60, 70, 1), 3),
    Example((0, 41, 51, 1), 2),
    Example((0, 42, 52, 62, 72, 82, 92, 1), 4),
]


@pytest.fixture
def model() -> Any:
    return build_model(SHAPE, train_tokenizer(["a b c"], 300), seed=0)


def _token_mean_nll(model: Any, examples: list[Example]) -> torch.Tensor:
    """Return the loss from one row at a time, without padding."""
    total, tokens = torch.zeros(()), 0
    for example in examples:
        log_probs = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        for position in range(example.answer_start, len(example.input_ids)):
            total = total - log_probs[position - 1, example.input_ids[position]]
            tokens += 1
    return total / tokens


def test_one_step_is_adamw_on_the_token_mean_over_the_batch(model: Any) -> None:
    expected = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.1)
    _token_mean_nll(expected, EXAMPLES).backward()
    optimizer.step()

    training = TrainingConfig(epochs=1, batch_size=3, learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0)
    finetune(model, EXAMPLES, training, seed=0, pad_id=2)

    for actual, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_rows_are_learned_and_the_cost_is_counted(model: Any) -> None:
    events: list[Any] = []
    training = TrainingConfig(epochs=60, batch_size=2, learning_rate=1e-2)
    before = _token_mean_nll(model, EXAMPLES).item()

    cost = finetune(model, EXAMPLES, training, seed=0, pad_id=2, callback=events.append)

    assert _token_mean_nll(model, EXAMPLES).item() < 0.2 < before
    assert cost["steps"] == cost["gradient_evaluations"] == 120
    assert cost["tokens"] == 60 * 18
    assert [event.epoch for event in events] == list(range(1, 61))
    assert events[-1].loss == cost["loss"]
    assert not model.training


def test_the_seed_decides_the_order_of_the_rows(model: Any) -> None:
    training = TrainingConfig(epochs=2, batch_size=1, learning_rate=1e-2)
    models = [copy.deepcopy(model) for _ in range(3)]
    for one, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(torch.randint(100, ()).item())
        finetune(one, EXAMPLES, training, seed=seed, pad_id=2)
    first, again, other = (one.lm_head.weight for one in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_rate_rises_to_one_and_falls_to_a_tenth() -> None:
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10] == 1
    assert factors[-1] == pytest.approx(0.1)
    assert all(left > right for left, right in pairwise(factors[10:]))
    assert rate_factor(0, 1, 0.05) == 1


def test_a_loss_of_nan_ends_the_training(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"became nan in epoch 1: lower training\.learning_rate"):
        finetune(model, EXAMPLES, TrainingConfig(epochs=3), seed=0, pad_id=2)


@pytest.mark.slow
def test_moments_in_8_bits_train_as_fp32_moments_do(model: Any) -> None:
    """The weights move as far, and differ by a small part of their way: the moments are rounded."""
    exact, start = copy.deepcopy(model), copy.deepcopy(model)
    settings: dict[str, Any] = {"epochs": 20, "batch_size": 2, "learning_rate": 1e-2}
    expected = finetune(exact, EXAMPLES, TrainingConfig(**settings), seed=0, pad_id=2)

    cost = finetune(model, EXAMPLES, TrainingConfig(optimizer="adamw_8bit", **settings), seed=0, pad_id=2)

    way, apart = (
        torch.cat([(left - right).flatten() for left, right in zip(a.parameters(), b.parameters(), strict=True)]).norm()
        for a, b in ((exact, start), (exact, model))
    )
    assert 0 < apart < 0.2 * way
    assert cost["loss"] == pytest.approx(expected["loss"], rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_a_frozen_parameter_is_neither_trained_nor_decayed(
    model: Any, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before, trained = frozen.clone(), model.lm_head.weight.clone()
    training = TrainingConfig.model_validate(
        {"epochs": 2, "batch_size": 3, "learning_rate": 1e-2, "weight_decay": 0.5, "optimizer": optimizer}
    )
    finetune(model, EXAMPLES, training, seed=0, pad_id=2, checkpoints=tmp_path / "work")
    assert torch.equal(frozen, before)
    assert not torch.equal(model.lm_head.weight, trained)


def test_the_default_optimizer_changes_no_cache_key() -> None:
    assert "optimizer" not in TrainingConfig().model_dump(mode="json")
    assert TrainingConfig(optimizer="adamw_8bit").model_dump(mode="json")["optimizer"] == "adamw_8bit"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_an_interrupted_training_continues_to_the_same_bits(
    optimizer: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    training = TrainingConfig(
        epochs=5, batch_size=2, learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.3, optimizer=optimizer
    )
    undisturbed, second_attempt = copy.deepcopy(model), copy.deepcopy(model)
    whole = finetune(undisturbed, EXAMPLES, training, seed=3, pad_id=2)

    def die_in_epoch_3(end: EpochEnd | Continued) -> None:
        if end.epoch == 3:
            raise KeyboardInterrupt

    kept = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        finetune(model, EXAMPLES, training, seed=3, pad_id=2, callback=die_in_epoch_3, checkpoints=kept)
    seen: list[EpochEnd | Continued] = []
    cost = finetune(
        second_attempt,
        EXAMPLES,
        training,
        seed=3,
        pad_id=2,
        callback=seen.append,
        checkpoints=kept,
    )

    assert seen[0] == Continued(epoch=3, epochs=5)
    assert [end.epoch for end in seen[1:]] == [4, 5]
    for actual, wanted in zip(second_attempt.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(actual, wanted)
    assert {**cost, "seconds": 0} == {**whole, "seconds": 0}
    assert not kept.exists()


def test_a_damaged_checkpoint_is_skipped(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    training, kept = TrainingConfig(epochs=4, batch_size=2, learning_rate=1e-2), tmp_path / "work"
    first = copy.deepcopy(model)

    def die_in_epoch_3(end: EpochEnd | Continued) -> None:
        if end.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(first, EXAMPLES, training, seed=3, pad_id=2, callback=die_in_epoch_3, checkpoints=kept)
    newest = max(kept.glob("step_*")) / "rank_00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    seen: list[EpochEnd | Continued] = []
    finetune(model, EXAMPLES, training, seed=3, pad_id=2, callback=seen.append, checkpoints=kept)
    assert seen[0] == Continued(epoch=2, epochs=4)
    assert [end.epoch for end in seen[1:]] == [3, 4]


LENGTHS = [5 + 7 * n % 60 for n in range(203)]


def orders(done: int = 0, seed: int = 3, **settings: Any) -> list[list[list[int]]]:
    return list(epoch_orders(LENGTHS, TrainingConfig(epochs=3, batch_size=8, **settings), seed, done))


def test_rows_of_similar_length_share_a_minibatch() -> None:
    def padding(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
        return 1 - sum(LENGTHS) / padded

    grouped = orders(group_by_length=True)
    for batches in grouped:
        assert sorted(index for batch in batches for index in batch) == list(range(203))
        assert padding(batches) < 0.05
        widths = [max(LENGTHS[index] for index in batch) for batch in batches]
        assert widths != sorted(widths)
    assert padding(orders()[0]) > 0.3
    assert len({frozenset(map(frozenset, batches)) for batches in grouped}) == 3


def test_grouped_orders_follow_the_seed_and_the_epoch() -> None:
    assert orders(group_by_length=True) == orders(group_by_length=True)
    assert orders(group_by_length=True) != orders(group_by_length=True, seed=4)
    assert orders(done=2, group_by_length=True) == orders(group_by_length=True)[2:]
