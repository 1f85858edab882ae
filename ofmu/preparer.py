"""What a run starts from and is judged against: the target model, the retrained model, and the scores of both.

Each is made once and cached by a hash of all it depends on: the rows, the base model's files (weights and
tokenizer), the training and encoding settings, the seed, and the versions of the libraries that compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import tokenizers
import torch
import transformers

from ofmu.data import UnlearnData, load_data
from ofmu.data.encoding import encode_example, load_tokenizer
from ofmu.engine import resolve_device
from ofmu.errors import ConfigError
from ofmu.evaluation import Scores, score_model
from ofmu.evaluation.matching import outline_of, require_match
from ofmu.evaluator import resolve_reference
from ofmu.finetune import Listener, finetune
from ofmu.io.cache import Cache, Entry, cache_root, content_key, model_hashes
from ofmu.io.files import file_hash
from ofmu.io.library_logging import quiet_libraries
from ofmu.models.language import (
    build_model,
    directory_at_hand,
    load_model,
    local_directory,
    train_tokenizer,
    write_model,
)
from ofmu.run_config import UnlearnConfig

RECIPE = 2
"""Raised whenever a change of this program changes what the same config makes, so that old entries are not reused."""

_VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}

_NOT_SCORED = {"batch_size", "alignment", "attacks", "functions"}
"""Settings of the evaluation on which a model's scores do not depend."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Where the prepared parts lie. A ``None`` means that the config asks for no such part."""

    target: Path
    """Model directory (with tokenizer) from which unlearning starts."""
    target_scores: Path
    base: Path | None = None
    """Model directory before any training on the data: what ``model.base`` names beside a fine-tuned ``model.path``."""
    retrain: Path | None
    """Model directory of the model trained on the retain rows alone."""
    reference_scores: Path | None
    costs: Mapping[str, Mapping[str, float]]
    """What making each part cost, whenever that was; ``seconds`` among others."""
    keys: Mapping[str, str]
    """The cache key of each part."""
    made: Mapping[str, bool] = field(default_factory=dict)
    """True: made by this call; False: found in the cache."""


def prepare(config: UnlearnConfig, *, listener: Listener | None = None) -> Prepared:
    """Make, or find in the cache, all that runs under ``config`` share.

    The target is trained on forget + retain, unless ``model.is_target`` names it; with ``reference.source``
    'retrain' the same base is trained on the retain rows alone. The listener hears ``{"event": "part", "part",
    "made", "seconds"}`` once a part is there, and finetune's events with their ``part`` while one is trained.

    Raises:
        ConfigError: a retrain is asked for without the model to start from.
        DataError: the data cannot be loaded; see :func:`ofmu.data.load_data`.
        ModelError: the model cannot be loaded.
        ReferenceMismatchError: the given reference covers other rows, or another truth-ratio definition.
        NonFiniteLossError: training diverged.
        StorageError: the cache cannot be written.
    """
    quiet_libraries()
    _refuse_retrain_without_base(config)
    with _threads(config.engine.threads):
        return _preparation(config, listener).run()


def find_target_scores(config: UnlearnConfig) -> Path | None:
    """Return the cached scores of the target; None where it was not prepared.

    Raises:
        DataError: the data cannot be loaded.
        ModelError: the target, or the base model, cannot be loaded.
    """
    return _look(config, lambda preparation: preparation.target()[1])


def find_reference_scores(config: UnlearnConfig) -> Path | None:
    """Return the cached scores of the retrained reference; None where it was not prepared or is not asked for.

    Raises:
        DataError: the data cannot be loaded.
        ModelError: the base model cannot be loaded.
    """
    return _look(config, lambda preparation: preparation.reference()[1]) if _can_retrain(config) else None


def find_retrained_model(config: UnlearnConfig) -> Path | None:
    """Return the cached directory of the retrained model; as :func:`find_reference_scores`."""
    return _look(config, lambda preparation: preparation.retrained()) if _can_retrain(config) else None


def _can_retrain(config: UnlearnConfig) -> bool:
    return config.reference.source == "retrain" and not (config.model.is_target and config.model.base is None)


def _look(config: UnlearnConfig, part: Callable[[Preparation], Path]) -> Path | None:
    """Return a part that the cache holds; None where it would have to be made."""
    try:
        return part(_preparation(config, None, only_cached=True))
    except _NotCachedError:
        return None


def _preparation(config: UnlearnConfig, listener: Listener | None, *, only_cached: bool = False) -> Preparation:
    if config.data.kind == "vision":
        from ofmu.tasks.vision.preparation import ImagePreparation

        return ImagePreparation(config, listener, only_cached=only_cached)
    return _TextPreparation(config, listener, only_cached=only_cached)


class Savable(Protocol):
    """Scores of either kind of task."""

    def save(self, path: Path) -> None:
        """Write them as JSON."""


class _NotCachedError(Exception):
    """A part would have to be made, and the caller only looks."""


class Preparation(ABC):
    """One call of :func:`prepare`: its config, and the entries found or made so far.

    A subclass says how one kind of task makes the parts; each goes through :meth:`_get`.
    """

    def __init__(self, config: UnlearnConfig, listener: Listener | None, *, only_cached: bool = False) -> None:
        self._config, self._listener, self._only_cached = config, listener, only_cached
        self._cache = Cache(cache_root(config.cache_dir))
        self._entries: dict[str, Entry] = {}

    @abstractmethod
    def _base(self) -> Path:
        """Return the directory of the model before any training on the data."""

    @abstractmethod
    def _train(self, part: Literal["target", "retrain"], base: Path) -> Path:
        """Return the directory of ``base`` trained on all rows (target), or on the retain rows alone (retrain)."""

    @abstractmethod
    def _scores_of(self, model_directory: Path, name: str) -> Savable:
        """Return the scores of a saved model."""

    @abstractmethod
    def _scores_at(self, path: str) -> Savable:
        """Return the reference scores that ``path`` names: a model, or a file of scores."""

    @abstractmethod
    def _require_match(self, reference_scores: Path) -> None:
        """Raise ReferenceMismatchError if a file's scores are of other rows, or made otherwise."""

    @abstractmethod
    def _scoring(self) -> dict[str, Any]:
        """Return what a model's scores depend on beside the model."""

    def run(self) -> Prepared:
        """Make or find every part that the config asks for."""
        config = self._config
        retrain_asked = config.reference.source == "retrain"
        # A given reference comes first: if it does not fit, that is said before anything is trained.
        reference_scores = None if retrain_asked else self._given_reference()
        base = self._base() if retrain_asked or not config.model.is_target else None
        target, target_scores = self.target(base)
        retrain: Path | None = None
        if retrain_asked:
            retrain, reference_scores = self.reference(base)
        return Prepared(
            target=target,
            target_scores=target_scores,
            base=base,
            retrain=retrain,
            reference_scores=reference_scores,
            costs={part: dict(entry.cost) for part, entry in self._entries.items()},
            keys={part: entry.path.name for part, entry in self._entries.items()},
            made={part: entry.made for part, entry in self._entries.items()},
        )

    def target(self, base: Path | None = None) -> tuple[Path, Path]:
        """Return the target's directory and the file of its scores."""
        model = self._config.model
        if model.is_target:
            target = self._directory(str(model.path), model.revision)
        else:
            target = self._train("target", base or self._base())
        return target, self._score("target_scores", target)

    def reference(self, base: Path | None = None) -> tuple[Path, Path]:
        """Return the retrained model's directory and the file of its scores."""
        retrain = self.retrained(base)
        return retrain, self._score("reference_scores", retrain)

    def retrained(self, base: Path | None = None) -> Path:
        """Return the directory of the model trained on the retain rows alone."""
        return self._train("retrain", base or self._base())

    def _score(self, part: str, model_directory: Path) -> Path:
        """Return the file of a model's scores."""

        def build(directory: Path) -> dict[str, float]:
            self._scores_of(model_directory, part.removesuffix("_scores")).save(directory / "scores.json")
            return {}

        parts = {"model": model_hashes(model_directory), **self._scoring()}
        return self._get(part, "scores", parts, build) / "scores.json"

    def _given_reference(self) -> Path | None:
        """Return the file of the scores of what ``reference.path`` names; None where it names nothing."""
        path = self._config.reference.path
        if self._config.reference.source == "none" or path is None:
            return None

        def build(directory: Path) -> dict[str, float]:
            self._scores_at(path).save(directory / "scores.json")
            return {}

        parts = {"reference": _reference_content(Path(path)), **self._scoring()}
        scores = self._get("reference_scores", "scores", parts, build) / "scores.json"
        self._require_match(scores)
        return scores

    def _named_base(self) -> Path | None:
        """Return the directory of the base model that the config names; None where it names none."""
        model = self._config.model
        named = model.base if model.is_target else model.path
        return None if named is None else self._directory(named, None if model.is_target else model.revision)

    def _directory(self, path: str, revision: str | None) -> Path:
        if not self._only_cached:
            return local_directory(path, revision)
        at_hand = directory_at_hand(path, revision)
        if at_hand is None:  # what was never downloaded was never trained on, nor scored
            raise _NotCachedError
        return at_hand

    def _get(
        self, part: str, kind: str, parts: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]
    ) -> Path:
        started = perf_counter()

        def timed(directory: Path) -> dict[str, float]:
            if self._only_cached:
                raise _NotCachedError
            cost = build(directory)
            return {**cost, "seconds": perf_counter() - started}

        entry = self._cache.get_or_make(kind, {"recipe": RECIPE, "versions": _VERSIONS, **parts}, timed)
        self._entries[part] = entry
        if self._listener is not None:
            seconds = perf_counter() - started
            self._listener({"event": "part", "part": part, "made": entry.made, "seconds": seconds})
        return entry.path

    def _progress(self, part: str) -> Listener | None:
        listener = self._listener
        return None if listener is None else lambda event: listener({**event, "part": part})


class _TextPreparation(Preparation):
    """Causal language models, fine-tuned on tokenised rows."""

    def __init__(self, config: UnlearnConfig, listener: Listener | None, *, only_cached: bool = False) -> None:
        super().__init__(config, listener, only_cached=only_cached)
        self._data = load_data(config.data, config.seed)
        self._attention: Literal["sdpa", "eager"] = "eager" if config.model.attention == "eager" else "sdpa"

    def _base(self) -> Path:
        named = self._named_base()
        if named is not None:
            return named
        model = self._config.model
        config, texts = self._config, _tokenizer_corpus(self._data, self._config.data.prompt_template)
        positions = config.data.max_length + config.evaluation.max_new_tokens

        def build(directory: Path) -> dict[str, float]:
            tokenizer = train_tokenizer(texts, model.scratch.vocab_size)
            untrained = build_model(model.scratch, tokenizer, seed=config.seed, max_positions=positions)
            write_model(untrained, tokenizer, directory)
            return {"parameters": sum(weight.numel() for weight in untrained.parameters())}

        parts = {
            "corpus": content_key({"texts": texts}),
            "shape": model.scratch.model_dump(mode="json"),
            "positions": positions,
            "seed": config.seed,
        }
        return self._get("base", "models", parts, build)

    def _train(self, part: Literal["target", "retrain"], base: Path) -> Path:
        config, data = self._config, self._data
        rows = [*data.forget.rows, *data.retain.rows] if part == "target" else [*data.retain.rows]

        def build(directory: Path) -> dict[str, float]:
            tokenizer = load_tokenizer(str(base))
            examples = [encode_example(tokenizer, row.question, row.answer, config.data) for row in rows]
            model: Any = load_model(base, self._attention).to(resolve_device(config.engine))
            pad_id = tokenizer.pad_token_id
            cost = finetune(
                model, examples, config.training, seed=config.seed, pad_id=pad_id, listener=self._progress(part)
            )
            write_model(model, tokenizer, directory)
            return cost

        parts = {
            "base": model_hashes(base),
            "rows": content_key({"rows": [[row.question, row.answer] for row in rows]}),
            "encoding": self._encoding(),
            "training": config.training.model_dump(mode="json"),
            "seed": config.seed,
        }
        return self._get(part, "models", parts, build)

    def _scores_of(self, model_directory: Path, name: str) -> Scores:
        model: Any = load_model(model_directory, self._attention).to(resolve_device(self._config.engine))
        return score_model(model, load_tokenizer(str(model_directory)), self._data, self._config, name=name)

    def _scores_at(self, path: str) -> Scores:
        return resolve_reference(path, self._config, self._data)

    def _require_match(self, reference_scores: Path) -> None:
        name = self._config.model.path or "target"
        ours = outline_of(name, self._data, self._config.evaluation.truth_ratio)
        require_match(ours, Scores.load(reference_scores))

    def _encoding(self) -> dict[str, Any]:
        return self._config.data.model_dump(include={"prompt_template", "use_chat_template", "max_length"})

    def _scoring(self) -> dict[str, Any]:
        # Another batch size only rounds differently.
        evaluation = self._config.evaluation.model_dump(mode="json", exclude=_NOT_SCORED)
        return {"data": self._data.content_hash, "encoding": self._encoding(), "evaluation": evaluation}


def _refuse_retrain_without_base(config: UnlearnConfig) -> None:
    if config.model.is_target and config.reference.source == "retrain" and config.model.base is None:
        raise ConfigError(
            "reference.source 'retrain' trains the model before fine-tuning on the retain rows, and model.path is the "
            "fine-tuned target: set model.base to that earlier model, or reference.source to model, scores or none"
        )


def _reference_content(path: Path) -> dict[str, str]:
    """Return the hashes of a given reference, which is a model or a file of scores, perhaps in a run directory."""
    file = path / "scores.json" if path.is_dir() and not (path / "config.json").is_file() else path
    return {"scores": file_hash(file)} if file.is_file() else model_hashes(local_directory(str(path)))


def _tokenizer_corpus(data: UnlearnData, template: str) -> list[str]:
    """Return the training texts and their scored variants; the held-out rows stay unseen."""
    texts = []
    for row in (*data.forget.rows, *data.retain.rows):
        texts.append(f"{template.replace('{question}', row.question)} {row.answer}" if row.question else row.answer)
    for rows in data.evaluation.values():
        texts.extend(row.paraphrased_answer for row in rows.rows if row.paraphrased_answer)
    return texts


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
