"""Find models on this machine and on the Hugging Face hub, and explain in one clause why the hub gave none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from ofmu.errors import ModelError
from ofmu.io.files import expanded, looked_for
from ofmu.io.library_logging import asking_the_hub
from ofmu.models.files import check_model_directory

_DOWNLOADED_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""Patterns of the files of a model that are downloaded. None of these files can run code."""


def looks_like_hub_id(source: str) -> bool:
    """Return whether ``source`` has the form ``owner/name`` and is no local directory."""
    folder = expanded(source)
    return not (folder.is_dir() or folder.is_absolute() or source.startswith((".", "~"))) and source.count("/") == 1


def local_directory(path: str | Path, revision: str | None = None) -> Path:
    """Return the local directory of a model. A hub model is downloaded on first use.

    Args:
        path: a directory or a hub name.
        revision: branch, tag or commit on the hub. None: the default branch.

    Raises:
        ModelError: there is no such directory, the hub has no such model, or
            :func:`ofmu.models.files.check_model_directory` refuses the model.
    """
    from huggingface_hub.errors import HFValidationError

    existing = _existing_directory(path)
    if existing is not None:
        return existing
    try:
        downloaded = _snapshot(str(path), revision, only_cached=False)
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(_nowhere(path, error)) from error
    check_model_directory(downloaded)
    return downloaded


def _nowhere(path: str | Path, error: Exception) -> str:
    """Return the sentence for a model that is neither here nor on the hub."""
    if "/" not in str(path):
        # A word alone is a path more often than one of the few hub models without an owner.
        return f"There is no model directory {looked_for(path)}, and {hub_reason(error)}"
    if Path(path).parent.is_dir():
        return (
            f"There is no model directory {looked_for(path)}: check the path. If it is a hub name, {hub_reason(error)}"
        )
    return f"There is no model directory '{path}', and {hub_reason(error)}"


def cached_directory(path: str, revision: str | None = None) -> Path | None:
    """Return the local directory of a model; None if a hub model was not downloaded before. Nothing is downloaded.

    Raises:
        ModelError: there is no such directory.
    """
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    existing = _existing_directory(path)
    if existing is not None:
        return existing
    try:
        return _snapshot(path, revision, only_cached=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def config_directory(path: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model's ``config.json``. It may lack weights. None: it is not on this machine yet.

    Raises:
        ModelError: there is no such directory.
    """
    folder = expanded(path)
    # The other readers of a directory refuse one without weights.
    return folder if (folder / "config.json").is_file() else cached_directory(path, revision)


def _existing_directory(path: str | Path) -> Path | None:
    check_model_directory(path)
    folder = expanded(path)
    return folder if folder.is_dir() else None


def _snapshot(path: str, revision: str | None, *, only_cached: bool) -> Path:
    from huggingface_hub import snapshot_download

    files = _DOWNLOADED_FILES
    with asking_the_hub():
        return Path(snapshot_download(path, revision=revision, allow_patterns=files, local_files_only=only_cached))


def load_failure(path: str | Path, error: Exception) -> str:
    """Return the sentence for a model whose directory is there and cannot be loaded.

    Args:
        path: the model's name.
        error: what a library raised. Where the cause is not known here, the sentence ends with the library's own words.
    """
    from safetensors import SafetensorError

    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= 300 else reason[:300] + "…"
    start = f"The model directory {path} cannot be loaded"
    if isinstance(error, SafetensorError):
        return f"{start}, since its weights are damaged ({reason}): copy or download the model again"
    if "not recognize this architecture" in reason or "Unrecognized model" in reason:
        return f"{start}, since Transformers does not know its model_type: upgrade transformers, or name another model"
    if "not a valid JSON file" in reason:
        return f"{start}, since a file is no valid JSON ({reason}): copy or download the model again"
    if isinstance(error, ImportError):
        return f"{start}, since a package is missing ({reason}): install that package"
    if isinstance(error, MemoryError) or "can't allocate memory" in reason or "out of memory" in reason:
        return f"{start}, since memory is short ({reason}): free memory, or name a smaller model"
    return f"{start}, and Transformers says: {type(error).__name__}: {reason}"


def hub_reason(error: BaseException) -> str:
    """Return a clause that says why the hub gave nothing, and the fix.

    Args:
        error: what a library of the hub raised. Transformers wraps the errors of huggingface_hub, so the whole chain of
            causes is searched for a known error.
    """
    from huggingface_hub import constants, errors

    unreachable = (
        "the hub cannot be reached, and its cache on this machine does not hold it: check the name and the connection"
    )
    if constants.HF_HUB_OFFLINE:
        unreachable = (
            "HF_HUB_OFFLINE blocks the hub, and its cache on this machine does not hold it: unset that variable"
        )
    clauses: tuple[tuple[type[Exception], str], ...] = (
        (errors.HFValidationError, "it is no valid hub name: check the path, or give a name like 'org/model'"),
        (
            errors.GatedRepoError,
            "the hub gives access only on request: request access on its page, then run 'hf auth login'",
        ),
        (
            errors.RepositoryNotFoundError,
            "the hub has no public repository of that name: check the name, or run 'hf auth login' if it is private",
        ),
        (errors.RevisionNotFoundError, "the hub has no such revision of it: check the revision's name"),
        (errors.LocalEntryNotFoundError, unreachable),
        (errors.OfflineModeIsEnabled, unreachable),
        # Datasets raises ConnectionError without a cause. The others are the system's errors below an HTTP client's.
        (ConnectionError, unreachable),
        (TimeoutError, unreachable),
        (socket.gaierror, unreachable),
        (errors.EntryNotFoundError, "the hub's repository of that name lacks a file of a model: check the name"),
    )
    for cause in _causes(error):
        for kind, clause in clauses:
            if isinstance(cause, kind):
                return clause
    return "the hub has nothing of that name: check the name and the connection"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
