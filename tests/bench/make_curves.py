"""Learning curves of real trials for ``bench_rungs.py --table``: random draws from a preset, scored after each round.

    python tests/bench/make_curves.py curves.jsonl --trials 240                  # half an hour on one core
    python tests/bench/make_curves.py even.jsonl --trials 240 --every-second 0   # on two cores, beside odd.jsonl and 1
    python tests/bench/make_curves.py even.jsonl odd.jsonl --tables tests/bench/quickstart

The last command writes ``quickstart_curves.csv`` and ``quickstart_settings.csv``, numbers rounded to six digits.

After the rounds that reach one of LOOKS, fractions of a trial's own rounds, the evaluation leaves out generation, as
a rung would; the last round is scored in full. Between them only the cost is noted, so that a bench on the table may
have its rungs nowhere else. A file that is there is continued. The engine is plain torch in this process: ZeRO changes
no value.

Besides the objectives, each line holds all metrics on all rows (``metrics``), the same on the rows that a rung looks
at (``approximate``), what the round tells of itself (``record``), and the trial's settings.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import torch

from ofmu.config.files import read_mapping
from ofmu.engine.build import build_engine
from ofmu.engine.cost import CostTracker
from ofmu.errors import NonFiniteLossError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.sets import FORGET
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.load import task_family
from ofmu.tasks.preparation import Prepared
from tune.config import search_config
from tune.early_stopping.config import EarlyStoppingConfig
from tune.space.draw import draw
from tune.space.space import run_config

LOOKS = tuple(step / 32 for step in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32))
ROWS = EarlyStoppingConfig().rows
ENGINE = {"backend": "torch", "device": "cpu", "threads": 1}


def curve(config: UnlearnConfig, prepared: Prepared, objectives: list[str]) -> list[dict[str, Any]]:
    """Run one trial; return, per round, cost so far in gradient evaluations and objectives, missing if it diverged."""
    cheap = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"rouge": False})})
    family, tracker = task_family(config.data.kind), CostTracker()
    task, quick = family.load_task(config, prepared.target), family.load_task(cheap, prepared.target)
    engine = build_engine(task.load_model(double_backward=config.method.needs_double_backward), config.engine, tracker)
    rows: list[dict[str, Any]] = []
    reference = prepared.reference_scores
    if reference is None:
        raise SystemExit("the preset must have a reference")

    def look(record: Any, total: int) -> dict[str, Any]:
        line = {"round": len(rows) + 1, "cost": tracker.gradient_evaluations, "record": asdict(record)}
        if line["round"] not in {math.ceil(level * total) for level in LOOKS}:
            return line | {"objectives": dict.fromkeys(objectives)}
        scores = quick.score(engine)
        engine.model.train()
        values = quick.metrics(scores, prepared.reference_scores).values
        return line | {
            "objectives": {name: values.get(name) for name in objectives},
            "approximate": approximate_scores(scores, reference),
            "metrics": values,
        }

    try:
        method = build_method(Context(engine, task, config.seed), config.method)
        for record in method.rounds():
            rows.append(look(record, method.total_rounds or 0))
        values = task.metrics(task.score(engine), prepared.reference_scores).values
        rows[-1]["objectives"] = {name: values.get(name) for name in objectives}
    except NonFiniteLossError:
        cost = tracker.gradient_evaluations
        rows.append({"round": len(rows) + 1, "cost": cost, "objectives": dict.fromkeys(objectives)})
    finally:
        engine.close()
    return rows


def approximate_scores(scores: Scores, reference: Path) -> dict[str, float | None]:
    """Return the metrics of the rows that early stopping scores at a rung."""
    sets = {name: tuple(sorted(rows, key=lambda row: row.row_hash or "")[:ROWS]) for name, rows in scores.sets.items()}
    expected = Scores.load(reference)
    kept = {FORGET: tuple(sorted(expected.sets[FORGET], key=lambda row: row.row_hash or "")[:ROWS])}
    few, other = replace(scores, sets=sets, choices={}), replace(expected, sets=kept, choices={})
    return metrics_of(few, other).values


def write_tables(tables: list[Path], place: Path) -> None:
    """Write the curves, and the settings with the final objectives, as two CSV files."""
    lines = [json.loads(line) for table in tables for line in table.read_text(encoding="utf-8").splitlines()]
    lines.sort(key=lambda line: (line["trial"], line["round"]))
    ends = list({line["trial"]: line for line in lines}.values())
    objectives = list(ends[0]["objectives"])
    settings = list(dict.fromkeys(name for line in ends for name in line["settings"]))

    def write(name: str, header: list[str], rows: list[list[Any]]) -> None:
        with place.with_name(f"{place.name}_{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([header, *([_cell(value) for value in row] for row in rows)])

    header = ["trial", "round", "cost", *objectives]
    write("curves", header, [[line[name] for name in header[:3]] + list(line["objectives"].values()) for line in lines])
    write(
        "settings",
        ["trial", *settings, "cost", *objectives],
        [
            [line["trial"], *map(line["settings"].get, settings), line["cost"], *line["objectives"].values()]
            for line in ends
        ],
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Append the curves of the trials that the file lacks, or write tables of the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0, help="of the data, the model and the draws")
    parser.add_argument("--every-second", type=int, choices=[0, 1], help="run the even or the odd trials only")
    parser.add_argument("--tables", type=Path, help="start of the names of the tables")
    arguments = parser.parse_args()
    if arguments.tables is not None:
        write_tables(arguments.files, arguments.tables)
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    config = search_config({**read_mapping(arguments.preset), "engine": ENGINE, "seed": arguments.seed})
    prepared, names, (table, *_) = prepare(config.unlearn), list(config.objectives), arguments.files
    text = table.read_text(encoding="utf-8") if table.is_file() else ""
    done = {json.loads(line)["trial"] for line in text.splitlines()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=arguments.seed))
    for number in range(arguments.trials):
        overrides = draw(study.ask(), config.search.space, config.unlearn)
        if number in done or arguments.every_second not in (None, number % 2):
            continue
        rows = curve(run_config(config.unlearn, overrides), prepared, names)
        with table.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"trial": number, "settings": overrides} | row) + "\n" for row in rows)
        print(f"trial {number}: {len(rows)} rounds, {rows[-1]['cost']}, {rows[-1]['objectives']}", flush=True)


if __name__ == "__main__":
    main()
