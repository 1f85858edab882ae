"""One run from config to scored, saved model: start-up, the two loops with checkpoints, evaluation."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import yaml

from ofmu.bilevel import Bilevel
from ofmu.checkpoint import load_checkpoint, save_checkpoint
from ofmu.compatibility import ineffective_settings, needs_products, outer_derivative
from ofmu.config import UnlearnConfig
from ofmu.data import Example, Row, UnlearnData, load_data
from ofmu.data.encoding import encode_example, load_tokenizer
from ofmu.engine import Engine, build_engine
from ofmu.engine.base import attention_for
from ofmu.environment import environment
from ofmu.errors import RunError
from ofmu.evaluation import Scores, metrics_of, score_model
from ofmu.files import write_json, write_text
from ofmu.ledger import Ledger, peak_memory_per_rank
from ofmu.losses import AnswerLoss
from ofmu.models import load_model, save_model
from ofmu.progress import Listener, LocalReporter, Reporter

if TYPE_CHECKING:
    from ofmu.reference import Prepared


@dataclass(frozen=True)
class UnlearnResult:
    """A finished run: its metrics, why some are missing, and where its model is."""

    metrics: dict[str, float | None]
    reasons: dict[str, str]
    output_dir: Path

    @property
    def model_dir(self) -> Path:
        """Directory that ``from_pretrained`` loads."""
        return self.output_dir / "model"


def unlearn(
    config: UnlearnConfig,
    output_dir: str | Path,
    *,
    prepared: Prepared | None = None,
    listener: Listener | None = None,
    reporter: Callable[[int], Reporter] | None = None,
    checkpoint_every: int = 1,
) -> UnlearnResult:
    """Run OFMU under ``config`` and leave model, scores, history and cost in ``output_dir``.

    Called on every rank of a process group, or alone. A run that was cut off continues from its newest whole
    checkpoint; a finished one returns at once. ``metrics.json`` is written last, so its presence means complete.

    Args:
        config: the whole run.
        output_dir: a directory of its own that all ranks see; rank 0 writes to it.
        prepared: target and reference; None prepares them, or finds them in the cache.
        listener: hears one record per outer step, on rank 0.
        reporter: made from the rank; keeps checkpoints elsewhere than in ``output_dir``.
        checkpoint_every: outer steps from one checkpoint to the next; 0 keeps none.

    Raises:
        OfmuError: whatever the user can mend; what was written before stays.
    """
    directory = Path(output_dir)
    finished = _finished_run(config, directory)
    if finished is not None:
        return finished
    for note in ineffective_settings(config):
        warnings.warn(note, stacklevel=2)
    if prepared is None:
        from ofmu.reference import prepare

        prepared = prepare(config)
    return _Run(config, directory, prepared, checkpoint_every).execute(listener, reporter)


class _Run:
    """One attempt at a run, in reading order."""

    def __init__(self, config: UnlearnConfig, directory: Path, prepared: Prepared, checkpoint_every: int) -> None:
        self._config, self._directory, self._prepared = config, directory, prepared
        self._checkpoint_every = checkpoint_every
        self._ledger = Ledger()

    def execute(self, listener: Listener | None, make_reporter: Callable[[int], Reporter] | None) -> UnlearnResult:
        with self._ledger.phase("start_up"):
            data = load_data(self._config.data, self._config.seed)
            self._tokenizer = load_tokenizer(str(self._prepared.target))
            engine = self._engine()
            bilevel = self._bilevel(engine, data)
            self._write_settings(engine)
            checkpoints = self._directory / "checkpoints"
            reporter = (
                make_reporter(engine.rank) if make_reporter else LocalReporter(checkpoints, engine.rank, listener)
            )
            self._resume(engine, bilevel, reporter)
        try:
            self._unlearn(engine, bilevel, reporter)
            with self._ledger.phase("evaluation"):
                scores = self._score(engine, data)
            self._save_model(engine)
            result = self._finish(engine, bilevel, data, scores)
        finally:
            engine.close()
        if engine.rank == 0:
            shutil.rmtree(checkpoints, ignore_errors=True)
        return result

    def _engine(self) -> Engine:
        config, method = self._config, self._config.method
        exact = needs_products(method) and "exact" in (method.derivative, outer_derivative(method))
        attention = attention_for(config.model.attention, exact=exact)
        model = load_model(self._prepared.target, attention)
        return build_engine(model, config.engine, self._ledger)

    def _bilevel(self, engine: Engine, data: UnlearnData) -> Bilevel[Example]:
        loss = AnswerLoss(self._tokenizer.pad_token_id)
        forget, retain = self._encode(data.forget.rows), self._encode(data.retain.rows)
        return Bilevel(engine, loss, loss, forget, retain, self._config.method, self._config.seed)

    def _encode(self, rows: Sequence[Row]) -> list[Example]:
        return [encode_example(self._tokenizer, row.question, row.answer, self._config.data) for row in rows]

    def _write_settings(self, engine: Engine) -> None:
        if engine.rank == 0:
            settings = yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False)
            write_text(self._directory / "config.yaml", settings)
            write_json(self._directory / "environment.json", environment() | {"ranks": engine.world_size})

    def _resume(self, engine: Engine, bilevel: Bilevel[Example], reporter: Reporter) -> None:
        latest = reporter.latest()
        self._history: list[dict[str, Any]] = []
        if latest is None:
            return
        state, vectors = load_checkpoint(latest, engine.space)
        bilevel.restore(state["loop"], vectors)
        self._ledger.restore(state["ledger"])
        self._history = state["history"]

    def _unlearn(self, engine: Engine, bilevel: Bilevel[Example], reporter: Reporter) -> None:
        every = self._checkpoint_every

        def write(directory: Path) -> None:
            state = {"loop": bilevel.state(), "ledger": self._ledger.state(), "history": self._history}
            save_checkpoint(directory, engine.space, bilevel.vectors(), state, engine.rank, engine.world_size)

        for record in bilevel.rounds():
            line = asdict(record) | {
                "gradient_evaluations": self._ledger.gradient_evaluations,
                "tokens": self._ledger.tokens,
                "seconds": sum(self._ledger.seconds.values()),
            }
            self._history.append(line)
            if engine.rank == 0:
                lines = "".join(json.dumps(entry) + "\n" for entry in self._history)
                write_text(self._directory / "history.jsonl", lines)
            reporter.outer_step(line, write if every and record.outer_step % every == 0 else None)

    def _score(self, engine: Engine, data: UnlearnData) -> Scores:
        engine.model.eval()
        return score_model(
            engine.model,
            self._tokenizer,
            data,
            self._config,
            rank=engine.rank,
            world_size=engine.world_size,
            synchronized=engine.zero_stage == 3,
        )

    def _save_model(self, engine: Engine) -> None:
        """Save the fp32 masters, gathered from their shards, in the form that ``from_pretrained`` loads."""
        full = engine.space.gather(engine.space.masters())
        if engine.rank == 0:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in full.items()}
            save_model(engine.model, self._tokenizer, self._directory / "model", state_dict=weights)

    def _finish(self, engine: Engine, bilevel: Bilevel[Example], data: UnlearnData, scores: Scores) -> UnlearnResult:
        reference = self._prepared.reference_scores
        metrics = metrics_of(scores, None if reference is None else Scores.load(reference))
        cost = self._ledger.state() | {"peak_memory_bytes": peak_memory_per_rank()}
        values = metrics.values | {
            "gradient_evaluations": float(self._ledger.gradient_evaluations),
            "tokens": float(self._ledger.tokens),
            "seconds": sum(self._ledger.seconds.values()),
            "peak_memory_bytes": float(max(max(peaks.values()) for peaks in cost["peak_memory_bytes"])),
            "outer_steps_taken": float(bilevel.outer_step),
        }
        if engine.rank == 0:
            scores.save(self._directory / "scores.json")
            report = metrics.to_json() | {
                "metrics": values,
                "cost": cost,
                "stationary": bilevel.stationary,
                "seed": self._config.seed,
                "data_hash": data.content_hash,
                "prepared": dict(self._prepared.keys),
                "config": self._config.model_dump(mode="json"),
                "environment": environment(),
            }
            write_json(self._directory / "metrics.json", report)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()
        return UnlearnResult(values, metrics.reasons, self._directory)


def _finished_run(config: UnlearnConfig, directory: Path) -> UnlearnResult | None:
    """Return the result of a run that is complete, None for a new or unfinished one.

    Raises:
        RunError: the directory holds a run under another config.
    """
    settings = directory / "config.yaml"
    if settings.is_file():
        earlier = yaml.safe_load(settings.read_text(encoding="utf-8"))
        if earlier != config.model_dump(mode="json"):
            raise RunError(f"{directory} holds a run under another config: choose another directory, or delete it")
    metrics = directory / "metrics.json"
    if not metrics.is_file():
        return None
    report = json.loads(metrics.read_text(encoding="utf-8"))
    return UnlearnResult(report["metrics"], report["reasons"], directory)
