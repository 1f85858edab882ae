"""Learning curves of real trials for ``bench_rungs.py --table``: random draws from a preset, scored after each round.

    python tests/bench/make_curves.py curves.jsonl --preset quickstart --trials 120     # half an hour on one core

After each round the evaluation leaves out generation, as a rung would; the last round is scored in full.
A file that is there is continued. The engine is plain torch in this process: ZeRO changes no value.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import optuna
import torch

from ofmu.config import UnlearnConfig
from ofmu.config_io import read_mapping, validate
from ofmu.engine import build_engine
from ofmu.errors import NonFiniteLossError
from ofmu.ledger import Ledger
from ofmu.methods import build_method
from ofmu.methods.base import Context
from ofmu.reference import Prepared, prepare
from ofmu.task import Task, load_task
from tune.config import SearchConfig
from tune.sampling import draw
from tune.space import run_config

ENGINE = {"backend": "torch", "device": "cpu", "threads": 1}


def curve(config: UnlearnConfig, prepared: Prepared, objectives: list[str]) -> list[dict[str, Any]]:
    """Run one trial; return, per round, cost so far in gradient evaluations and objectives, missing if it diverged."""
    cheap = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"rouge": False})})
    ledger, task, sketch = Ledger(), load_task(config, prepared), load_task(cheap, prepared)
    engine = build_engine(task.load_model(exact=config.method.exact), config.engine, ledger)
    rows: list[dict[str, Any]] = []

    def scored(judge: Task[Any]) -> dict[str, float | None]:
        values = judge.metrics(judge.score(engine), prepared.reference_scores).values
        engine.model.train()
        return {name: values.get(name) for name in objectives}

    try:
        for _ in build_method(Context(engine, task, config.seed), config.method).rounds():
            cost = ledger.gradient_evaluations
            rows.append({"round": len(rows) + 1, "cost": cost, "objectives": scored(sketch)})
        rows[-1]["objectives"] = scored(task)
    except NonFiniteLossError:
        cost = ledger.gradient_evaluations
        rows.append({"round": len(rows) + 1, "cost": cost, "objectives": dict.fromkeys(objectives)})
    finally:
        engine.close()
    return rows


def main() -> None:
    """Append the curves of the trials that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--trials", type=int, default=120)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    config = validate(SearchConfig, read_mapping(arguments.preset) | {"engine": ENGINE})
    prepared, names = prepare(config.unlearn), list(config.objectives)
    text = arguments.table.read_text(encoding="utf-8") if arguments.table.is_file() else ""
    done = {json.loads(line)["trial"] for line in text.splitlines()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(arguments.trials):
        overrides = draw(study.ask(), config)
        if number in done:
            continue
        rows = curve(run_config(config, overrides), prepared, names)
        with arguments.table.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"trial": number} | row) + "\n" for row in rows)
        print(f"trial {number}: {len(rows)} rounds, {rows[-1]}", flush=True)


if __name__ == "__main__":
    main()
