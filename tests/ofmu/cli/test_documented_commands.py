"""Every command in README, docs, examples, presets and manifests runs on the real command line, up to the first work.

The first work is reading the data, asking a cluster, or loading a model. Until then the command line is parsed, the
config is composed and validated, and the run directory is opened.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofmu.cli.main import COMMANDS, main
from ofmu.run_config import override
from tune import AskTell
from tune.compare.comparison import Comparison
from tune.compare.config import CompareConfig

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "cluster" / "deploy").rglob("*.md")),
    *sorted((ROOT / "cluster" / "deploy").rglob("*.yaml")),
    *sorted((ROOT / "examples").iterdir()),
    *sorted((ROOT / "ofmu" / "presets").glob("*.yaml")),
]
COMMAND = re.compile(rf"(?:^|[\s`])ofmu (?={'|'.join(COMMANDS)})(?P<rest>[^`\n]*)")


def commands() -> Iterator[tuple[str, str]]:
    """Yield page and words of each command. A bare name, such as ``ofmu report`` in a sentence, is no command."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in COMMAND.finditer(text):
            words = re.split(r"\s+#|;", found["rest"])[0].split()
            if len(words) > 1 or words in (["search"], ["jobs"], ["runs"]):
                yield page.relative_to(ROOT).as_posix(), " ".join(words)


DOCUMENTED = sorted(set(commands()))


class ReachedWorkError(Exception):
    pass


def reach(*arguments: Any, **options: Any) -> None:
    raise ReachedWorkError


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the pages name: mine.yaml of README.md, a search and a comparison."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copy(ROOT / "examples" / "own_module.py", folder)
    shutil.copytree(ROOT / "examples", folder / "examples")
    block = next(block for block in yaml_blocks(ROOT / "README.md") if "# mine.yaml" in block)
    for place in ("mine.yaml", "search.yaml"):
        (folder / place).write_text(block)
    with AskTell({}, {"ks_statistic": "min", "model_utility": "max"}, 1, folder / "runs" / "search-<time>") as search:
        trial = search.ask()
        assert trial is not None
        (trial.directory / "model").mkdir(parents=True)
        (trial.directory / "model" / "weights").touch()
        search.tell(trial, {"ks_statistic": 0.9, "model_utility": 0.9})
    for name in ("search", "mine"):
        shutil.copytree(folder / "runs" / "search-<time>", folder / "runs" / name)
    comparison = Comparison({"compare": {"methods": ["ofmu", "npo"]}}, run_dir=folder / "runs" / "compare-<time>")
    comparison._home.mkdir()
    comparison._home.write_mapping(comparison.mapping, replace_environment=True)
    return folder


def yaml_blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_pages_hold_commands_of_every_kind() -> None:
    assert len(DOCUMENTED) > 35
    assert {"prepare", "unlearn", "evaluate", "search", "compare", "report", "export", "doctor", "submit"} <= {
        words.split()[0] for _, words in DOCUMENTED
    }


@pytest.mark.parametrize(("page", "words"), DOCUMENTED, ids=lambda value: value)
def test_a_documented_command_is_accepted(
    page: str, words: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    for place in (
        "tune.search.check_inputs",
        "tune.compare.comparison.check_inputs",
        "ofmu.preflight.check_inputs",
        "ofmu.evaluator.evaluate",
        "ofmu.chain.run.open_run",
        "ofmu.plan.plan.make_plan",
        "ofmu.reports.server.PageServer.serve",
        "tune.erasure.forget.forget",
        "ofmu.erasure.verify.verify_evidence",
        "tune.rundir.locked.LockedDirectory.check_content",
        "cluster.jobs.server.JobServer.__init__",
        "cluster.doctor.doctor.examine_job_server",
        "ofmu.models.hub_upload.upload_model",
    ):
        monkeypatch.setattr(place, reach)
    arguments = [place_of(word, tmp_path) for word in shlex.split(words)]
    if "--run-dir" in arguments:
        shutil.rmtree(arguments[arguments.index("--run-dir") + 1], ignore_errors=True)
    for part in [arguments, arguments[arguments.index("--") + 1 :]] if "--" in arguments else [arguments]:
        try:
            assert main(part) == 0
        except ReachedWorkError:
            continue


def place_of(word: str, folder: Path) -> str:
    """Return a word with the names of the pages in place: /shared, CONFIG and variables of the shell."""
    word = word.replace("/shared", str(folder)).replace("runs/runs", "runs")
    return {"CONFIG": "mine.yaml", "$RAY_API_SERVER_ADDRESS": "http://HEAD:8265"}.get(word, word)


def test_a_command_that_does_not_exist_would_be_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ("search nothing.yaml", "search methd.name=npo", "report runs/none", "evaluate m --outptu x"):
        assert main(shlex.split(words)) != 0


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_a_documented_config_is_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    for block in yaml_blocks(page):
        mapping = yaml.safe_load(block)
        if isinstance(mapping, dict) and set(mapping) <= set(CompareConfig.model_fields):
            CompareConfig.model_validate(override(mapping, []))
