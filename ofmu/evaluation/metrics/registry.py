"""Every metric that is reported: its meaning, its direction and its source.

``python -m ofmu.evaluation.metrics.registry`` prints docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ofmu.errors import ConfigError, nearest_name
from ofmu.evaluation.metrics.reliability import reliability_section
from ofmu.evaluation.sets import FORGET, GENERAL_SETS, IN_SCOPE_KINDS, IN_SCOPE_PREFIX, LUME_PARTS, RETAIN

Direction = Literal["min", "max", "target"]

TOFU = "Maini et al., arXiv 2401.06121"
CARLINI = "Carlini et al., arXiv 2012.07805"
WANG = "Wang et al., arXiv 2406.13748"
TIRUMALA = "Tirumala et al., arXiv 2205.10770"
MUSE = "Shi et al., arXiv 2407.06460"
LUME = "Ramakrishna et al., arXiv 2502.15097"
RWKU = "Jin et al., arXiv 2406.10890"
SALUN = "Fan et al., arXiv 2310.12508"
DEPTH_SCORE = "unlearning depth score, arXiv 2605.24614"
OURS = "this project"

REFERENCE, HOLDOUT, GENERATION = "reference scores", "holdout rows", "evaluation.rouge"
WRONG = "perturbed answers"
KL = "evaluation.kl"
DEPTH = "evaluation.depth"
ATTACK = "evaluation.attacks "
"""What the metrics of an attack need begins with this text. The name of the attack follows."""
RETRAINED = "the retrained model"
DIVERGENCES = ("kl_retain", "kl_general")
"""Divergences from the target: on retain rows, and on the sets of general knowledge."""
DEPTHS = ("unlearning_depth", "logit_lens")
"""What the hidden states of a model still tell of the forget rows' facts, by activation patching and by reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One metric."""

    name: str
    direction: Direction
    """The direction that unlearning wants. ``target``: one value, :attr:`target`, is best."""
    lowest: float | None
    """Smallest value that the definition allows. None: unbounded."""
    highest: float | None
    """Largest value that the definition allows. None: unbounded."""
    meaning: str
    source: str
    needs: tuple[str, ...] = ()
    """Inputs without which the metric cannot be computed, beside the model and the rows."""
    target: float | None = None
    """The best value, if ``direction`` is ``target``."""

    @property
    def worst(self) -> float | None:
        """The worst value that the definition allows. None: unbounded, or ``direction`` is ``target``."""
        return {"min": self.highest, "max": self.lowest, "target": None}[self.direction]

    @property
    def attack(self) -> str | None:
        """The attack of ``evaluation.attacks`` that measures this metric; None if no attack does."""
        return next((need.removeprefix(ATTACK) for need in self.needs if need.startswith(ATTACK)), None)

    @property
    def better(self) -> str:
        """Which values are better, in words: ``lower``, ``higher``, or ``near`` a number."""
        near = "–" if self.target is None else f"near {self.target:g}"
        return {"min": "lower", "max": "higher", "target": near}[self.direction]


def metric(name: str) -> MetricInfo:
    """Return the registry's entry of a metric.

    Raises:
        ConfigError: no metric has this name. The sentence names the nearest metric.
    """
    if name not in REGISTRY:
        raise ConfigError(f"Unknown metric '{name}': {nearest_name(name, REGISTRY)}")
    return REGISTRY[name]


def markdown() -> str:
    """Return the registry as a Markdown document."""
    head = "| metric | better | range | meaning | needs | source |\n|---|---|---|---|---|---|\n"
    rows = "".join(
        f"| `{info.name}` | {info.better} | {_range(info)} | {info.meaning} | {', '.join(info.needs) or '–'} "
        f"| {info.source} |\n"
        for info in REGISTRY.values()
    )
    return (
        "# Metrics\n\nMade by `python -m ofmu.evaluation.metrics.registry`. A metric that cannot be computed is "
        "reported as missing with its reason, never as 0 or 1.\n\n"
        "ROUGE compares the words that `rouge_score` finds: a to z and digits, stemmed. If it drops a whole word of "
        "the right answer in another script, ROUGE compares the words of all scripts instead; in scripts without "
        "spaces, such as Chinese, Japanese and Thai, each character is a word.\n\n"
        f"{head}{rows}\n{reliability_section()}"
    )


def _range(info: MetricInfo) -> str:
    low, high = ("" if bound is None else f"{bound:g}" for bound in (info.lowest, info.highest))
    return f"{low or '−∞'} … {high or '∞'}"


def _minimise(name: str, meaning: str, source: str, *needs: str, highest: float | None = 1.0) -> MetricInfo:
    return MetricInfo(
        name=name, direction="min", lowest=0.0, highest=highest, meaning=meaning, source=source, needs=needs
    )


def _maximise(name: str, meaning: str, source: str, *needs: str, highest: float | None = 1.0) -> MetricInfo:
    return MetricInfo(
        name=name, direction="max", lowest=0.0, highest=highest, meaning=meaning, source=source, needs=needs
    )


def _forget_quality(prefix: str, rows: str, *more: str) -> Iterator[MetricInfo]:
    needs = (REFERENCE, WRONG, *more)
    statistic = f"Kolmogorov-Smirnov statistic between the model's and the reference's truth ratios on {rows}"
    yield _minimise(f"{prefix}ks_statistic", statistic, TOFU, *needs)
    yield _maximise(f"{prefix}forget_quality", f"p-value of the Kolmogorov-Smirnov test on {rows}", TOFU, *needs)
    yield MetricInfo(
        name=f"{prefix}log10_forget_quality",
        direction="max",
        lowest=None,
        highest=0.0,
        meaning=f"base-10 logarithm of `{prefix}forget_quality`; finite if the p-value underflows",
        source=TOFU,
        needs=needs,
    )


def _forgetting() -> Iterator[MetricInfo]:
    yield from _forget_quality("", "forget rows")
    yield _maximise("forget_quality_rows", "rows in the Kolmogorov-Smirnov test", TOFU, REFERENCE, WRONG, highest=None)
    yield _minimise("forget_rouge", "ROUGE-L recall of the greedy answers to forget questions", TOFU, GENERATION)
    yield _minimise("forget_probability", "mean length-normalised probability of the forget answers", TOFU)
    truth_ratio = "mean of min(R, 1/R) over forget rows, R = wrong/right; 1: right and wrong are equally likely"
    yield _maximise("forget_truth_ratio", truth_ratio, TOFU, WRONG)
    extraction = "share of an answer, counted from its end, that the teacher-forced model predicts without an error"
    yield _minimise("extraction_strength", extraction, f"{CARLINI}; {WANG}")
    yield _minimise("exact_memorization", "share of answer tokens that are the model's first choice", TIRUMALA)


def _utility() -> Iterator[MetricInfo]:
    yield _maximise(
        "model_utility",
        "harmonic mean of probability, ROUGE and truth ratio of all sets but the forget rows",
        TOFU,
    )
    for name in (RETAIN, *GENERAL_SETS):
        shown = name.replace("_", " ")
        normalised = ", normalised over right and wrong answers" if name in GENERAL_SETS else ""
        needs = (WRONG,) if name in GENERAL_SETS else ()
        yield _maximise(f"{name}_rouge", f"ROUGE-L recall of the greedy answers on {shown}", TOFU, GENERATION)
        yield _maximise(f"{name}_probability", f"mean probability of the answers on {shown}{normalised}", TOFU, *needs)
        yield _maximise(f"{name}_truth_ratio", f"mean of max(0, 1 − wrong/right) on {shown}", TOFU, WRONG)


def _divergence() -> Iterator[MetricInfo]:
    for name, rows in zip(DIVERGENCES, ("retain rows", "the sets of general knowledge"), strict=True):
        meaning = (
            f"mean KL(target ‖ model) per answer token on {rows}, in nats; 0: the model answers as the target does"
        )
        yield _minimise(name, meaning, OURS, KL, highest=None)


def _fluency() -> Iterator[MetricInfo]:
    where = "in the answers generated to forget questions"
    for n in (1, 2, 3):
        meaning = f"number of different word {n}-grams over the number of all word {n}-grams {where}"
        yield _maximise(f"forget_distinct_{n}", meaning, "Li et al., arXiv 1510.03055", GENERATION)
    repeated = f"share of repeated word 4-grams {where}"
    yield _minimise("forget_repetition", repeated, "Welleck et al., arXiv 1908.04319", GENERATION)
    yield _maximise("forget_answer_words", f"mean number of words {where}", OURS, GENERATION, highest=None)


def _membership() -> Iterator[MetricInfo]:
    lowest = "mean log-probability of the 40 % least likely tokens"
    attacks = {
        "loss": ("the answer's loss", "Yeom et al., arXiv 1709.01604", ()),
        "zlib": ("the answer's loss per byte of the compressed answer", CARLINI, ()),
        "min_k": (f"the {lowest}", "Shi et al., arXiv 2310.16789", ()),
        "min_k_plus": (f"the {lowest}, standardised over the vocabulary", "Zhang et al., arXiv 2404.02936", ()),
        "reference": ("the answer's loss minus the reference's loss", CARLINI, (REFERENCE,)),
        "gradient_norm": ("the norm of the loss gradient", "Wang et al., arXiv 2402.17012", ("whole gradients",)),
    }
    for name, (statistic, source, needs) in attacks.items():
        yield MetricInfo(
            name=f"membership_{name}",
            direction="target",
            target=0.5,
            lowest=0.0,
            highest=1.0,
            meaning=f"AUC of an attack that tells forget rows from holdout rows by {statistic}",
            source=source,
            needs=(HOLDOUT, *needs),
        )
    yield MetricInfo(
        name="privacy_leakage",
        direction="target",
        target=0.0,
        lowest=None,
        highest=None,
        meaning="relative difference between 1 − AUC of min-k and the retrained model's 1 − AUC, in percent; "
        "below 0: forget rows still look like training rows",
        source=MUSE,
        needs=(HOLDOUT, REFERENCE),
    )


def _in_scope() -> Iterator[MetricInfo]:
    for kind, adjective in IN_SCOPE_KINDS.items():
        prefix, questions = f"{IN_SCOPE_PREFIX}{kind}_", f"{adjective} questions"
        rows = f"the {adjective} forget questions"
        for info in _forgetting():
            if info.name.startswith(("forget_", "ex")) and "quality" not in info.name:
                name = prefix + info.name.removeprefix("forget_")
                build = _maximise if info.direction == "max" else _minimise
                yield build(name, f"`{info.name}` on {rows}", info.source, *info.needs, questions)
        yield from _forget_quality(prefix, rows, questions)
    variance = "over the hard sets; at least two sets must have a value"
    for name, of in (("in_scope_forget_quality_variance", "forget_quality"), ("in_scope_ks_variance", "ks_statistic")):
        yield _minimise(name, f"variance of `{of}` {variance}", OURS, REFERENCE, highest=0.25)


def _alignment() -> Iterator[MetricInfo]:
    states = "the answer states of the model and of the retrained model"
    for name in (FORGET, RETAIN):
        cka = f"linear CKA between {states} on {name} rows, mean over layers"
        yield _maximise(f"alignment_{name}_cka", cka, "Kornblith et al., arXiv 1905.00414", RETRAINED)
        yield MetricInfo(
            name=f"alignment_{name}_cosine",
            direction="max",
            lowest=-1.0,
            highest=1.0,
            meaning=f"mean cosine between {states} on {name} rows, mean over layers",
            source=OURS,
            needs=(RETRAINED,),
        )


def _depth() -> Iterator[MetricInfo]:
    gap = "0: the model knows what the target knows, 1: as little as the retrained model"
    meanings = {
        "unlearning_depth": "share of the retrained model's loss of log-probability of the facts, when hidden states "
        "are patched into the target layer by layer, that the model has too",
        "logit_lens": "the same share, when the target's output layer reads the hidden states of each layer",
    }
    for name in DEPTHS:
        yield _maximise(name, f"{meanings[name]}; {gap}", DEPTH_SCORE, DEPTH, RETRAINED)


def _attacks() -> Iterator[MetricInfo]:
    source, needs = "Hu et al., arXiv 2406.13356", f"{ATTACK}relearning"
    for name, shown in (("probability", "forget probability"), ("extraction_strength", "extraction strength")):
        final = (
            f"{shown} of the other forget rows after 10 training steps on 8 forget rows (of 8 rows or fewer: of all)"
        )
        yield _minimise(f"relearning_{name}", final, source, needs)
        mean = f"mean {shown} of the other forget rows over the 10 training steps"
        yield _minimise(f"relearning_{name}_area", mean, source, needs)
    for bits in (8, 4):
        prefix, needs = f"quantization_{bits}_", f"{ATTACK}quantization_{bits}"
        for info in (*_forgetting(), *_utility()):
            if info.name in ("forget_probability", "extraction_strength", "ks_statistic", "model_utility"):
                build = _maximise if info.direction == "max" else _minimise
                meaning = f"`{info.name}` after the weights are rounded to {bits} bits"
                yield build(prefix + info.name, meaning, "Zhang et al., arXiv 2410.16454", *info.needs, needs)
    leakage = "mean over at most 64 forget rows of the largest ROUGE-L recall among 8 answers sampled at temperature 1"
    yield _minimise("sampled_leakage", leakage, "leak@k, Reisizadeh et al., arXiv 2511.04934", f"{ATTACK}sampling")
    shown = (
        "mean over at most 64 forget rows of the ROUGE-L recall of the answer after at most four other forget rows "
        "in the prompt"
    )
    yield _minimise("few_shot_leakage", shown, "Lynch et al., arXiv 2402.16835", f"{ATTACK}few_shot")


def _choices() -> Iterator[MetricInfo]:
    source, needs = "Li et al., arXiv 2403.03218", "multiple-choice questions"
    kinds = {"letter": "whose most likely letter is right", "choice": "whose most likely text per character is right"}
    for kind, right in kinds.items():
        forget = f"share of forget questions {right}; chance is 0.25 with four choices"
        yield _minimise(f"forget_{kind}_accuracy", forget, source, needs)
        yield _maximise(f"utility_{kind}_accuracy", f"share of the other questions {right}", source, needs)


def _knowledge() -> Iterator[MetricInfo]:
    f1, questions = "ROUGE-L F1 of the greedy", "questions of MUSE"
    verbatim = f"{f1} continuations of forget excerpts"
    yield _minimise("verbatim_memorization", verbatim, MUSE, questions, GENERATION)
    answers = f"{f1} answers to questions about the"
    yield _minimise("forget_knowledge_memorization", f"{answers} forget texts", MUSE, questions, GENERATION)
    yield _maximise("retain_knowledge_memorization", f"{answers} retain texts", MUSE, questions, GENERATION)


def _lume() -> Iterator[MetricInfo]:
    kinds = {"regurgitation": "mean ROUGE-L recall of completions", "knowledge": "share of questions answered exactly"}
    for name in (FORGET, RETAIN):
        build = _minimise if name == FORGET else _maximise
        for part in LUME_PARTS:
            task, _, kind = part.partition("_")
            yield build(f"{name}_{part}", f"{kinds[kind]} on {name} rows of task {task[-1]}", LUME, "LUME", GENERATION)
    aggregate = "harmonic mean of LUME's six retain numbers and of 1 − each of the six forget numbers"
    yield _maximise("lume_task_aggregate", aggregate, LUME, "LUME", GENERATION)


def _rwku() -> Iterator[MetricInfo]:
    kinds = {"fb": "sentences with a blank", "qa": "questions", "aa": "adversarial probes"}
    for kind, probes in kinds.items():
        meaning = f"ROUGE-L recall of the greedy answers to {probes} about the person"
        yield _minimise(f"rwku_forget_{kind}", meaning, RWKU, "RWKU", GENERATION)
    for kind in ("fb", "qa"):
        meaning = f"ROUGE-L recall of the greedy answers to {kinds[kind]} about neighbours of the person"
        yield _maximise(f"rwku_neighbor_{kind}", meaning, RWKU, "RWKU", GENERATION)
    loss = "mean loss in nats per token of training texts about"
    yield _maximise("rwku_mia_forget", f"{loss} the person (FM)", RWKU, "RWKU", highest=None)
    yield _minimise("rwku_mia_retain", f"{loss} something else (RM)", RWKU, "RWKU", highest=None)


def _vision() -> Iterator[MetricInfo]:
    metrics = {
        "unlearning_accuracy": "100 − accuracy on forget images, in percent",
        "remaining_accuracy": "accuracy on retain images, in percent",
        "testing_accuracy": "accuracy on test images, in percent",
        "mia_efficacy": "share of forget images that a membership classifier calls unseen, in percent",
    }
    for name, meaning in metrics.items():
        yield _maximise(name, meaning, SALUN, "images", highest=100.0)
    for name in metrics:
        gap = f"absolute difference between `{name}` and the retrained model's"
        yield _minimise(f"{name}_gap", gap, SALUN, "images", REFERENCE, highest=100.0)
    yield _minimise("average_gap", "mean of the four gaps", SALUN, "images", REFERENCE, highest=100.0)


def _cost() -> Iterator[MetricInfo]:
    costs = {
        "gradient_evaluations": "minibatch gradients that the run computed",
        "tokens": "tokens that training read, padding excluded",
        "seconds": "seconds of all phases of the run together",
        "peak_memory_bytes": "largest peak memory of all ranks, in bytes",
        "outer_steps_taken": "outer steps that the run took; an early stop takes fewer",
    }
    for name, meaning in costs.items():
        yield _minimise(name, meaning, OURS, "a run", highest=None)


GROUPS: dict[str, tuple[MetricInfo, ...]] = {
    "Forgetting": tuple(_forgetting()),
    "Utility": tuple(_utility()),
    "Divergence from the target": tuple(_divergence()),
    "Fluency of the answers to forget questions": tuple(_fluency()),
    "Membership and privacy": tuple(_membership()),
    "Hard questions about the forget rows": tuple(_in_scope()),
    "Alignment with the retrained model": tuple(_alignment()),
    "Depth of forgetting": tuple(_depth()),
    "Attacks": tuple(_attacks()),
    "Multiple choice": tuple(_choices()),
    "Knowledge of texts": tuple(_knowledge()),
    "LUME": tuple(_lume()),
    "RWKU": tuple(_rwku()),
    "Images": tuple(_vision()),
    "Cost": tuple(_cost()),
}
"""Every metric, by the title of its group."""

REGISTRY: dict[str, MetricInfo] = {info.name: info for group in GROUPS.values() for info in group}
"""Every metric by name, in the order of the docs."""


if __name__ == "__main__":
    print(markdown(), end="")
