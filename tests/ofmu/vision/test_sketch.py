"""The cheap evaluation is the whole one on fewer images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ofmu.engine import TorchEngine
from ofmu.engine.cost import Ledger
from ofmu.errors import ReferenceMismatchError
from ofmu.vision.metrics import metrics_of_images
from ofmu.vision.rows import ImageData
from ofmu.vision.scores import score_images
from ofmu.vision.sketch import ImageSketch, chosen_images
from tiny_images import CLASSES, images, tiny_classifier, tiny_loss


def make_data() -> ImageData:
    sets = {name: tuple(images(count, seed)) for seed, (name, count) in enumerate(SIZES.items())}
    return ImageData(class_names=CLASSES, **sets)


SIZES = {"forget": 12, "retain": 30, "test": 18}


def test_a_sketch_of_all_images_is_the_evaluation_and_keeps_the_mode(tmp_path: Path) -> None:
    data, loss = make_data(), tiny_loss()
    engine = TorchEngine(tiny_classifier().train(), Ledger())
    whole = score_images(engine.model, loss, data, batch_size=7, seed=0)
    whole.save(tmp_path / "reference.json")
    engine.model.train()
    found = ImageSketch(data, loss, rows=1000, batch_size=5, seed=0).metrics(engine, tmp_path / "reference.json")
    assert found.values == pytest.approx(metrics_of_images(whole, whole).values)
    assert engine.model.training


def test_a_sketch_scores_the_chosen_images_and_compares_with_the_same(tmp_path: Path) -> None:
    data, loss = make_data(), tiny_loss()
    engine = TorchEngine(tiny_classifier(), Ledger())
    chosen = {name: [rows[place] for place in chosen_images(rows, 6)] for name, rows in data.sets().items()}
    assert {name: len(rows) for name, rows in chosen.items()} == dict.fromkeys(SIZES, 6)
    few = score_images(engine.model, loss, ImageData(class_names=CLASSES, **chosen), batch_size=7, seed=0)
    whole = score_images(engine.model, loss, data, batch_size=7, seed=0)
    whole.save(tmp_path / "reference.json")
    found = ImageSketch(data, loss, rows=6, batch_size=5, seed=0).metrics(engine, tmp_path / "reference.json")
    assert found.values["average_gap"] == 0
    assert found.values["remaining_accuracy"] == metrics_of_images(few).values["remaining_accuracy"]
    replace(whole, data_hash="other").save(tmp_path / "other.json")
    with pytest.raises(ReferenceMismatchError):
        ImageSketch(data, loss, rows=6, batch_size=5, seed=0).metrics(engine, tmp_path / "other.json")


def test_the_choice_depends_on_the_images_and_not_on_their_order() -> None:
    rows = images(20, 3)
    forth = {id(rows[place]) for place in chosen_images(rows, 5)}
    back = {id(rows[::-1][place]) for place in chosen_images(rows[::-1], 5)}
    assert forth == back
    assert len(forth) == 5
