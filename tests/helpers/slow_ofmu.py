"""OFMU with a pause after each round, for tests that kill a process in mid-run. Every round is logged to a file."""

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


class SlowOfmuConfig(OfmuConfig):
    """OFMU's settings, the pause and the log."""

    name: Literal["slow_ofmu"] = "slow_ofmu"  # type: ignore[assignment]
    pause: float = 0.1
    """Seconds of the pause, which comes before the round's checkpoint."""
    log: str
    """Rank 0 appends one JSON line to this file per round. A repeated round is logged again."""


@register("slow_ofmu")
class SlowOFMU(OFMU[Any]):
    """The same trajectory as OFMU's."""

    Config = SlowOfmuConfig
    title = "OFMU, slow"
    published: ClassVar[dict[str, Any]] = {"inner_lr": 0.03}

    def __init__(self, context: Context[Any], config: SlowOfmuConfig) -> None:
        super().__init__(context, config)
        self._settings, self._rank = config, context.engine.rank

    def rounds(self) -> Iterator[OuterRecord]:
        """Run the remaining rounds. Each round is logged before its checkpoint is written."""
        for record in super().rounds():
            if self._rank == 0:
                line = {"inner_lr": self._settings.inner_lr, "round": record.outer_step, "pid": os.getpid()}
                with Path(self._settings.log).open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            time.sleep(self._settings.pause)
            yield record
