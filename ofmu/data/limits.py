"""The tokens and positions that a model has rows for."""

from __future__ import annotations

from typing import Any

from ofmu.data.rows import Example
from ofmu.errors import DataError, ModelError


class ModelLimits:
    """Checks token ids and lengths against a model. Beyond them, a model fails with an IndexError, or computes noise.

    Args:
        tokenizer: the model's tokenizer. Its special tokens are checked here.
        model_config: the model's config, of Transformers.

    Raises:
        ModelError: the embeddings have no row for the padding token, BOS or EOS.
    """

    def __init__(self, tokenizer: Any, model_config: Any) -> None:
        text = model_config.get_text_config()
        self._tokenizer = tokenizer
        self._tokens: int | None = getattr(text, "vocab_size", None)
        self._positions: int | None = getattr(text, "max_position_embeddings", None)
        for token in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                self._check_token(int(token))

    def check(self, example: Example, name: str) -> None:
        """Check a row.

        Args:
            example: the row.
            name: what the row is, for errors.

        Raises:
            ModelError: the embeddings have no row for a token.
            DataError: the row is longer than the model has positions.
        """
        self._check_token(max(example.input_ids))
        if self._positions is not None and len(example.input_ids) > self._positions:
            raise DataError(
                f"A row of {name} takes {len(example.input_ids)} tokens, and the model has {self._positions} "
                f"positions: set data.max_length to at most {self._positions}"
            )

    def _check_token(self, token: int) -> None:
        if self._tokens is not None and token >= self._tokens:
            text = self._tokenizer.convert_ids_to_tokens(token)
            raise ModelError(
                f"The tokenizer gives '{text}' the id {token}, and the model has embeddings for {self._tokens} tokens: "
                "save the model with resize_token_embeddings, or the tokenizer without that token (a missing pad token "
                "is no error)"
            )
