"""Encoding of rows to token ids. Training, evaluation and generation share it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ofmu.data.chat_template import chat_prompt
from ofmu.data.config import DataConfig
from ofmu.data.rows import Example
from ofmu.errors import ConfigError, DataError, ModelError
from ofmu.io.cache import content_key, directory_hashes
from ofmu.io.files import expanded
from ofmu.models.files import has_tokenizer
from ofmu.models.hub import hub_reason, local_directory

Tokenizer = Any
"""A tokenizer of Transformers, whose classes have no usable static type."""


def load_tokenizer(path: str, revision: str | None = None, *, fallback: str | None = None) -> Tokenizer:
    """Load the tokenizer of a model directory or a hub model. The EOS token replaces a missing pad token.

    Args:
        path: a directory or a hub name.
        revision: branch, tag or commit on the hub. None: the default branch.
        fallback: a directory or a hub name whose tokenizer serves a model that has none. See ``model.tokenizer``.

    Raises:
        ModelError: there is no tokenizer, or the tokenizer has no EOS token.
    """
    from transformers import AutoTokenizer

    if fallback is not None and not has_tokenizer(local_directory(path, revision)):
        return load_tokenizer(fallback)
    folder = expanded(path)
    source = str(folder) if folder.is_dir() else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not folder.is_dir():
            raise ModelError(
                f"There is no model directory '{path}' with a tokenizer, and {hub_reason(error)}"
            ) from error
        raise ModelError(
            f"The model '{path}' has no tokenizer that can be loaded: name a directory or a hub model that has one as "
            "model.tokenizer, or save a tokenizer there with tokenizer.save_pretrained"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of '{path}' has no EOS token: set its eos_token and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_hash(source: str) -> str:
    """Return a hash of the tokenizer of a directory or a hub model.

    Raises:
        ModelError: as :func:`load_tokenizer` raises it.
    """
    with tempfile.TemporaryDirectory() as folder:
        load_tokenizer(source).save_pretrained(folder)
        return content_key(directory_hashes(Path(folder)))


def encode_example(tokenizer: Tokenizer, question: str, answer: str, config: DataConfig) -> Example:
    """Tokenise a question and its answer: the ids of :func:`encode_prompt`, the ids of the answer, EOS.

    If ``question`` is empty, ``answer`` is plain text. All tokens then are the answer, after BOS, or after the first
    token if the tokenizer has no BOS. An answer that is cut at ``config.max_length`` gets no EOS, since it does not end
    there. :class:`ofmu.data.row_encoder.RowEncoder` splits long plain text in place of cutting it.

    Raises:
        ConfigError: ``config.prompt_template`` has no ``{question}``.
        ModelError: the chat template does not parse, or refuses the question.
        DataError: the answer is empty, or the prompt leaves no room for the answer.
    """
    prompt, answer_ids = encode_uncut(tokenizer, question, answer, config)
    return Example(tuple(prompt + answer_ids[: config.max_length - len(prompt)]), len(prompt))


def encode_uncut(
    tokenizer: Tokenizer, question: str, answer: str, config: DataConfig, name: str = "a row"
) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and all ids of the answer with EOS. :func:`encode_example` describes both.

    ``name`` says in an error which row it is. The text of a row may be what is to be forgotten.

    Raises:
        ConfigError: ``config.prompt_template`` has no ``{question}``.
        ModelError: the chat template does not parse, or refuses the question.
        DataError: the answer is empty, or the prompt leaves no room for the answer.
    """
    if not answer.strip():
        raise DataError(f"The answer of {name} is empty: fill it in or remove the row")
    if not question:
        prompt, answer_ids = _bos_ids(tokenizer), _plain_ids(tokenizer, answer)
        if not prompt:
            prompt, answer_ids = answer_ids[:1], answer_ids[1:]
    else:
        prompt = encode_prompt(tokenizer, question, config)
        answer_ids = _answer_ids(tokenizer, prompt, question, answer, config)
    if len(prompt) >= config.max_length:
        raise DataError(
            f"The prompt of {name} takes {len(prompt)} tokens and leaves no room for an answer within "
            f"data.max_length {config.max_length}: raise data.max_length or shorten the question"
        )
    return prompt, [*answer_ids, tokenizer.eos_token_id]


def encode_prompt(tokenizer: Tokenizer, question: str, config: DataConfig) -> list[int]:
    """Tokenise the prompt before an answer. For plain text (an empty ``question``) that is BOS, or nothing.

    Raises:
        ConfigError: ``config.prompt_template`` has no ``{question}``.
        ModelError: the chat template does not parse, or refuses the question.
    """
    if not question:
        return _bos_ids(tokenizer)
    start, text = _start_and_text(tokenizer, question, config)
    return start + _plain_ids(tokenizer, text)


def encode_continuation(tokenizer: Tokenizer, context: str, continuation: str, max_length: int) -> tuple[Example, int]:
    """Tokenise a context and its continuation, without EOS. The scores of multiple-choice answers use this form.

    Context and continuation are tokenised together. The tokens after the context's own tokens are the continuation. If
    both are longer than ``max_length`` tokens, the start of the context is cut.

    Returns:
        The example, and the number of tokens that were cut.

    Raises:
        DataError: the continuation takes ``max_length`` tokens or more.
    """
    start = _start_ids(tokenizer)
    together = _plain_ids(tokenizer, context + continuation)
    # If the tokens at the border merge, the context keeps the number of tokens that it has without a continuation.
    context_length = len(_plain_ids(tokenizer, context))
    context_ids, continuation_ids = together[:context_length], together[context_length:]
    room = max_length - len(start) - len(continuation_ids)
    if not continuation_ids or room < 1:
        raise DataError(
            f"The choice '{continuation.strip()[:60]}' takes {len(continuation_ids)} tokens and does not fit "
            f"data.max_length {max_length}: raise data.max_length"
        )
    prompt = start + context_ids[-room:]
    return Example(tuple(prompt + continuation_ids), len(prompt)), max(len(context_ids) - room, 0)


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id of the padding token. Without a pad token that is EOS. Padding is masked, so any id works."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _start_and_text(tokenizer: Tokenizer, question: str, config: DataConfig) -> tuple[list[int], str]:
    """Return the ids of the special tokens before a prompt, and the text of the prompt."""
    if config.use_chat_template and getattr(tokenizer, "chat_template", None):
        # A chat template writes the special tokens as text.
        return [], chat_prompt(tokenizer, question, config.template_date)
    if "{question}" not in config.prompt_template:
        raise ConfigError("data.prompt_template has no {question}: write {question} where the question belongs")
    return _start_ids(tokenizer), config.prompt_template.replace("{question}", question)


def _start_ids(tokenizer: Tokenizer) -> list[int]:
    """Return BOS if the tokenizer adds BOS to a text, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else []


def _answer_ids(tokenizer: Tokenizer, prompt: list[int], question: str, answer: str, config: DataConfig) -> list[int]:
    start, text = _start_and_text(tokenizer, question, config)
    separator = "" if text[-1:].isspace() else " "
    together = start + _plain_ids(tokenizer, text + separator + answer)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    # The last token of the prompt merges with the answer. Tokenise both apart, so that generation sees the same prompt.
    return _plain_ids(tokenizer, separator + answer)


def _bos_ids(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
