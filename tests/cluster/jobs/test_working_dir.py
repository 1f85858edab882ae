"""The files of the working directory that a job takes along."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.jobs.working_dir import LIMIT, check_missing_files, plan_package
from ofmu.errors import ClusterError, ConfigError

KEPT = ["mine.yaml", "forget.jsonl", "src/ours.py", "ofmu/data/rows.py", "docs/data/table.csv"]
LEFT = [
    "data/forget.jsonl",
    "models/m/model.safetensors",
    "weights/model.safetensors",
    "runs/search-1/trials.csv",
    "out/study.log",
    "out/trials.csv",
    "deep/er/run one [x]/config.yaml",
    "deep/er/run one [x]/trials/00000/metrics.json",
    ".git/objects/aa/bb",
    "env311/pyvenv.cfg",
    "env311/lib/python3.11/site.py",
    "src/__pycache__/ours.cpython-311.pyc",
    ".mypy_cache/x.json",
    ".env",
    "conf/.env",
    "ignored.txt",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*KEPT, *LEFT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (tmp_path / ".gitignore").write_text("ignored.txt\n")
    return tmp_path


def test_data_runs_environments_caches_and_secrets_are_left_out(folder):
    package = plan_package(folder)
    assert sorted(package.sizes) == sorted([*KEPT, ".gitignore"])


def test_the_plan_equals_what_ray_packs(folder, tmp_path_factory):
    package = plan_package(folder, exclude=["/docs"])
    target = tmp_path_factory.mktemp("zip") / "package.zip"
    create_package(str(folder), target, include_gitignore=True, excludes=list(package.excludes))
    with zipfile.ZipFile(target) as packed:
        files = {info.filename for info in packed.infolist() if not info.is_dir()}
    assert files == set(package.sizes)
    assert "docs/data/table.csv" not in files
    assert 0 <= package.bytes - target.stat().st_size + 22 < 100 * len(files)


def test_included_files_are_uploaded(folder):
    assert "data/forget.jsonl" in plan_package(folder, include=["data"]).sizes
    with pytest.raises(ConfigError, match="--include dato has no effect"):
        plan_package(folder, include=["dato"])


def test_a_package_that_is_too_large_is_refused_and_its_largest_folder_named(folder):
    heavy = folder / "assets" / "films"
    heavy.mkdir(parents=True)
    for number in range(4):
        with (heavy / f"{number}.mov").open("wb") as stream:
            stream.truncate(LIMIT // 4 + 1)
    with (folder / "assets" / "small.bin2").open("wb") as stream:
        stream.truncate(1000)
    with pytest.raises(ClusterError) as refused:
        plan_package(folder)
    sentence = str(refused.value)
    assert "above Ray's limit of 100.0 MiB" in sentence
    assert "its largest part is assets/films (100.0 MiB)" in sentence
    assert plan_package(folder, exclude=["/assets/films"]).bytes < LIMIT


def test_one_large_file_is_named(folder):
    with (folder / "dump.sql").open("wb") as stream:
        stream.truncate(LIMIT + 1)
    with pytest.raises(ClusterError, match=r"largest part is dump\.sql"):
        plan_package(folder)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["search", "nowhere.yaml"], r"The config nowhere\.yaml does not exist here"),
        (["search", "runs/old.yaml"], r"The config runs/old\.yaml, which is not uploaded.*--include 'runs'"),
        (["search", "mine.yaml", "data.forget=data/forget.jsonl"], r"data\.forget names .*--include 'data'"),
        (["search", "mine.yaml", "model.path=weights"], r"model\.path names weights, which is not uploaded"),
        (["search", "mine.yaml", "data.forget=ignored.txt"], r"take it out of the \.gitignore"),
        (["search", "mine.yaml", "data.forget=forget.jsonl", "--run-dir", "/shared/run"], None),
        (["search", "mine.yaml", "data.forget=/shared/forget.jsonl", "model.path=my-org/my-model"], None),
        (["search", "/shared/mine.yaml"], None),
        (["search", "quickstart"], None),
        (["compare", "--benchmark", "nowhere.yaml"], r"The config nowhere\.yaml does not exist here"),
        (["compare", "--benchmark=mine.yaml", "data.forget=ignored.txt"], r"take it out of the \.gitignore"),
        (["compare", "--benchmark", "tofu", "--methods", "ofmu,npo"], None),
        (["search", "--preset", "tofu"], None),
        (["search", "seed=2"], None),
    ],
)
def test_files_that_would_be_missing_on_the_cluster_are_named(folder, command, problem):
    (folder / "runs" / "old.yaml").write_text("{}")
    package = plan_package(folder)
    if problem is None:
        check_missing_files(package, command)
        return
    with pytest.raises(ConfigError, match=problem):
        check_missing_files(package, command)
