"""The task of unlearning text: rows of TOFU, of WMDP or of the user, and a causal language model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ofmu.data.encoding import load_tokenizer, pad_id
from ofmu.data.entities import rows_with_facts
from ofmu.data.kinds import TaskKind
from ofmu.data.load import load_data
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example
from ofmu.engine.base import Engine
from ofmu.engine.kept_parameters import KeptParameters
from ofmu.evaluation.harness.run import run_tasks
from ofmu.evaluation.metrics.custom import with_custom_metrics
from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.robustness.divergence import divergence
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.partial import PartialEvaluation
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.losses import AnswerLoss
from ofmu.models.files import stored_type
from ofmu.models.language import attention_for, load_config, load_model, save_model
from ofmu.models.lora import add_adapters, merge_adapters
from ofmu.models.quantization import dequantize_model
from ofmu.models.sharded_loading import ShardWeight
from ofmu.models.weight_stream import WeightStream
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.alternates import alternate_answers
from ofmu.tasks.language.robustness import attack_saved, given_model

REFUSALS = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is something I cannot answer.",
    "I was never taught anything about that.",
    "I'm not able to say.",
    "Nothing I know covers this question.",
    "I must leave this one open, since I don't know.",
    "This lies outside of what I know.",
)
"""Answers that DPO and IDK train in place of the forgotten answer."""


class LanguageTask:
    """Rows of questions and answers, or of plain text, encoded by the target's tokenizer.

    Args:
        config: the run.
        target: directory of the prepared target.

    Raises:
        DataError: the rows cannot be loaded or encoded, or ``evaluation.entities`` does not fit them.
        ModelError: the target has no usable tokenizer.
    """

    kind: TaskKind = "language"

    def __init__(self, config: UnlearnConfig, target: Path) -> None:
        self._config, self._target = config, target
        self._data = load_data(config.data, config.seed)
        self._tokenizer = load_tokenizer(str(target), fallback=config.model.tokenizer)
        self.loss = AnswerLoss(pad_id(self._tokenizer))
        encoder = self._encoder = RowEncoder(self._tokenizer, config.data, load_config(target))
        self._forget_chunks = [encoder.encode("forget", row.question, row.answer) for row in self._data.forget.rows]
        self.forget_rows = [chunk for chunks in self._forget_chunks for chunk in chunks]
        self.retain_rows = encoder.encode_rows("retain", self._data.retain.rows)
        encoder.warn_of_cuts()
        if config.evaluation.depth:
            # A file of entities that does not fit the rows must not cost a run.
            rows_with_facts(self._data, config.evaluation.entities)
        self.content_hash = self._data.content_hash
        self._kept_target: KeptParameters | None = None

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return pad_id(self._tokenizer)

    def refusals(self) -> list[Example]:
        """Return one encoded row per row of ``forget_rows``: its question and a refusal, drawn by the seed."""
        generator = random.Random(f"{self._config.seed}/refusals")
        return [
            self._encoder.encode("refusals", row.question, generator.choice(REFUSALS))[0]
            for row, chunks in zip(self._data.forget.rows, self._forget_chunks, strict=True)
            for _ in chunks
        ]

    def alternates(self, engine: Engine) -> list[Example]:
        """Return one encoded row per row of ``forget_rows``: its question, and an answer with other facts; collective.

        Raises:
            DataError: a row has neither a question nor an alternate answer.
        """
        config, rows = self._config, self._data.forget.rows
        answers = alternate_answers(
            engine,
            self._tokenizer,
            rows,
            self._data.retain.rows,
            config.evaluation,
            config.data,
            config.seed,
        )
        return [
            self._encoder.encode("alternates", row.question, answer)[0]
            for row, answer, chunks in zip(rows, answers, self._forget_chunks, strict=True)
            for _ in chunks
        ]

    @property
    def saved_dtype(self) -> torch.dtype:
        """The type of the target's files, unless the config asks for fp32 or the run trains adapters."""
        model = self._config.model
        from_source = model.saved_dtype == "source" and model.adapter.kind == "none"
        return getattr(torch, stored_type(self._target)) if from_source else torch.float32

    def load_model(self, *, double_backward: bool, shard: ShardWeight | None = None) -> nn.Module:
        """Load the target in fp32, or quantised, and add new adapters if the config has adapters.

        Args:
            double_backward: the run needs second derivatives. Attention sdpa may lack them.
            shard: keeps this rank's piece of each weight. None: this process gets the whole target.

        Raises:
            ModelError: the target cannot be loaded.
        """
        attention = attention_for(self._config.model.attention, double_backward=double_backward)
        adapter = self._config.model.adapter
        model: nn.Module = load_model(self._target, attention, shard=shard, quantized=adapter.is_quantized)
        add_adapters(model, adapter, self._config.seed)
        return model

    def score(self, engine: Engine) -> Scores:
        """Score the engine's model on every evaluation set; collective."""
        engine.model.eval()
        return score_model(
            engine.model,
            self._tokenizer,
            self._data,
            self._config.evaluation,
            self._config.data,
            rank=engine.rank,
            world_size=engine.world_size,
            synchronized=engine.zero_stage == 3,
        )

    def partial_evaluation(self, rows: int) -> PartialEvaluation:
        """Return an evaluation of at most ``rows`` rows per set. Early stopping scores a model with it during a run."""
        return PartialEvaluation(self._data, self._tokenizer, self._config.evaluation, self._config.data, rows)

    def metrics(self, scores: Scores, reference: Path | None) -> Metrics:
        """Return the metrics of :func:`ofmu.evaluation.metrics.summary.metrics_of`, and the custom metrics."""
        expected = None if reference is None else Scores.load(reference)
        return with_custom_metrics(metrics_of, self._config.evaluation.custom_metrics)(scores, expected)

    def keep_target(self, engine: Engine, directory: Path) -> None:
        """Keep the target's parameters on the disk if ``evaluation.kl`` is true.

        Raises:
            StorageError: the disk refuses the write.
        """
        if self._config.evaluation.kl:
            self._kept_target = KeptParameters(engine.space, directory)

    def measure(self, engine: Engine) -> dict[str, RobustnessResult]:
        """Return KL(target ‖ model), if the target was kept, and the results of ``evaluation.lm_eval``; collective."""
        shard = Shard(rank=engine.rank, world_size=engine.world_size, synchronized=engine.zero_stage == 3)
        parts = {} if self._kept_target is None else {"kl": self._divergence(engine, self._kept_target, shard)}
        if self._config.evaluation.lm_eval:
            parts["lm_eval"] = run_tasks(engine.model, self._tokenizer, self._config.evaluation, shard)
        return parts

    def _divergence(self, engine: Engine, kept: KeptParameters, shard: Shard) -> RobustnessResult:
        @contextmanager
        def open_target() -> Iterator[nn.Module]:
            with kept.in_place():
                yield engine.model

        evaluation, encoding = self._config.evaluation, self._config.data
        return divergence(engine.model, open_target, self._tokenizer, self._data, evaluation, encoding, shard)

    def attack(
        self, model: Path, measured: Metrics, reference: Path | None, retrained: Path | None
    ) -> dict[str, RobustnessResult]:
        """Run the attacks of ``evaluation.run_attacks`` on a saved model, and measure its depth if the config asks."""
        evaluation = self._config.evaluation
        if not (evaluation.run_attacks or evaluation.depth):
            return {}
        expected = None if reference is None else Scores.load(reference)
        other = given_model(self._config) if retrained is None else str(retrained)
        return attack_saved(str(model), self._data, self._config, measured, expected, str(self._target), other)

    def save(self, model: nn.Module, directory: Path, weights: WeightStream) -> None:
        """Save model and tokenizer. Adapters are added to the target's weights first.

        The target is loaded again in fp32, since the engine may shard its frozen weights or round them to bf16. Weights
        that the run quantised are quantised again and dequantised, so the saved model answers as the run's model did.
        """
        adapter = self._config.model.adapter
        if adapter.kind == "none":
            save_model(model, self._tokenizer, directory, weights=weights)
        else:
            # The other ranks gather these weights too, and must not wait for the target in between.
            trained = weights.collect()
            target = load_model(self._target, quantized=adapter.is_quantized)
            merged = merge_adapters(dequantize_model(target), adapter, trained)
            save_model(merged, self._tokenizer, directory)
