"""Runs on images after runs on images: a class, then another, then rows of what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from image_files import CLASSES, write_folder, write_parquet
from ofmu.chain.run_record import read_run_chain
from ofmu.cli.main import main
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.load import task_family
from ofmu.vision.data import load_images
from ofmu.vision.model import freeze_statistics, load_classifier
from ofmu.vision.pixels import Normalisation, pixels_in_unit_range
from ofmu.vision.rows import ImageData, ImageRow, pixels_hash

NAMES = ("one", "two", "three")
CHOICES = ("forget_class=dog", "forget_class=cat", "forget=random")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_parquet(folder / "data", train=48, test=24)
    config = {
        "model": {"resnet": {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1]}},
        "data": {"source": "cifar10", "path": "data", "vision": {"image_size": 8, "fraction": None}},
        "training": {"epochs": 4, "batch_size": 16, "learning_rate": 0.01},
        "method": {"name": "graddiff", "steps": 2, "lr": 1e-3, "batch_size": 8},
        "engine": {"device": "cpu", "threads": 1},
        "evaluation": {"batch_size": 32},
    }
    (folder / "images.yaml").write_text(yaml.safe_dump(config))
    return folder


def words(number: int, *more: str) -> list[str]:
    after = ["--after", NAMES[number - 2]] if number > 1 else []
    choice = f"data.vision.{CHOICES[number - 1]}"
    return ["unlearn", "images.yaml", choice, "--output", NAMES[number - 1], *after, *more]


def data_of(run: Path) -> ImageData:
    config = UnlearnConfig.read(run / "config.yaml")
    return load_images(config.data, config.seed)


def accuracy(model: Path, rows: tuple[ImageRow, ...]) -> float:
    """Return the accuracy in percent, apart from the product's scoring."""
    classifier = freeze_statistics(loaded := load_classifier(model, CLASSES)) or loaded
    inputs = Normalisation.of_model(model, 8).inputs(pixels_in_unit_range(rows, "cpu", next(loaded.parameters()).dtype))
    predicted = classifier(pixel_values=inputs).logits.argmax(1).numpy()
    return float(100 * np.mean(predicted == np.array([row.label for row in rows])))


@pytest.mark.slow
def test_earlier_classes_stay_out_and_are_measured_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for number in (1, 2, 3):
        assert main(words(number)) == 0
    said = capsys.readouterr().out
    assert "After 2 earlier runs, from the model" in said
    assert "Not retained: 32 rows that earlier runs forgot" in said
    assert "testing_accuracy: " in said
    assert "Earlier runs" in (place / "three" / "report.html").read_text()

    data = [data_of(place / name) for name in NAMES]
    labels = [[sorted({row.label for row in rows}) for rows in each.sets().values()] for each in data]
    dog, cat, ship = CLASSES.index("dog"), CLASSES.index("cat"), CLASSES.index("ship")
    # Forget, retain and test classes of each run. Nobody is asked for a class that was forgotten once.
    others = sorted((cat, ship))
    assert labels == [[[dog], others, others], [[cat], [ship], [ship]], [[ship], [ship], [ship]]]
    assert [len(each.forget) for each in data] == [16, 16, 2], "a tenth of the rows that nobody forgot"
    former = {pixels_hash(row) for each in data[:2] for row in each.forget}
    assert former.isdisjoint(pixels_hash(row) for each in (data[2].forget, data[2].retain) for row in each)

    stored = read_run_chain("three")
    assert stored is not None
    assert [each.id for each in stored.chain.requests] == ["one", "two"]
    models = [place / name / "model" for name in NAMES]
    for number, request in enumerate(stored.chain.requests):
        metrics = {each.name: each for each in request.metrics}
        expected = [100 - accuracy(model, data[number].forget) for model in models[number:]]
        assert metrics["unlearning_accuracy"].values == pytest.approx(expected)
        before = Path(stored.first_target) if number == 0 else models[0]
        assert metrics["unlearning_accuracy"].before == pytest.approx(100 - accuracy(before, data[number].forget))
        assert metrics["mia_efficacy"].now is not None
    reports = [json.loads((place / name / "metrics.json").read_text())["metrics"] for name in NAMES]
    utility = {each.name: each for each in stored.utility}
    tested = [accuracy(model, data[2].test) for model in (Path(stored.first_target), models[1], models[2])]
    each = utility["testing_accuracy"]
    assert [each.first_target, each.target, each.result] == pytest.approx(tested)
    assert each.result == reports[2]["testing_accuracy"]
    assert stored.chain.gradient_evaluations == sum(report["gradient_evaluations"] for report in reports)

    check_refusals(place, capsys)


def check_refusals(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(place / "folders", {"ant": 6, "bee": 6, "fly": 6})
    cases = (
        (words(2, "--output", "new", "data.vision.image_size=16"), "images of 8 by 8 pixels"),
        (words(2, "--output", "new", "data={source: images, path: folders}"), "those of the earlier run were cat, dog"),
        (["unlearn", "quickstart", "--output", "new", "--after", "one"], "one is a run on images, and data.source"),
        (words(3, "--after", "one"), "holds the rows of other earlier runs than"),
        (words(1, "--output", "new", "data.earlier=[nowhere.safetensors]"), "There is no file of earlier images"),
        (words(1, "--output", "new", "data.earlier=[images.yaml]"), "holds no images that an earlier run forgot"),
    )
    for arguments, sentence in cases:
        capsys.readouterr()
        assert main(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error


def test_a_share_is_drawn_among_rows_that_no_earlier_run_forgot(place: Path, tmp_path: Path) -> None:
    forgotten = task_family("vision").forgotten

    def loaded(*earlier: str, **vision: Any) -> ImageData:
        data = {"source": "cifar10", "path": str(place / "data"), "earlier": list(earlier)}
        return load_images(
            UnlearnConfig.model_validate({"data": data | {"vision": {"image_size": 8, **vision}}}).data, 0
        )

    def hashes(rows: tuple[ImageRow, ...]) -> set[str]:
        return {pixels_hash(row) for row in rows}

    files: list[str] = []
    seen: set[str] = set()
    for number, count in enumerate((8, 4, 2)):
        data = loaded(*files, forget_class="dog", fraction=0.5)
        assert len(data.forget) == count, "half of the dogs that are left"
        assert seen.isdisjoint(hashes(data.forget) | hashes(data.retain))
        assert data.left_out == len(seen)
        assert len(data.forget) + len(data.retain) + data.left_out == 48
        seen |= hashes(data.forget)
        files.append(str(tmp_path / f"{number}.safetensors"))
        forgotten.write(Path(files[-1]), data.forget)
        assert forgotten.content_hash(forgotten.read(Path(files[-1]))) == forgotten.content_hash(data.forget)
    whole = loaded(*files, forget_class="dog")
    assert len(whole.forget) == 16, "a whole class may have to be forgotten again"
    assert {row.label for row in whole.test} == {0, 2}


def test_test_rows_of_a_later_run_were_no_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without test rows holds other rows out under another seed."""
    write_folder(tmp_path / "images", {"ant": 10, "bee": 10})
    data = {"source": "images", "path": str(tmp_path / "images"), "vision": {"image_size": 8, "forget": "random"}}
    forgotten, config = task_family("vision").forgotten, UnlearnConfig.model_validate({"data": data})
    forgotten.check_follows(config, config)
    with pytest.raises(ValueError, match="test images were training images of the earlier run: set the same seed"):
        forgotten.check_follows(config, config.model_copy(update={"seed": 1}))
