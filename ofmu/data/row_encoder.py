"""Rows as token ids: long plain text becomes several examples, and a warning says how much of the answers is cut."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_uncut
from ofmu.data.limits import ModelLimits
from ofmu.data.rows import Example, Prompting, Row
from ofmu.io.text import counted


def with_prompting(encoding: DataConfig, prompting: Prompting | None) -> DataConfig:
    """Return the data section with the prompts of a set."""
    if prompting is None:
        return encoding
    return encoding.model_copy(update={"prompt_template": prompting.template, "use_chat_template": False})


@dataclass
class _Count:
    """What was cut in one set."""

    answers: int = 0
    cut_answers: int = 0
    tokens: int = 0
    cut_tokens: int = 0


class RowEncoder:
    """Encodes rows and counts what is cut at ``config.max_length``.

    Args:
        tokenizer: the model's tokenizer.
        config: the data section.
        model_config: the model's config, of Transformers.
        prompting: the prompts that a benchmark fixes for the rows. None: those of the data section.

    Raises:
        ModelError: the model has no embedding for the padding token, BOS or EOS.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: DataConfig, model_config: Any, prompting: Prompting | None = None
    ) -> None:
        self._tokenizer, self._config = tokenizer, with_prompting(config, prompting)
        self._limits = ModelLimits(tokenizer, model_config)
        self._counts: dict[str, _Count] = {}

    def encode_rows(self, set_name: str, rows: Iterable[Row]) -> list[Example]:
        """Encode questions with their answers, and plain text. See :meth:`encode`."""
        return [example for row in rows for example in self.encode(set_name, row.question, row.answer)]

    def encode(self, set_name: str, question: str, answer: str) -> tuple[Example, ...]:
        """Return the examples of one answer.

        An answer to a question is one example, and it is cut. Plain text is split into chunks of at most
        ``config.max_length`` tokens, and only the first chunk is kept with ``config.truncation``. Every chunk starts
        with BOS. Without BOS, a chunk starts with the last token of the chunk before. So every token but the first is
        the answer of one chunk. Only the last chunk has EOS. If EOS does not fit into that chunk, EOS is left out.

        Args:
            set_name: the name of the set in the warning, and in errors.
            question: empty for plain text.
            answer: the answer, or the plain text.

        Raises:
            ConfigError: ``config.prompt_template`` has no ``{question}``.
            DataError: the answer is empty, the prompt leaves no room for it, or the model has too few positions.
            ModelError: the model has no embedding for a token, or the chat template refuses the question.
        """
        name = f"text {self._counts.get(set_name, _Count()).answers + 1} of {set_name}"
        prompt, ids = encode_uncut(self._tokenizer, question, answer, self._config, name)
        room = self._config.max_length - len(prompt)
        chunks = [ids[start : start + room] for start in range(0, len(ids), room)]
        if len(chunks) > 1 and len(chunks[-1]) == 1:
            del chunks[-1]  # EOS alone
        if question or self._config.truncation:
            chunks = chunks[:1]
        self._add(set_name, len(ids) - 1, sum(map(len, chunks)))
        has_bos = prompt[:1] == [self._tokenizer.bos_token_id]
        starts = [prompt, *(prompt if has_bos else chunk[-1:] for chunk in chunks[:-1])]
        examples = tuple(Example(tuple(start + chunk), len(start)) for start, chunk in zip(starts, chunks, strict=True))
        for example in examples:
            self._limits.check(example, f"the {set_name}")
        return examples

    def warn_of_cuts(self) -> None:
        """Warn once of all answers that were cut, with the share of each set's tokens. Say nothing if none was cut."""
        parts = [
            f"{name} {count.cut_tokens / count.tokens:.1%} of the tokens, "
            f"in {count.cut_answers} of {counted(count.answers, 'text')}"
            for name, count in self._counts.items()
            if count.cut_tokens
        ]
        if parts:
            warnings.warn(
                f"Texts are cut at data.max_length {self._config.max_length}, and what is cut is neither trained nor "
                f"scored ({'; '.join(parts)}): raise data.max_length",
                stacklevel=2,
            )

    def _add(self, set_name: str, tokens: int, kept: int) -> None:
        count = self._counts.setdefault(set_name, _Count())
        cut = max(0, tokens - kept)
        count.answers += 1
        count.tokens += tokens
        count.cut_tokens += cut
        count.cut_answers += cut > 0
