from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning import checkpoints as stored
from ofmu.finetuning.config import TrainingConfig
from ofmu.finetuning.loop import Continued, EpochEnd, finetune
from ofmu.finetuning.on_engine import finetune_on_engine
from ofmu.losses import AnswerLoss
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, vocab_size=300)
EXAMPLES = [Example((0, 40 + n, 50, 60 + n, *range(70, 70 + n % 4), 1), 2 + n % 2) for n in range(7)]
TRAINING = TrainingConfig(epochs=5, batch_size=3, learning_rate=1e-2, weight_decay=0.1, warmup_fraction=0.2)


@pytest.fixture
def model() -> Any:
    return build_model(SHAPE, train_tokenizer(["a b c"], 300), seed=0)


def train(model: Any, checkpoints: Path, callback: Any = None, training: TrainingConfig = TRAINING) -> dict[str, float]:
    engine = TorchEngine(model.train(), CostTracker(), micro_batch_size=2)
    return finetune_on_engine(
        engine, AnswerLoss(2), EXAMPLES, training, seed=4, checkpoints=checkpoints, callback=callback
    )


def test_the_steps_are_those_of_the_loop_of_one_process(model: Any, tmp_path: Path) -> None:
    expected, theirs, ours = copy.deepcopy(model), list[Any](), list[Any]()
    cost = finetune(expected, EXAMPLES, TRAINING, seed=4, pad_id=2, callback=theirs.append)

    measured = train(model, tmp_path / "work", ours.append)

    for actual, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-5)
    assert [(end.epoch, end.epochs) for end in ours] == [(end.epoch, end.epochs) for end in theirs]
    assert [end.loss for end in ours] == pytest.approx([end.loss for end in theirs], rel=1e-4)
    same = ("steps", "gradient_evaluations", "tokens")
    assert [measured[name] for name in same] == [cost[name] for name in same]
    assert measured["loss"] == pytest.approx(cost["loss"], rel=1e-4)
    assert not model.training
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_an_interrupted_training_continues_to_the_same_bits(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CHECKPOINT_SECONDS", 0.0)
    undisturbed, second_attempt = copy.deepcopy(model), copy.deepcopy(model)
    whole = train(undisturbed, tmp_path / "other")

    def die_in_epoch_3(end: EpochEnd | Continued) -> None:
        if end.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path / "work", die_in_epoch_3)
    seen: list[EpochEnd | Continued] = []
    cost = train(second_attempt, tmp_path / "work", seen.append)

    assert seen[0] == Continued(epoch=3, epochs=5)
    assert [end.epoch for end in seen[1:]] == [4, 5]
    for actual, wanted in zip(second_attempt.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(actual, wanted)
    assert {**cost, "seconds": 0} == {**whole, "seconds": 0}
    assert not (tmp_path / "work").exists()


def test_a_checkpoint_is_not_written_before_it_is_worth_its_time(model: Any, tmp_path: Path) -> None:
    found: list[Path] = []
    train(model, tmp_path / "work", lambda _: found.extend(tmp_path.rglob("*")))
    assert found == []


def test_a_training_that_diverges_names_the_rate(model: Any, tmp_path: Path) -> None:
    wild = TrainingConfig(epochs=50, batch_size=3, learning_rate=1e20, warmup_fraction=0)
    with pytest.raises(NonFiniteLossError, match=r"diverged in epoch \d+ .*lower training.learning_rate .*1e\+20"):
        train(model, tmp_path / "work", training=wild)
