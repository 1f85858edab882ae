"""The content that a run depends on: hashes of the rows, the model's files, the reference and the user's own modules.

A config names this content and does not hold it. A run directory stores the hashes, so that a run or a search never
continues on other content.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ofmu.data.encoding import tokenizer_hash
from ofmu.errors import RunError
from ofmu.evaluation.harness.tasks import folder_files
from ofmu.io.cache import content_key, model_hashes
from ofmu.io.files import file_hash, write_json
from ofmu.io.plugins import plugin_hash
from ofmu.io.text import listed
from ofmu.methods.registry import BUILT_IN
from ofmu.models.hub import cached_directory
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import CONTENT, read_stored
from ofmu.tasks.load import task_family
from ofmu.tasks.preparation import reference_hashes

ROWS = "the rows"


def content_of(config: UnlearnConfig, *, rows_hash: str | None = None, models: bool = True) -> dict[str, str]:
    """Return a hash of each part of the content, keyed by words for a message.

    Args:
        config: the run.
        rows_hash: the content hash of the rows, if the caller has loaded them.
        models: False leaves out the models and the reference, which take long to read.

    Raises:
        ConfigError: a module of the user cannot be imported.
        DataError: the rows or the reference cannot be read.
        ModelError: a model directory is missing.
    """
    family = task_family(config.data.kind)
    content = {ROWS: rows_hash or family.load_data(config).content_hash}
    model, reference = config.model, config.reference
    named = [("model.path", model.path, model.revision), ("model.base", model.base, None)] if models else []
    for key, path, revision in named:
        folder = None if path is None else cached_directory(path, revision)
        if folder is not None:
            content[f"the model at {key}"] = content_key(model_hashes(folder))
    if models and model.tokenizer is not None:
        content["the tokenizer at model.tokenizer"] = tokenizer_hash(model.tokenizer)
    if models and reference.source in ("model", "scores") and reference.path is not None:
        content["the reference at reference.path"] = content_key(reference_hashes(reference.path))
    # A built-in method needs no module beside it, so that module is not imported.
    is_built_in = config.method.name in BUILT_IN
    plugins = {name: key for name, key in config.plugins.items() if not (is_built_in and key == "method.module")}
    if plugins.pop(config.evaluation.lm_eval_path or "", None) is not None:
        files = {name: file_hash(path) for name, path in folder_files(str(config.evaluation.lm_eval_path)).items()}
        content["the tasks at evaluation.lm_eval_path"] = content_key(files)
    return content | {f"the code of {name}": plugin_hash(name, key) for name, key in plugins.items()}


def read_content(directory: Path) -> dict[str, str]:
    """Return the content that a directory was made from; empty for a directory of an older version.

    Raises:
        RunError: the file is damaged.
    """
    return read_stored(directory / CONTENT) or {}


def write_content(directory: Path, content: Mapping[str, str]) -> None:
    """Store the content that a directory is made from.

    Raises:
        StorageError: the file cannot be written.
    """
    write_json(directory / CONTENT, dict(content))


def check_content(directory: Path, earlier: Mapping[str, str], content: Mapping[str, str], kind: str = "run") -> None:
    """Check that the content is that of an earlier start. Parts that only one of the two has do not count.

    Raises:
        RunError: a part has changed.
    """
    changed = [part for part, value in content.items() if earlier.get(part, value) != value]
    if changed:
        raise RunError(
            f"{directory} holds a {kind} on other content, since {listed(changed)} changed after its start: restore "
            "what changed, or name a new directory"
        )
