"""Checkpoints on a real server that speaks S3."""

from __future__ import annotations

import os
from typing import Any

import pytest
from torch import nn

from cluster.storage.mirror import Mirror
from cluster.train.checkpointers import UriCheckpointer
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.vectors.whole import ReplicatedSpace
from s3_server import stored_files

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
def test_the_two_newest_checkpoints_are_kept_at_the_uri_and_a_damaged_one_is_skipped(s3_uri, tmp_path):
    space = ReplicatedSpace(nn.Linear(2, 3))

    def write(step: int) -> Any:
        return lambda folder: save_checkpoint(folder, space, {"theta": space.masters()}, {"step": step}, 0, 1)

    records: list[Any] = []
    (tmp_path / "a").mkdir()
    first = UriCheckpointer(0, mirror=Mirror(s3_uri, tmp_path / "a"), callback=records.append)
    for step in (1, 2, 3, 4):
        (tmp_path / "a" / "history.jsonl").write_text(f"{step}\n")
        first.on_round_end({"outer_step": step}, write(step) if step != 4 else None)
    assert [record["outer_step"] for record in records] == [1, 2, 3, 4]
    steps = {name.split("/")[1] for name in stored_files(s3_uri) if name.startswith("checkpoints/")}
    assert steps == {"step_000002", "step_000003"}
    assert stored_files(s3_uri)["history.jsonl"] == b"3\n"
    found = UriCheckpointer(1, mirror=Mirror(s3_uri, tmp_path / "b")).latest_checkpoint()
    assert found is not None
    assert load_checkpoint(found, space)[0] == {"step": 3}
    Mirror(s3_uri, tmp_path).write("checkpoints/step_000003/rank_00000.safetensors", b"flipped")
    found = UriCheckpointer(0, mirror=Mirror(s3_uri, tmp_path / "c")).latest_checkpoint()
    assert found is not None
    assert found.name == "step_000002"
    assert os.listdir(tmp_path / "a" / "checkpoints") == []
