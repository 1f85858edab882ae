"""Every metric that is reported: what it means, which way is better, and where it comes from.

``python -m ofmu.evaluation.metrics.registry`` prints the table of docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ofmu.errors import ConfigError, nearest_name
from ofmu.evaluation.sets import GENERAL_SETS, IN_SCOPE, RETAIN

Direction = Literal["min", "max", "target"]

TOFU = "Maini et al., arXiv 2401.06121"
CARLINI = "Carlini et al., arXiv 2012.07805"
WANG = "Wang et al., arXiv 2406.13748"
TIRUMALA = "Tirumala et al., arXiv 2205.10770"
SALUN = "Fan et al., arXiv 2310.12508"
OURS = "this project"

REFERENCE, HOLDOUT, GENERATION = "reference scores", "holdout rows", "evaluation.rouge"
WRONG = "perturbed answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One metric. ``direction`` is what unlearning wants; ``target``: a value in between is best."""

    name: str
    direction: Direction
    lowest: float | None
    """Smallest value that the definition allows; None: unbounded."""
    highest: float | None
    meaning: str
    source: str
    needs: tuple[str, ...] = ()
    """What the metric cannot be computed without, beyond the model and its rows."""
    target: float | None = None
    """The best value, where ``direction`` is ``target``."""

    @property
    def worst(self) -> float | None:
        """The worst value that the definition allows; None: unbounded, or on both sides of a target."""
        return {"min": self.highest, "max": self.lowest, "target": None}[self.direction]


def metric(name: str) -> MetricInfo:
    """Return what is known of a metric.

    Raises:
        ConfigError: no metric has this name; the nearest one is offered.
    """
    if name not in REGISTRY:
        raise ConfigError(f"Unknown metric '{name}': {nearest_name(name, REGISTRY)}")
    return REGISTRY[name]


def markdown() -> str:
    """Return the registry as a Markdown document."""
    head = "| metric | better | range | meaning | needs | source |\n|---|---|---|---|---|---|\n"
    rows = "".join(
        f"| `{one.name}` | {_better(one)} | {_range(one)} | {one.meaning} | {', '.join(one.needs) or '–'} "
        f"| {one.source} |\n"
        for one in REGISTRY.values()
    )
    return (
        "# Metrics\n\nMade by `python -m ofmu.evaluation.metrics.registry`. A metric that cannot be computed is reported as "
        f"missing with its reason, never as 0 or 1.\n\n{head}{rows}"
    )


def _better(one: MetricInfo) -> str:
    words = {"min": "lower", "max": "higher", "target": f"near {one.target:g}" if one.target is not None else "–"}
    return words[one.direction]


def _range(one: MetricInfo) -> str:
    low, high = ("" if bound is None else f"{bound:g}" for bound in (one.lowest, one.highest))
    return f"{low or '−∞'} … {high or '∞'}"


def _low(name: str, meaning: str, source: str, *needs: str, highest: float | None = 1.0) -> MetricInfo:
    return MetricInfo(
        name=name, direction="min", lowest=0.0, highest=highest, meaning=meaning, source=source, needs=needs
    )


def _high(name: str, meaning: str, source: str, *needs: str, highest: float | None = 1.0) -> MetricInfo:
    return MetricInfo(
        name=name, direction="max", lowest=0.0, highest=highest, meaning=meaning, source=source, needs=needs
    )


def _near(
    name: str, target: float, lowest: float | None, highest: float | None, meaning: str, source: str, *needs: str
) -> MetricInfo:
    return MetricInfo(
        name=name, direction="target", target=target, lowest=lowest, highest=highest, meaning=meaning, source=source,
        needs=needs,
    )  # fmt: skip


def _quality(prefix: str, rows: str, *more: str) -> Iterator[MetricInfo]:
    needs = (REFERENCE, WRONG, *more)
    yield _low(f"{prefix}ks_statistic", f"largest gap between both truth-ratio distributions on {rows}", TOFU, *needs)
    yield _high(f"{prefix}forget_quality", f"p-value that both truth ratios on {rows} are alike", TOFU, *needs)
    yield MetricInfo(
        name=f"{prefix}log10_forget_quality", direction="max", lowest=None, highest=0.0, source=TOFU, needs=needs,
        meaning="its logarithm, finite where the p-value underflows",
    )  # fmt: skip


def _forgetting() -> Iterator[MetricInfo]:
    yield from _quality("", "forget rows")
    yield _high("forget_quality_rows", "rows that the test compares", TOFU, REFERENCE, WRONG, highest=None)
    yield _low("forget_rouge", "ROUGE-L recall of the greedy answers to forget questions", TOFU, GENERATION)
    yield _low("forget_probability", "mean length-normalised probability of the forget answers", TOFU)
    yield _high("forget_truth_ratio", "1 where right and wrong answers are equally likely", TOFU, WRONG)
    yield _low("extraction_strength", "share of an answer that its beginning gives away", f"{CARLINI}; {WANG}")
    yield _low("exact_memorization", "share of answer tokens that are the model's first choice", TIRUMALA)


def _utility() -> Iterator[MetricInfo]:
    yield _high("model_utility", "harmonic mean of the components below, as far as the data has them", TOFU)
    for name in (RETAIN, *GENERAL_SETS):
        shown = name.replace("_", " ")
        normalised = ", among the offered ones" if name in GENERAL_SETS else ""
        needs = (WRONG,) if name in GENERAL_SETS else ()
        yield _high(f"{name}_rouge", f"ROUGE-L recall of the greedy answers on {shown}", TOFU, GENERATION)
        yield _high(f"{name}_probability", f"mean probability of the answers on {shown}{normalised}", TOFU, *needs)
        yield _high(f"{name}_truth_ratio", f"mean of max(0, 1 − wrong/right) on {shown}", TOFU, WRONG)


def _fluency() -> Iterator[MetricInfo]:
    where = "in the answers generated to forget questions"
    for n in (1, 2, 3):
        meaning = f"different over all word {n}-grams {where}"
        yield _high(f"forget_distinct_{n}", meaning, "Li et al., arXiv 1510.03055", GENERATION)
    repeated = f"share of repeated word 4-grams {where}"
    yield _low("forget_repetition", repeated, "Welleck et al., arXiv 1908.04319", GENERATION)
    yield _high("forget_answer_words", f"mean number of words {where}", OURS, GENERATION, highest=None)


def _membership() -> Iterator[MetricInfo]:
    attacks = {
        "loss": ("the answer's loss", "Yeom et al., arXiv 1709.01604", ()),
        "zlib": ("loss per byte of the compressed answer", CARLINI, ()),
        "min_k": ("the 40 % least likely tokens", "Shi et al., arXiv 2310.16789", ()),
        "min_k_plus": ("the same, standardised over the vocabulary", "Zhang et al., arXiv 2404.02936", ()),
        "reference": ("loss beyond the reference's", CARLINI, (REFERENCE,)),
        "gradient_norm": ("the norm of the loss gradient", "Wang et al., arXiv 2402.17012", ("whole gradients",)),
    }
    for name, (meaning, source, needs) in attacks.items():
        sentence = f"AUC of telling forget from holdout rows by {meaning}"
        yield _near(f"membership_{name}", 0.5, 0.0, 1.0, sentence, source, HOLDOUT, *needs)
    leakage = "percent by which 1 − AUC of min-k differs from the retrained model's; below 0: still a member"
    yield _near("privacy_leakage", 0.0, None, None, leakage, "Shi et al., arXiv 2407.06460", HOLDOUT, REFERENCE)


def _in_scope() -> Iterator[MetricInfo]:
    asked = {"paraphrase": "paraphrased", "multi_hop": "multi-hop", "translation": "translated"}
    for short in IN_SCOPE:
        prefix, needs = f"in_scope_{short}_", f"{asked[short]} questions"
        rows = f"the {asked[short]} forget questions"
        forgetting = [
            one for one in _forgetting() if one.name.startswith(("forget_", "ex")) and "quality" not in one.name
        ]
        for one in forgetting:
            name = prefix + one.name.removeprefix("forget_")
            made = _high if one.direction == "max" else _low
            yield made(name, f"`{one.name}` on {rows}", one.source, *one.needs, needs)
        yield from _quality(prefix, rows, needs)
    spread = "variance over the hard sets that have it, two at least"
    yield _low("in_scope_forget_quality_variance", f"`forget_quality`: {spread}", OURS, REFERENCE, highest=0.25)
    yield _low("in_scope_ks_variance", f"`ks_statistic`: {spread}", OURS, REFERENCE, highest=0.25)


def _alignment() -> Iterator[MetricInfo]:
    for name in ("forget", RETAIN):
        cka = f"linear CKA with the retrained model's answer states on {name} rows, mean over layers"
        yield _high(f"alignment_{name}_cka", cka, "Kornblith et al., arXiv 1905.00414", "the retrained model")
        cosine = f"their mean cosine on {name} rows, mean over layers"
        yield MetricInfo(
            name=f"alignment_{name}_cosine", direction="max", lowest=-1.0, highest=1.0, meaning=cosine, source=OURS,
            needs=("the retrained model",),
        )  # fmt: skip


def _attacks() -> Iterator[MetricInfo]:
    source, needs = "Hu et al., arXiv 2406.13356", "evaluation.attacks relearning"
    for name, shown in (("probability", "forget probability"), ("extraction_strength", "extraction strength")):
        yield _low(f"relearning_{name}", f"{shown} of unseen forget rows after 10 steps on 8 others", source, needs)
        yield _low(f"relearning_{name}_area", "its mean level over those steps", source, needs)
    for bits in (8, 4):
        prefix, needs = f"quantization_{bits}_", f"evaluation.attacks quantization_{bits}"
        for one in (*_forgetting(), *_utility()):
            if one.name in ("forget_probability", "extraction_strength", "ks_statistic", "model_utility"):
                made = _high if one.direction == "max" else _low
                meaning = f"`{one.name}` once weights are rounded to {bits} bits"
                yield made(prefix + one.name, meaning, "Zhang et al., arXiv 2410.16454", *one.needs, needs)


def _choices() -> Iterator[MetricInfo]:
    source, needs = "Li et al., arXiv 2403.03218", "multiple-choice questions"
    ways = {"letter": "by the likeliest letter", "choice": "by the likeliest text, per character"}
    for way, meaning in ways.items():
        forget = f"share of forget questions answered rightly {meaning}; one in four is chance"
        yield _low(f"forget_{way}_accuracy", forget, source, needs)
        yield _high(
            f"utility_{way}_accuracy", f"share of the other questions answered rightly {meaning}", source, needs
        )


def _vision() -> Iterator[MetricInfo]:
    yield _high("unlearning_accuracy", "100 − accuracy on forget images, in percent", SALUN, "images", highest=100.0)
    yield _high("remaining_accuracy", "accuracy on retain images, in percent", SALUN, "images", highest=100.0)
    yield _high("testing_accuracy", "accuracy on test images, in percent", SALUN, "images", highest=100.0)
    mia = "percent of forget images that a membership classifier calls unseen"
    yield _high("mia_efficacy", mia, SALUN, "images", highest=100.0)
    for name in ("unlearning_accuracy", "remaining_accuracy", "testing_accuracy", "mia_efficacy"):
        yield _low(f"{name}_gap", f"distance of `{name}` to retraining", SALUN, "images", REFERENCE, highest=100.0)
    yield _low("average_gap", "mean of the four gaps", SALUN, "images", REFERENCE, highest=100.0)


def _cost() -> Iterator[MetricInfo]:
    yield _low("gradient_evaluations", "minibatch gradients taken", OURS, "a run", highest=None)
    yield _low("tokens", "tokens read in training, padding excluded", OURS, "a run", highest=None)
    yield _low("seconds", "time of the run's phases together", OURS, "a run", highest=None)
    yield _low("peak_memory_bytes", "largest memory of any rank", OURS, "a run", highest=None)
    yield _low("outer_steps_taken", "outer steps until the end or an early stop", OURS, "a run", highest=None)


_GROUPS = (_forgetting, _utility, _fluency, _membership, _in_scope, _alignment, _attacks, _choices, _vision, _cost)

REGISTRY: dict[str, MetricInfo] = {one.name: one for group in _GROUPS for one in group()}
"""Every metric by name, in the order of the docs."""


if __name__ == "__main__":
    print(markdown(), end="")
