"""A run whose target is prepared, on every rank. No rank may load a whole model, or gather more than one weight."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
import yaml

from ofmu import UnlearnConfig, unlearn
from ofmu.preparer import prepare
from ofmu.vectors.base import VectorSpace


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a rank holds the whole model")


if __name__ == "__main__":
    config = UnlearnConfig.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
    prepared = prepare(config)
    transformers.AutoModelForCausalLM.from_pretrained = refuse
    VectorSpace.gather = refuse  # type: ignore[method-assign]
    unlearn(config, sys.argv[2], prepared=prepared)
