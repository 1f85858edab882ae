"""The ``evaluation`` and ``reference`` sections of a config file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from ofmu.config.base import PositiveInt, Section


class ReferenceConfig(Section):
    """The reference that forget quality compares with."""

    source: Literal["retrain", "model", "scores", "none"] = "retrain"
    """``retrain``: train the reference on the retain rows. ``model``: a saved model. ``scores``: reference scores of
    this package, or an official TOFU log. ``none``: no reference; forget quality is reported as missing."""
    path: str | None = None
    """The saved model, or the file of scores."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> ReferenceConfig:
        if self.source in ("model", "scores") and self.path is None:
            raise ValueError(f"reference.source '{self.source}' needs reference.path: name the model or the file")
        return self


class EvaluationConfig(Section):
    """Which scores and metrics are computed."""

    batch_size: PositiveInt = 32
    """Rows per forward pass."""
    max_rows: PositiveInt | None = None
    """Upper bound on the rows of each evaluation set. The forget set is always whole. The rows with the lowest content
    hashes are kept, so every model is scored on the same rows. None: all rows."""
    max_new_tokens: PositiveInt = 200
    """Greedy tokens generated per question for ROUGE-L recall."""
    truth_ratio: Literal["geometric", "arithmetic"] = "geometric"
    """Mean over the perturbed answers in the truth ratio."""
    rouge: bool = True
    """False skips generation. Model utility then lacks its ROUGE components, and the report says so."""
    in_scope: bool = False
    """Also score the hard questions of the forget rows where the data has them: paraphrases, multi-hop questions and
    translations."""
    membership: bool = False
    """Run membership attacks on forget rows against holdout rows. Their gradient norms cost one backward pass a row."""
    alignment: bool = False
    """For ``ofmu evaluate``: compare hidden states with those of the retrained model, layer by layer."""
    attacks: tuple[Literal["relearning", "quantization_8", "quantization_4"], ...] = ()
    """For ``ofmu evaluate``: attacks that try to bring back forgotten rows, by a few training steps or by rounding the
    weights."""
    custom_metrics: tuple[str, ...] = ()
    """Metrics of your own, as ``my_package.my_module:my_function``. Their type is
    :data:`ofmu.evaluation.metrics.custom.ScoreFunction`. A search adds the custom metrics among its objectives."""

    @model_serializer(mode="wrap")
    def _without_unset_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A stored config without these keys must compare equal to a config with their defaults.
        return {
            key: value for key, value in handler(self).items() if key not in ("custom_metrics", "max_rows") or value
        }
