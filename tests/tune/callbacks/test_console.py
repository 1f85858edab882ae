"""What the console says of a search that is continued for runs on further seeds."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from ofmu.tasks.events import PartReady, PreparationStarted
from tune import AskTell
from tune.callbacks.base import Progress
from tune.callbacks.console import ConsoleCallback

METRICS = {"ks_statistic": 0.5, "model_utility": 0.8, "gradient_evaluations": 10.0}


def test_a_search_that_is_continued_for_further_seeds_is_not_announced_again(tmp_path: Path):
    out = StringIO()
    console = ConsoleCallback(Console(file=out, width=200))
    options = {"num_trials": 1, "baselines": ["target"]}
    with AskTell({"method": {"name": "npo"}, "search": options}, run_dir=tmp_path / "run") as loop:
        loop.tell(loop.ask(), METRICS)  # type: ignore[arg-type]
        result = loop.result()

    def begin(*, created: bool, done: int) -> str:
        out.truncate(0)
        console.on_prepare(PreparationStarted())
        console.on_prepare(PartReady(part="target", created=created, seconds=1.0))
        console.on_start(
            Progress(result=result, total=1, complete=done, failed=0, running=(), elapsed=1.0, remaining=None)
        )
        return out.getvalue()

    first = begin(created=True, done=0)
    assert "Preparing the target model" in first
    assert "Searching" in first
    again = begin(created=False, done=1)
    assert "Preparing" not in again
    assert "target" not in again
    assert "Searching" not in again
    # What has to be made again is said.
    assert "target: made" in begin(created=True, done=1)
