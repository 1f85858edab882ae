"""A search in a loop of your own: ask for a trial, run it your way, tell how it ended. No Ray is started.

Run it from the checkout; it trains a toy model on two CPU cores, in a new folder under runs/:

    python examples/ask_tell.py

Where the loop is killed, the same command with the folder's name goes on:

    python examples/ask_tell.py runs/search-20260131-101500
"""

from __future__ import annotations

import sys
from typing import Any

import ofmu
from tune import AskTell

CONFIG: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}},
    "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}, "max_length": 64},
    "training": {"epochs": 2},
    "method": {"batch_size": 2},
    "engine": {"backend": "torch", "device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 4},
    "search": {
        "num_trials": 4,
        "space": {"method.outer_steps": {"low": 1, "high": 4}},
        # So small a model answers nothing right, so model utility would be 0 in every trial.
        "objectives": {"forget_probability": "min", "retain_probability": "max"},
    },
}


def main(run_dir: str | None = None) -> None:
    """Run the trials one after the other, in this process."""
    with AskTell.resume(run_dir) if run_dir else AskTell(CONFIG) as search:
        print(f"searching in {search.run_dir}")
        while (trial := search.ask()) is not None:
            try:
                # or send trial.config and trial.directory to a scheduler of your own
                metrics = ofmu.unlearn(trial.config, trial.directory).metrics
            except ofmu.OfmuError as error:
                ended = search.fail(trial, str(error))
            else:
                ended = search.tell(trial, metrics)
            print(f"trial {ended.number} is {ended.state}: {ended.objectives or ended.reason}")
        result = search.result()
    print(result.front[["trial", *result.config.objectives]].to_string(index=False))
    print(f"hypervolume {result.hypervolume:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
