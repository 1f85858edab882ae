"""A Pareto search from Python: told of every trial, and the knee's model taken out at its end.

Run it from the checkout; it trains a toy model on two CPU cores, in a new folder under runs/:

    python examples/pareto_search.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tune import FinishedTrial, ParetoSearch

CONFIG: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}},
    "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}, "max_length": 64},
    "training": {"epochs": 2},
    "method": {"batch_size": 2},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 4},
    "search": {
        "space": {
            "method.outer_steps": {"low": 1, "high": 4},
            "method.inner_lr": {"low": 0.01, "high": 0.1, "log": True},
        },
    },
}
"""Any preset's sections, as small as they get; tune.SearchConfig.read("quickstart") is one for real."""


def print_trial(trial: FinishedTrial) -> None:
    """Say how one trial ended."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in trial.objectives.items())
    print(f"trial {trial.number} ({trial.role}) is {trial.state}: {scores or trial.reason}")


def main() -> None:
    """Search, and take the knee's model."""
    search = ParetoSearch(
        CONFIG,
        objectives={"ks_statistic": "min", "model_utility": "max"},
        num_trials=4,
        callbacks=[print_trial],
    )
    result = search.run()
    print(result.front[["trial", *result.config.objectives]].to_string(index=False))
    model = result.knee.export(Path(result.run_dir) / "knee")
    print(f"hypervolume {result.hypervolume:.3f}; trial {result.knee.number}, the knee, is in {model}")


if __name__ == "__main__":
    main()
