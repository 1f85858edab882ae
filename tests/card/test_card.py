"""The code for GPUs on cards that are not there: where tensors are, groups of ranks, memory that ends, Ray's GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TINY = {
    "model": {"scratch": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vocab_size": 384}},
    "data": {"generated": {"authors": 6, "forget_authors": 2, "world_facts": 4}},
    "training": {"epochs": 8, "learning_rate": 0.005},
    "method": {"outer_steps": 2, "inner_steps": 1, "batch_size": 4},
    "engine": {"device": "cuda", "zero_stage": 2},
    "search": {"num_trials": 2, "baselines": ["target"]},
}

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def building() -> Iterator[Any]:
    sys.path.insert(0, str(HERE))
    import building

    yield building
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module", autouse=True)
def _compiled(building: Any) -> None:
    if building.compiler() is None:
        pytest.skip("the stand-in card needs a C++ compiler")
    building.library()


@pytest.fixture
def on_cards(building: Any, tmp_path: Path) -> Any:
    """Run a Python command with cards. Return it when it has ended."""

    def run(
        *words: str, cards: int = 1, total_bytes: int = 2**34, fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *words],
            env={**building.environment(cards, total_bytes), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, timeout=580,
        )  # fmt: skip
        assert bool(done.returncode) == fails, done.stdout[-2000:] + done.stderr[-6000:]
        return done

    return run


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Write a config with changed sections. Return its path."""

    def write(**sections: Mapping[str, Any]) -> str:
        path = tmp_path / "config.yaml"
        changed = {name: TINY.get(name, {}) | dict(section) for name, section in sections.items()}
        path.write_text(json.dumps(TINY | {"cache_dir": str(tmp_path / "cache")} | changed))
        return str(path)

    return write


def ranks(count: int, *words: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "-m", "ofmu", *words]


def peaks(run: Path) -> list[int]:
    cost = json.loads((run / "metrics.json").read_text())["cost"]
    return [rank["device"] for rank in cost["peak_memory_bytes"]]


SEPARATE = """
import torch

model = torch.nn.Linear(3, 2).to("cuda")
for name, attempt in {
    "sum": lambda: torch.ones(3, device="cuda") + torch.ones(3),
    "model": lambda: model(torch.ones(1, 3)),
    "generator": lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
    "numpy": lambda: torch.ones(1, device="cuda").numpy(),
}.items():
    try:
        attempt()
    except (RuntimeError, TypeError):
        print(name, "refused")
loss = model(torch.ones(1, 3, device="cuda")).square().sum()
loss.backward()
print(model.weight.grad.device, (torch.ones(2, device="cuda") * torch.tensor(2.0)).tolist())
"""


def test_the_stand_in_refuses_what_a_card_refuses(on_cards: Any) -> None:
    assert on_cards("-c", SEPARATE).stdout.splitlines() == [
        "sum refused", "model refused", "generator refused", "numpy refused", "cuda:0 [2.0, 2.0]"
    ]  # fmt: skip


def test_every_part_of_the_gpu_benchmark_runs(on_cards: Any, tmp_path: Path) -> None:
    result = tmp_path / "gpu.json"
    on_cards(str(ROOT / "tests" / "bench" / "gpu"), "--size", "tiny", "--patience", "4", "--output", str(result))
    parts = json.loads(result.read_text())["parts"]
    rows = [row for part in parts for row in part["rows"]]
    assert [part["status"] for part in parts] == ["done"] * len(parts)
    assert [row for row in rows if "failed" in row] == []
    parity = next(part for part in parts if part["name"] == "parity")
    assert all(goal["met"] for row in parity["rows"] for goal in row["goals"].values())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_on_cards_prepare_and_unlearn(on_cards: Any, config: Any, tmp_path: Path, stage: int) -> None:
    path = config(engine={"zero_stage": stage}, evaluation={"attacks": ["relearning", "quantization_8"]})
    on_cards(*ranks(2, "unlearn", path, "--output", str(tmp_path / "run")), cards=2)
    assert min(peaks(tmp_path / "run")) > 0


def test_ranks_on_the_cpu_work_beside_cards(on_cards: Any, config: Any, tmp_path: Path) -> None:
    path = config(engine={"device": "cpu"})
    on_cards(*ranks(2, "unlearn", path, "--output", str(tmp_path / "run")), cards=2)
    assert set(peaks(tmp_path / "run")) == {0}


def test_two_ranks_on_one_card_are_refused(on_cards: Any, config: Any) -> None:
    done = on_cards(*ranks(2, "prepare", config()), cards=1, fails=True)
    assert "Error: Ranks 0 and 1 have the same GPU" in done.stderr


def test_a_card_that_runs_out_of_memory_is_one_sentence(on_cards: Any, config: Any, tmp_path: Path) -> None:
    path = config(engine={"check_memory": False})
    words = ["-m", "ofmu", "unlearn", path, "--output", str(tmp_path / "run")]
    done = on_cards(*words, total_bytes=2**20, fails=True)
    assert done.stderr.splitlines()[-1].startswith("Error: The GPU ran out of memory (no room for")
    assert "Traceback" not in done.stderr


METHODS = [
    "ofmu", "gradascent", "graddiff", "klmin", "npo", "simnpo", "dpo", "altpo", "idk", "rmu", "undial", "wga", "satimp",
    "ceu", "pdu", "blur", "hamu", "finetune", "l1sparse", "influence", "repselect",
]  # fmt: skip
ALL_METHODS = """
import sys
from ofmu import UnlearnConfig, unlearn

path, output, *names = sys.argv[1:]
for name in names:
    steps = {"ofmu": ["method.outer_steps=1"], "influence": [], "repselect": []}.get(name, ["method.steps=1"])
    config = UnlearnConfig.read(path, [f"method.name={name}", *steps])
    unlearn(config, f"{output}/{name}")
"""


@pytest.mark.parametrize("engine", [{"backend": "torch"}, {"backend": "torch", "precision": "bf16"}])
def test_every_method_runs_on_a_card(on_cards: Any, config: Any, tmp_path: Path, engine: dict[str, Any]) -> None:
    # Finite differences vanish in bf16.
    method = {"derivative": "exact"} if "precision" in engine else {}
    path = config(engine=engine)
    mapping = json.loads(Path(path).read_text())
    mapping["method"] = {"batch_size": 4}
    Path(path).write_text(json.dumps(mapping))
    names = [name for name in METHODS if not method or name != "ofmu"]
    on_cards("-c", ALL_METHODS, path, str(tmp_path), *names)
    assert all(peaks(tmp_path / name)[0] > 0 for name in names)


RAY = """
import sys
import ray
from tune import ParetoSearch, SearchConfig

if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=True, log_to_driver=False)
    config = SearchConfig.read(sys.argv[1], sys.argv[3:])
    found = ParetoSearch(config, {"extraction_strength": "min", "model_utility": "max"}, run_dir=sys.argv[2]).run()
    print("complete", sum(found.trials["state"] == "complete"))
"""


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [0, 2])
def test_a_search_gives_each_rank_a_card(
    on_cards: Any, config: Any, tmp_path: Path, workers: int, ray_folder: Path
) -> None:
    on_cards("-c", RAY, config(), str(tmp_path / "search"), f"cluster.num_workers={workers}", cards=2)
    runs = sorted((tmp_path / "search" / "trials").glob("*/metrics.json"))
    assert runs
    assert all(min(peaks(run.parent)) > 0 for run in runs)
