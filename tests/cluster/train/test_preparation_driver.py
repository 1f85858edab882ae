"""What the driver reads while workers prepare: each model file once. The workers' part runs in this process."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.train import preparation
from ofmu import preparer
from ofmu.config.files import validate
from ofmu.run_config import UnlearnConfig

TWO = ClusterConfig(num_workers=2)


class Reads:
    """Counts how often each file is read to be hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Counter[str] = Counter()
        self._counts, digest = True, hashlib.file_digest

        def counted(stream: Any, name: str) -> Any:
            if self._counts and Path(stream.name).suffix == ".safetensors":
                self.found[stream.name] += 1
            return digest(stream, name)

        monkeypatch.setattr(hashlib, "file_digest", counted)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._counts = False
        yield
        self._counts = True


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads(monkeypatch)

    def in_group(config: UnlearnConfig, cluster: ClusterConfig, callback: Any) -> None:
        with found.paused():
            preparer.prepare(config, callback=callback)

    monkeypatch.setattr(preparation, "_prepare_in_group", in_group)
    return found


def config_in(cache: Path, mapping: dict[str, Any], **sections: Any) -> UnlearnConfig:
    quick = {
        "data": {"max_length": 96, "generated": {"authors": 2, "forget_authors": 1, "world_facts": 1}},
        "training": {"epochs": 1},
        "evaluation": {"rouge": False},
        "cache_dir": str(cache),
    }
    return validate(UnlearnConfig, {**mapping, **quick, **sections})


@pytest.mark.slow
def test_the_driver_reads_each_model_file_once(tiny_mapping: dict[str, Any], tmp_path: Path, reads: Reads) -> None:
    config = config_in(tmp_path / "cache", tiny_mapping)
    made = preparation.prepare(config, TWO)
    assert made.base is not None
    assert made.retrain is not None
    files = [str(place / "model.safetensors") for place in (made.base, made.target, made.retrain)]
    assert dict(reads.found) == dict.fromkeys(files, 1)
    # The base and the target are there, and the rest is not.
    reads.found.clear()
    other = config_in(tmp_path / "cache", tiny_mapping, evaluation={"rouge": False, "truth_ratio": "arithmetic"})
    again = preparation.prepare(other, TWO)
    assert again.target_scores != made.target_scores
    assert set(reads.found.values()) == {1}
    # All is there.
    reads.found.clear()
    assert preparation.prepare(config, TWO).keys == made.keys
    assert dict(reads.found) == dict.fromkeys(files, 1)


@pytest.mark.slow
def test_a_base_outside_of_the_cache_is_read_once(tiny_mapping: dict[str, Any], tmp_path: Path, reads: Reads) -> None:
    with reads.paused():
        base = preparer.prepare(config_in(tmp_path / "first", tiny_mapping)).base
    model = {"path": str(base)}
    made = preparation.prepare(config_in(tmp_path / "cache", tiny_mapping, model=model), TWO)
    assert made.base == base
    assert len(reads.found) == 3
    assert set(reads.found.values()) == {1}


@pytest.mark.slow
def test_a_file_that_workers_replaced_is_read_again(tiny_mapping: dict[str, Any], tmp_path: Path, reads: Reads) -> None:
    """A damaged target is found once, made again by the workers, and checked once more."""
    config = config_in(tmp_path / "cache", tiny_mapping)
    with reads.paused():
        target = preparer.prepare(config).target
    weights = target / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    made = preparation.prepare(config, TWO)
    assert made.created["target"]
    assert weights.read_bytes() == whole
    assert reads.found[str(weights)] == 2
