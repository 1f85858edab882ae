"""Mirrors and leases on a real server that speaks S3, looked at through pyarrow itself."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from torch import nn

from cluster.storage.lease import LOCK, Lease
from cluster.storage.mirror import Mirror, below, refusal, shown, without_credentials
from cluster.train.checkpointers import UriCheckpointer
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.errors import RunError, StorageError
from ofmu.vectors.whole import ReplicatedSpace
from s3_server import s3_server

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as options:
        yield options


@pytest.fixture
def uri(options: str, request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name}/run?{options}"


def stored(uri: str) -> dict[str, bytes]:
    system, root = fs.FileSystem.from_uri(uri)
    found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [each.path for each in found if each.type == fs.FileType.File]
    return {path[len(root) + 1 :]: system.open_input_stream(path, compression=None).read() for path in files}


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Counting(Mirror):
    """Notes what is sent, in order."""

    def __init__(self, uri: str, local: Path) -> None:
        super().__init__(uri, local)
        self.sent: list[str] = []

    def _stream(self, name: str) -> Any:
        self.sent.append(name)
        return super()._stream(name)


def test_what_is_pushed_is_pulled_elsewhere(uri, tmp_path):
    fill(tmp_path / "a", study="1", trials__3__metrics_json="{}", model__w="x" * 20_000_000)
    (tmp_path / "a" / "zipped.gz").write_bytes(b"no gzip")
    Mirror(uri, tmp_path / "a").push(without=("model",))
    assert set(stored(uri)) == {"study", "trials/3/metrics.json", "zipped.gz"}
    Mirror(uri, tmp_path / "a").push()
    other = pickle.loads(pickle.dumps(Mirror(uri, tmp_path / "b")))
    assert other.files() == ["model/w", "study", "trials/3/metrics.json", "zipped.gz"]
    other.pull(other.files())
    for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


def test_only_what_changed_is_sent_and_what_vouches_comes_last(uri, tmp_path):
    fill(tmp_path, metrics_json="1", model__w="2", scores_json="3", config="4", checkpoints__rank_json="5")
    fill(tmp_path, checkpoints__tensors="6")
    (tmp_path / ".hidden").touch()
    mirror = Counting(uri, tmp_path)
    mirror.push()
    assert mirror.sent[-1] == "metrics.json"
    assert mirror.sent.index("checkpoints/tensors") < mirror.sent.index("checkpoints/rank.json")
    assert len(mirror.sent) == 6
    mirror.sent.clear()
    mirror.push()
    assert mirror.sent == []
    fill(tmp_path, scores_json="three")
    mirror.push()
    assert mirror.sent == ["scores.json"]
    assert stored(uri)["scores.json"] == b"three"


def test_deleted_folders_are_gone_and_may_be_missing(uri, tmp_path):
    fill(tmp_path, trials__1__model__w="1", trials__1__metrics_json="{}", trials__11__model__w="2")
    mirror = Mirror(uri, tmp_path)
    mirror.push()
    mirror.delete("trials/1/model")
    mirror.delete("trials/1/model")
    mirror.delete_file("nothing")
    assert set(stored(uri)) == {"trials/1/metrics.json", "trials/11/model/w"}
    mirror.push()
    assert "trials/1/model/w" in stored(uri)
    assert mirror.read("nothing") is None
    assert (mirror.has("nothing"), mirror.has("trials/1/metrics.json")) == (False, True)


def test_a_file_system_is_mirrored_alike(tmp_path):
    fill(tmp_path / "a", deep__folder__x="1")
    mirror = Mirror((tmp_path / "there").as_uri(), tmp_path / "a")
    mirror.push()
    assert [path.name for path in (tmp_path / "there").rglob("*") if path.is_file()] == ["x"]
    mirror.delete("deep")
    assert mirror.files() == []


def test_refusals_are_one_sentence_without_keys(options, tmp_path):
    fill(tmp_path, x="1")
    places = {
        f"s3://AKIAOTHER:hush@nobucket/run?{options}": "there is no such bucket",
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
            assert shown(place) in sentence
            assert "hush" not in sentence
            assert "AKIAOTHER" not in sentence
            assert "\n" not in sentence
    with pytest.raises(StorageError, match="unknown://bucket") as refused:
        Mirror("unknown://me:hush@bucket/run", tmp_path).files()
    assert "hush" not in str(refused.value)
    denied = "When writing: AWS Error ACCESS_DENIED during PutObject operation: hush"
    assert "access is denied" in refusal("s3://a:hush@b/c", "write", OSError(denied))
    assert "hush" not in refusal("s3://a:hush@b/c", "write", OSError("strange hush"))


def test_a_uri_that_is_written_down_can_be_used_again_and_holds_no_key():
    place = "s3://key:hush@bucket/run?endpoint_override=127.0.0.1:5&scheme=http&secret_key=hush"
    assert without_credentials(place) == "s3://bucket/run?endpoint_override=127.0.0.1:5&scheme=http"
    assert without_credentials("runs/a?b") == "runs/a?b"
    assert below("s3://b/r?x=1", "trials/3") == "s3://b/r/trials/3?x=1"


def lease(uri: str, folder: Path, **seconds: float) -> Lease:
    return Lease(Mirror(uri, folder), "search", **{"heartbeat": 0.2, "patience": 2.0, "settle": 0.05, **seconds})


def test_a_lease_is_held_once_and_free_again_after_release(uri, tmp_path):
    first = lease(uri, tmp_path)
    first.acquire()
    with pytest.raises(RunError, match=r"Another search is running in s3://bucket/"):
        lease(uri, tmp_path).acquire()
    assert first.lost is None
    first.release()
    assert LOCK not in stored(uri)
    second = lease(uri, tmp_path)
    second.acquire()
    second.release()


def test_a_silent_holder_on_another_machine_is_outwaited_and_a_dead_one_here_at_once(uri, tmp_path):
    mirror = Mirror(uri, tmp_path)
    mirror.write(LOCK, json.dumps({"owner": "x", "beats": 3, "machine": "elsewhere", "process": 1}).encode())
    after = lease(uri, tmp_path)
    after.acquire()
    account = json.loads(stored(uri)[LOCK])
    after.release()
    gone = account | {"owner": "y", "process": 2**22 - 1}
    mirror.write(LOCK, json.dumps(gone).encode())
    now = lease(uri, tmp_path, patience=10_000)
    now.acquire()
    now.release()


def test_who_finds_another_name_in_its_lease_gives_up(uri, tmp_path):
    mine = lease(uri, tmp_path)
    mine.acquire()
    Mirror(uri, tmp_path).write(LOCK, b'{"owner": "other"}')
    assert mine._thread is not None
    mine._thread.join(timeout=60)
    assert "taken over" in str(mine.lost)
    mine.release()
    assert json.loads(stored(uri)[LOCK]) == {"owner": "other"}


def test_checkpoints_are_kept_at_the_uri_and_a_damaged_one_is_passed_over(uri, tmp_path):
    space = ReplicatedSpace(nn.Linear(2, 3))

    def write(step: int) -> Any:
        return lambda folder: save_checkpoint(folder, space, {"theta": space.masters()}, {"step": step}, 0, 1)

    heard: list[Any] = []
    (tmp_path / "a").mkdir()
    first = UriCheckpointer(0, mirror=Mirror(uri, tmp_path / "a"), listener=heard.append)
    for step in (1, 2, 3, 4):
        (tmp_path / "a" / "history.jsonl").write_text(f"{step}\n")
        first.on_round_end({"outer_step": step}, write(step) if step != 4 else None)
    assert [record["outer_step"] for record in heard] == [1, 2, 3, 4]
    steps = {name.split("/")[1] for name in stored(uri) if name.startswith("checkpoints/")}
    assert steps == {"step_000002", "step_000003"}
    assert stored(uri)["history.jsonl"] == b"3\n"
    found = UriCheckpointer(1, mirror=Mirror(uri, tmp_path / "b")).latest_checkpoint()
    assert found is not None
    assert load_checkpoint(found, space)[0] == {"step": 3}
    Mirror(uri, tmp_path).write("checkpoints/step_000003/rank_00000.safetensors", b"flipped")
    found = UriCheckpointer(0, mirror=Mirror(uri, tmp_path / "c")).latest_checkpoint()
    assert found is not None
    assert found.name == "step_000002"
    assert os.listdir(tmp_path / "a" / "checkpoints") == []


def test_a_missing_bucket_is_found_out_before_anything_is_written(options, uri, tmp_path):
    Mirror(uri, tmp_path).require_bucket()
    with pytest.raises(StorageError, match="no such bucket"):
        Mirror(f"s3://nobucket/run?{options}", tmp_path).require_bucket()
