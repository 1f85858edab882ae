"""A Ray cluster of several nodes on one machine, searches in their own processes on it, and ways to kill both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.cluster_utils import Cluster

from ofmu import UnlearnConfig, unlearn
from ofmu.errors import RunError
from ofmu.testing import run_script_on_ranks
from tune.study.storage import read_study

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DRIVER = HERE / "nodes_driver.py"
UNDISTURBED = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from ofmu import UnlearnConfig, unlearn
unlearn(UnlearnConfig.model_validate_json(sys.argv[1]), sys.argv[2])
"""
TRIALS = 6
"""Trials of ``slow_search``."""
COSTS = ("seconds", "peak_memory_bytes")


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 240, alive: Search | None = None) -> Any:
    """Poll until ``holds`` returns a true value. Return that value. Fail if the search ``alive`` ends before."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert alive is None or alive.process.poll() is None, f"the search ended by itself:\n{alive.output()}"
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}:\n{alive.output() if alive else ''}"
        time.sleep(0.02)
    return found


class Nodes:
    """A head without CPUs, and worker nodes of one CPU each, in the folder of the fixture ``ray_folder``.

    Use this class in the main thread, since ray.cluster_utils needs that. The fixture kills processes that remain.
    """

    def __init__(self, folder: Path, workers: int, *, dashboard: bool = False) -> None:
        self._folder = folder
        path = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in path if part)}
        os.environ["PYTHONPATH"] = self.environment["PYTHONPATH"]
        # Ray frees the resources of a killed worker group only through the dashboard's State API.
        head = {"num_cpus": 0, "include_dashboard": dashboard, "dashboard_port": 0}
        self._cluster = start_with_retries(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.workers: list[Any] = []
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        """The head's address."""
        return str(self._cluster.address)

    def add(self) -> Any:
        """Start one more worker node of one CPU."""
        node = start_with_retries(lambda: self._cluster.add_node(num_cpus=1))
        self.workers.append(node)
        return node

    def kill_raylet(self, node: Any) -> None:
        """SIGKILL a worker node's raylet. The processes on the node are not killed directly."""
        os.kill(raylet(node).pid, signal.SIGKILL)
        self.workers.remove(node)

    def kill_head(self) -> None:
        """SIGKILL all processes of the head, and the processes that its raylet started."""
        started = [process.process.pid for kind in self._cluster.head_node.all_processes.values() for process in kind]
        found = [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)]
        for process in [child for parent in found for child in parent.children(recursive=True)] + found:
            if process.is_running():
                process.kill()

    def drain(self, node: Any, seconds: int) -> None:
        """Announce that a node will be preempted in ``seconds``, as a cloud provider does."""
        command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", self.address]
        command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "test", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def actors(self, title: str, node: Any = None) -> list[int]:
        """Return the process ids of the actors whose title contains ``title``, on one node or on all nodes."""
        found = []
        within = None if node is None else {child.pid for child in raylet(node).children(recursive=True)}
        for process in psutil.process_iter(["cmdline", "environ"]):
            line = (process.info["cmdline"] or [""])[0]
            ours = (process.info["environ"] or {}).get("RAY_TMPDIR") == str(self._folder)
            if ours and line.startswith("ray::") and title in line and (within is None or process.pid in within):
                found.append(process.pid)
        return found

    def close(self) -> None:
        """Kill every node."""
        for node in [*self._cluster.worker_nodes, self._cluster.head_node]:
            if node is not None:
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self._cluster.worker_nodes.clear()
        self._cluster.head_node = None
        self._cluster.shutdown()


def start_with_retries(start_node: Callable[[], Any]) -> Any:
    """Start a node. Try again after a timeout, since Ray waits for a raylet only for half a minute."""
    for _ in range(3):
        before = set(psutil.Process().children())
        try:
            return start_node()
        except Exception as error:  # Ray raises plain Exception
            if "timed out" not in str(error):
                raise
            given_up = error
            for process in set(psutil.Process().children()) - before:
                process.kill()
    raise given_up


def raylet(node: Any) -> psutil.Process:
    """Return a node's raylet."""
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def has_ended(node: Any) -> bool:
    """Return whether a node's raylet has ended. A zombie process has ended too."""
    try:
        return bool(raylet(node).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Search:
    """A search in its own process."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    log: Path
    """One line per round that ran; see :mod:`slow_ofmu`."""
    output_file: Path
    """Standard output and standard error of the process."""

    def output(self) -> str:
        """Return the end of the output."""
        return self.output_file.read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """SIGKILL the driver."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = 400) -> None:
        """Wait until the search ends with exit status 0."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over after {seconds:g} s: {self.states()}\n{self.output()}") from None
        assert code == 0, self.output()

    def rounds(self) -> Counter[tuple[float, int]]:
        """Return how often each round of each trial ran. A trial is identified by its inner_lr."""
        return Counter((line["inner_lr"], line["round"]) for line in self._lines())

    def last_process(self) -> int:
        """Return the id of the process that ran the last round: a trial's process, or rank 0 of its worker group."""
        return int(self._lines()[-1]["pid"])

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.is_file() else []

    def repeated(self) -> int:
        """Return how many repetitions of rounds there were."""
        return sum(count - 1 for count in self.rounds().values())

    def tries_again(self) -> int:
        """Return how often the search printed that a trial is tried again."""
        return self.output_file.read_text(errors="replace").count(" is tried again: ")

    def states(self) -> dict[str, int]:
        """Return how many trials of the study are in each state. The study is only read."""
        path = self.run_dir / "study.log"
        if not path.is_file():
            return {}
        try:
            return dict(Counter(trial.state.name for trial in read_study(path).get_trials(deepcopy=False)))
        except RunError:
            return {}

    def complete(self) -> int:
        """Return how many trials are complete."""
        return self.states().get("COMPLETE", 0)

    def at_work(self, rounds: int = 1) -> list[Path]:
        """Return the directories of unfinished trials that have recorded at least ``rounds`` rounds."""
        found = []
        for history in sorted(self.run_dir.glob("trials/*/history.jsonl")):
            lines = history.read_text().count("\n")
            if lines >= rounds and not (history.parent / "metrics.json").exists():
                found.append(history.parent)
        return found


def start(
    nodes: Nodes,
    run_dir: Path,
    settings: Mapping[str, Any] | None,
    *,
    beside: Path | None = None,
) -> Search:
    """Start a search on the cluster. With ``settings`` None, resume it.

    The files of this helper are beside the path ``beside``, or else beside the run directory.
    """
    base = beside or run_dir
    log, output = base.with_suffix(".rounds"), base.with_suffix(".txt")
    arguments = ["--resume", f"cluster.address={nodes.address}"]
    if settings is not None:
        whole = {**settings, "cluster": {**settings.get("cluster", {}), "address": nodes.address}}
        whole["method"] = {**settings["method"], "log": str(log)}
        path = base.with_suffix(".json")
        path.write_text(json.dumps(whole))
        arguments = [str(path)]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(run_dir), *arguments],
            env=nodes.environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    return Search(process, run_dir, log, output)


@dataclass(frozen=True)
class Trial:
    """The results of a trial, without the values that depend on the clock and the machine."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> Trial:
        """Read a trial's directory."""
        metrics = json.loads((directory / "metrics.json").read_text())["metrics"]
        history = directory / "history.jsonl"  # a baseline without a step has no history
        rows = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
        return cls(
            {name: value for name, value in metrics.items() if name not in COSTS},
            [{name: value for name, value in row.items() if name not in COSTS} for row in rows],
        )


@cache
def undisturbed(config: str, ranks: int) -> Trial:
    """Return the results of a run of this config (JSON) without Ray and without a search."""
    with tempfile.TemporaryDirectory() as folder:
        if ranks == 1:
            unlearn(UnlearnConfig.model_validate_json(config), Path(folder) / "run")
        else:
            script = Path(folder) / "run.py"
            script.write_text(UNDISTURBED)
            run_script_on_ranks(script, ranks, config, f"{folder}/run")
        return Trial.read(Path(folder) / "run")


def assert_nothing_lost(search: Search, count: int, repeats: int, ranks: int = 1) -> None:
    """Check a search from which processes were killed: every trial is complete once, with undisturbed results.

    Rounds, gradient evaluations and metrics equal bit for bit those of a run of the same config on as many ranks
    without Ray. At most ``repeats`` rounds ran twice. The output has no messages of raylets about dead processes.
    """
    assert "(raylet)" not in search.output_file.read_text(errors="replace"), search.output()
    assert search.states() == {"COMPLETE": count}, search.output()
    summary = json.loads((search.run_dir / "search.json").read_text())
    assert (summary["complete"], summary["failed"]) == (count, 0)
    directories = sorted(search.run_dir.glob("trials/*"))
    assert [path.name for path in directories] == [f"{number:05d}" for number in range(count)]
    assert not list(search.run_dir.glob("trials/*/checkpoints"))
    assert search.repeated() <= repeats, search.rounds()
    for path in directories:
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["method"] |= {"pause": 0.0, "log": os.devnull}
        assert Trial.read(path) == undisturbed(json.dumps(config), ranks), path.name


def kill_all(searches: Sequence[Search]) -> None:
    """Kill the drivers that still run."""
    for search in searches:
        if search.process.poll() is None:
            search.kill()
