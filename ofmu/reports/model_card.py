"""The model card of an unlearned model: ``README.md`` beside its weights, with front matter as the hub reads it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ofmu.content import read_content
from ofmu.data.tofu import HUB_NAME as TOFU_HUB_NAME
from ofmu.errors import RunError
from ofmu.evaluation.metrics.registry import REGISTRY
from ofmu.evaluation.weak_reference import weak_reference
from ofmu.io.files import check_regular, write_text
from ofmu.methods.registry import method_class
from ofmu.models.hub import looks_like_hub_id
from ofmu.reports.numbers import RATES_TITLE, number, rates_text
from ofmu.reports.stored import RETRAINED, TARGET, StoredRun
from ofmu.reports.verdict import verdict
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import check_is_no_link

CARD = "README.md"
CARD_MARK = "<!-- This card was made by ofmu. Delete this line to keep your own changes. -->"
"""A card without this line is not ours, and is never replaced."""

_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN = (
    "ks_statistic",
    "forget_quality",
    "forget_quality_rows",
    "model_utility",
    "forget_probability",
    "forget_rouge",
    "extraction_strength",
    "exact_memorization",
    "privacy_leakage",
    "membership_min_k",
    "verbatim_memorization",
    "forget_knowledge_memorization",
    "retain_knowledge_memorization",
    "forget_letter_accuracy",
    "utility_letter_accuracy",
    "unlearning_accuracy",
    "remaining_accuracy",
    "testing_accuracy",
    "mia_efficacy",
    "average_gap",
)
"""The metrics of a card, of text and of images. Those that a run lacks are left out."""


def model_card(run: StoredRun, *, of_request: bool = False) -> str:
    """Return the card of a complete run's model, as Markdown.

    Texts of rows are not part of a card, and paths on this machine are cut to their last name.

    Args:
        run: the run.
        of_request: whether the model is the result of ``ofmu forget``, whose evidence reports more than the run.

    Raises:
        RunError: the run is not complete, or its config cannot be read.
    """
    if run.config is None or not run.report:
        raise RunError(f"{run.directory} holds no complete run, so its model has no card: finish the run")
    # Jinja and the library of the hub are slow to import, and a card is the last thing that a command makes.
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    config, metrics, baselines = run.config, dict(run.report["metrics"]), run.baseline_metrics
    title, source = run.method_title, method_class(config.method.name).source if config.method.module is None else ""
    models: dict[str, Mapping[str, Any]] = {"this model": metrics, **baselines}
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["number"] = number
    text = yaml.safe_dump(_without_places(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True).strip()
    body = templates.get_template("model_card.md.j2").render(
        mark=CARD_MARK,
        title=_plain(f"{title} on {config.data.source}"),
        start=_start(config),
        method=_plain(title),
        source=_plain(source),
        verdict=_plain(verdict(metrics, baselines)),
        models=list(models),
        rows=[
            {"name": name, "better": REGISTRY[name].better, "values": [each.get(name) for each in models.values()]}
            for name in _SHOWN
            if metrics.get(name) is not None
        ],
        reference=RETRAINED in models,
        content={_plain(name): value for name, value in _content(run).items()},
        limits=list(_limits(config, metrics, baselines, of_request=of_request)),
        versions=_versions(run.report),
        seed=config.seed_of_run,
        rates_title=RATES_TITLE,
        rates=rates_text(run.report.get("learning_rates") or {}),
        fence=_fence(text),
        config=text,
    )
    data = ModelCardData(**_front_matter(config, metrics), ignore_metadata_errors=False)
    return f"---\n{data.to_yaml()}\n---\n{body}"


def write_model_card(run: StoredRun, directory: Path, *, of_request: bool = False) -> Path:
    """Write ``README.md`` into a model's directory, and return its path. For ``of_request`` see :func:`model_card`.

    Raises:
        RunError: see :func:`model_card`; or a file or a link of this name is there, and ofmu did not make it.
        StorageError: the disk refuses the write.
    """
    path = directory / CARD
    check_is_no_link(path)
    if path.exists() and not is_model_card(path):
        raise RunError(f"{path} is not of ofmu, so it is not replaced: rename it to get a model card")
    text = model_card(run, of_request=of_request)
    # A command that runs nothing changes no file of a model.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def write_card_or_warn(run: StoredRun, directory: Path, *, of_request: bool = False) -> Path | None:
    """Write a card at the end of a finished run. What goes wrong becomes one warning, so the run stays finished."""
    try:
        return write_model_card(run, directory, of_request=of_request)
    except Exception as error:  # A card reads what many versions and users' modules wrote, so anything may be raised.
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(
            f"The model card {directory / CARD} could not be written ({reason}); the model is complete without it",
            stacklevel=2,
        )
        return None


def is_model_card(path: Path) -> bool:
    """Return whether a file is a card that ofmu made, and that still has its mark."""
    try:
        check_regular(path)
        return CARD_MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _front_matter(config: UnlearnConfig, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the hub's metadata. The hub shows the metrics of ``eval_results`` beside the card."""
    from huggingface_hub import EvalResult

    is_text = config.data.kind == "language"
    task = "text-generation" if is_text else "image-classification"
    hub_data = config.data.path or (TOFU_HUB_NAME if config.data.source == "tofu" else None)
    known = hub_data is not None and looks_like_hub_id(hub_data)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=hub_data if known and hub_data is not None else config.data.source,
            dataset_name=config.data.source,
            metric_type=name,
            metric_value=metrics[name],
        )
        for name in _SHOWN
        if metrics.get(name) is not None
    ]
    start = config.model.path
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["machine-unlearning", "ofmu", config.method.name],
        "datasets": [hub_data] if known else None,
        "base_model": start if start is not None and looks_like_hub_id(start) else None,
    }
    name = f"{config.method.name} on {config.data.source}"
    # The hub's format wants a name for the model if there are results.
    return fields | ({"model_name": name, "eval_results": results} if results else {})


def _start(config: UnlearnConfig) -> str:
    """Return what the run started from."""
    path = config.model.path
    if path is None:
        return "a small model that was trained from scratch for this run"
    name = path if looks_like_hub_id(path) else Path(path).name
    return f"`{_plain(name)}`" if config.model.is_target else f"`{_plain(name)}`, trained on the rows first,"


def _limits(
    config: UnlearnConfig, metrics: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]], *, of_request: bool
) -> Iterator[str]:
    """Yield what the numbers of this card do not show."""
    yield (
        "Unlearning is approximate. The metrics describe answers to the scored rows. They do not show that the weights "
        "hold no trace of the forget rows."
    )
    if RETRAINED not in baselines:
        yield "No model was trained without the forget rows, so it is not known how such a model would answer."
    weakness = weak_reference(baselines.get(TARGET, {}), baselines.get(RETRAINED, {}))
    if weakness is not None:
        yield f"{weakness[0].upper()}{weakness.partition(':')[0][1:]}."
    rows = metrics.get("forget_quality_rows")
    if isinstance(rows, int | float):
        yield f"The test of forget quality reads {rows:.0f} rows. A large p-value does not prove that models are equal."
    if config.model.adapter.is_quantized:
        yield (
            "The run quantised the linear weights of its start to 4 bits (NF4) and trained adapters beside them. This "
            "model holds the dequantised weights plus the adapters, and the metrics of the target are those of the "
            "quantised start."
        )
    if of_request:
        # The card is written before the attacks, which the evidence reports with those that were not made.
        yield (
            "The numbers of this card were measured before any attack. Which attacks were made on this model, such as "
            "relearning, quantisation and membership, and what they gave, is in the evidence of its erasure request."
        )
        yield (
            f"The numbers of this card are of one seed ({config.seed_of_run}). The evidence reports the runs on "
            "further seeds, if there were any."
        )
        return
    if metrics.get("membership_min_k") is None and config.data.kind == "language":
        yield "No membership attack was run."
    if metrics.get("relearning_probability") is None and config.data.kind == "language":
        yield "It was not tested whether a few training steps or quantisation bring the forget rows back."
    yield f"One seed ({config.seed_of_run}) was run. Other seeds give other numbers."


def _content(run: StoredRun) -> dict[str, str]:
    stored = read_content(run.directory)
    return stored or {"the rows": str(run.report.get("data_hash", ""))}


def _versions(report: Mapping[str, Any]) -> str:
    versions = dict((report.get("environment") or {}).get("versions") or {})
    names = ("ofmu", "torch", "transformers", "deepspeed")
    return ", ".join(f"{name} {_plain(str(versions[name]))}" for name in names if versions.get(name))


def _without_places(value: Any) -> Any:
    """Return JSON values in which every path on this machine is cut to its last name."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return Path(value).name
    return value


def _plain(text: str) -> str:
    """Return text without what Markdown, its tables and HTML read as more than text."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", " ".join(text.split()))


def _fence(text: str) -> str:
    """Return a fence that is longer than any row of backticks in the text."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
