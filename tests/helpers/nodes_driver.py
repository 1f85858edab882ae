"""Runs a search: ``nodes_driver.py RUN_DIR SETTINGS.json``, or ``nodes_driver.py RUN_DIR --resume OVERRIDE...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ofmu.errors import OfmuError
from tune import ParetoSearch

if __name__ == "__main__":
    run_dir, first, *overrides = sys.argv[1:]
    try:
        if first == "--resume":
            ParetoSearch.resume(run_dir, overrides, allow_code=True)
        else:
            ParetoSearch(json.loads(Path(first).read_text()), run_dir=run_dir).run()
    except OfmuError as error:
        sys.exit(f"{type(error).__name__}: {error}")
