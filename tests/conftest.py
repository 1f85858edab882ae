from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import settings

from browser import BROWSER, Browser
from ofmu.run_config import UnlearnConfig

# A busy machine must not fail a property by its seconds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Ray gives its workers a low priority, and the tests beside them would take all of the cores. Ray reads this variable
# wherever a test starts Ray, in this process or in a command.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Parallel runs keep a file's tests together, since they share what it made, and start the slowest files first.

    All tests that start Ray or several ranks are one group, so that two groups of processes never share the cores:
    processes that wait for each other become many times slower then. This group takes longest, so it starts first.
    """
    starts: dict[str, int] = {}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        order = next(place for place, name in enumerate(_SLOWEST_FIRST) if not name or item.get_closest_marker(name))
        starts[_group(item)] = min(order, starts.get(_group(item), order))
    if config.getoption("loadgroup", False):
        items.sort(key=lambda item: starts[_group(item)])


_SLOWEST_FIRST = ("long", "cluster", "ranks", "slow", "")


def _group(item: pytest.Item) -> str:
    several = item.get_closest_marker("cluster") or item.get_closest_marker("ranks")
    return "processes" if several else item.nodeid.partition("::")[0]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Parallel runs whose groups are ignored, as pytest-xdist 3.8 does under pytest 9.2, start every cluster twice."""
    grouped = session.config.getoption("loadgroup", False)
    if grouped and session.items and not session.items[0].nodeid.endswith((".py", "@processes")):
        raise pytest.UsageError("pytest-xdist does not group tests under this pytest: install by constraints.txt")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless browser. Tests that need it are skipped where there is none."""
    if BROWSER is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with Browser() as opened:
        yield opened


TINY: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vocab_size": 384}},
    "data": {"source": "generated", "max_length": 96, "generated": {"authors": 6, "forget_authors": 2}},
    "training": {"epochs": 4, "batch_size": 16, "learning_rate": 5e-3},
    "method": {"outer_steps": 3, "inner_steps": 2, "batch_size": 4, "inner_lr": 0.05, "outer_lr": 1e-3},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 12, "batch_size": 64},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models run fastest, and identically everywhere, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_process_group_left() -> Iterator[None]:
    """A process group that a test leaves behind breaks the next test that makes one, in whatever file that stands."""
    yield
    assert not torch.distributed.is_initialized()


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables by which a launcher tells this process that it is the second rank of two. The first never comes."""
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {"OFMU_LAUNCHER": "a test", **place}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared models of tests never mix with the user's, and are shared by all tests of a session."""
    root = tmp_path_factory.mktemp("ofmu_cache")
    os.environ["OFMU_CACHE"] = str(root)
    yield root
    del os.environ["OFMU_CACHE"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark data beside the checkout; tests that need it are skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the benchmark data folder ../shared/data is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_mapping() -> dict[str, Any]:
    """A whole config that runs in seconds, as a mapping to be merged with a test's own settings."""
    return TINY


@pytest.fixture(scope="session")
def tiny_config() -> UnlearnConfig:
    """The same, validated."""
    return UnlearnConfig.model_validate(TINY)


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """A short-named folder for Ray's sockets, whose paths must stay under 107 bytes; ends what still runs in it."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    (folder / "ray").mkdir()
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_ADDRESS")}
    os.environ.update(RAY_TMPDIR=str(folder), RAY_AUTH_MODE="disabled")
    os.environ.pop("RAY_ADDRESS", None)
    yield folder
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    mine = [process for process in psutil.process_iter(["environ"]) if _lives_in(process, folder)]
    for process in mine:
        process.kill()
    psutil.wait_procs(mine, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def two_cpus(ray_folder: Path) -> Iterator[None]:
    """A local Ray cluster of two CPUs."""
    import ray  # takes seconds, and most tests need no cluster

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_cpus_with_dashboard(ray_folder: Path) -> Iterator[None]:
    """The same with a dashboard, which Ray Train's worker groups report to."""
    import ray

    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, dashboard_port=0)
    yield
    ray.shutdown()


def _lives_in(process: psutil.Process, folder: Path) -> bool:
    environment = process.info["environ"] or {}
    return process.pid != os.getpid() and environment.get("RAY_TMPDIR") == str(folder)
