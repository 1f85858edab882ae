"""Load and save causal language models. A save is complete or leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ofmu.errors import ModelError
from ofmu.io.files import storage_errors, sync
from ofmu.models.files import check_model_directory
from ofmu.models.hub import hub_reason

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""What is downloaded of a model: nothing that could be run."""


def load_model(
    path: str | Path,
    attention: Literal["sdpa", "eager"] = "sdpa",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a causal LM from a local directory or by hub name, safetensors only and with dropout off.

    Raises:
        ModelError: the directory is missing, holds no model or no safetensors, or the hub does not answer.
    """
    check_model_directory(path)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        _switch_dropout_off(config)
        return AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(_load_sentence(path, error)) from error


def local_directory(path: str, revision: str | None = None) -> Path:
    """Return the local directory of a model, downloading what a hub name stands for on first use.

    Raises:
        ModelError: there is no such directory, or the hub has no such model.
    """
    check_model_directory(path)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(_load_sentence(path, error)) from error


def cached_directory(path: str, revision: str | None = None) -> Path | None:
    """Return the same without asking the hub; None where what a hub name stands for was not downloaded yet.

    Raises:
        ModelError: there is no such directory.
    """
    check_model_directory(path)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Save model and tokenizer as safetensors under ``directory``, which appears whole or not at all.

    Args:
        state_dict: Weights to save in place of the model's own, gathered from shards for instance.

    Raises:
        StorageError: the disk is full or the place cannot be written; an older model there stays as it was.
    """
    target = Path(directory)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(model, tokenizer, partial, state_dict)
            partial.chmod(0o755)  # mkdtemp keeps directories private, but models are meant to be shared
            for path in partial.rglob("*"):
                sync(path)
            sync(partial)
            _put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer into ``directory`` file by file; see :func:`save_model` for all or nothing.

    Raises:
        StorageError: the disk is full or the place cannot be written.
    """
    with storage_errors(directory):
        _write(model, tokenizer, directory, state_dict)


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state_dict: Mapping[str, torch.Tensor] | None,
) -> None:
    model.save_pretrained(directory, state_dict=None if state_dict is None else dict(state_dict))
    tokenizer.save_pretrained(directory)


def _put_in_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(old / target.name)
        partial.rename(target)
    finally:
        if not target.exists():
            (old / target.name).rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _load_sentence(path: str | Path, error: Exception) -> str:
    if not Path(path).is_dir():
        return f"There is no model directory '{path}', and {hub_reason(error)}"
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 200 else reason[:200] + "…"
    return f"The model directory {path} cannot be loaded ({reason}): save the model again"


def _switch_dropout_off(config: Any) -> None:
    # A finite difference compares two passes, so both must see the same network.
    for name, value in vars(config).items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)


def attention_for(attention: Literal["auto", "sdpa", "eager"], *, double_backward: bool) -> Literal["sdpa", "eager"]:
    """Return the attention implementation to load. ``auto`` is eager if the run takes a double backward, else sdpa."""
    if attention == "auto":
        return "eager" if double_backward else "sdpa"
    return attention
