"""The log of what trials reported: one JSON line per report, on disk before the report is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from ofmu.config.base import NonNegativeInt, PositiveInt
from ofmu.errors import DataError, StorageError
from ofmu.io.files import storage_errors, write_bytes


class LogLine(BaseModel):
    """What every line of a log holds. No value is converted: a number in quotes is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    trial: NonNegativeInt


class RoundLine(LogLine):
    """A trial's objectives after one of its rounds."""

    round: PositiveInt
    total: PositiveInt
    """Rounds of the whole trial."""
    values: dict[str, float | None]

    @model_validator(mode="after")
    def _check_round(self) -> Self:
        if self.round > self.total:
            raise ValueError(f"round {self.round} of {self.total}")
        return self


LineT = TypeVar("LineT", bound=LogLine)


class ReportLog(Generic[LineT]):
    """Appends lines to a file, and reads them after a restart.

    An incomplete last line, which a kill leaves, was never answered; it is dropped.

    Args:
        path: the file.
        schema: what a line holds.
        reader: who decides on the reports, in words for a message.
        shown: the file's name in a message; None: ``path``.
    """

    def __init__(self, path: Path, schema: TypeAdapter[LineT], reader: str, shown: str | None = None) -> None:
        self._path, self._schema, self._reader, self._shown = path, schema, reader, shown or str(path)
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

    def read(self) -> list[LineT]:
        """Return the lines; none if there is no file. A file that is refused stays as it is.

        Raises:
            DataError: the file holds something else.
            StorageError: the incomplete line cannot be removed.
        """
        if not self._path.is_file():
            return []
        whole, _, incomplete = self._path.read_bytes().rpartition(b"\n")
        found = [self._parse(line, number) for number, line in enumerate(whole.splitlines(), start=1)]
        if incomplete:
            write_bytes(self._path, whole + b"\n" if whole else b"")
        return found

    def _parse(self, line: bytes, number: int) -> LineT:
        try:
            return self._schema.validate_json(line)
        except ValidationError as error:
            # The reasons are pydantic's, one for each kind of line, and the fix is the same for all of them.
            raise DataError(
                f"{self._shown} is malformed in line {number}: delete the file to start {self._reader} anew"
            ) from error
