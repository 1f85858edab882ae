"""What a saved model keeps of the model that it was loaded from: the dropout of its config, and its tokenizer's files.

A run switches dropout off in memory. Whoever fine-tunes the saved model further expects the dropout of the source.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofmu.models.files import read_object
from ofmu.models.randomness import is_random

_TOKENIZER_FILES = (
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""Files from which other programs, such as llama.cpp, make a tokenizer. Transformers itself saves tokenizer.json."""


def keep_source_settings(source: str, directory: Path) -> None:
    """Write the source's dropout and other noise into the config of a saved model.

    Args:
        source: directory that the model was loaded from. If there is no config, nothing changes.
        directory: the saved model.
    """
    if not (source and Path(source).is_dir()):
        return
    path = directory / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    restored = _with_randomness(saved, read_object(Path(source) / "config.json"))
    if restored != saved:
        path.write_text(json.dumps(restored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def keep_tokenizer_files(source: str, directory: Path) -> None:
    """Copy the tokenizer's files that Transformers does not save.

    Args:
        source: directory that the tokenizer was loaded from. If there is none, nothing is copied.
        directory: the saved model. Its own files are not replaced.
    """
    for name in _TOKENIZER_FILES if source and Path(source).is_dir() else ():
        if (Path(source) / name).is_file() and not (directory / name).exists():
            shutil.copyfile(Path(source) / name, directory / name)


def _with_randomness(saved: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(saved)
    for name, value in source.items():
        if isinstance(value, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = _with_randomness(result[name], value)
        elif is_random(name, value) and result.get(name) == 0:
            result[name] = value
    return result
