"""Runs whose targets are prepared, on every rank. No rank may load a whole model, or gather more than one weight."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from ofmu import UnlearnConfig, unlearn
from ofmu.preparer import prepare
from ofmu.vectors.base import VectorSpace


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a rank holds the whole model")


if __name__ == "__main__":
    for place in sys.argv[1:]:
        config = UnlearnConfig.model_validate(yaml.safe_load((Path(place) / "config.yaml").read_text()))
        prepared = prepare(config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
            patch.setattr(VectorSpace, "gather", refuse)
            unlearn(config, Path(place) / "ranks", prepared=prepared)
