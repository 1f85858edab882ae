"""OFMU at a chosen pace, for tests that do harm in mid-run: every round is written down and then waits a little."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.ofmu.bilevel import OFMU, OuterRecord
from ofmu.methods.ofmu.config import OfmuConfig


class PacedConfig(OfmuConfig):
    """OFMU's settings and the pace."""

    name: Literal["paced"] = "paced"  # type: ignore[assignment]
    pause: float = 0.1
    """Seconds after each round, in which its checkpoint is not yet taken."""
    log: str
    """File that gets one JSON line per round really run, on rank 0."""


@register("paced")
class Paced(OFMU[Any]):
    """The same trajectory as OFMU's."""

    Config = PacedConfig
    title = "OFMU, paced"
    published: ClassVar[dict[str, Any]] = {"inner_lr": 0.03}

    def __init__(self, context: Context[Any], settings: PacedConfig) -> None:
        super().__init__(context, settings)
        self._pace, self._rank = settings, context.engine.rank

    def rounds(self) -> Iterator[OuterRecord]:
        """Run what is left, each round noted before its checkpoint can be."""
        for record in super().rounds():
            if self._rank == 0:
                line = {"inner_lr": self._pace.inner_lr, "round": record.outer_step, "pid": os.getpid()}
                with Path(self._pace.log).open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            time.sleep(self._pace.pause)
            yield record
