"""Directories of finished runs and evaluations: real scores files and metrics, made-up rows, and no training."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores
from ofmu.io.cache import Cache, cache_root
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.reports.server import PageServer
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles

SCRIPT = "</script><script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">"
"""A text that changes the page's title if any place of a page inserts it unescaped."""


def row(name: str, number: int, nll: float, generated: str, question: str | None = None) -> RowScores:
    truth = f"It is the {name} number{number}."
    return RowScores(
        question=question or f"What is {name} {number}?",
        ground_truth=truth,
        row_hash=f"{name}{number:03d}",
        answer=AnswerLoss(nll, 4),
        paraphrased=AnswerLoss(nll + 0.5, 4),
        perturbed=(AnswerLoss(3.0 + 0.1 * number, 4), AnswerLoss(3.5, 4)),
        generated=generated,
        rouge=0.5,
        extraction_strength=0.25,
        exact_memorization=0.5,
    )


def scores(model: str, forget_loss: float, *, answers: str = "{truth}", question: str | None = None) -> Scores:
    """Return scores of a model on 8 forget rows and 6 rows of each other set."""
    sets = {}
    for name, count in (("forget", 8), ("retain", 6), ("real_authors", 6), ("world_facts", 6)):
        loss = forget_loss if name == "forget" else 0.4
        rows = []
        for number in range(count):
            generated = answers.format(truth=f"It is the {name} number{number}.")
            rows.append(row(name, number, loss + 0.05 * number, generated, question if not number else None))
        sets[name] = tuple(rows)
    return Scores(model=model, truth_ratio="geometric", sets=sets, data_hash="rows")


HISTORY: list[dict[str, Any]] = [
    {
        "outer_step": step,
        "forget_loss": 0.5 * step,
        "retain_loss": 0.4,
        "similarity": 0.1 if step % 2 else None,
        "phi_norm": 1.0 / step,
        "outer_derivative_error": 1e-3 if step == 1 else None,
    }
    for step in range(1, 5)
]


def write_run(
    directory: Path,
    *,
    question: str | None = None,
    answers: str = "It is something else.",
    baselines: bool = True,
    history: list[dict[str, Any]] | None = None,
    more_metrics: Mapping[str, float] | None = None,
    method: Mapping[str, Any] | None = None,
) -> Path:
    """Write the directory of a finished run, and the scores of its baselines into a cache beside it."""
    config = UnlearnConfig.model_validate({"cache_dir": str(directory.parent / "cache"), "method": method})
    files = RunFiles(directory)
    retrained = scores("retrained", 2.5, answers="It may be 7.", question=question)
    model = scores("model", 2.4, answers=answers, question=question)
    keys = {}
    if baselines:
        cache = Cache(cache_root(config.cache_dir))
        target = scores("target", 0.2, question=question)
        for part, each in (("target_scores", target), ("reference_scores", retrained)):
            keys[part] = part
            each.save(cache.scores_file(part))
    measured = metrics_of(model, retrained).to_json()
    costs = {"gradient_evaluations": 12.0, "seconds": 75.0, "peak_memory_bytes": 5e8}
    write_json(files.environment, environment())
    files.write_config(config.model_dump(mode="json"))
    model.save(files.scores)
    files.write_history(HISTORY if history is None else history)
    report = measured | {
        "metrics": measured["metrics"] | costs | dict(more_metrics or {}),
        "cost": {"seconds": {"start_up": 1.0, "inner": 40.0, "outer": 30.0, "evaluation": 4.0}},
        "seed": 0,
        "data_hash": "rows",
        "prepared": keys,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
    }
    files.write_report(report)
    return files.directory


@contextmanager
def serving(server: PageServer) -> Iterator[str]:
    """Serve in a thread, and yield the page's address."""
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.url
    finally:
        server.close()
        thread.join(10)
