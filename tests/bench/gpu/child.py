"""One part in its own process: ``python -m gpu.child MODULE SETTINGS ROWS``.

Each row is written as soon as it is known, so that a part that runs out of time keeps its rows.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from gpu.settings import Settings, Skip, sentence_of


def resolve(device: str, size: str, seed: int) -> Settings:
    """Return the settings, for which ``auto`` asks the machine.

    Raises:
        Skip: a card is asked for, and there is none.
    """
    chosen = "cpu" if device == "cpu" or not _has_card() else "cuda"
    if chosen != device != "auto":
        raise Skip("there is no CUDA card")
    return Settings(chosen, tiny=size == "tiny" or (size == "auto" and chosen == "cpu"), seed=seed)


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


def main(module: str, given: str, rows: Path) -> None:
    with rows.open("a", encoding="utf-8") as stream:

        def write(kind: str, content: Any) -> None:
            stream.write(json.dumps({kind: content}, ensure_ascii=False) + "\n")
            stream.flush()

        try:
            part: Any = importlib.import_module(module)
            settings = resolve(**json.loads(given))
            write("settings", settings.to_json())
            for row in part.measure(settings):
                write("row", row.to_json())
        except Skip as reason:
            write("skipped", str(reason))
        except Exception as error:
            write("failed", sentence_of(error))
            raise
        finally:
            from ofmu.io.environment import environment

            write("environment", environment())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
