"""Mirrors on a real server that speaks S3. What they upload is read back through pyarrow itself."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.mirror import Mirror, storage_message
from cluster.storage.uri import redacted
from ofmu.errors import StorageError
from s3_server import stored_files

pytestmark = pytest.mark.timeout(300)


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Counting(Mirror):
    """Records the names of uploaded files, in order."""

    def __init__(self, uri: str, local: Path) -> None:
        super().__init__(uri, local)
        self.uploaded: list[str] = []

    def _output_stream(self, name: str) -> Any:
        self.uploaded.append(name)
        return super()._output_stream(name)


@pytest.mark.slow
def test_pushed_files_are_pulled_elsewhere(s3_uri, tmp_path):
    fill(tmp_path / "a", study="1", trials__3__metrics_json="{}", model__w="x" * 20_000_000)
    (tmp_path / "a" / "zipped.gz").write_bytes(b"no gzip")
    Mirror(s3_uri, tmp_path / "a").push(without=("model",))
    assert set(stored_files(s3_uri)) == {"study", "trials/3/metrics.json", "zipped.gz"}
    Mirror(s3_uri, tmp_path / "a").push()
    other = pickle.loads(pickle.dumps(Mirror(s3_uri, tmp_path / "b")))
    assert other.files() == ["model/w", "study", "trials/3/metrics.json", "zipped.gz"]
    other.pull(other.files())
    for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


def test_the_top_level_is_pulled_without_its_folders(s3_uri, tmp_path):
    fill(tmp_path / "a", study="1", metrics_json="{}", model__w="x")
    Mirror(s3_uri, tmp_path / "a").push()
    Mirror(s3_uri, tmp_path / "b").pull_top_level()
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"study", "metrics.json"}


def test_only_changed_files_are_uploaded_and_commit_markers_come_last(s3_uri, tmp_path):
    fill(tmp_path, metrics_json="1", model__w="2", scores_json="3", config="4", checkpoints__rank_json="5")
    fill(tmp_path, checkpoints__tensors="6")
    (tmp_path / ".hidden").touch()
    mirror = Counting(s3_uri, tmp_path)
    mirror.push()
    assert mirror.uploaded[-1] == "metrics.json"
    assert mirror.uploaded.index("checkpoints/tensors") < mirror.uploaded.index("checkpoints/rank.json")
    assert len(mirror.uploaded) == 6
    mirror.uploaded.clear()
    mirror.push()
    assert mirror.uploaded == []
    fill(tmp_path, scores_json="three")
    mirror.push()
    assert mirror.uploaded == ["scores.json"]
    assert stored_files(s3_uri)["scores.json"] == b"three"


def test_a_deleted_folder_is_gone_and_a_missing_one_is_no_error(s3_uri, tmp_path):
    fill(tmp_path, trials__1__model__w="1", trials__1__metrics_json="{}", trials__11__model__w="2")
    mirror = Mirror(s3_uri, tmp_path)
    mirror.push()
    mirror.delete("trials/1/model")
    mirror.delete("trials/1/model")
    mirror.delete_file("nothing")
    assert set(stored_files(s3_uri)) == {"trials/1/metrics.json", "trials/11/model/w"}
    mirror.push()
    assert "trials/1/model/w" in stored_files(s3_uri)
    assert mirror.read("nothing") is None
    assert (mirror.has("nothing"), mirror.has("trials/1/metrics.json")) == (False, True)


def test_a_file_system_is_mirrored_like_an_object_store(tmp_path):
    fill(tmp_path / "a", deep__folder__x="1")
    mirror = Mirror((tmp_path / "there").as_uri(), tmp_path / "a")
    mirror.push()
    assert [path.name for path in (tmp_path / "there").rglob("*") if path.is_file()] == ["x"]
    mirror.delete("deep")
    assert mirror.files() == []


class Interrupted(Mirror):
    """Calls a function at the start of the first upload."""

    def __init__(self, uri: str, local: Path, during: Callable[[], None]) -> None:
        super().__init__(uri, local)
        self._during = during

    def _output_stream(self, name: str) -> Any:
        self._during()
        self._during = lambda: None
        return super()._output_stream(name)


def test_a_file_that_vanishes_before_its_upload_is_left_out(tmp_path):
    fill(tmp_path / "a", first="1", second="2", third="3")
    mirror = Interrupted((tmp_path / "there").as_uri(), tmp_path / "a", (tmp_path / "a" / "second").unlink)
    mirror.push()
    assert mirror.files() == ["first", "third"]
    with pytest.raises(StorageError, match="No such file"):
        mirror.push_file("second", tmp_path / "a" / "second")


def test_a_folder_that_vanishes_while_it_is_listed_is_left_out(tmp_path, monkeypatch):
    fill(tmp_path / "a", gone__x="1", stays__x="2")
    listed = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith("gone"):
            Path(path).rename(tmp_path / "elsewhere")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    mirror = Mirror((tmp_path / "there").as_uri(), tmp_path / "a")
    mirror.push()
    assert mirror.files() == ["stays/x"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    fill(tmp_path / "a", x="1")

    def scandir(path: Any = ".") -> Any:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StorageError, match="Input/output error"):
        Mirror((tmp_path / "there").as_uri(), tmp_path / "a").push()


@pytest.mark.slow
def test_errors_of_the_storage_are_one_sentence_without_credentials(s3_options, tmp_path):
    fill(tmp_path, x="1")
    places = {
        f"s3://AKIAOTHER:hush@nobucket/run?{s3_options}": "there is no such bucket",
        "s3://AKIAOTHER:hush@bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1": "does not answer",
    }
    for place, reason in places.items():
        for act in (Mirror(place, tmp_path).push, lambda place=place: Mirror(place, tmp_path).files()):
            if act != Mirror(place, tmp_path).push and "nobucket" in place:
                continue
            with pytest.raises(StorageError) as refused:
                act()
            sentence = str(refused.value)
            assert reason in sentence
            assert redacted(place) in sentence
            assert "hush" not in sentence
            assert "AKIAOTHER" not in sentence
            assert "\n" not in sentence
    with pytest.raises(StorageError, match="unknown://bucket") as refused:
        Mirror("unknown://me:hush@bucket/run", tmp_path).files()
    assert "hush" not in str(refused.value)
    denied = "When writing: AWS Error ACCESS_DENIED during PutObject operation: hush"
    assert "access is denied" in storage_message("s3://a:hush@b/c", "write", OSError(denied))
    assert "hush" not in storage_message("s3://a:hush@b/c", "write", OSError("strange hush"))


def test_a_missing_bucket_is_an_error_before_anything_is_written(s3_options, s3_uri, tmp_path):
    Mirror(s3_uri, tmp_path).require_bucket()
    with pytest.raises(StorageError, match="no such bucket"):
        Mirror(f"s3://nobucket/run?{s3_options}", tmp_path).require_bucket()
