"""Load and save causal language models."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ofmu.errors import ModelError
from ofmu.io.files import storage_errors, sync
from ofmu.models.config import Attention, check_quantization_package
from ofmu.models.described_size import check_described_size
from ofmu.models.fixed_weights import with_fixed_weights
from ofmu.models.hub import load_failure, local_directory
from ofmu.models.quantization import is_quantized, quantize_model
from ofmu.models.randomness import disable_randomness_in_config
from ofmu.models.sharded_loading import ShardWeight, load_in_shards
from ofmu.models.source import keep_source_settings, keep_tokenizer_files
from ofmu.models.weight_stream import WeightStream, write_weights
from ofmu.models.weights import check_loaded, check_saved, check_written, quiet_loading, saves_under_other_names


def load_model(
    path: str | Path,
    attention: Attention = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    shard: ShardWeight | None = None,
    *,
    quantized: bool = False,
) -> PreTrainedModel:
    """Load a causal language model without dropout, from safetensors.

    Args:
        path: a directory or a hub name.
        attention: the attention implementation of Transformers. ``auto``: sdpa if the architecture has it, else eager.
        dtype: the type of the weights.
        revision: branch, tag or commit on the hub. None: the default branch.
        shard: keeps this rank's piece of each weight as soon as the weight is read, so that the model may be larger
            than the memory of a rank; then every rank calls this function. None: this process gets the whole model.
        quantized: True: the weights of the linear layers are quantised to 4 bits, each as soon as it is read. Not with
            ``shard``.

    Raises:
        ConfigError: ``quantized``, and the package for it is missing.
        ModelError: the directory is missing, or holds no model or no safetensors; the hub has no such model; the model
            is quantised; the architecture has no sdpa and ``attention`` is sdpa; or a weight is missing, unknown, of
            another shape, NaN or infinite; or ``quantized``, and no layer can be quantised.
    """
    if quantized:
        check_quantization_package()
    directory = local_directory(path, revision)
    try:
        model, info = _load(directory, "sdpa" if attention == "auto" else attention, dtype, shard, quantized)
    except ModelError:
        raise
    except Exception as error:
        # A directory's files can make Transformers raise anything.
        if not _lacks_sdpa(error):
            raise ModelError(load_failure(path, error)) from error
        if attention != "auto":
            raise ModelError(
                f"The architecture of the model {path} has no attention 'sdpa': set model.attention to auto or eager"
            ) from error
        return load_model(path, "eager", dtype, revision, shard, quantized=quantized)
    check_loaded(model, info, path)
    if quantized and not is_quantized(model):
        quantize_model(model)
    loaded: PreTrainedModel = model
    return loaded


def _load(directory: Path, attention: str, dtype: torch.dtype, shard: ShardWeight | None, quantized: bool) -> Any:
    """Return a model without dropout, and the loading info of Transformers."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    disable_randomness_in_config(config)

    def build() -> torch.nn.Module:
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model

    if shard is not None or quantized:
        # Of a quantised model, all is counted: the saved model, which is not quantised, stands whole once.
        check_described_size(build, directory, dtype, 1.0 if shard is None else shard.share)
        with quiet_loading():
            streamed = load_in_shards(directory, config, attention, dtype, shard, quantized=quantized)
        if streamed is not None:
            return streamed, {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}
    described = check_described_size(build, directory, dtype)
    with quiet_loading():
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # Transformers makes every weight that it reads trainable.
    for name, parameter in described.named_parameters():
        if not parameter.requires_grad:
            model.get_parameter(name).requires_grad_(False)
    return model, info


def _lacks_sdpa(error: Exception) -> bool:
    """Return whether Transformers refused the attention. No public attribute of a model's class says so before."""
    return isinstance(error, ValueError) and "scaled_dot_product_attention" in str(error)


def load_config(path: str | Path) -> Any:
    """Return the config, of Transformers, of a model directory or a hub model.

    Raises:
        ModelError: there is no such model, or its config cannot be read.
    """
    directory = local_directory(path)
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:
        # A config may make its class raise anything.
        raise ModelError(load_failure(path, error)) from error


def attention_for(attention: Attention, *, double_backward: bool) -> Attention:
    """Return the attention implementation to load. ``auto`` is eager if the run takes a double backward."""
    return "eager" if attention == "auto" and double_backward else attention


Weights = WeightStream | Mapping[str, torch.Tensor] | None
"""The weights to save: a stream of the trained ones, all of them by name, or None for those of the model."""


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *, weights: Weights = None
) -> Path:
    """Save model and tokenizer as safetensors. The directory appears when all its files are on disk.

    Args:
        model: the model.
        tokenizer: the tokenizer, or another object with ``save_pretrained``.
        directory: where to save. An existing directory is replaced.
        weights: the weights to save. To a stream of the trained ones, the buffers and the frozen parameters of
            ``model`` are added. None: the weights of ``model``.

    Raises:
        StorageError: the disk is full, or the directory cannot be written. An existing directory stays unchanged.
        ModelError: the saved files do not hold the model, bit for bit. An existing directory stays unchanged.
    """
    target = Path(directory)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(model, tokenizer, partial, weights)
            mode = _file_mode(partial)
            partial.chmod(mode | (mode & 0o444) >> 2)  # mkdtemp makes a private directory, and models are shared.
            for path in partial.rglob("*"):
                sync(path)
            sync(partial)
            _replace_directory(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def write_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, *, weights: Weights = None
) -> None:
    """Write model and tokenizer into an existing directory. A failed write leaves some files behind.

    Args:
        model: the model.
        tokenizer: the tokenizer, or another object with ``save_pretrained``.
        directory: where to write.
        weights: the weights to write, as :func:`save_model` takes them.

    Raises:
        StorageError: the disk is full, or the directory cannot be written.
        ModelError: the saved files do not hold the model, bit for bit.
    """
    with storage_errors(directory):
        _write(model, tokenizer, directory, weights)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, weights: Weights) -> None:
    if isinstance(weights, WeightStream):
        stream, dtypes = with_fixed_weights(model, weights), {weights.dtype}
        if not saves_under_other_names(model):
            # Without weights, Transformers writes the model's configs only.
            model.save_pretrained(directory, state_dict={})
            fingerprints = write_weights(directory, stream)
            _write_rest(model, tokenizer, directory, dtypes)
            check_written(model, directory, fingerprints)
            return
        tensors: Mapping[str, torch.Tensor] = stream.collect()
    else:
        tensors = model.state_dict() if weights is None else weights
        dtypes = {weight.dtype for weight in tensors.values() if weight.is_floating_point()}
    model.save_pretrained(directory, state_dict=dict(tensors))
    _write_rest(model, tokenizer, directory, dtypes)
    check_saved(model, directory, tensors)


def _file_mode(directory: Path) -> int:
    """Return the mode that the umask gives to a file. Reading the umask itself would change it for other threads."""
    return stat.S_IMODE((directory / "config.json").stat().st_mode)


def _write_rest(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, dtypes: Collection[torch.dtype]
) -> None:
    tokenizer.save_pretrained(directory)
    _store_dtype(directory / "config.json", dtypes)
    keep_source_settings(model.name_or_path, directory)
    keep_tokenizer_files(getattr(tokenizer, "name_or_path", ""), directory)
    # The safetensors library makes files that only their owner may read, and models are shared.
    for path in directory.glob("*.safetensors"):
        path.chmod(_file_mode(directory))


def _store_dtype(config: Path, dtypes: Collection[torch.dtype]) -> None:
    """Store the type of the saved weights. Transformers stores that of the model, which an engine may keep in bf16.

    ``from_pretrained`` loads weights in the stored type, so it would round weights in fp32 to bf16.
    """
    content = json.loads(config.read_text(encoding="utf-8"))
    names = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    if len(names) == 1 and content.get("dtype") != (dtype := names.pop()):
        config.write_text(json.dumps(content | {"dtype": dtype}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replace_directory(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``. If that fails, restore the old ``target``."""
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
