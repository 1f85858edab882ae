"""The forgotten, retained and tested images of Parquet files and of folders, and the errors of bad sources."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from image_files import png, write_folder, write_parquet
from ofmu.data.config import DataConfig
from ofmu.errors import DataError
from ofmu.vision.data import load_images
from ofmu.vision.rows import ImageData
from ofmu.vision.sources import read_folder


def load(path: Path, source: str = "cifar10", seed: int = 0, **vision: Any) -> ImageData:
    settings = {"image_size": 8} | vision
    return load_images(DataConfig.model_validate({"source": source, "path": str(path), "vision": settings}), seed)


def labels(rows: Any) -> Counter[int]:
    return Counter(row.label for row in rows)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 30 test rows of three classes."""
    return write_parquet(tmp_path_factory.mktemp("parquet"), train=60, test=30)


def test_the_test_rows_of_a_wholly_forgotten_class_are_left_out(parquet: Path) -> None:
    data = load(parquet, forget_class="dog")
    assert labels(data.forget) == {1: 20}
    assert labels(data.retain) == {0: 20, 2: 20}
    assert labels(data.test) == {0: 10, 2: 10}


def test_the_test_rows_of_a_partly_forgotten_class_stay(parquet: Path) -> None:
    data = load(parquet, forget_class=1, fraction=0.25)
    assert labels(data.forget) == {1: 5}
    assert labels(data.retain) == {0: 20, 1: 15, 2: 20}
    assert labels(data.test) == {0: 10, 1: 10, 2: 10}


def test_random_forgetting_draws_its_share_of_all_rows_by_the_seed(parquet: Path) -> None:
    first, again, other = (load(parquet, forget="random", fraction=0.2, seed=seed) for seed in (0, 0, 1))
    assert len(first.forget) == 12
    assert len(first.retain) == 48
    assert len(labels(first.forget)) > 1
    assert first.content_hash == again.content_hash != other.content_hash
    assert len(load(parquet, forget="random").forget) == 6


def test_pixels_equal_the_file_and_every_pixel_changes_the_hash(parquet: Path) -> None:
    rows = pq.read_table(parquet / "train.parquet").to_pylist()
    whole = load(parquet)
    first = next(row for row in rows if row["label"] == 0)
    image = np.asarray(Image.open(io.BytesIO(first["img"]["bytes"])))
    assert torch.equal(whole.forget[0].pixels, torch.from_numpy(image.copy()).permute(2, 0, 1))
    assert whole.forget[0].pixels.dtype == torch.uint8
    before = whole.content_hash
    whole.test[3].pixels[1, 2, 3] ^= 1
    changed = ImageData(
        class_names=whole.class_names, forget=whole.forget, retain=whole.retain, test=whole.test
    ).content_hash
    assert changed != before


def test_images_get_one_size_and_three_channels(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": 4, "bee": 4})
    Image.new("L", (20, 10), 128).save(tmp_path / "ant" / "grey.png")
    data = load(tmp_path, "images", forget_class="bee", image_size=12)
    assert {tuple(row.pixels.shape) for rows in data.sets().values() for row in rows} == {(3, 12, 12)}


def test_the_seed_draws_the_rows_within_the_limits(parquet: Path) -> None:
    data = load(parquet, forget="random", max_train_rows=20, max_test_rows=10)
    assert len(data.forget) + len(data.retain) == 20
    assert len(data.test) == 10


def test_names_come_from_the_metadata_or_from_cifar_itself(tmp_path: Path, parquet: Path) -> None:
    assert load(parquet).class_names == ("cat", "dog", "ship")
    assert load(write_parquet(tmp_path / "a", names=None)).class_names[3] == "cat"
    hundred = write_parquet(tmp_path / "b", names=None, label_column="fine_label")
    assert load(hundred, "cifar100").class_names == ("0", "1", "2")


def test_shards_in_the_hubs_layout_are_read_in_order(tmp_path: Path, parquet: Path) -> None:
    table = pq.read_table(parquet / "train.parquet")
    folder = tmp_path / "plain_text"
    folder.mkdir()
    pq.write_table(table.slice(0, 25), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(25), folder / "train-00001-of-00002.parquet")
    pq.write_table(pq.read_table(parquet / "test.parquet"), folder / "test-00000-of-00001.parquet")
    assert load(tmp_path).content_hash == load(parquet).content_hash


def test_the_hubs_data_set_has_the_rows_of_its_files(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        requested.append((name, split))
        return datasets.Dataset.from_parquet(str(parquet / f"{split}.parquet"), cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    vision = {"image_size": 8}
    data = load_images(DataConfig.model_validate({"source": "cifar10", "vision": vision}), 0)
    assert data.content_hash == load(parquet).content_hash
    assert requested == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]


def test_an_unreachable_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"The hub data set 'uoft-cs/cifar100' cannot be loaded, since .*data\.path"):
        load_images(DataConfig(source="cifar100"), 0)


def test_a_folder_per_class_gives_test_rows_of_every_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": 10, "bee": 10, "cow": 5})
    data = load(tmp_path, "images", forget="random", test_fraction=0.2)
    assert data.class_names == ("ant", "bee", "cow")
    assert labels(data.test) == {0: 2, 1: 2, 2: 1}
    assert len(data.forget) == 2
    assert load(tmp_path, "images", forget="random").content_hash == data.content_hash


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": 3, "bee": 3})
    write_folder(tmp_path / "test", {"ant": 2, "bee": 2})
    data = load(tmp_path, "images", forget_class="ant")
    assert (labels(data.forget), labels(data.retain), labels(data.test)) == ({0: 3}, {1: 3}, {1: 2})


@pytest.mark.slow
def test_the_shared_subset_is_read_whole(shared_data: Path) -> None:
    data = load(shared_data / "cifar10", forget_class="frog", image_size=32, max_train_rows=500)
    assert data.class_names[6] == "frog"
    assert set(labels(data.forget)) == {6}
    assert len(data.forget) + len(data.retain) == 500
    assert len(data.test) == 1800


def test_the_error_for_an_unknown_class_names_the_nearest_class(parquet: Path) -> None:
    with pytest.raises(DataError, match=r"Unknown class 'catt' in data.vision.forget_class: did you mean 'cat'\?"):
        load(parquet, forget_class="catt")
    with pytest.raises(DataError, match="Unknown class '3'"):
        load(parquet, forget_class=3)


def test_the_error_for_a_wrong_label_column_names_the_nearest_column(parquet: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'labels', which data.vision.label_column names: .*'label'\?"):
        load(parquet, label_column="labels")
    with pytest.raises(DataError, match="label_column"):
        load(parquet, label_column="img")
    with pytest.raises(DataError, match="holds no image in column 'label'"):
        load(parquet, image_column="label")


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", {"ant": 3, "bee": 3})
    (tmp_path / "folder" / "bee" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png cannot be read as an image"):
        load(tmp_path / "folder", "images", forget="random")
    cut = png(np.zeros((8, 8, 3), np.uint8))[:40]
    folder = write_parquet(tmp_path / "parquet", replaced={4: cut})
    with pytest.raises(DataError, match=r"Row 5 of .* \(train\) cannot be read as an image"):
        load(folder)


def test_missing_and_empty_sources_are_errors(tmp_path: Path, parquet: Path) -> None:
    for path, match in ((tmp_path / "none", "There is no directory"), (tmp_path, r"has no train\*\.parquet")):
        with pytest.raises(DataError, match=match):
            load(path)
    with pytest.raises(DataError, match="There is no image folder"):
        load(tmp_path / "none", "images")
    write_folder(tmp_path / "one", {"ant": 3})
    with pytest.raises(DataError, match="fewer than two class folders"):
        load(tmp_path / "one", "images")
    write_folder(tmp_path / "half" / "train", {"ant": 3, "bee": 3})
    with pytest.raises(DataError, match="no test folder"):
        load(tmp_path / "half", "images")
    (tmp_path / "torn").mkdir()
    for split in ("train", "test"):
        (tmp_path / "torn" / f"{split}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "torn")
    (tmp_path / "empty").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"img": [], "label": []}), tmp_path / "empty" / f"{split}.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    "copy",
    [
        "train/bee/.ipynb_checkpoints/0-checkpoint.png",
        "test/bee/.ipynb_checkpoints/0-checkpoint.png",
        "train/bee/._0.png",
        "train/bee/.thumbnails/deep/0.png",
        "train/__MACOSX/bee/._0.png",
        "train/.ipynb_checkpoints/0.png",
        "test/__MACOSX/._0.png",
    ],
)
def test_copies_that_other_programs_keep_are_no_images(tmp_path: Path, copy: str) -> None:
    write_folder(tmp_path / "train", {"ant": 3, "bee": 3})
    write_folder(tmp_path / "test", {"ant": 2, "bee": 2})
    before = read_folder(DataConfig(source="images", path=str(tmp_path)), seed=0)
    (tmp_path / copy).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "train" / "bee" / "0.png", tmp_path / copy)
    assert read_folder(DataConfig(source="images", path=str(tmp_path)), seed=0) == before


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"ant": 3, "bee": 3})
    write_folder(tmp_path / "test", {"ant": 2, "bee": 2, "cow": 2})
    with pytest.raises(DataError, match=r"test has the class 'cow', and .*train has not"):
        read_folder(DataConfig(source="images", path=str(tmp_path)), seed=0)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder .*cow holds no images"):
        read_folder(DataConfig(source="images", path=str(tmp_path)), seed=0)
