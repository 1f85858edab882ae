"""The ``evaluation`` and ``reference`` sections of a config file."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from ofmu.config.base import NonNegativeInt, PositiveInt, Section

Attack = Literal["relearning", "quantization_8", "quantization_4", "sampling", "few_shot"]
"""An attack that tries to recover forgotten rows."""

RELEARNING_STEPS, RELEARNING_ROWS = 10, 8
"""Training steps of the attack ``relearning``, and the forget rows that each of them reads."""

LM_EVAL_PREFIX = "lm_eval/"
"""Metrics of the lm-evaluation-harness are named ``lm_eval/<task>/<metric>``."""

HELD_BYTES = 2**30
"""Bytes of the target's logits that a divergence holds at once. The target is opened once for each portion of this
size."""

HELD_STATE_BYTES = 2**30
"""Bytes of hidden states of two models that a measurement of depth holds at once. Target and retrained model are
opened once for each portion of this size."""


class ReferenceConfig(Section):
    """The model that forget quality compares with. That model was trained without the forget rows."""

    source: Literal["retrain", "model", "scores", "none"] = "retrain"
    """``retrain``: train the reference on the retain rows. ``model``: a saved model. ``scores``: a file of scores that
    this package wrote, an official TOFU log, or a log of open-unlearning (``TOFU_EVAL.json``, ``MUSE_EVAL.json``).
    ``none``: no reference, so forget quality is reported as missing."""
    path: str | None = None
    """The saved model, or the file of scores. The sources ``model`` and ``scores`` need this path."""

    @model_validator(mode="after")
    def _require_path(self) -> ReferenceConfig:
        if self.source in ("model", "scores") and self.path is None:
            raise ValueError(f"reference.source '{self.source}' needs reference.path: name the model or the file")
        return self


class EvaluationConfig(Section):
    """The scores and metrics that an evaluation computes."""

    added_later: ClassVar[frozenset[str]] = frozenset(
        ("custom_metrics", "depth", "entities", "kl", "max_rows", "run_attacks")
    ) | frozenset(("lm_eval", "lm_eval_path", "lm_eval_limit", "lm_eval_fewshot"))

    batch_size: PositiveInt = 32
    """Rows of a forward pass over the longest rows of a set. Scoring gives short rows larger passes, of up to twice as
    many rows, in the same memory."""
    max_rows: PositiveInt | None = None
    """Upper bound on the rows of each evaluation set. The forget set is always scored whole. The rows with the lowest
    content hashes are kept, so every model is scored on the same rows. None: all rows."""
    max_new_tokens: PositiveInt = 200
    """Upper bound on the tokens of a generated answer. Greedy answers are the input of ROUGE-L recall."""
    truth_ratio: Literal["geometric", "arithmetic"] = "geometric"
    """The mean over the perturbed answers in the truth ratio."""
    rouge: bool = True
    """False: no text is generated. Model utility then lacks its ROUGE components, and the report gives the reason."""
    in_scope: bool = False
    """True: also score the hard questions about the forget rows: paraphrases, multi-hop questions and translations.
    The data must have such questions."""
    membership: bool = False
    """True: run membership attacks on forget rows against holdout rows. Gradient norms cost one backward pass per
    row."""
    alignment: bool = False
    """True: ``ofmu evaluate`` compares hidden states with those of the retrained model, layer by layer."""
    kl: bool = False
    """True: also measure KL(target ‖ model) on the answers to retain rows and to questions of general knowledge. A run
    then keeps the target's weights on the disk beside it. A search sets this key if an objective or a constraint names
    ``kl_retain`` or ``kl_general``."""
    depth: bool = False
    """True: a run and ``ofmu evaluate`` measure how deep the facts of the forget rows are forgotten, from the hidden
    states of the model, the target and the retrained model: ``unlearning_depth`` and ``logit_lens``. Models of L blocks
    read each of these rows 2·L + 4 times. A search sets this key if an objective or a constraint names one of the
    two."""
    entities: str | None = None
    """File of rows with the columns question, answer and entity, in any format of your own rows. It names the facts of
    forget rows that have no column ``entity``, such as TOFU's. Without any entity, a whole answer is the fact."""
    attacks: tuple[Attack, ...] = ()
    """Attacks of ``ofmu evaluate`` that try to recover forgotten rows. ``relearning``: a few training steps.
    ``quantization_8`` and ``quantization_4``: weights rounded to 8 or 4 bits. ``sampling``: several sampled answers to
    each question. ``few_shot``: questions after examples, which are other forget rows with their answers."""
    run_attacks: tuple[Attack, ...] = ()
    """The attacks that a run itself makes on its saved model, at its own cost. A search adds the attacks that its
    objectives and constraints name."""
    lm_eval: tuple[str, ...] = ()
    """Tasks, groups and tags of the lm-evaluation-harness, which ``ofmu evaluate`` and every run measure:
    ``lm_eval/<task>/<metric>``. Needs the extra ``lm-eval``."""
    lm_eval_path: str | None = None
    """Folder of your own task files, as lm-eval's ``--include_path``. Its functions and templates are code, which
    runs."""
    lm_eval_limit: PositiveInt | None = None
    """Upper bound on the documents of each task of ``lm_eval``: the first ones. None: all documents."""
    lm_eval_fewshot: NonNegativeInt | None = None
    """Examples in the prompt of each task of ``lm_eval``. A task that fixes 0 keeps it. None: what the task says."""
    custom_metrics: tuple[str, ...] = ()
    """Your own metrics, as ``my_package.my_module:my_function``. Each function has the type
    :data:`ofmu.evaluation.metrics.custom.CustomMetric`. A search adds the custom metrics among its objectives."""
