"""A search of a method of one's own, by an objective of one's own; both stand in examples/own_module.py.

Workers find that module because it lies beside this file, or in the working directory, which `ray job submit` and
`ofmu submit` upload. Run it from the checkout; it trains a toy model on two CPU cores, in a new folder under runs/:

    python examples/own_method.py

The same on the command line, where the module lies:

    ofmu search method.name=fadingascent method.module=own_module
"""

from __future__ import annotations

from typing import Any

from tune import ParetoSearch

CONFIG: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}},
    "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}, "max_length": 64},
    "training": {"epochs": 2},
    "method": {"name": "fadingascent", "module": "own_module", "batch_size": 2, "steps": 5},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 4},
    "search": {
        "space": {
            "method.half_life": {"low": 2.0, "high": 50.0, "log": True},
            "method.lr": {"low": 0.0001, "high": 0.01, "log": True},
        },
        "objectives": {"own_module:best_remembered": "min", "model_utility": "max"},
        "num_trials": 4,
    },
}


def main() -> None:
    """Search, and show the front."""
    result = ParetoSearch(CONFIG).run()
    for line in result.trials["reason"].dropna():
        print(f"a trial failed: {line}")
    print(result.front[["trial", *result.config.objectives]].to_string(index=False))
    print(f"hypervolume {result.hypervolume:.3f}; everything is in {result.run_dir}")


if __name__ == "__main__":
    main()
