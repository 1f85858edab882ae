"""Preparation of language models."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ofmu.data.encoding import load_tokenizer, tokenizer_hash
from ofmu.data.load import load_data
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import UnlearnData
from ofmu.engine.build import resolve_device
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.scoring.model import scored_sets
from ofmu.evaluation.scoring.rouge_words import loses_words
from ofmu.finetuning.loop import finetune
from ofmu.io.cache import content_key, model_hashes, work_directory
from ofmu.io.files import FileHashes
from ofmu.models.language import load_model, write_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.language.on_ranks import joins_ranks, score_on_ranks, train_on_ranks
from ofmu.tasks.language.reference import check_reference, resolve_reference, score_saved
from ofmu.tasks.preparation import Preparation

_WITHOUT_EFFECT_ON_SCORES = {
    *("batch_size", "alignment", "depth", "entities", "kl", "attacks", "run_attacks", "custom_metrics"),
    *("lm_eval", "lm_eval_path", "lm_eval_limit", "lm_eval_fewshot"),
}
"""Evaluation settings that do not change a model's scores."""


class LanguagePreparation(Preparation):
    """Fine-tunes causal language models on tokenised rows."""

    def __init__(
        self,
        config: UnlearnConfig,
        callback: PreparationCallback | None,
        *,
        only_cached: bool = False,
        hashes: FileHashes | None = None,
    ) -> None:
        super().__init__(config, callback, only_cached=only_cached, hashes=hashes)
        self._data = load_data(config.data, config.seed)
        # A lookup in the cache must not wait for other ranks.
        self._collective = not only_cached and joins_ranks(config.engine)

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
            tokenizer = load_tokenizer(str(base), fallback=config.model.tokenizer)
            if self._collective:
                return train_on_ranks(base, tokenizer, rows, config, directory, self._epoch_callback(part))
            model: Any = load_model(base, config.model.attention).to(resolve_device(config.engine))
            encoder = RowEncoder(tokenizer, config.data, model.config)
            examples = encoder.encode_rows("training rows", rows)
            encoder.warn_of_cuts()
            pad_id = tokenizer.pad_token_id
            cost = finetune(
                model,
                examples,
                config.training,
                seed=config.seed,
                pad_id=pad_id,
                callback=self._epoch_callback(part),
                checkpoints=work_directory(directory),
            )
            write_model(model, tokenizer, directory)
            return cost

        parts = {
            "base": model_hashes(base, self._hashes),
            "rows": content_key({"rows": [[row.question, row.answer] for row in rows]}),
            "encoding": self._encoding(),
            "training": config.training.model_dump(mode="json"),
            "seed": config.seed,
        }
        return self._get(part, "models", parts, build, together=True)

    def _scores_of(self, model_directory: Path, name: str) -> Scores:
        score = score_on_ranks if self._collective else score_saved
        return score(str(model_directory), self._data, self._config, name=name, quantized=self._is_quantized(name))

    def _scores_at(self, path: str) -> Scores:
        score = score_on_ranks if self._collective else score_saved
        return resolve_reference(path, self._config, self._data, score)

    def _check_match(self, reference_scores: Path) -> None:
        check_reference(Scores.load(reference_scores), self._data, self._config, self._config.model.path or "target")

    def _encoding(self) -> dict[str, Any]:
        encoding: dict[str, Any] = self._config.data.model_dump(
            mode="json",
            include={"prompt_template", "use_chat_template", "template_date", "max_length", "truncation"},
        )
        # The hash of a model covers the tokenizer of its own.
        return encoding if self._tokenizer_hash is None else encoding | {"tokenizer": self._tokenizer_hash}

    @cached_property
    def _tokenizer_hash(self) -> str | None:
        tokenizer = self._config.model.tokenizer
        return None if tokenizer is None else tokenizer_hash(tokenizer)

    def _scoring(self) -> dict[str, Any]:
        # The batch size changes the rounding of scores and nothing else.
        evaluation = self._config.evaluation.model_dump(mode="json", exclude=_WITHOUT_EFFECT_ON_SCORES)
        parts: dict[str, Any] = {
            "data": self._data.content_hash,
            "encoding": self._encoding(),
            "evaluation": evaluation,
        }
        if self._config.engine.zero_stage == 3 and self._config.evaluation.membership:
            # Scores that several ranks make lack the gradient norms, which no rank can compute.
            parts["gradient_norms"] = False
        if self._config.evaluation.rouge and self._has_other_scripts():
            # Earlier versions gave such answers a ROUGE of 0. Scores of other data keep their keys.
            parts["rouge_words"] = "all scripts"
        return parts

    def _has_other_scripts(self) -> bool:
        """Return whether ROUGE splits a right answer in another way than rouge_score."""
        sets = scored_sets(self._data, self._config.evaluation)
        return any(loses_words(row.answer) for rows in sets.values() for row in rows if row.question)


def _tokenizer_corpus(data: UnlearnData, template: str) -> list[str]:
    """Return the training texts and their scored variants. Holdout rows are left out."""
    texts = []
    for row in (*data.forget.rows, *data.retain.rows):
        texts.append(f"{template.replace('{question}', row.question)} {row.answer}" if row.question else row.answer)
    for rows in data.evaluation.values():
        texts.extend(row.paraphrased_answer for row in rows.rows if row.paraphrased_answer)
    return texts
