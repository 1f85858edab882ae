"""Reading JSON that a user names; written files go through :mod:`ofmu.io.files`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ofmu.errors import DataError


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, unreadable, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the name") from error
    except ValueError as error:
        raise DataError(f"The file {path} is not valid JSON ({error}): make it again") from error
