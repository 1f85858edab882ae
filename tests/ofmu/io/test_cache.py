from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from ofmu.errors import StorageError
from ofmu.io.cache import MANIFEST, Cache, cache_root, model_hashes

PARTS = {"rows": "abc", "seed": 0}


class Builder:
    """Writes two files and counts its calls."""

    def __init__(self, text: str = "content") -> None:
        self.text, self.calls = text, 0

    def __call__(self, directory: Path) -> Mapping[str, float]:
        self.calls += 1
        (directory / "weights.bin").write_text(self.text)
        (directory / "inner").mkdir()
        (directory / "inner" / "config.json").write_text("{}")
        return {"seconds": 1.5}


def test_an_entry_is_built_once_and_keeps_its_cost(tmp_path: Path) -> None:
    build = Builder()
    first = Cache(tmp_path).get_or_create("models", PARTS, build)
    second = Cache(tmp_path).get_or_create("models", dict(reversed(PARTS.items())), build)
    assert (first.created, second.created, build.calls) == (True, False, 1)
    assert first.path == second.path
    assert second.cost == {"seconds": 1.5}
    assert json.loads((first.path / MANIFEST).read_text())["made_from"] == PARTS


def test_another_kind_or_part_is_another_entry(tmp_path: Path) -> None:
    build, cache = Builder(), Cache(tmp_path)
    entries = [("models", PARTS), ("scores", PARTS), ("models", PARTS | {"seed": 1})]
    assert len({cache.get_or_create(kind, parts, build).path for kind, parts in entries}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "weights.bin").write_text("contenu"),
        lambda entry: (entry / "inner" / "config.json").unlink(),
        lambda entry: (entry / "extra.json").write_text("{}"),
        lambda entry: (entry / MANIFEST).unlink(),
        lambda entry: (entry / MANIFEST).write_text('{"files": '),
    ],
)
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: object) -> None:
    build, cache = Builder(), Cache(tmp_path)
    damage(cache.get_or_create("models", PARTS, build).path)  # type: ignore[operator]
    again = cache.get_or_create("models", PARTS, build)
    assert (again.created, build.calls) == (True, 2)
    assert (again.path / "weights.bin").read_text() == "content"
    assert not (again.path / "extra.json").exists()
    assert not cache.get_or_create("models", PARTS, build).created


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(directory: Path) -> Mapping[str, float]:
        (directory / "weights.bin").write_text("half")
        raise RuntimeError("stopped")

    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        cache.get_or_create("models", PARTS, fail)
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]
    assert cache.get_or_create("models", PARTS, Builder()).created


def test_an_error_of_the_builder_is_not_reported_as_an_error_of_the_cache(tmp_path: Path) -> None:
    def fail(directory: Path) -> Mapping[str, float]:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Cache(tmp_path).get_or_create("models", PARTS, fail)


def test_the_directory_of_a_dead_builder_is_removed(tmp_path: Path) -> None:
    build, cache = Builder(), Cache(tmp_path)
    entry = cache.get_or_create("models", PARTS, build).path
    partial = entry.with_name(f".{entry.name}.partial")
    entry.rename(partial)
    assert cache.get_or_create("models", PARTS, build).created
    assert not partial.exists()


def _create(root: Path, results: multiprocessing.Queue[bool], barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    results.put(Cache(root).get_or_create("models", PARTS, Builder("x" * 1_000_000)).created)


@pytest.mark.slow
def test_concurrent_processes_build_an_entry_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=_create, args=(tmp_path, results, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    created = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(created) == [False, False, False, True]


def test_an_unwritable_cache_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="set cache_dir to another directory"):
        Cache(tmp_path / "file").get_or_create("models", PARTS, Builder())


def test_the_config_decides_the_directory_then_the_environment_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("OFMU_CACHE", raising=False)
    assert cache_root(None) == tmp_path / "user" / "ofmu"
    monkeypatch.setenv("OFMU_CACHE", str(tmp_path / "env"))
    assert cache_root(None) == tmp_path / "env"
    assert cache_root(str(tmp_path / "config")) == tmp_path / "config"


def test_the_hashes_of_a_model_leave_out_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = model_hashes(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "checkpoint").mkdir()
    assert model_hashes(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_hashes(tmp_path) != before


def test_an_entry_is_imported_once_and_found_by_its_parts(tmp_path: Path) -> None:
    build = Builder()
    original = Cache(tmp_path / "there").get_or_create("models", PARTS, build).path
    here, copies = Cache(tmp_path / "here"), []

    def copy(directory: Path) -> None:
        shutil.copytree(original, directory, dirs_exist_ok=True)
        copies.append(directory)

    imported = [here.import_entry("models", original.name, copy) for _ in range(2)]
    assert imported == [tmp_path / "here" / "models" / original.name] * 2
    assert len(copies) == 1
    assert not here.get_or_create("models", PARTS, build).created


@pytest.mark.parametrize("lost", ["weights.bin", MANIFEST])
def test_an_incomplete_copy_is_not_imported(tmp_path: Path, lost: str) -> None:
    original = Cache(tmp_path / "there").get_or_create("models", PARTS, Builder()).path

    def copy(directory: Path) -> None:
        shutil.copytree(original, directory, dirs_exist_ok=True)
        (directory / lost).unlink()

    here = Cache(tmp_path / "here")
    assert here.import_entry("models", original.name, copy) is None
    assert not [path for path in (here.root / "models").iterdir() if path.is_dir()]
