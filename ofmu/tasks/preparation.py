"""The parts that a run starts from and is compared with: the target, the retrained model, and the scores of both.

Each part is made once. The cache key is a hash of everything that the part depends on: the rows, the base model's
files (weights and tokenizer), the training and encoding settings, the seed, and the versions of the libraries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import tokenizers
import torch
import torch.distributed as dist
import transformers

from ofmu.finetuning.loop import Continued, EpochCallback, EpochEnd
from ofmu.io.cache import Cache, Entry, FileHash, cache_root, model_hashes
from ofmu.io.files import FileHashes, file_hash
from ofmu.io.progress import working_on
from ofmu.models.hub import cached_directory, local_directory
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from ofmu.tasks.collective_cache import CollectiveCache
from ofmu.tasks.events import PartReady, PreparationCallback, TrainingContinued, TrainingEpoch
from ofmu.tasks.reference_path import reference_scores_file

CACHE_VERSION = 4
"""Raise this number whenever a change of the code changes what the same config makes. Old entries are then unused."""

_VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The paths of the prepared parts. ``None`` means that the config does not need the part."""

    target: Path
    """Directory of the model (with tokenizer) from which unlearning starts."""
    target_scores: Path
    """File of the target's scores."""
    base: Path | None = None
    """Directory of the model before any training on the data. With a fine-tuned ``model.path``: ``model.base``."""
    retrain: Path | None
    """Directory of the model that was trained on the retain rows only."""
    reference_scores: Path | None
    """File of the reference's scores."""
    costs: Mapping[str, Mapping[str, float]]
    """What each part cost when it was made, such as ``seconds``."""
    keys: Mapping[str, str]
    """The cache key of each part."""
    created: Mapping[str, bool] = field(default_factory=dict)
    """True: this call made the part. False: the cache had the part."""


class SupportsSave(Protocol):
    """The scores of any kind of task."""

    def save(self, path: Path) -> None:
        """Write the scores as JSON."""


class NotCachedError(Exception):
    """A part is not in the cache, and the caller does not want to make it."""


class Preparation(ABC):
    """One call of :func:`ofmu.preparer.prepare`. A subclass makes the parts for one kind of task.

    Each part goes through :meth:`_get`, which records the part's cache entry. A subclass that works on all ranks of the
    process group sets ``_collective``. Every rank then runs the preparation, and rank 0 writes.

    Args:
        config: the run.
        callback: called when a part is ready, after each epoch of a training, and when a training continues.
        only_cached: raise NotCachedError for a part that the cache does not have.
        hashes: hashes of files that the caller has read. Each file is read once to be hashed.
    """

    def __init__(
        self,
        config: UnlearnConfig,
        callback: PreparationCallback | None,
        *,
        only_cached: bool = False,
        hashes: FileHashes | None = None,
    ) -> None:
        self._config, self._callback, self._only_cached = config, callback, only_cached
        self._root = cache_root(config.cache_dir)
        self._collective = False
        self._hashes = hashes or FileHashes()
        self._entries: dict[str, Entry] = {}

    @abstractmethod
    def _base(self) -> Path:
        """Return the directory of the base model, which was never trained on the data."""

    @abstractmethod
    def _train(self, part: Literal["target", "retrain"], base: Path) -> Path:
        """Return the directory of ``base`` after training on all rows (target) or on the retain rows (retrain)."""

    @abstractmethod
    def _scores_of(self, model_directory: Path, name: str) -> SupportsSave:
        """Return the scores of a saved model."""

    @abstractmethod
    def _scores_at(self, path: str) -> SupportsSave:
        """Return the reference scores at ``path``, which is a saved model or a file of scores."""

    @abstractmethod
    def _check_match(self, reference_scores: Path) -> None:
        """Raise ReferenceMismatchError if the file's scores cover other rows or follow another definition."""

    @abstractmethod
    def _scoring(self) -> dict[str, Any]:
        """Return what a model's scores depend on, apart from the model."""

    def run(self) -> Prepared:
        """Make, or find in the cache, every part that the config needs."""
        config = self._config
        needs_retrain = config.reference.source == "retrain"
        # A given reference is checked first, so that a mismatch is reported before any training.
        reference_scores = None if needs_retrain else self._given_reference()
        base = self._base() if needs_retrain or not config.model.is_target else None
        target, target_scores = self.target(base)
        retrain: Path | None = None
        if needs_retrain:
            retrain, reference_scores = self.reference(base)
        return Prepared(
            target=target,
            target_scores=target_scores,
            base=base,
            retrain=retrain,
            reference_scores=reference_scores,
            costs={part: dict(entry.cost) for part, entry in self._entries.items()},
            keys={part: entry.path.name for part, entry in self._entries.items()},
            created={part: entry.created for part, entry in self._entries.items()},
        )

    def target(self, base: Path | None = None) -> tuple[Path, Path]:
        """Return the directory of the target and the file of the target's scores."""
        target = self.target_model(base)
        return target, self._score("target_scores", target)

    def target_model(self, base: Path | None = None) -> Path:
        """Return the directory of the target."""
        model = self._config.model
        if model.is_target:
            return self._directory(str(model.path), model.revision)
        return self._train("target", base or self._base())

    def reference(self, base: Path | None = None) -> tuple[Path, Path]:
        """Return the directory of the retrained model and the file of that model's scores."""
        retrain = self.retrained(base)
        return retrain, self._score("reference_scores", retrain)

    def retrained(self, base: Path | None = None) -> Path:
        """Return the directory of the model that was trained on the retain rows only."""
        return self._train("retrain", base or self._base())

    def _score(self, part: str, model_directory: Path) -> Path:
        """Return the file of the scores of a saved model."""

        def build(directory: Path) -> dict[str, float]:
            self._save(self._scores_of(model_directory, part.removesuffix("_scores")), directory)
            return {}

        parts = {"model": model_hashes(model_directory, self._hashes), **self._scoring()}
        if self._is_quantized(part.removesuffix("_scores")):
            parts["quantization"] = [self._config.model.adapter.quantization, _quantizer_version()]
        return RunFiles(self._get(part, "scores", parts, build, together=True)).scores

    def _is_quantized(self, name: str) -> bool:
        """Return whether a model is scored with quantised weights: the target is, if the run starts from such weights.

        The retrained model is not. It stands for a model that was never trained on the forget rows.
        """
        return name == "target" and self._config.model.adapter.is_quantized

    def _given_reference(self) -> Path | None:
        """Return the file of the scores at ``reference.path``; None if the config gives no reference."""
        path = self._config.reference.path
        if self._config.reference.source == "none" or path is None:
            return None

        def build(directory: Path) -> dict[str, float]:
            self._save(self._scores_at(path), directory)
            return {}

        parts = {"reference": reference_hashes(path, self._hashes), **self._scoring()}
        scores = RunFiles(self._get("reference_scores", "scores", parts, build, together=True)).scores
        self._check_match(scores)
        return scores

    def _save(self, scores: SupportsSave, directory: Path) -> None:
        if not self._collective or dist.get_rank() == 0:
            scores.save(RunFiles(directory).scores)

    def _named_base(self) -> Path | None:
        """Return the directory of the base model that the config names; None if the config names no base model."""
        model = self._config.model
        named = model.base if model.is_target else model.path
        return None if named is None else self._directory(named, None if model.is_target else model.revision)

    def _directory(self, path: str, revision: str | None) -> Path:
        if not self._only_cached:
            return local_directory(path, revision)
        cached = cached_directory(path, revision)
        if cached is None:  # A model that was never downloaded was never trained or scored.
            raise NotCachedError
        return cached

    def _get(
        self,
        part: str,
        kind: str,
        parts: Mapping[str, Any],
        build: Callable[[Path], Mapping[str, float]],
        *,
        together: bool = False,
    ) -> Path:
        """Return the directory of a part's cache entry. Without an entry, call ``build``, and add seconds to its cost.

        Args:
            part: the name of the part.
            kind: the kind of the entry.
            parts: everything that the content depends on, besides the code and the libraries.
            build: fills the directory and returns the cost.
            together: in a collective preparation, every rank calls ``build`` and rank 0 writes. False: rank 0 alone
                calls ``build``.
        """
        started = perf_counter()

        def timed(directory: Path) -> dict[str, float]:
            if self._only_cached:
                raise NotCachedError
            with working_on(part):
                cost = build(directory)
            return {**cost, "seconds": perf_counter() - started}

        all_parts = {"recipe": CACHE_VERSION, "versions": _VERSIONS, **parts}
        if self._collective:
            entry = CollectiveCache(self._root, self._hashes).get_or_create(kind, all_parts, timed, collective=together)
        else:
            entry = Cache(self._root, hashes=self._hashes).get_or_create(kind, all_parts, timed)
        self._entries[part] = entry
        if self._callback is not None:
            self._callback(PartReady(part=part, created=entry.created, seconds=perf_counter() - started))
        return entry.path

    def _epoch_callback(self, part: str) -> EpochCallback | None:
        callback = self._callback
        if callback is None:
            return None

        def hand_on(event: EpochEnd | Continued) -> None:
            if isinstance(event, Continued):
                callback(TrainingContinued(part=part, epoch=event.epoch, epochs=event.epochs))
            else:
                callback(TrainingEpoch(part=part, epoch=event.epoch, epochs=event.epochs, loss=event.loss))

        return hand_on


def _quantizer_version() -> str:
    """Return the version of bitsandbytes; empty without it, so that a lookup in the cache finds nothing."""
    try:
        return version("bitsandbytes")
    except PackageNotFoundError:
        return ""


def reference_hashes(path: str, hash_of: FileHash = file_hash) -> dict[str, str]:
    """Return the hash of the reference's scores, or the hashes of the reference model's files."""
    scores = reference_scores_file(path)
    return {"scores": hash_of(scores)} if scores is not None else model_hashes(local_directory(path), hash_of)
