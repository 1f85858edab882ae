"""What a run records of the runs before it: ``chain.json`` in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ofmu.chain.records import ChainRecord
from ofmu.config.base import Section
from ofmu.run_files import read_stored, stored_values

CHAIN = "chain.json"


class UtilityRecord(Section):
    """One metric of utility, measured on the rows of the present run."""

    name: str
    first_target: float | None
    target: float | None
    """The value of the model from which the present run started."""
    result: float | None


class RunChainRecord(Section):
    """What ``chain.json`` holds."""

    format: Literal["ofmu-chain/1"] = "ofmu-chain/1"
    first_target: str
    """Directory of the first target of the chain."""
    first_target_hash: str
    first_path: str | None
    """``model.path`` in the config of the first run."""
    utility: list[UtilityRecord]
    chain: ChainRecord


def read_run_chain(directory: str | Path) -> RunChainRecord | None:
    """Return what ``chain.json`` of a run holds; None if the run follows no other run, or is not measured yet.

    Raises:
        RunError: the file is damaged.
    """
    path = Path(directory) / CHAIN
    stored = read_stored(path)
    with stored_values(path):
        try:
            return None if stored is None else RunChainRecord.model_validate(stored)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
