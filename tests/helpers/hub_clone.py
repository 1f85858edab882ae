"""A clone of a data set of the hub, whose README.md says where its configurations and splits are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd


def write_clone(folder: Path, parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write each part, such as ``raw/forget``, as a Parquet file. Return the folder."""
    configs: dict[str, list[str]] = {}
    for part, records in parts.items():
        subset, split = part.split("/")
        (folder / subset).mkdir(parents=True, exist_ok=True)
        pd.DataFrame(list(records)).to_parquet(folder / subset / f"{split}-00000-of-00001.parquet")
        configs.setdefault(subset, []).append(f"  - split: {split}\n    path: {subset}/{split}-*\n")
    listed = "".join(f"- config_name: {name}\n  data_files:\n{''.join(splits)}" for name, splits in configs.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    return folder
