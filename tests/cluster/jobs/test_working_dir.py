"""The files of the working directory that a job takes along."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.jobs.working_dir import LIMIT, check_missing_files, plan_package
from ofmu.cli.main import main
from ofmu.errors import ClusterError, ConfigError

ROOT = Path(__file__).resolve().parents[3]
KEPT = [
    "mine.yaml", "ds_config.json", "src/ours.py", "ofmu/data/rows.py", "docs/data/notes.md", "src/id_columns.py",
    "src/credentials.py", "Secrets.py", "secret.py", "src/passwords.py", "client_secret_reader.py",
]  # fmt: skip
SECRETS = [
    ".env.production", "conf/.ENV", "deploy.env", ".netrc", ".git-credentials", ".ssh/config", "keys/id_ed25519",
    "keys/id_rsa.pub", "server.key", "server.PEM", "client.p12", "client.pfx", "store.jks", ".aws/credentials",
    ".ray/auth_token", "auth_token", ".huggingface/token", ".kube/config", ".docker/config.json", ".npmrc", ".pypirc",
    ".pgpass", "terraform.tfstate", "terraform.tfstate.backup", "prod.tfvars", "secrets.yaml", "conf/Secrets.JSON",
    "secrets/a.txt", "credentials", "my-credentials.json", "client_secret_1.json", "service-account-prod.json",
    ".config/gcloud/application_default_credentials.json", ".config/gh/hosts.yml", ".envrc", ".gnupg/x", "kaggle.json",
    ".bash_history", "vault.kdbx", ".vault-token", ".databrickscfg", "key.asc", ".config/rclone/rclone.conf",
]  # fmt: skip
LEFT = [
    *SECRETS,
    "forget.jsonl",
    "src/rows.csv",
    "src/rows.parquet",
    "docs/data/table.csv",
    "notes.sqlite",
    "src/rows.tar.gz",
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
    assert "docs/data/notes.md" not in files
    assert 0 <= package.bytes - target.stat().st_size + 22 < 100 * len(files)


def test_data_that_the_config_names_is_uploaded_and_no_other_data(folder):
    (folder / "mine.yaml").write_text("data: {source: files, forget: forget.jsonl, retain: src/rows.csv}\n")
    command = ["search", "mine.yaml", "data.holdout=docs/data"]
    package = plan_package(folder, command)
    assert set(package.sizes) == {*KEPT, ".gitignore", "forget.jsonl", "src/rows.csv", "docs/data/table.csv"}
    check_missing_files(package, command)
    assert set(plan_package(folder, include=["*.csv"]).sizes) == {
        *KEPT, ".gitignore", "src/rows.csv", "docs/data/table.csv"
    }  # fmt: skip


def test_a_secret_is_not_uploaded_because_a_config_names_it(folder):
    command = ["search", "mine.yaml", "data.forget=secrets.yaml"]
    package = plan_package(folder, command)
    assert "secrets.yaml" not in package.sizes
    with pytest.raises(ConfigError, match=r"data\.forget names secrets\.yaml, which is not uploaded"):
        check_missing_files(package, command)


def test_every_module_of_this_repository_is_uploaded():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    modules = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    assert "cluster/storage/credentials.py" in modules
    assert modules - set(plan_package(ROOT).sizes) == set()


def test_links_that_lead_out_are_not_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "mine.txt").write_text("mine")
    (folder / "file.txt").symlink_to(outside / "mine.txt")
    (folder / "src" / "folder").symlink_to(outside)
    (folder / "src" / "relative.txt").symlink_to(Path("..", "..", outside.name, "mine.txt"))
    (folder / "gone.txt").symlink_to(outside / "gone.txt")
    (folder / "chain.txt").symlink_to("file.txt")
    (folder / "up").symlink_to("..")
    (folder / "src" / "circle").symlink_to("..")
    (folder / "passwords").symlink_to(".env")
    (folder / "hidden.txt").symlink_to("ignored.txt")
    (folder / "old").symlink_to("runs")
    (folder / "again.yaml").symlink_to("mine.yaml")
    (folder / "code").symlink_to("ofmu")
    os.mkfifo(folder / "pipe")
    package = plan_package(folder)
    assert set(package.sizes) == {*KEPT, ".gitignore", "again.yaml", "code/data/rows.py"}
    test_the_plan_equals_what_ray_packs(folder, tmp_path_factory)


def test_a_dry_run_lists_what_would_be_uploaded_and_sends_nothing(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert main(["submit", "--dry-run", "--", "search", "quickstart", "--run-dir", "/shared/run"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    stays = [line for line in lines if "stays here" in line]
    total, files = lines[-len(stays) - 1], lines[: -len(stays) - 1]
    for name, pattern in (("server.PEM", "*.pem"), (".ssh/", ".ssh"), ("secrets/", "secrets"), ("deploy.env", "*.env")):
        assert f"{name} stays here, since its name is that of a secret: --include '{pattern}' uploads it\n" in output
    assert {line.split(maxsplit=1)[1] for line in files} == {*KEPT, ".gitignore"}
    assert total.startswith(f"{folder} would be uploaded ({len(files)} files, ")


def test_included_files_are_uploaded(folder):
    assert "data/forget.jsonl" in plan_package(folder, include=["data"]).sizes
    with pytest.raises(ConfigError, match="--include dato has no effect"):
        plan_package(folder, include=["dato"])
    with pytest.raises(ConfigError, match=r"leaves server\.PEM out is --include '\*\.pem'$"):
        plan_package(folder, include=["server.PEM"])
    with pytest.raises(ConfigError, match=r"leaves runs/search-1/trials\.csv out is --include 'runs'$"):
        plan_package(folder, include=["runs/search-1/trials.csv"])
    with pytest.raises(ConfigError, match=r"remove it from that \.gitignore$"):
        plan_package(folder, include=["ignored.txt"])
    with pytest.raises(
        ConfigError, match=r"--include zzzzzz has no effect: valid names are .* and \d+ others$"
    ) as caught:
        plan_package(folder, include=["zzzzzz"])
    assert len(str(caught.value)) < 250


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
        (
            ["search", "mine.yaml", "model.path=weights"],
            r"model\.path names weights, whose file weights/\S+ is not uploaded.*--include '\*\.safetensors'",
        ),
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
    package = plan_package(folder, command)
    if problem is None:
        check_missing_files(package, command)
        return
    with pytest.raises(ConfigError, match=problem):
        check_missing_files(package, command)
