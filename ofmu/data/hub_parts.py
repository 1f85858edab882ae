"""Data sets of the hub whose configurations have splits: each pair is a part, such as ``knowmem/forget_qa``.

A local directory is a clone of the data set, or has a folder for each configuration and a JSONL file for each split.
"""

from __future__ import annotations

from collections.abc import Callable

from ofmu.data.files import Record, read_records
from ofmu.data.hub import load_hub_split, local_copy
from ofmu.errors import ConfigError, DataError, nearest_name
from ofmu.io.files import expanded, looked_for
from ofmu.models.hub import looks_like_hub_id

ReadPart = Callable[[str], list[Record]]
"""Returns the records of a part."""


def part_reader(source: str, benchmark: str, folders: str, example: str) -> ReadPart:
    """Return a function that reads a part of a benchmark.

    Args:
        source: a hub name or a local directory.
        benchmark: the benchmark's name, for errors.
        folders: what the directory holds, for errors.
        example: a part, for errors.

    Raises:
        DataError: there is no such directory. The function raises it for a part that cannot be loaded.
        ConfigError: the function raises it for a name that is not a configuration and a split.
    """
    folder = expanded(source)
    if not folder.is_dir() and not looks_like_hub_id(source):
        raise DataError(
            f"There is no {benchmark} directory {looked_for(source)}: set data.path to the folder that holds {folders}"
        )

    def read(part: str) -> list[Record]:
        names = part.split("/")
        if len(names) != 2 or not all(name.replace("_", "").isalnum() for name in names):
            raise ConfigError(f"'{part}' is no part of {benchmark}: name configuration and split, such as {example}")
        subset, split = names
        file = folder / subset / f"{split}.jsonl"
        # A clone of the hub's data set has a README.md that says where its parts are.
        if folder.is_dir() and (file.is_file() or not (folder / "README.md").is_file()):
            return read_records(file)
        name = str(folder) if folder.is_dir() else source
        return list(load_hub_split(name, split, subset=subset, instead=local_copy("JSONL")))

    return read


def text_column(records: list[Record], name: str, source: str, benchmark: str) -> list[str]:
    """Return the texts of one column.

    Args:
        records: the rows of a part.
        name: the column.
        source: what the rows come from, for errors.
        benchmark: the benchmark's name, for errors.

    Raises:
        DataError: there are no rows, or a row has no text in the column.
    """
    if not records:
        raise DataError(f"The part {source} of {benchmark} is empty: name a part with at least one row")
    found = []
    for number, record in enumerate(records, start=1):
        if name not in record:
            raise DataError(f"Row {number} of {source} has no column '{name}': {nearest_name(name, map(str, record))}")
        if not isinstance(record[name], str) or not record[name].strip():
            raise DataError(f"Row {number} of {source} has no text in column '{name}': write text there")
        found.append(record[name])
    return found
