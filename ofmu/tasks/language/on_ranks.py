"""Preparation of a language model on several ranks: fine-tuning and scoring in the engine of the trials.

The engine shards a model as it does in a trial. So the target and its scores need no rank that holds the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ofmu.data.encoding import Tokenizer, load_tokenizer, pad_id
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Row, UnlearnData
from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine, resolve_device, weight_sharder
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.process_group import join_process_group, number_of_ranks
from ofmu.engine.saving import save_on_rank_0
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import score_model
from ofmu.finetuning.loop import EpochCallback
from ofmu.finetuning.on_engine import finetune_on_engine
from ofmu.io.cache import work_directory
from ofmu.losses import AnswerLoss
from ofmu.models.language import load_model, write_model
from ofmu.run_config import UnlearnConfig


def joins_ranks(config: EngineConfig) -> bool:
    """Return whether the preparation runs on several ranks. Join their process group if so.

    Raises:
        ClusterError: a rank of the launcher has not come.
        ConfigError: a setting of the engine is for one process only.
    """
    ranks = number_of_ranks()
    config.check_ranks(ranks)
    if ranks == 1:
        return False
    join_process_group(resolve_device(config))
    return True


def train_on_ranks(
    base: Path,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    config: UnlearnConfig,
    directory: Path,
    callback: EpochCallback | None,
) -> dict[str, float]:
    """Fine-tune a model on all ranks, and write it into ``directory`` from rank 0. Return the cost; collective.

    An interrupted training continues from its last checkpoint.

    Args:
        base: the model to start from.
        tokenizer: its tokenizer.
        rows: the training rows.
        config: the run.
        directory: an existing directory that all ranks see.
        callback: called after each epoch, and when a training continues from a checkpoint, on every rank.

    Raises:
        DataError: a row cannot be encoded.
        ModelError: the model cannot be loaded, or the saved files do not hold the trained model.
        NonFiniteLossError: the training diverged.
        StorageError: the disk is full.
    """
    with _engine_of(base, config) as engine:
        model: Any = engine.model
        encoder = RowEncoder(tokenizer, config.data, model.config)
        examples = encoder.encode_rows("training rows", rows)
        encoder.warn_of_cuts()
        loss = AnswerLoss(pad_id(tokenizer))
        cost = finetune_on_engine(
            engine,
            loss,
            examples,
            config.training,
            seed=config.seed,
            checkpoints=work_directory(directory),
            callback=callback,
        )
        save_on_rank_0(
            engine.space,
            torch.float32,
            lambda weights: write_model(model, tokenizer, directory, weights=weights),
        )
    return cost | {"ranks": float(dist.get_world_size())}


def score_on_ranks(
    path: str, data: UnlearnData, config: UnlearnConfig, *, name: str, quantized: bool = False
) -> Scores:
    """Load a saved model in fp32 and score it on every evaluation set, as ``score_saved`` does; collective.

    Args:
        path: a directory or a hub name.
        data: the rows.
        config: the run.
        name: the model's name in reports.
        quantized: whether the weights of the linear layers are quantised to 4 bits first.

    Raises:
        OfmuError: the model cannot be loaded, or a row cannot be encoded.
    """
    with _engine_of(path, config, quantized=quantized) as engine:
        engine.model.eval()
        return score_model(
            engine.model,
            load_tokenizer(path, fallback=config.model.tokenizer),
            data,
            config.evaluation,
            config.data,
            rank=engine.rank,
            world_size=engine.world_size,
            synchronized=engine.zero_stage == 3,
            name=name,
        )


@contextmanager
def _engine_of(path: str | Path, config: UnlearnConfig, *, quantized: bool = False) -> Iterator[Engine]:
    """Load a saved model into an engine in fp32: one process prepares in fp32 too, and both share the cache."""
    settings = config.engine.model_copy(update={"precision": "fp32"})
    model = load_model(path, config.model.attention, shard=weight_sharder(settings), quantized=quantized)
    engine = build_engine(model, settings, CostTracker())
    try:
        yield engine
    finally:
        engine.close()
