"""The log of what trials reported: one JSON line per report, on disk before the report is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.errors import DataError, StorageError
from ofmu.io.files import storage_errors, write_text


class ReportLog:
    """Appends lines to a file, and reads them after a restart.

    An incomplete last line, which a kill leaves, was never answered; it is dropped.

    Args:
        path: the file.
        reader: who decides on the reports, in words for a message.
    """

    def __init__(self, path: Path, reader: str) -> None:
        self._path, self._reader = path, reader
        self._write_error: StorageError | None = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line. After a failed write the file may end in half a line, so no further line is written.

        Raises:
            StorageError: this line or an earlier line could not be stored.
        """
        if self._write_error is not None:
            raise self._write_error
        try:
            with storage_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, allow_nan=False) + "\n")
        except StorageError as error:
            self._write_error = error
            raise

    def read(self) -> list[dict[str, Any]]:
        """Return the lines; none if there is no file.

        Raises:
            DataError: the file holds something else.
            StorageError: the incomplete line cannot be removed.
        """
        if not self._path.is_file():
            return []
        try:
            text = self._path.read_text(encoding="utf-8")
            whole, _, incomplete = text.rpartition("\n")
            if incomplete:
                write_text(self._path, whole + "\n" if whole else "")
            return [dict(json.loads(line)) for line in whole.splitlines()]
        except StorageError:
            raise
        except (ValueError, TypeError) as error:
            raise self.malformed(error) from error

    def malformed(self, error: Exception) -> DataError:
        """Return the error of a file that holds something else."""
        return DataError(f"{self._path} is malformed ({error}): delete it to start {self._reader} anew")
