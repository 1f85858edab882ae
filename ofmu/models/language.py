"""Causal language models: loaded from a hub name or a directory, built from scratch, and saved whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ofmu.errors import ModelError
from ofmu.io.files import storage_errors, sync
from ofmu.models.files import check_model_directory
from ofmu.models.hub import hub_reason
from ofmu.run_config import ScratchModelConfig

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""What is downloaded of a model: nothing that could be run."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that starts every text with BOS and can encode any string.

    Raises:
        ModelError: ``vocab_size`` has no room for the 256 bytes and the three special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 3:
        raise ModelError(
            f"model.scratch.vocab_size {vocab_size} has no room for the {len(alphabet)} bytes and 3 special "
            f"tokens: raise it to at least {len(alphabet) + 3}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    shape: ScratchModelConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int, max_positions: int = 2048
) -> LlamaForCausalLM:
    """Build an untrained fp32 Llama of this shape; the weights depend on ``seed`` alone, not on the global state."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


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


def directory_at_hand(path: str, revision: str | None = None) -> Path | None:
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
