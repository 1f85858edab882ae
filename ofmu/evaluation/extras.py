"""What ``ofmu evaluate`` measures beyond the scores, where the config asks: alignment and attacks after the fact."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.data.encoding import load_tokenizer
from ofmu.data.rows import UnlearnData
from ofmu.engine import resolve_device
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.robustness.alignment import SETS, alignment
from ofmu.evaluation.robustness.attacks import quantization, relearning
from ofmu.evaluation.scores import Scores
from ofmu.models.language import load_model

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig

Report = dict[str, Any]

NO_RETRAINED = "there is no retrained model: run ofmu prepare with the same config, or give a saved model as reference"


def add_extras(
    report: Report, model: str, data: UnlearnData, config: UnlearnConfig, measured: Metrics,
    expected: Scores | None, reference: str | Path | None,
) -> None:  # fmt: skip
    """Add to ``report`` what ``evaluation.alignment`` and ``evaluation.attacks`` ask for; nothing otherwise.

    Numbers go into its ``metrics`` and ``reasons``; curves, layers and each part's ``seconds`` under the part's name
    (``alignment``, ``relearning``, ``quantization_8``, ``quantization_4``).

    Args:
        report: what :meth:`ofmu.evaluation.metrics.summary.Metrics.to_json` gave, changed in place.
        model: a saved model's directory or hub name.
        data: the rows.
        config: the run.
        measured: the model's metrics.
        expected: the reference's scores.
        reference: where they came from, perhaps the retrained model itself.

    Raises:
        OfmuError: a model cannot be read, or training it again diverged.
    """
    parts = [*(["alignment"] if config.evaluation.alignment else []), *dict.fromkeys(config.evaluation.attacks)]
    if not parts:
        return
    loaded, tokenizer = _load(model, config), load_tokenizer(model)
    runs: dict[str, Callable[[], Report]] = {
        "alignment": lambda: _alignment(loaded, tokenizer, data, config, reference),
        "relearning": lambda: relearning(loaded, tokenizer, data, config),
    }
    for bits in (8, 4):
        runs[f"quantization_{bits}"] = partial(
            quantization, loaded, tokenizer, data, config, measured, expected, bits=bits
        )
    for part in parts:
        started = time.monotonic()
        result = runs[part]()
        report["metrics"] |= result.pop("metrics")
        report["reasons"] |= result.pop("reasons")
        report[part] = result | {"seconds": time.monotonic() - started}


def _alignment(
    model: Any, tokenizer: Any, data: UnlearnData, config: UnlearnConfig, reference: str | Path | None
) -> Report:
    path = _retrained(reference, config)
    if path is None:
        names = [f"alignment_{name}_{kind}" for name in SETS for kind in ("cka", "cosine")]
        return {"metrics": dict.fromkeys(names, None), "reasons": dict.fromkeys(names, NO_RETRAINED), "layers": {}}
    return alignment(model, _load(path, config), tokenizer, data, config)


def _retrained(reference: str | Path | None, config: UnlearnConfig) -> str | None:
    """Return the model that the scores of ``reference`` are of, if it is at hand."""
    if reference is not None:
        place = Path(reference)
        if (place / "config.json").is_file():
            return str(place)
        if not place.exists() and place.suffix != ".json":
            return str(reference)  # a hub name
    from ofmu.preparer import find_retrained_model

    found = find_retrained_model(config)
    return None if found is None else str(found)


def _load(path: str, config: UnlearnConfig) -> Any:
    attention = "sdpa" if config.model.attention == "auto" else config.model.attention
    return load_model(path, attention).to(resolve_device(config.engine))
